"""The drift of h_t: states are found in every lowering, and the errors are those that were put in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from csr_deploy.data import Preprocessing
from csr_deploy.drift import Drift, measure_drift
from csr_deploy.nn import CSRConv2d
from csr_deploy.quantize import QuantizedGraph, QuantizeOptions, quantize
from csr_deploy.unroll.lowering import LOWERINGS, unroll
from tests.networks import NETWORKS, OneLayer, settle

SHAPE = (1, 3, 8, 8)


def images(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape[1:], generator=torch.Generator().manual_seed(seed))


def quantized(model: nn.Module, shape: tuple[int, ...], options: QuantizeOptions) -> QuantizedGraph:
    channels, height, width = shape[1:]
    preprocessing = Preprocessing(height, width, (0.5,) * channels, (0.25,) * channels)
    return quantize(unroll(model, shape), [images(16, shape)], preprocessing, options)


def one_layer() -> nn.Module:
    # 8 channels in 3 steps: the input is filled up, the last state cut.
    return settle(OneLayer(CSRConv2d(8, 8, 3, 3, padding=1)), SHAPE)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_state_is_found_whatever_the_lowering(lowering: str, batch: int) -> None:
    model = one_layer()
    drift = measure_drift(model, unroll(model, (batch, *SHAPE[1:]), lowering), None, images(6))
    (steps,) = drift.layers.values()
    assert len(steps) == 3
    for step in steps:
        assert step.unroll is not None
        assert step.unroll < 1e-12
        assert step.conversion is not None
        assert 0 < step.conversion < 1e-5
        assert step.quantization is None


def test_chains_of_layers_are_found_too() -> None:
    build, shape = NETWORKS["resnet20-5x3"]
    model = build()
    made = quantized(model, (1, *shape), QuantizeOptions())
    drift = measure_drift(model, made.graph, made, images(2, (1, *shape), 1))
    assert len(drift.layers) == 10
    steps = [s for layer in drift.layers.values() for s in layer]
    assert all(s.quantization is not None and 1e-4 < s.quantization < 0.5 for s in steps if s.rms)
    assert all(s.unroll is not None and s.unroll < 1e-10 for s in steps if s.rms)


def test_an_error_shows_where_it_was_made_and_in_the_steps_behind_it() -> None:
    model = one_layer()
    graph = unroll(model, SHAPE)
    name = next(n for n in graph.constants if n.endswith("cell.u"))
    wrong = replace(graph, constants={**graph.constants, name: graph.constants[name] * 1.01})
    first, second, third = measure_drift(model, wrong, None, images(4)).layers["csr"]
    # h_1 has no U; what follows is no longer the module's state, so that it is not found.
    assert first.unroll is not None
    assert first.unroll < 1e-12
    assert second.unroll is None
    assert third.unroll is None
    half = measure_drift(model, graph, None, images(4), weight_bits=16).layers["csr"]
    assert all(s.conversion is not None and 1e-5 < s.conversion < 1e-2 for s in half)


def test_a_dead_step_has_no_error_and_says_so() -> None:
    model = one_layer()
    with torch.no_grad():
        model.csr.cell.v.copy_(-model.csr.cell.v.abs())  # type: ignore[operator, union-attr]
    steps = measure_drift(model, unroll(model, SHAPE), None, images(4)).layers["csr"]
    assert [s.rms for s in steps] == [0, 0, 0]
    assert all(s.unroll is None for s in steps)


def test_the_manifest_holds_plain_numbers() -> None:
    model = one_layer()
    made = quantized(model, SHAPE, QuantizeOptions())
    first, again = (measure_drift(model, made.graph, made, images(4)).to_json() for _ in range(2))
    assert first == again == json.loads(json.dumps(first))
    layer = first["layers"]["csr"]
    assert {len(v) for v in layer.values()} == {3}
    assert all(float(f"{v:.4g}") == v for v in layer["quantization"])
    for error, decibels in zip(layer["quantization"], layer["sqnr_db"], strict=True):
        assert decibels == pytest.approx(-20 * torch.tensor(error).log10().item(), abs=0.01)


def test_a_network_without_recurrence_has_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert measure_drift(model, unroll(model, SHAPE), None, images(2)) == Drift(2, {})
