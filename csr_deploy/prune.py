"""Magnitude pruning (Han et al. 2015) of the shared kernels of CSR-Conv, with fine-tuning: Table 6.

The weights of least magnitude become zero and stay zero while the rest trains on, several times in a row
where that is asked for. Which weights go is decided by `torch.nn.utils.prune`. Its masks are taken off again
at once: torch would apply them in a hook of the module's call, but a CSR-Conv calls parts of its cell, so
`csr_deploy.train` sets the weights to zero itself after every step. A pruned checkpoint is a normal one whose
zeros are exact; symmetric int8 keeps them.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from csr_deploy.checkpoint import Checkpoint, file_sha256, load_checkpoint, save_checkpoint
from csr_deploy.errors import CheckpointError, ModelError, OptionError
from csr_deploy.nn import CSRConv2d

if TYPE_CHECKING:
    from csr_deploy.curve import EpochRecord
    from csr_deploy.recipe import Recipe
    from csr_deploy.train import Progress, TrainingData, TrainOptions

Scope = Literal["csr", "all"]
_MODEL = "model.pt"


def count_nonzero(model: nn.Module) -> int:
    """Number of parameters that are not zero, each shared one counted once."""
    return sum(int(torch.count_nonzero(p)) for p in model.parameters())


def prunable(model: nn.Module, scope: Scope = "csr") -> dict[str, tuple[nn.Module, str]]:
    """The kernels that may be pruned.

    Args:
        model: The network.
        scope: "csr" for the shared kernels of its CSR-Convs, "all" for those of plain convolutions too.

    Returns:
        Name of the parameter → (its module, its name there), shared ones once.

    Raises:
        OptionError: If there is no such scope.
        ModelError: If there is nothing to prune.
    """
    if scope not in get_args(Scope):
        raise OptionError(f"unknown scope '{scope}'", fix=f"Use one of: {', '.join(get_args(Scope))}.")
    owners = {name: module for name, module in model.named_modules()}
    recurrent = {
        id(parameter)
        for module in owners.values()
        if isinstance(module, CSRConv2d) and module.num_steps > 1
        for parameter in module.cell.parameters()
    }
    found = {}
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        plain = scope == "all" and isinstance(owners[owner], nn.modules.conv._ConvNd)
        # Kernels only: gains and biases are few, and a channel lives by them.
        if parameter.ndim == 4 and (plain or id(parameter) in recurrent):
            found[name] = (owners[owner], own)
    if not found:
        what = "CSR-Conv layers" if scope == "csr" else "convolutions"
        raise ModelError(
            f"the network has no {what} to prune",
            fix="Give --scope all to prune its plain convolutions." if scope == "csr" else None,
        )
    return found


def magnitude_masks(
    model: nn.Module, sparsity: float, *, scope: Scope = "csr", per_layer: bool = False
) -> dict[str, Tensor]:
    """Masks that keep the weights of greatest magnitude; the model stays as it is.

    Args:
        model: The network.
        sparsity: Share of the kernels' values that become zero; those that are zero already count.
        scope: See `prunable`.
        per_layer: The same share of every kernel, instead of the smallest values of all of them.

    Returns:
        Name of the parameter → mask of its shape, True for what is kept.

    Raises:
        OptionError: If the sparsity is out of range.
        ModelError: If there is nothing to prune.
    """
    _check_sparsity(sparsity)
    scratch = copy.deepcopy(model)
    kernels = prunable(scratch, scope)
    if per_layer:
        for module, own in kernels.values():
            count = round(sparsity * getattr(module, own).numel())
            torch_prune.l1_unstructured(module, own, amount=count)  # type: ignore[no-untyped-call]
    else:
        count = round(sparsity * sum(getattr(module, own).numel() for module, own in kernels.values()))
        torch_prune.global_unstructured(
            list(kernels.values()), pruning_method=torch_prune.L1Unstructured, amount=count
        )
    return {
        name: getattr(module, f"{own}_mask").detach().bool().clone()
        for name, (module, own) in kernels.items()
    }


def _check_sparsity(sparsity: float) -> None:
    if not 0 < sparsity < 1:
        raise OptionError(
            f"a sparsity of {sparsity:g} is out of range",
            fix="Give the share of weights to remove, more than 0 and less than 1: 0.5 for half of them.",
        )


@dataclass(frozen=True)
class PruneOptions:
    """What is pruned, and in how many steps.

    Attributes:
        sparsity: Share of the kernels' values that are zero at the end.
        scope: See `prunable`.
        per_layer: See `magnitude_masks`.
        steps: How often weights are removed and the rest fine-tuned; each time the same share of those left.
    """

    sparsity: float
    scope: Scope = "csr"
    per_layer: bool = False
    steps: int = 1

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: If one is out of range.
        """
        _check_sparsity(self.sparsity)
        if self.scope not in get_args(Scope):
            raise OptionError(
                f"unknown scope '{self.scope}'", fix=f"Use one of: {', '.join(get_args(Scope))}."
            )
        if self.steps < 1:
            raise OptionError(f"{self.steps} pruning steps make no sense", fix="Give at least 1.")

    def levels(self) -> list[float]:
        """Sparsity after each step."""
        return [1 - (1 - self.sparsity) ** (step / self.steps) for step in range(1, self.steps)] + [
            self.sparsity
        ]


@dataclass(frozen=True)
class LayerSparsity:
    """One pruned kernel.

    Attributes:
        name: Its parameter's.
        values: How many values it has.
        zeros: How many of them are zero.
    """

    name: str
    values: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.values


def layer_sparsity(model: nn.Module, scope: Scope = "csr") -> tuple[LayerSparsity, ...]:
    """Zeros in every kernel of the scope.

    Raises:
        ModelError: If there is none.
    """
    kernels = ((name, getattr(module, own)) for name, (module, own) in prunable(model, scope).items())
    return tuple(LayerSparsity(n, p.numel(), p.numel() - int(torch.count_nonzero(p))) for n, p in kernels)


Told = Callable[[int, float], None]
"""Called before each step with (step from 0, sparsity of it)."""


def prune_only(path: Path, out: Path, options: PruneOptions) -> Checkpoint:
    """Prunes a checkpoint without training it; its accuracy is not known then.

    Args:
        path: The checkpoint.
        out: Directory that receives `model.pt`.
        options: What is pruned.

    Returns:
        What was written.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ModelError: If there is nothing to prune.
        OptionError: If `out` holds a `model.pt` already.
        ExportError: If it cannot be written.
    """
    if (out / _MODEL).exists():
        raise OptionError("already holds a run", where=str(out), fix="Give another --out.")
    checkpoint = load_checkpoint(path)
    model = checkpoint.build()
    apply_masks(
        model, magnitude_masks(model, options.sparsity, scope=options.scope, per_layer=options.per_layer)
    )
    pruned = _with_record(checkpoint, model, path, options, [])
    save_checkpoint(out / _MODEL, replace(pruned, metrics={}))
    return load_checkpoint(out / _MODEL)


def prune_and_train(
    path: Path,
    recipe: Recipe,
    data: TrainingData,
    options: PruneOptions,
    training: TrainOptions,
    *,
    on_start: Told | None = None,
    on_step: Progress | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Checkpoint:
    """Prunes a checkpoint and fine-tunes what is left; `out` receives `model.pt` and a run for each step.

    Args:
        path: The checkpoint.
        recipe: Of one step's fine-tuning.
        data: Both splits.
        options: What is pruned.
        training: Where and how; `init` and `freeze` are set here. With `resume`, steps that are done are
            left as they are and the one under way goes on.
        on_start: Told of each step that is trained.
        on_step: See `csr_deploy.train.train`.
        on_epoch: Likewise.

    Returns:
        What `model.pt` holds at the end.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or knows other classes or sizes than the data.
        ModelError: If there is nothing to prune.
        OptionError: If the run exists and `resume` is not set, or the other way round.
        CsrError: Whatever training finds.
    """
    from csr_deploy.train import train

    out = training.out
    # A step's folder is there before the result is.
    started = (out / _MODEL).exists() or (out / "step1").exists()
    if started and not training.resume:
        raise OptionError("already holds a run", where=str(out), fix="Give --resume, or another --out.")
    if training.resume and not started:
        raise OptionError("holds no run to resume", where=str(out), fix="Start one without --resume.")
    checkpoint = load_checkpoint(path)
    _check_fits(checkpoint, data, path)
    # The network goes on with the pictures it knows, however few of them it is fine-tuned with.
    data = replace(data, preprocessing=checkpoint.preprocessing)
    source, history = path, []
    for step, sparsity in enumerate(options.levels()):
        if on_start:
            on_start(step, sparsity)
        before = load_checkpoint(source)
        model = before.build()
        masks = magnitude_masks(model, sparsity, scope=options.scope, per_layer=options.per_layer)
        folder = out / f"step{step + 1}"
        own = replace(
            training,
            out=folder,
            init=source,
            freeze=False,
            resume=training.resume and (folder / "resume.pt").exists(),
        )
        trained = train(
            checkpoint.architecture, recipe, data, own, masks=masks, on_step=on_step, on_epoch=on_epoch
        )
        history.append({"sparsity": sparsity, **{k: trained.metrics[k] for k in ("test_top1", "test_loss")}})
        source = folder / _MODEL
    result = _with_record(trained, trained.build(), path, options, history)
    save_checkpoint(out / _MODEL, result)
    return load_checkpoint(out / _MODEL)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Sets parameters to zero, in place, where their mask is False."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            # Not a product with the mask, which makes negative zeros.
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


def _check_fits(checkpoint: Checkpoint, data: TrainingData, path: Path) -> None:
    own, new = checkpoint.preprocessing, data.preprocessing
    if checkpoint.labels != data.classes:
        raise CheckpointError(
            f"knows the classes {_few(checkpoint.labels)}, the data has {_few(data.classes)}",
            where=str(path),
            fix="Fine-tune with the data that the network was trained on.",
        )
    if (own.height, own.width, own.channels) != (new.height, new.width, new.channels):
        raise CheckpointError(
            f"takes images of {own.height}×{own.width}×{own.channels}, the data has "
            f"{new.height}×{new.width}×{new.channels}",
            where=str(path),
            fix="Fine-tune with the data that the network was trained on.",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _with_record(
    checkpoint: Checkpoint,
    model: nn.Module,
    path: Path,
    options: PruneOptions,
    history: list[dict[str, Any]],
) -> Checkpoint:
    original = load_checkpoint(path)
    layers = layer_sparsity(model, options.scope)
    record = {
        "from": {
            "sha256": file_sha256(path),
            "network": original.architecture.name,
            "metrics": dict(original.metrics),
        },
        "sparsity": options.sparsity,
        "scope": options.scope,
        "per_layer": options.per_layer,
        "steps": history,
        "parameters": sum(p.numel() for p in model.parameters()),
        "nonzero": count_nonzero(model),
        "layers": {layer.name: {"values": layer.values, "zeros": layer.zeros} for layer in layers},
    }
    training = {**checkpoint.training, "pruning": record}
    return replace(checkpoint, state=model.state_dict(), training=training)


@dataclass(frozen=True)
class ArtifactSize:
    """Bytes of one network exported to one target.

    Attributes:
        target: Name of the target.
        stored: Of its files as they are, the golden images and the manifest left out.
        compressed: The same files deflated (zlib, level 9), each by itself.
    """

    target: str
    stored: int
    compressed: int


def artifact_size(folder: Path) -> ArtifactSize:
    """How large the model files of an artifact are, and how large they are when deflated.

    Raises:
        ArtifactError: If the folder is no artifact.
    """
    from csr_deploy.artifact import GOLDEN, read_artifact

    artifact = read_artifact(folder)
    files = [folder / file.name for file in artifact.files if file.name != GOLDEN]
    contents = [file.read_bytes() for file in files]
    return ArtifactSize(
        artifact.target,
        sum(len(content) for content in contents),
        sum(len(zlib.compress(content, 9)) for content in contents),
    )
