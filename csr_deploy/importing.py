"""Networks of the paper's authors, and plain backbones, as checkpoints of ours.

A state_dict is read and nothing in it is run. What it does not say, sizes and names, is assumed and said.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csr_deploy.checkpoint import FORMAT, Checkpoint, PickledCodeError, file_sha256, read_torch_bytes
from csr_deploy.data.cifar import CIFAR10_CLASSES
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import CheckpointError, OptionError
from csr_deploy.layer_match import State, has_recurrences, match_layers, plain
from csr_deploy.models import BACKBONES, Architecture, architecture
from csr_deploy.models.weights import load_backbone_weights

_NESTED = ("state_dict", "model_state_dict", "state", "model", "net")
"""Where training scripts put a state_dict beside other values."""
_WRAPPER = "module."
_CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""(mean, std) that networks for these data sets are commonly trained with."""


@dataclass(frozen=True)
class ImportOptions:
    """What a state_dict does not say.

    Attributes:
        network: Backbone, or a preset for a state_dict with our names; None to find out.
        classes: Class names; None for those of CIFAR-10 where the network has ten classes and is meant for
            it, else numbers.
        image_size: (height, width) of the input; None for what the backbone is meant for.
        mean: Per channel, in units of 0..1; None for the usual one of its data set.
        std: Likewise.
    """

    network: str | None = None
    classes: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Imported:
    """A checkpoint and what was assumed for it.

    Attributes:
        checkpoint: The network.
        assumptions: What the file does not say and the options did not either, a clause each.
    """

    checkpoint: Checkpoint
    assumptions: tuple[str, ...]


def import_network(path: Path, options: ImportOptions) -> Imported:
    """Reads a state_dict as a checkpoint.

    Args:
        path: A file of torch's zip format that holds tensors only.
        options: What the file does not say.

    Raises:
        CheckpointError: If the file is no state_dict, holds code, or its keys do not match.
        OptionError: If the options do not fit the network.
        ModelError: If the network that was named does not exist.
    """
    try:
        state = read_state(path)
        plan, tensors = _named(state, options.network) or match_layers(state, options.network)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(path), fix=error.fix) from error
    assumptions: list[str] = []
    preprocessing = _preprocessing(plan, options, assumptions)
    checkpoint = Checkpoint(
        plan,
        tensors,
        _classes(plan, options, assumptions),
        preprocessing,
        training={"imported": {"file": path.name, "sha256": file_sha256(path)}},
    )
    try:
        checkpoint.check()
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(path), fix=error.fix) from error
    return Imported(checkpoint, tuple(assumptions))


def read_state(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, which may stand beside other plain values.

    Raises:
        CheckpointError: If the file cannot be read, holds code, or no state_dict.
    """
    if not path.is_file():
        raise CheckpointError("is no file", fix="Name the state_dict that torch.save wrote.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}") from error
    if not zipfile.is_zipfile(path) and content[:4] != b"PK\x03\x04":
        raise CheckpointError("is not a file of torch's zip format", fix=_how_to_save(path))
    try:
        read: Any = read_torch_bytes(content)
    except PickledCodeError as error:
        raise CheckpointError(
            "holds a whole model, which is code; it was refused and nothing in it was run",
            fix=_how_to_save(path),
        ) from error
    if read.get("format") == FORMAT:
        raise CheckpointError("is a checkpoint of csr-deploy already", fix="Use it as it is.")
    for key in _NESTED:
        if not _is_state(read) and isinstance(read.get(key), dict):
            read = read[key]
    if not _is_state(read):
        raise CheckpointError(
            f"holds no state_dict, but {', '.join(map(str, list(read)[:5])) or 'nothing'}",
            fix="Save model.state_dict() alone.",
        )
    # What nn.DataParallel writes.
    wrapped = all(key.startswith(_WRAPPER) for key in read)
    return {key.removeprefix(_WRAPPER) if wrapped else key: value for key, value in read.items()}


def _how_to_save(path: Path) -> str:
    return (
        "If you trust its author, turn it into tensors where the model's own code can be imported, in a "
        "container without your data:\n"
        "  import torch\n"
        f'  model = torch.load({json.dumps(path.name)}, map_location="cpu", weights_only=False)\n'
        '  torch.save(getattr(model, "state_dict", lambda: model)(), "state.pt")\n'
        "and import state.pt."
    )


def _is_state(value: Any) -> bool:
    tensors = [v for v in value.values() if isinstance(v, Tensor)]
    return bool(tensors) and len(tensors) == len(value) and all(isinstance(k, str) for k in value)


def _named(state: State, network: str | None) -> tuple[Architecture, dict[str, Tensor]] | None:
    """A plain backbone whose tensors have our names, torchvision's or timm's."""
    kernels = [tensor for tensor in state.values() if tensor.ndim in (2, 4)]
    heads = [tensor for tensor in kernels if tensor.ndim == 2]
    if has_recurrences(state) or not heads or kernels[0].ndim != 4:
        return None
    for name in BACKBONES if network is None else (network,):
        plan = architecture(name, len(heads[-1]), kernels[0].shape[1])
        with torch.device("meta"):
            count = sum(p.ndim in (2, 4) for p in plan.build().parameters())
        if count != len(kernels):
            continue
        model = plan.build()
        try:
            load_backbone_weights(model, {k: plain(v) for k, v in state.items()})
        except CheckpointError:
            continue
        return plan, model.state_dict()
    return None


# What a state_dict does not say


def _preprocessing(plan: Architecture, options: ImportOptions, assumptions: list[str]) -> Preprocessing:
    backbone = BACKBONES[plan.backbone]
    height, width = options.image_size or (backbone.image_size, backbone.image_size)
    if options.image_size is None:
        assumptions.append(f"it takes pictures of {height}×{width}")
    mean, std = options.mean, options.std
    if (mean is None) != (std is None):
        raise OptionError("mean and std belong together", fix="Give both --mean and --std, or neither.")
    if mean is None or std is None:
        usual = "ImageNet" if backbone.image_size > 32 else "CIFAR-10"
        mean, std = _IMAGENET_STATISTICS if usual == "ImageNet" else _CIFAR_STATISTICS
        if plan.in_channels != 3:
            raise OptionError(
                f"the network takes {plan.in_channels} channels, so their mean and std are not known",
                fix="Give --mean and --std.",
            )
        assumptions.append(f"its inputs have the usual mean and std of {usual}")
    if not len(mean) == len(std) == plan.in_channels:
        raise OptionError(
            f"mean and std have {len(mean)} and {len(std)} numbers; "
            f"the network takes {plan.in_channels} channels"
        )
    if min(std) <= 0:
        raise OptionError(f"a std is {min(std)}", fix="Give positive numbers.")
    return Preprocessing(height, width, mean, std)


def _classes(plan: Architecture, options: ImportOptions, assumptions: list[str]) -> tuple[str, ...]:
    if options.classes is not None:
        if len(options.classes) != plan.num_classes:
            raise OptionError(
                f"{len(options.classes)} class names were given; the network has {plan.num_classes} classes"
            )
        return options.classes
    if plan.num_classes == len(CIFAR10_CLASSES) and BACKBONES[plan.backbone].image_size == 32:
        assumptions.append("its classes are those of CIFAR-10, in their order")
        return CIFAR10_CLASSES
    assumptions.append(f"its classes are called 0 to {plan.num_classes - 1}")
    return tuple(str(i) for i in range(plan.num_classes))
