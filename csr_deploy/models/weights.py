"""Weights of ImageNet backbones that torchvision and timm saved."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csr_deploy.errors import CheckpointError, MissingDependencyError
from csr_deploy.models.efficientnet import EfficientNet
from csr_deploy.models.imagenet_mobilenet import ImageNetMobileNetV2, InvertedResidual

_WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training scripts save a state_dict beside other things."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a `.pth`, `.pt` or `.safetensors` file; code in it is never run.

    A state_dict that lies under the key `state_dict` or `model`, and names that begin with `module.`, as
    training on several GPUs leaves them, are unwrapped.

    Raises:
        CheckpointError: If the file cannot be read, holds code or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("is not a file", where=str(path), fix="Name a file of weights.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(k).removeprefix("module."): v for k, v in content.items()}
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            "holds no state_dict", where=str(path), fix="Save model.state_dict() with torch.save."
        )
    return state


def load_backbone_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads weights with torchvision's or timm's names into a backbone, all of them or none.

    Args:
        model: A backbone without CSR-Convs, with as many classes as the weights; changed in place.
        state: Its tensors. Counters of BatchNorm may be missing, as in old files.

    Raises:
        CheckpointError: Naming the tensors that are missing, unexpected or of another shape.
    """
    state = _from_timm(model, state)
    own = model.state_dict()
    given = dict(state)
    for key in own:
        if key.endswith(".num_batches_tracked"):
            given.setdefault(key, own[key])
    problems = []
    if missing := sorted(own.keys() - given.keys()):
        problems.append(f"missing: {_listed(missing)}")
    if extra := sorted(given.keys() - own.keys()):
        problems.append(f"unexpected: {_listed(extra)}")
    wrong = [
        f"{k} is {list(given[k].shape)} instead of {list(own[k].shape)}"
        for k in own
        if k in given and given[k].shape != own[k].shape
    ]
    if wrong:
        problems.append(f"of another shape: {_listed(wrong)}")
    if problems:
        raise CheckpointError(
            f"the weights do not fit this {type(model).__name__}: {'; '.join(problems)}",
            fix="Load them into the plain backbone they were saved from, with the same number of classes.",
        )
    model.load_state_dict(given)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        # Also torch's format before 1.6, which is no zip file and which torchvision still serves.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "is damaged or contains pickled code; nothing in it was run",
            where=str(path),
            fix="Only plain tensors are read. Where you trust the file's author, load it in Python yourself "
            "and save its state_dict().",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"cannot be read ({reason})", where=str(path)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"holds a {type(content).__name__}", where=str(path), fix="Save model.state_dict()."
        )
    return content


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError("safetensors", "export", "A .safetensors file") from error
    try:
        content: Mapping[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path)) from error
    return content


def _from_timm(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors under our names, where they have timm's; ResNet-50 has the same in both."""
    if not isinstance(model, (EfficientNet, ImageNetMobileNetV2)) or "conv_stem.weight" not in state:
        return state
    names = {theirs: own for own, theirs in timm_modules(model).items()}
    renamed = {}
    for key, tensor in state.items():
        module, _, parameter = key.rpartition(".")
        renamed[f"{names[module]}.{parameter}" if module in names else key] = tensor
    return renamed


def timm_modules(model: EfficientNet | ImageNetMobileNetV2) -> dict[str, str]:
    """Module with weights → what timm calls it: `efficientnet_b0` and `mobilenetv2_100` of timm 1.0."""
    end = len(model.features) - 1
    names = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        f"features.{end}.0": "conv_head",
        f"features.{end}.1": "bn2",
        "classifier.1": "classifier",
    }
    for own, theirs, layers in _blocks(model):
        kinds = ["conv_dw", "conv_pw"] if len(layers) == 2 else ["conv_pw", "conv_dw", "conv_pwl"]
        for index, ((conv, norm), kind) in enumerate(zip(layers, kinds, strict=True), start=1):
            names[f"{own}.{conv}"] = f"{theirs}.{kind}"
            names[f"{own}.{norm}"] = f"{theirs}.bn{index}"
        if isinstance(model, EfficientNet):
            names[f"{own}.{len(layers) - 1}.fc1"] = f"{theirs}.se.conv_reduce"
            names[f"{own}.{len(layers) - 1}.fc2"] = f"{theirs}.se.conv_expand"
    return names


def _blocks(
    model: EfficientNet | ImageNetMobileNetV2,
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Of each block: its name, timm's name, and its convolutions with their BatchNorms."""
    found = []
    if isinstance(model, EfficientNet):
        for stage in range(1, len(model.features) - 1):
            for index, block in enumerate(model.features.get_submodule(str(stage)).children()):
                inner = block.get_submodule("block")
                pairs = [(f"{i}.0", f"{i}.1") for i, _ in enumerate(inner.children())]
                # The last but one is the squeeze-excite.
                del pairs[-2]
                found.append((f"features.{stage}.{index}.block", f"blocks.{stage - 1}.{index}", pairs))
        return found
    stage, index, channels = -1, 0, -1
    for position, block in enumerate(model.features):
        if not isinstance(block, InvertedResidual):
            continue
        convs = len(block.conv) - 2
        out = block.conv[convs]
        wide = out.out_channels if isinstance(out, nn.Conv2d) else 0
        # A stage ends where the number of output channels changes.
        stage, index = (stage, index + 1) if wide == channels else (stage + 1, 0)
        channels = wide
        pairs = [(f"{i}.0", f"{i}.1") for i in range(convs)] + [(str(convs), str(convs + 1))]
        found.append((f"features.{position}.conv", f"blocks.{stage}.{index}", pairs))
    return found
