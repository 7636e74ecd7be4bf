"""Capture, unrolling and every lowering pass leave the function unchanged."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from csr_deploy.errors import CaptureError, GraphError, OptionError
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.nn import CSRConv2d
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.evaluate import run_graph
from csr_deploy.unroll.graph import Graph, Node, build_graph
from csr_deploy.unroll.lowering import LOWERINGS, unroll
from tests.networks import NETWORKS, OneLayer, settle

LIMIT = 1e-10


def reference(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = copy.deepcopy(model).double().eval()(x)
    return out


def relative_error(graph: Graph, x: Tensor, expected: Tensor) -> float:
    return float((run_graph(graph, x) - expected).abs().max() / expected.abs().max())


def check_passes(model: nn.Module, shape: tuple[int, int, int], lowering: str, batch: int = 1) -> Graph:
    """Every pass, one after another, against the module in float64."""
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = reference(model, x)
    graph = capture(model, (batch, *shape))
    for each in (*LOWERINGS[lowering].passes(), legalise):
        graph = each(graph)
        assert relative_error(graph, x, expected) <= LIMIT, each
    return graph


@st.composite
def csr_layers(draw: st.DrawFn) -> CSRConv2d:
    in_channels, out_channels = draw(st.integers(2, 13)), draw(st.integers(2, 13))
    return CSRConv2d(
        in_channels,
        out_channels,
        draw(st.sampled_from([1, 3, (3, 5)])),
        draw(st.integers(1, min(in_channels, out_channels))),
        stride=draw(st.sampled_from([1, 2, (2, 1)])),
        padding=draw(st.sampled_from([0, 1, 2])),
        bias=draw(st.booleans()),
        channel_fill=draw(st.sampled_from(["zero", "wrap"])),
    )


@settings(max_examples=20, deadline=None)
@given(layer=csr_layers(), lowering=st.sampled_from(sorted(LOWERINGS)), batch=st.sampled_from([1, 2]))
def test_any_layer_unrolls_to_the_same_function(layer: CSRConv2d, lowering: str, batch: int) -> None:
    model = settle(OneLayer(layer), (1, 3, 9, 8))
    check_passes(model, (3, 9, 8), lowering, batch)


@pytest.mark.parametrize("lowering", sorted(LOWERINGS))
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_pass_keeps_the_function_of_a_network(name: str, lowering: str) -> None:
    build, shape = NETWORKS[name]
    check_passes(build(), shape, lowering)


def test_capturing_leaves_the_model_alone() -> None:
    model = OneLayer(CSRConv2d(6, 6, 3, 2, padding=1)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    capture(model, (1, 3, 8, 8))
    assert model.training
    assert isinstance(model.csr, CSRConv2d)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_truncation_and_fill_vanish_between_csr_layers() -> None:
    # 64 = 3 · 22 − 2: cut after every layer, filled before every layer.
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [CSRConv2d(64, 64, 3, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    model = settle(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 3, 8, 8))
    graph = unroll(model, (1, 3, 8, 8))
    operations = Counter(n.op for n in graph.nodes)
    assert operations["pad"] == 1, "only the first layer, which follows a plain convolution, is filled"
    cuts = [n for n in graph.nodes if n.op == "slice" and graph.shapes[n.output][1] == 64]
    assert [graph.shapes[n.output][2:] for n in cuts] == [(1, 1)], "the only cut left is behind the mean"


def test_weights_stay_tied() -> None:
    model = settle(OneLayer(CSRConv2d(12, 12, 3, 4, padding=1)), (1, 3, 8, 8))
    graph = legalise(unroll(model, (1, 3, 8, 8)))
    uses = Counter(n.inputs[1] for n in graph.nodes if n.op == "conv2d")
    assert uses["csr.cell.v"] == 4
    assert uses["csr.cell.u"] == 3


def test_time_major_runs_v_once() -> None:
    model = settle(OneLayer(CSRConv2d(12, 12, 3, 4, padding=1)), (1, 3, 8, 8))
    graph = unroll(model, (1, 3, 8, 8), "time-major")
    uses = Counter(n.inputs[1] for n in graph.nodes if n.op == "conv2d")
    assert (uses["csr.cell.v"], uses["csr.cell.u"]) == (1, 3)


def test_unknown_lowering() -> None:
    with pytest.raises(OptionError, match="stepwise"):
        unroll(nn.Conv2d(3, 3, 1), (1, 3, 4, 4), "sideways")


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), Cumulative()), "cumsum"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "not supported"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "running statistics"),
        (DataDependent(), "torch.export"),
        (CSRConv2d(4, 4, 3, 2, padding=1), "Sequential"),
    ],
)
def test_what_cannot_be_captured_is_named(model: nn.Module, says: str) -> None:
    with pytest.raises(CaptureError, match=says):
        capture(model, (1, 3, 8, 8) if not isinstance(model, CSRConv2d) else (1, 4, 8, 8))


def test_a_broken_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="before it is defined"):
        build_graph([Node("relu", ("nothing",), "y")], {}, "x", (1, 3, 2, 2), "y")
    with pytest.raises(GraphError, match="unknown operation"):
        build_graph([Node("fft", ("x",), "y")], {}, "x", (1, 3, 2, 2), "y")
    with pytest.raises(GraphError, match="twice"):
        build_graph([Node("relu", ("x",), "x")], {}, "x", (1, 3, 2, 2), "x")
