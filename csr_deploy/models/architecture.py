"""Architectures by name: what a checkpoint stores instead of code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.models.mobilenet import CifarMobileNetV2
from csr_deploy.models.modules import CountsModules
from csr_deploy.models.resnet import CifarResNet
from csr_deploy.models.vgg import VGG16, VGG16_WIDTHS
from csr_deploy.nn import csrify

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "vgg16": VGG16,
    "resnet8": partial(CifarResNet, 8),
    "resnet14": partial(CifarResNet, 14),
    "resnet20": partial(CifarResNet, 20),
    "resnet32": partial(CifarResNet, 32),
    "resnet44": partial(CifarResNet, 44),
    "resnet56": partial(CifarResNet, 56),
    "resnet110": partial(CifarResNet, 110),
    "mobilenetv2": CifarMobileNetV2,
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

    def build(self) -> nn.Module:
        """A freshly initialised module.

        Raises:
            ModelError: If the backbone is unknown or a layer cannot be replaced.
        """
        if self.backbone not in BACKBONES:
            raise unknown_name(self.backbone, BACKBONES, "backbone")
        try:
            model = BACKBONES[self.backbone](
                num_classes=self.num_classes, in_channels=self.in_channels, **dict(self.options)
            )
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ModelError(f"the options of backbone '{self.backbone}' do not fit: {error}") from error
        return csrify(model, self.csr_layers, channel_fill=self.channel_fill, cell=self.cell)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Preset:
    """One CSR network of the paper: the last `modules` modules of a backbone with T steps.

    Attributes:
        backbone: Key of `BACKBONES`.
        modules: How many modules, from the last backwards, become CSR-Convs.
        num_steps: T.
        options: Further keyword arguments of the backbone.
        layer_steps: Last part of a layer's name → T, where it is another one; 1 leaves the layer as it is.
    """

    backbone: str
    modules: int
    num_steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    layer_steps: Mapping[str, int] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    # Table 1 widens conv 5 to 260 channels, the next multiple of T = 5.
    "vgg16-csr4": Preset("vgg16", 8, 5, {"widths": (*VGG16_WIDTHS[:4], 260, *VGG16_WIDTHS[5:])}),
    "resnet20-csr": Preset("resnet20", 3, 3),
    "resnet56-csr1": Preset("resnet56", 4, 2),
    "resnet56-csr2": Preset("resnet56", 11, 3),
    "resnet56-csr3": Preset("resnet56", 17, 3),
    "resnet56-csr4": Preset("resnet56", 15, 4),
    "resnet56-csr5": Preset("resnet56", 22, 5),
    "resnet110-csr1": Preset("resnet110", 7, 2),
    "resnet110-csr2": Preset("resnet110", 14, 2),
    "resnet110-csr3": Preset("resnet110", 22, 3),
    "resnet110-csr4": Preset("resnet110", 31, 4),
    "resnet110-csr5": Preset("resnet110", 33, 5),
    # See csr_deploy.models.mobilenet for how these readings were found.
    "mobilenetv2-csr1": Preset("mobilenetv2", 4, 3, layer_steps={"expand": 1}),
    "mobilenetv2-csr2": Preset("mobilenetv2", 7, 3, layer_steps={"expand": 1}),
    "mobilenetv2-csr3": Preset("mobilenetv2", 17, 3),
    "mobilenetv2-csr4": Preset("mobilenetv2", 18, 3),
    "mobilenetv2-csr5": Preset("mobilenetv2", 18, 4, layer_steps={"expand": 3}),
}


def unknown_name(name: str, known: Mapping[str, object], what: str) -> ModelError:
    """The error for a name that is not known, with the closest ones."""
    close = difflib.get_close_matches(name, known, n=3)
    return ModelError(
        f"unknown {what} '{name}'",
        fix=f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(known))}.",
    )


def architecture(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    modules: int | None = None,
    num_steps: int | None = None,
) -> Architecture:
    """The architecture of a preset (`resnet56-csr2`) or backbone (`resnet56`).

    Args:
        name: Preset or backbone.
        num_classes: Number of logits.
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
    plain = Architecture(backbone, num_classes, in_channels, dict(options), name=name)
    if modules is None and num_steps is None:
        return plain
    if modules is None or num_steps is None:
        raise ModelError("CSR-Conv needs both the number of modules and T", fix="Give both or neither.")
    with torch.device("meta"):
        model = plain.build()
    if not isinstance(model, CountsModules):
        raise ModelError(
            f"backbone '{backbone}' does not count its modules", fix="Name its layers with csrify."
        )
    kinds = {layer: layer.rpartition(".")[2] for layer in model.csr_layers(modules)}
    layers = {n: layer_steps.get(k, num_steps) for n, k in kinds.items() if layer_steps.get(k) != 1}
    # A preset keeps its own name; a network of the user's own making must not pass for its backbone.
    made = name if name in PRESETS else f"{name}-m{modules}t{num_steps}"
    return replace(plain, csr_layers=layers, name=made)


def count_parameters(model: nn.Module, *, batch_norm: bool = True) -> int:
    """Number of parameters, each shared one counted once; optionally without BatchNorm's."""
    skipped = {
        id(p)
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and not batch_norm
        for p in m.parameters(recurse=False)
    }
    return sum(p.numel() for p in model.parameters() if id(p) not in skipped)
