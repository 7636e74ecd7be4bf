"""DenseNet and the ImageNet networks on every target: SiLU, squeeze-excite, concatenations, padded pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.models import Architecture, architecture
from csr_deploy.models.imagenet_resnet import Bottleneck
from csr_deploy.models.modules import CountsModules
from csr_deploy.nn import csrify
from csr_deploy.targets import TARGETS

TINY: dict[str, tuple[Architecture, int, int, int]] = {
    "densenet40": (Architecture("densenet40", options={"depth": 10}), 4, 3, 24),
    "resnet50": (Architecture("resnet50", options={"blocks": (1, 1, 1, 1), "width": 8}), 2, 3, 64),
    "efficientnetb0": (
        Architecture("efficientnetb0", options={"width": 0.25, "repeats": (1, 1, 1, 1, 1, 1, 1)}),
        2,
        3,
        64,
    ),
    "mobilenetv2-imagenet": (Architecture("mobilenetv2-imagenet", options={"width": 0.25}), 3, 4, 64),
}
"""Backbone → (a small one with the same parts, CSR-Conv modules, T, size of the pictures)."""
QUICK = {"onnx", "tflite-int8"}
WORST = 0.35
"""Largest error of an int8 logit, in parts of their range, for untrained networks."""
FULL = ("densenet40-csr2", "resnet50-csr2", "efficientnetb0-csr1", "mobilenetv2-imagenet-csr2")


def tiny(name: str) -> nn.Module:
    plan, modules, steps, _ = TINY[name]
    model = plan.build()
    assert isinstance(model, CountsModules)
    return csrify(model, model.csr_layers(modules), steps)


def settle(model: nn.Module, pictures: torch.Tensor) -> nn.Module:
    """Gives BatchNorms the statistics of real pictures: untrained, others make noise of rounding errors."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.momentum = None
    for block in model.modules():
        if isinstance(block, Bottleneck) or getattr(block, "shortcut", False):
            norms = [m for m in block.children() if isinstance(m, nn.BatchNorm2d)]
            norms = norms or [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
            # As in a trained network, a block changes little of what goes around it.
            nn.init.constant_(norms[-1].weight, 0.25)
    with torch.no_grad():
        model.train()(pictures)
    return model.eval()


def prepared(
    name: str, build: Callable[[], nn.Module], side: int
) -> tuple[Network, ExportData, ExportOptions]:
    torch.manual_seed(0)
    preprocessing = Preprocessing(side, side, (0.3,) * 3, (0.35,) * 3)
    calibration = sample(open_dataset("fashion-mnist", "train"), preprocessing, 64, 0)
    model = settle(build(), torch.from_numpy(preprocessing.normalize(calibration.images)))
    parity = sample(open_dataset("fashion-mnist", "test"), preprocessing, 40, 0)
    network = Network(name, model, tuple(str(i) for i in range(10)), preprocessing)
    # Untrained logits lie close together: what int8 must keep here is the figure below, not the ranking.
    return network, ExportData(calibration, parity, labels=None), ExportOptions(agreement=0.0)


def check(
    network: Network, data: ExportData, options: ExportOptions, target: str, out: Path, worst: float
) -> None:
    report = export(network, TARGETS[target], data, out / "artifact", options).parity
    assert report["passed"]
    bound = TARGETS[target].tolerance.relative_error
    assert report["relative_error"] <= (worst if bound is None else bound)


@pytest.mark.parametrize(
    "target", [pytest.param(t, marks=[] if t in QUICK else [pytest.mark.full]) for t in TARGETS]
)
@pytest.mark.parametrize("name", list(TINY))
def test_small_networks_on_every_target(name: str, target: str, tmp_path: Path) -> None:
    network, data, options = prepared(name, lambda: tiny(name), TINY[name][3])
    check(network, data, options, target, tmp_path, WORST)


@pytest.mark.full
@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("name", FULL)
def test_whole_networks_on_every_target(name: str, target: str, tmp_path: Path) -> None:
    # Rounding errors of an untrained network of this depth say nothing; a wrong scale gives more than that.
    plan = replace(architecture(name), num_classes=10)
    network, data, options = prepared(name, plan.build, min(64, *plan.image_size))
    check(network, data, options, target, tmp_path, 1.0)
