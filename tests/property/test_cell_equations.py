"""Any layer with any cell: module = plain reference = every lowered graph = ONNX Runtime."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from csr_deploy.exporters import onnx as onnx_exporter
from csr_deploy.exporters.base import WriteRequest
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.nn import CELLS, CSRConv2d
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.evaluate import run_graph
from csr_deploy.unroll.lowering import LOWERINGS
from tests.cell_reference import STEPS, reference

UNROLLED = 1e-10
IN_FLOAT32 = 1e-4


def test_every_cell_has_a_reference() -> None:
    assert STEPS.keys() == CELLS.keys()


def randomised(layer: CSRConv2d, seed: int) -> CSRConv2d:
    """Biases and learned scalars away from the values they begin with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.4)
    return layer


@st.composite
def cases(draw: st.DrawFn) -> tuple[CSRConv2d, Tensor]:
    cell = draw(st.sampled_from(sorted(CELLS)))
    in_channels, out_channels = draw(st.integers(1, 11)), draw(st.integers(1, 11))
    if CELLS[cell].depthwise:
        out_channels = in_channels
    kernels = [1, 3, (3, 5)] if CELLS[cell].recurrent else [1, 2, 3, (2, 3)]
    seed = draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    layer = CSRConv2d(
        in_channels,
        out_channels,
        draw(st.sampled_from(kernels)),
        draw(st.integers(1, min(in_channels, out_channels, 5))),
        stride=draw(st.sampled_from([1, 2, (2, 1)])),
        padding=draw(st.sampled_from([0, 1, 2])),
        bias=draw(st.booleans()),
        channel_fill=draw(st.sampled_from(["zero", "wrap"])),
        cell=cell,
    )
    size = (draw(st.integers(5, 7)), draw(st.integers(5, 7)))
    return randomised(layer, seed), torch.randn(2, in_channels, *size)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(1e-3, np.abs(expected).max()))


@settings(max_examples=120, deadline=None)
@given(cases(), st.sampled_from(sorted(LOWERINGS)))
def test_module_reference_graph_and_onnx_runtime_agree(case: tuple[CSRConv2d, Tensor], lowering: str) -> None:
    layer, x = case
    exact = x.double()
    with torch.no_grad():
        expected = copy.deepcopy(layer).double()(exact).numpy()
    plain = reference(copy.deepcopy(layer).double(), exact.numpy())
    assert plain.shape == expected.shape
    assert relative(expected, plain) <= 1e-12
    captured = capture(nn.Sequential(layer), (len(x), *x.shape[1:]))
    lowered = LOWERINGS[lowering](captured)
    assert relative(run_graph(lowered, exact).numpy(), plain) <= UNROLLED
    assert relative(run_graph(legalise(lowered), exact).numpy(), plain) <= UNROLLED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        onnx_exporter.write_onnx(WriteRequest(lowered, None, 32, path, "layer"))
        found = onnxruntime.InferenceSession(str(path)).run(None, {"image": x.numpy()})[0]
    assert relative(found, plain) <= IN_FLOAT32


@settings(max_examples=60, deadline=None)
@given(cases())
def test_every_weight_has_a_finite_gradient(case: tuple[CSRConv2d, Tensor]) -> None:
    layer, x = case
    layer, x = layer.double(), x.double().requires_grad_()
    weights = torch.randn(layer(x).shape, dtype=torch.float64)
    (layer(x) * weights).sum().backward()
    assert x.grad is not None
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_gradients_are_the_derivative(cell: str) -> None:
    torch.manual_seed(3)
    layer = randomised(CSRConv2d(4, 4, 3, 2, padding=1, cell=cell), 3).double()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        out: Tensor = torch.func.functional_call(layer, state, (x,))
        return out

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)
