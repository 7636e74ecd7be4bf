"""Quantisation-aware training: the same rounding as the export, and it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from csr_deploy.data import Preprocessing
from csr_deploy.errors import ModelError
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.nn import CSRConv2d
from csr_deploy.qat import QatOptions, QuantizationAware
from csr_deploy.quantize import QuantizeOptions, Simulation, quantize
from csr_deploy.unroll.lowering import unroll
from tests.networks import NETWORKS, OneLayer, settle


def pictures(count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    channels, height, width = shape
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def plain(channels: int, height: int, width: int) -> Preprocessing:
    return Preprocessing(height, width, (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("name", ["odd", "resnet20-5x3"])
@pytest.mark.parametrize("equal_steps", [False, True])
def test_it_rounds_where_the_exported_graph_rounds(name: str, equal_steps: bool) -> None:
    build, shape = NETWORKS[name]
    model, preprocessing = build(), plain(*shape)
    images = pictures(16, shape, 0)
    aware = QuantizationAware(model, preprocessing, images, QatOptions("min-max", equal_steps))
    x = torch.from_numpy(preprocessing.normalize(images))
    graph = legalise(unroll(model, (1, *shape)))
    options = QuantizeOptions("min-max", bias_correction=False, equal_steps=equal_steps)
    made = quantize(graph, [x], preprocessing, options)
    scales = np.asarray([q.scale for q in made.activations.values()])
    assert len(aware.ranges) > 10
    assert all(np.abs(scales / q.scale - 1).min() < 1e-5 for q in aware.ranges.values())
    exported = Simulation(made).run(x)
    with torch.no_grad():
        real, trained = model(x), aware(x)
    # No closer, as a value that falls between two integers decides differently after one float operation.
    assert (trained - exported).square().mean() < (exported - real).square().mean()


def test_a_joint_step_is_rounded_once() -> None:
    build, shape = NETWORKS["resnet20-5x3"]
    model, preprocessing = build(), plain(*shape)
    images = pictures(8, shape, 0)
    apart, joint = (
        QuantizationAware(model, preprocessing, images, QatOptions(joint=joint)) for joint in (False, True)
    )
    # Two terms less in each of two further steps of ten layers; those of the first step remain states.
    assert len(apart.ranges) - len(joint.ranges) == 2 * 2 * 10
    x = torch.from_numpy(preprocessing.normalize(images))
    with torch.no_grad():
        real = model(x)
        errors = [float((aware(x) - real).square().mean()) for aware in (apart, joint)]
    assert 0 < errors[1] < 2 * errors[0]


def test_the_module_stays_the_network() -> None:
    layer = CSRConv2d(6, 6, 3, 3, padding=1, bias=True)
    model = settle(OneLayer(layer), (1, 3, 8, 8))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    aware = QuantizationAware(model, plain(3, 8, 8), pictures(32, (3, 8, 8), 0))
    assert {k.removeprefix("model.") for k in aware.state_dict()} == set(before)
    out = aware(torch.randn(4, 3, 8, 8))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_weight_that_is_computed_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.gain = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight * self.gain).mean((2, 3))

    with pytest.raises(ModelError, match="cannot learn its rounding"):
        QuantizationAware(Scaled(), plain(3, 8, 8), pictures(8, (3, 8, 8), 0))


def agreement(model: nn.Module, preprocessing: Preprocessing, train: Tensor, x: Tensor, y: Tensor) -> float:
    """Share of images that the quantised network, ranges from training images, gives the teacher's class."""
    graph = legalise(unroll(model, (1, *x.shape[1:])))
    made = quantize(graph, [train], preprocessing, QuantizeOptions())
    return float((Simulation(made).run(x).argmax(1) == y).float().mean())


def test_fine_tuning_regains_what_rounding_lost() -> None:
    """A layer whose channels need very different ranges, as a badly scaled checkpoint has them."""
    torch.manual_seed(0)
    shape = (3, 8, 8)
    preprocessing = plain(*shape)
    model = settle(OneLayer(CSRConv2d(8, 8, 3, 4, padding=1), classes=4), (1, *shape))
    with torch.no_grad():
        # One input channel 200 times as large as the others: per tensor, the others round to nothing.
        model.stem.weight[0] *= 200  # type: ignore[union-attr, index]
        model.stem.bias[0] *= 200  # type: ignore[union-attr, index]
        model.csr.cell.v[:, 0] /= 200  # type: ignore[union-attr, index]
    train, test = (torch.from_numpy(preprocessing.normalize(pictures(256, shape, s))) for s in (1, 2))
    with torch.no_grad():
        wanted, truth = model(train), model(test).argmax(1)
    before = agreement(model, preprocessing, train[:64], test, truth)
    aware = QuantizationAware(model, preprocessing, pictures(256, shape, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(60):
        if step % 10 == 0:
            aware.calibrate()
        batch = torch.arange(64) + 64 * (step % 4)
        loss = nn.functional.mse_loss(aware(train[batch]), wanted[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = agreement(model, preprocessing, train[:64], test, truth)
    assert after > before + 0.1, (before, after)
