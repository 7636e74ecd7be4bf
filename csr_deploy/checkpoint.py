"""Checkpoints: one file with everything needed to rebuild, evaluate and export a network.

Two containers hold the same record: torch's zip format, read with `weights_only=True` and nothing else
ever, and safetensors, whose metadata carries the record as JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csr_deploy.atomic import atomic_write
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import CheckpointError, CsrError, MissingDependencyError, ModelError
from csr_deploy.models import Architecture

FORMAT = "csr-deploy-checkpoint"
VERSION = 1
_SAFETENSORS = ".safetensors"
_SAVE = "Save its state_dict with csr_deploy.checkpoint.save_checkpoint."


class PickledCodeError(CheckpointError):
    """A file that would have to run code to be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network.

    Attributes:
        architecture: What to build.
        state: Tensors of the module's state_dict.
        labels: Class names, as many as logits.
        preprocessing: From a picture to the network's input.
        training: Record of how it was trained: recipe, data, seed, versions; plain values.
        metrics: Figures measured after training; plain values.
    """

    architecture: Architecture
    state: Mapping[str, Tensor]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            CheckpointError: If tensors are missing, unexpected, of another shape or not finite.
        """
        self.check()
        model = self.architecture.build()
        model.load_state_dict(dict(self.state))
        return model.eval()

    def check(self) -> None:
        """Checks the tensors against the architecture without building the network's weights.

        Raises:
            CheckpointError: As `build`.
        """
        try:
            with torch.device("meta"):
                model = self.architecture.build()
        except ModelError as error:
            raise CheckpointError(f"its architecture cannot be built: {error}") from error
        check_state(model, self.state)

    def record(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values."""
        architecture = _plain(asdict(self.architecture))
        if not architecture["layer_cells"]:
            # So that versions which do not know of it read all other networks.
            del architecture["layer_cells"]
        return {
            "format": FORMAT,
            "version": VERSION,
            "architecture": architecture,
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.to_json(),
            "training": _plain(dict(self.training)),
            "metrics": _plain(dict(self.metrics)),
        }


def _plain(value: Any) -> Any:
    """Values that both containers hold and that are read without code.

    Raises:
        TypeError: If a value is neither text, number, truth value, None nor made of them.
    """
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    # Subclasses would be stored as such, and refused when read: torch.__version__ is one of str.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise TypeError(f"a checkpoint's record cannot hold a {type(value).__name__}: {value!r}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Checks tensors against a module.

    Raises:
        CheckpointError: Naming the tensors that are missing, unexpected, of another shape or not finite.
    """
    expected = model.state_dict()
    problems = []
    if missing := sorted(expected.keys() - state.keys()):
        problems.append(f"missing tensors: {_listed(missing)}")
    if extra := sorted(state.keys() - expected.keys()):
        problems.append(f"unexpected tensors: {_listed(extra)}")
    shared = sorted(expected.keys() & state.keys())
    wrong = [
        f"{k} is {list(state[k].shape)} instead of {list(expected[k].shape)}"
        for k in shared
        if state[k].shape != expected[k].shape
    ]
    if wrong:
        problems.append(f"wrong shapes: {_listed(wrong)}")
    mistyped = [
        f"{k} is {state[k].dtype}"
        for k in shared
        if state[k].is_floating_point() != expected[k].is_floating_point()
        or state[k].is_complex()
        or state[k].layout != torch.strided
    ]
    if mistyped:
        problems.append(f"wrong types: {_listed(mistyped)}")
    dense = [k for k in shared if state[k].is_floating_point() and state[k].layout == torch.strided]
    bad = [k for k in dense if not bool(torch.isfinite(state[k]).all())]
    if bad:
        problems.append(f"NaN or infinite values in {_listed(bad)}")
    if problems:
        raise CheckpointError(
            f"its tensors do not fit the architecture: {'; '.join(problems)}",
            fix="Use the checkpoint as csr-train wrote it.",
        )


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint whole or not at all; the suffix `.safetensors` selects that container.

    Raises:
        ExportError: If the file cannot be written; an existing one is then left as it was.
    """
    path = Path(path)
    state = {k: v.detach().cpu().contiguous() for k, v in checkpoint.state.items()}
    if path.suffix == _SAFETENSORS:
        metadata = {FORMAT: json.dumps(checkpoint.record(), sort_keys=True)}
        content: bytes = _safetensors().save(state, metadata=metadata)
    else:
        content = torch_bytes({**checkpoint.record(), "state": state})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def torch_bytes(content: Mapping[str, Any]) -> bytes:
    """What `torch.save` would write.

    Through memory, as torch reports a full disk as a RuntimeError about stream positions.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads and checks a checkpoint.

    Raises:
        CheckpointError: If the file is no checkpoint, holds code, is truncated, of an unknown version, or
            its tensors do not fit its architecture.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError("does not exist", where=str(path), fix="Name a model.pt written by csr-train.")
    if path.is_dir():
        raise CheckpointError("is a folder", where=str(path), fix="Name the model.pt in it.")
    try:
        content = path.read_bytes()
        record, state = _read_safetensors(content) if path.suffix == _SAFETENSORS else _read_torch(content)
        checkpoint = _from_record(record, state)
        checkpoint.check()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except CsrError as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise CheckpointError(error.what, where=str(path), fix=error.fix) from error
    return checkpoint


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else (hashlib.sha256(file.read()).hexdigest())
        )


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError(
            "safetensors", "export", "A .safetensors checkpoint", cause=error
        ) from error
    return safetensors.torch


def read_torch_bytes(content: bytes) -> dict[str, Any]:
    """Reads a file of torch's zip format: tensors and plain values, never code.

    Raises:
        CheckpointError: If it is no such file, is damaged or contains pickled code.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        # A zip file's head without its end.
        damaged = not content or content[:4] == b"PK\x03\x04"
        raise CheckpointError(
            "is truncated or damaged" if damaged else "is not a csr-deploy checkpoint",
            fix="Copy it again, or write it with csr-train.",
        )
    try:
        # torch itself does not compare the checksums: a flipped bit would only make the network worse.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CheckpointError(f"is damaged (the checksum of '{broken}' differs)", fix="Copy it again.")
        read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _refers_to_code(error):
            raise PickledCodeError(
                "contains pickled code; it was refused and nothing in it was run",
                fix="Only plain tensors are read. Where you trust the file's author, load it in Python "
                f"yourself. {_SAVE}",
            ) from error
        raise CheckpointError("is damaged", fix="Copy it again.") from error
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"is truncated or damaged ({reason})", fix="Copy it again.") from error
    if not isinstance(read, dict):
        raise CheckpointError(
            "is a torch file but not a csr-deploy checkpoint", fix="Write it with csr-train."
        )
    return read


# What torch's reader and zipfile raise on bytes that are no checkpoint.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def _refers_to_code(error: pickle.UnpicklingError) -> bool:
    # Every message of torch's restricted reader begins alike; these words tell a refused name from damage.
    text = str(error)
    return any(words in text for words in ("GLOBAL", "Unsupported class", "Trying to call", "Can only build"))


def _read_torch(content: bytes) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    record = read_torch_bytes(content)
    if record.get("format") != FORMAT:
        raise CheckpointError(
            "is a torch file but not a csr-deploy checkpoint",
            fix=f"A bare state_dict carries no architecture. {_SAVE}",
        )
    _check_version(record)
    state = record.pop("state", None)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError("holds no tensors under 'state'", fix="Write it with csr-train.")
    return record, state


def _read_safetensors(content: bytes) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    load = _safetensors().load
    from safetensors import SafetensorError

    try:
        state: Mapping[str, Tensor] = load(content)
    except (SafetensorError, *_DAMAGED) as error:
        raise CheckpointError(
            f"is not a readable safetensors file ({error})", fix="Copy it again."
        ) from error
    # The header, which `load` has just checked: its length as 8 little-endian bytes, then JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if FORMAT not in metadata:
        raise CheckpointError(
            "is a safetensors file without a csr-deploy record",
            fix=_SAVE,
        )
    try:
        record = json.loads(metadata[FORMAT])
    except json.JSONDecodeError as error:
        raise CheckpointError("its csr-deploy record is damaged", fix="Copy it again.") from error
    if not isinstance(record, dict):
        raise CheckpointError("its csr-deploy record is damaged", fix="Copy it again.")
    _check_version(record)
    return record, state


def _check_version(record: Mapping[str, Any]) -> None:
    version = record.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"has checkpoint version {version!r}; this csr-deploy reads version {VERSION}",
            fix="Install the csr-deploy that wrote it, or a newer one.",
        )


def _read_architecture(values: Mapping[str, Any]) -> Architecture:
    made = Architecture(**values)
    texts = (made.backbone, made.channel_fill, made.cell, made.name)
    counts = (made.num_classes, made.in_channels, *dict(made.csr_layers).values())
    cells = dict(made.layer_cells)
    if not all(isinstance(v, str) for v in (*texts, *made.csr_layers, *cells, *cells.values())):
        raise TypeError("a name in the architecture is no text")
    if not all(type(v) is int and v > 0 for v in counts):
        raise ValueError("a number in the architecture is no positive integer")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(made.options).items()}
    return replace(made, options=options)


def _from_record(record: Mapping[str, Any], state: Mapping[str, Tensor]) -> Checkpoint:
    try:
        architecture = _read_architecture(record["architecture"])
        labels = tuple(str(v) for v in record["labels"])
        preprocessing = Preprocessing.from_json(record["preprocessing"])
        training, metrics = dict(record["training"]), dict(record["metrics"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"its record is damaged: {error!r}", fix="Write it with csr-train.") from error
    if len(labels) != architecture.num_classes:
        raise CheckpointError(f"has {len(labels)} labels for {architecture.num_classes} classes")
    if preprocessing.channels != architecture.in_channels:
        raise CheckpointError(
            f"its preprocessing gives {preprocessing.channels} channels, "
            f"the network takes {architecture.in_channels}"
        )
    return Checkpoint(architecture, state, labels, preprocessing, training, metrics)
