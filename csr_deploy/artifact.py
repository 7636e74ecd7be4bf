"""Artifacts: what an export leaves and a device receives.

A directory `<model>-<target>/` with the model file, what goes with it, `manifest.json` and `golden.npz`.
It holds no timestamps and no paths of the machine: the same input gives the same bytes. Nothing here imports
torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.atomic import atomic_write
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import ArtifactError, CsrError, ExportError
from csr_deploy.types import TensorSpec

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact, by name, size in bytes and SHA-256.

    A name may have folders in it, such as `src/model.c`; it never leaves the artifact.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class EngineRecord:
    """A TensorRT engine that was built from the artifact's model.

    Attributes:
        file: In the artifact's directory; an engine is executable code, its hash is checked before loading.
        identity: What it was built from, with and for; plain values of `EngineIdentity`.
        report: Plain values of the build report.
    """

    file: FileRecord
    identity: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Golden:
    """Inputs whose outputs are known, checked on a device before anything is timed.

    Attributes:
        images: [N, H, W, C] uint8, before preprocessing.
        labels: [N] int64, -1 where unknown.
        float_logits: [N, classes] float32 of the checkpoint.
        outputs: [N, classes] raw outputs of the exported model in its parity run.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    float_logits: NDArray[np.float32]
    outputs: NDArray[Any]


@dataclass(frozen=True)
class Artifact:
    """An exported network.

    Attributes:
        path: Its directory.
        name: Name of the network, e.g. "resnet56-csr2".
        target: Name of the target, a key of `csr_deploy.targets.TARGETS`.
        files: All files but the manifest; the first is the model.
        input: Input tensor of the model file, batch first.
        output: Output tensor of the model file.
        preprocessing: From a picture to the input.
        labels: Class names.
        options: Options of the export, plain values.
        model: Figures of the network: parameters, macs, …
        source: Identity and record of the checkpoint.
        tools: Versions of what made it.
        ledger: Weight-tying ledger, plain values.
        parity: Parity report, plain values.
        engines: TensorRT engines built from the model, none in a fresh export.
    """

    path: Path
    name: str
    target: str
    files: tuple[FileRecord, ...]
    input: TensorSpec
    output: TensorSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[EngineRecord, ...] = ()

    @property
    def model_file(self) -> Path:
        """The model file."""
        return self.path / self.files[0].name

    @property
    def sha256(self) -> str:
        """Identity of the model file: accuracy and speed must come from the same one."""
        return self.files[0].sha256

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Pictures at the network's size, [N, H, W, C] uint8, to the model's input."""
        return self.input.encode(self.preprocessing.normalize(images))

    def golden(self) -> Golden:
        """The golden vectors.

        Raises:
            ArtifactError: If the file is damaged.
        """
        try:
            with np.load(self.path / GOLDEN, allow_pickle=False) as file:
                return Golden(file["images"], file["labels"], file["float_logits"], file["outputs"])
        except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            raise ArtifactError(f"cannot be read: {error}", where=str(self.path / GOLDEN)) from error

    def manifest(self) -> dict[str, Any]:
        """The manifest as plain values."""
        values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "target": self.target,
            "files": [asdict(f) for f in self.files],
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "labels": list(self.labels),
            "options": dict(self.options),
            "model": dict(self.model),
            "source": dict(self.source),
            "tools": dict(self.tools),
            "ledger": dict(self.ledger),
            "parity": dict(self.parity),
        }
        if self.engines:
            values["engines"] = [
                {"file": asdict(e.file), "identity": dict(e.identity), "report": dict(e.report)}
                for e in self.engines
            ]
        return values


def record_file(path: Path, folder: Path | None = None) -> FileRecord:
    """Measures one file.

    Args:
        path: The file.
        folder: The artifact it lies in, at any depth; None for the folder of the file itself.
    """
    content = path.read_bytes()
    name = path.name if folder is None else path.relative_to(folder).as_posix()
    return FileRecord(name, len(content), hashlib.sha256(content).hexdigest())


def write_manifest(artifact: Artifact) -> None:
    """Writes `manifest.json` into the artifact's directory, whole or not at all.

    Raises:
        ExportError: If it cannot be written.
    """
    text = json.dumps(artifact.manifest(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(artifact.path / MANIFEST) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_golden(path: Path, golden: Golden) -> None:
    """Writes golden vectors; unlike `np.savez`, the same arrays give the same bytes."""
    arrays = {
        "images": golden.images,
        "labels": golden.labels,
        "float_logits": golden.float_logits,
        "outputs": golden.outputs,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def check_place(path: Path, *, replace: bool) -> None:
    """Checks that an artifact may be written to a place.

    Args:
        path: Its directory.
        replace: Whether an artifact that is there may be replaced. Nothing else ever is.

    Raises:
        ExportError: If something is in the way.
    """
    if not path.exists():
        return
    if not replace:
        raise ExportError("already exists", where=str(path), fix="Give --force, or another --out.")
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise ExportError(
            "exists and is no artifact, and only an artifact is replaced",
            where=str(path),
            fix="Move it away, or give another --out.",
        )


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Reads an artifact and checks the hash of every file but engines, which loading one checks.

    Raises:
        ArtifactError: If the directory is no artifact, incomplete, changed or of an unknown version.
    """
    path = Path(path)
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ArtifactError(
            f"is not an artifact (it has no {MANIFEST})", where=str(path), fix="Make one with csr-export."
        )
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        version = values["schema_version"]
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"has manifest version {version!r}; this csr-deploy reads version {SCHEMA_VERSION}",
                where=str(path),
                fix="Export it again, or install the csr-deploy that wrote it.",
            )
        artifact = _from_manifest(path, values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"is damaged: {error!r}", where=str(manifest), fix="Export it again.") from error
    except CsrError as error:
        raise ArtifactError(error.what, where=error.where or str(manifest), fix=error.fix) from error
    for record in artifact.files:
        file = path / record.name
        if not file.is_file():
            raise ArtifactError("is missing", where=str(file), fix="Export it again.")
        if record_file(file, path) != record:
            raise ArtifactError(
                "was changed after the manifest was written (its SHA-256 differs)",
                where=str(file),
                fix="Copy or export the artifact again.",
            )
    return artifact


def _from_manifest(path: Path, values: Mapping[str, Any]) -> Artifact:
    files = tuple(_file_record(f) for f in values["files"])
    engines = tuple(
        EngineRecord(_file_record(e["file"]), dict(e["identity"]), dict(e["report"]))
        for e in values.get("engines", ())
    )
    records = (*files, *(e.file for e in engines))
    for record in records:
        if not _is_inside(record.name):
            raise ArtifactError(f"names a file outside the artifact: {record.name!r}", where=str(path))
    if len({record.name for record in records}) != len(records):
        raise ArtifactError("lists a file twice", where=str(path))
    if not files:
        raise ArtifactError("lists no files", where=str(path))
    return Artifact(
        path,
        str(values["name"]),
        str(values["target"]),
        files,
        TensorSpec.from_json(values["input"]),
        TensorSpec.from_json(values["output"]),
        Preprocessing.from_json(values["preprocessing"]),
        tuple(str(v) for v in values["labels"]),
        dict(values["options"]),
        dict(values["model"]),
        dict(values["source"]),
        dict(values["tools"]),
        dict(values["ledger"]),
        dict(values["parity"]),
        engines,
    )


def _is_inside(name: str) -> bool:
    """Whether a file's name leads to one place inside the artifact, and is the only way to write it."""
    parts = name.split("/")
    return name != MANIFEST and not ({"", ".", ".."}.intersection(parts) or {"\\", "\0"}.intersection(name))


def _file_record(values: Mapping[str, Any]) -> FileRecord:
    return FileRecord(str(values["name"]), int(values["size"]), str(values["sha256"]))
