"""Architectures by name: what a checkpoint stores instead of code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.models.densenet import CifarDenseNet
from csr_deploy.models.efficientnet import EfficientNet
from csr_deploy.models.efficientnet_lite import EfficientNetLite0
from csr_deploy.models.imagenet_mobilenet import ImageNetMobileNetV2
from csr_deploy.models.imagenet_resnet import ImageNetResNet
from csr_deploy.models.mobilenet import CifarMobileNetV2
from csr_deploy.models.modules import CountsModules, layer_kind
from csr_deploy.models.presets import PRESETS
from csr_deploy.models.resnet import CifarResNet
from csr_deploy.models.vgg import VGG16
from csr_deploy.nn import csrify, find_cell


@dataclass(frozen=True)
class Backbone:
    """A network that CSR-Convs are put into.

    Attributes:
        make: Builds the module from `num_classes`, `in_channels` and options.
        image_size: Height and width of the pictures that it is meant for.
        num_classes: Of the data set that it is meant for.
    """

    make: Callable[..., nn.Module]
    image_size: int = 32
    num_classes: int = 10


_IMAGENET = {"image_size": 224, "num_classes": 1000}

BACKBONES: dict[str, Backbone] = {
    "vgg16": Backbone(VGG16),
    **{f"resnet{n}": Backbone(partial(CifarResNet, n)) for n in (8, 14, 20, 32, 44, 56, 110)},
    "densenet40": Backbone(CifarDenseNet),
    "mobilenetv2": Backbone(CifarMobileNetV2),
    "resnet50": Backbone(ImageNetResNet, **_IMAGENET),
    "efficientnetb0": Backbone(EfficientNet, **_IMAGENET),
    "mobilenetv2-imagenet": Backbone(ImageNetMobileNetV2, **_IMAGENET),
    "efficientnet-lite0": Backbone(EfficientNetLite0, **_IMAGENET),
}


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a network's module.

    Attributes:
        backbone: Key of `BACKBONES`.
        num_classes: Number of logits.
        in_channels: Channels of the input image.
        options: Further keyword arguments of the backbone.
        csr_layers: Layer name → T, the convolutions replaced by CSR-Conv.
        channel_fill: "zero" or "wrap", see `CSRConv2d`.
        cell: Name of the step cell.
        layer_cells: Layer name → its cell, where that is another one.
        name: What the network is called: the preset, the backbone, or the backbone with the number of its
            CSR-Conv modules and T (`resnet20-m3t2`).
    """

    backbone: str
    num_classes: int = 10
    in_channels: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    csr_layers: Mapping[str, int] = field(default_factory=dict)
    channel_fill: str = "zero"
    cell: str = "vanilla"
    name: str = ""
    layer_cells: Mapping[str, str] = field(default_factory=dict)

    def with_cell(self, cell: str) -> Architecture:
        """The same network with another recurrence in all its CSR-Convs, which its name then says.

        Raises:
            ModelError: If the cell is unknown, or the network has no CSR-Convs.
        """
        find_cell(cell)
        if not self.csr_layers:
            raise ModelError(
                f"'{self.name}' has no CSR-Convs that could have the cell '{cell}'",
                fix="Give the number of modules and T, or a preset.",
            )
        name = self.name if cell == self.cell else f"{self.name}-{cell}"
        return replace(self, cell=cell, layer_cells={}, name=name)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the backbone is meant for; any other may do as well.

        Raises:
            ModelError: If the backbone is unknown.
        """
        if self.backbone not in BACKBONES:
            raise unknown_name(self.backbone, BACKBONES, "backbone")
        side = BACKBONES[self.backbone].image_size
        return (side, side)

    def build(self) -> nn.Module:
        """A freshly initialised module.

        Raises:
            ModelError: If the backbone is unknown or a layer cannot be replaced.
        """
        if self.backbone not in BACKBONES:
            raise unknown_name(self.backbone, BACKBONES, "backbone")
        try:
            model = BACKBONES[self.backbone].make(
                num_classes=self.num_classes, in_channels=self.in_channels, **dict(self.options)
            )
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ModelError(f"the options of backbone '{self.backbone}' do not fit: {error}") from error
        return csrify(
            model,
            self.csr_layers,
            channel_fill=self.channel_fill,  # type: ignore[arg-type]
            cell=self.cell,
            layer_cells=self.layer_cells,
        )


def unknown_name(name: str, known: Mapping[str, object], what: str) -> ModelError:
    """The error for a name that is not known, with the closest ones."""
    close = difflib.get_close_matches(name, known, n=3)
    return ModelError(
        f"unknown {what} '{name}'",
        fix=f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(known))}.",
    )


def architecture(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    modules: int | None = None,
    num_steps: int | None = None,
) -> Architecture:
    """The architecture of a preset (`resnet56-csr2`) or backbone (`resnet56`).

    Args:
        name: Preset or backbone.
        num_classes: Number of logits; None for that of the data set the backbone is meant for.
        in_channels: Channels of the input image.
        modules: For a backbone: how many modules, from the last backwards, become CSR-Convs.
        num_steps: T of those modules.

    Raises:
        ModelError: If the name is unknown or the CSR options do not fit.
    """
    if name in PRESETS and (modules is not None or num_steps is not None):
        raise ModelError(
            f"'{name}' already says which modules are CSR-Convs",
            fix=f"Give the number of modules and T with the backbone '{PRESETS[name].backbone}'.",
        )
    if name in PRESETS:
        preset = PRESETS[name]
        modules, num_steps, layer_steps = preset.modules, preset.num_steps, preset.layer_steps
        backbone, options = preset.backbone, preset.options
    elif name in BACKBONES:
        backbone, options, layer_steps = name, {}, {}
    else:
        raise unknown_name(name, {**BACKBONES, **PRESETS}, "network")
    if num_classes is None:
        num_classes = BACKBONES[backbone].num_classes
    plain = Architecture(backbone, num_classes, in_channels, dict(options), name=name)
    if modules is None and num_steps is None:
        return plain
    if modules is None or num_steps is None:
        raise ModelError("CSR-Conv needs both the number of modules and T", fix="Give both or neither.")
    kinds = _csr_layers(backbone, tuple(sorted(options.items())), modules)
    layers = {n: layer_steps.get(k, num_steps) for n, k in kinds.items() if layer_steps.get(k) != 1}
    # A preset keeps its own name; a network of the user's own making must not pass for its backbone.
    made = name if name in PRESETS else f"{name}-m{modules}t{num_steps}"
    return replace(plain, csr_layers=layers, name=made)


@cache
def _csr_layers(backbone: str, options: tuple[tuple[str, Any], ...], modules: int) -> Mapping[str, str]:
    """The convolutions in the last modules of a backbone → what each is in its module."""
    with torch.device("meta"):
        model = Architecture(backbone, options=dict(options)).build()
    if not isinstance(model, CountsModules):
        raise ModelError(
            f"backbone '{backbone}' does not count its modules", fix="Name its layers with csrify."
        )
    return {layer: layer_kind(model, layer) for layer in model.csr_layers(modules)}


def count_parameters(model: nn.Module, *, batch_norm: bool = True) -> int:
    """Number of parameters, each shared one counted once; optionally without BatchNorm's."""
    skipped = {
        id(p)
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and not batch_norm
        for p in m.parameters(recurse=False)
    }
    return sum(p.numel() for p in model.parameters() if id(p) not in skipped)
