"""Capture, unrolling and every lowering pass leave the function unchanged."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from csr_deploy.errors import CaptureError, GraphError, OptionError
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.nn import CSRConv2d, csrify
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


class Functional(nn.Module):
    """A convolution, a function of the test, a linear layer."""

    def __init__(self, function: Callable[[Tensor], Any], features: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.function = function
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.function(torch.relu(self.stem(x))))
        return out


IDIOMS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "mean over one axis after the other": (lambda x: x.mean(3).mean(2), 6),
    "mean over the height": (lambda x: x.mean(2).flatten(1), 6 * 8),
    "mean of flattened pictures": (lambda x: x.flatten(2).mean(-1), 6),
    "adaptive max-pool": (lambda x: F.adaptive_max_pool2d(x, (3, 1)).flatten(1), 18),
    "clamp from zero": (lambda x: (x - 0.2).clamp(min=0).mean((2, 3)), 6),
    "clamp_min": (lambda x: torch.clamp_min(x - 0.2, 0).mean((2, 3)), 6),
    "negation": (lambda x: (-x).mean((2, 3)), 6),
    "one channel": (lambda x: x[:, -2].flatten(1), 12 * 8),
    "named squeeze": (lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1), 6),
    "cast to float": (lambda x: x.mean((2, 3)).to(torch.float32).type_as(x), 6),
    "leaky": (lambda x: F.leaky_relu(x - 0.2, 0.3).mean((2, 3)), 6),
    "leaky in place": (lambda x: F.leaky_relu_(x - 0.2, 0.3).mean((2, 3)), 6),
    "elu": (lambda x: F.elu(x - 0.2).mean((2, 3)), 6),
    "gelu": (lambda x: F.gelu(x - 0.2).mean((2, 3)), 6),
    "gelu by tanh": (lambda x: F.gelu(x - 0.2, approximate="tanh").mean((2, 3)), 6),
    "padded maximum of negative values": (lambda x: F.max_pool2d(x - 2, 3, 2, 1).flatten(1), 6 * 24),
    "maximum in ceil mode": (lambda x: F.max_pool2d(x - 2, 3, 2, ceil_mode=True).flatten(1), 6 * 24),
    "maximum in ceil mode whose last window begins in the padding": (
        lambda x: F.max_pool2d(x - 2, 2, 3, 1, ceil_mode=True).flatten(1),
        6 * 5 * 3,
    ),
    "average in ceil mode": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True).flatten(1), 6 * 24),
    "average in ceil mode without padding": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False).flatten(1),
        6 * 7 * 5,
    ),
    "average that counts no padding": (
        lambda x: F.avg_pool2d(x, 5, 2, 2, count_include_pad=False).flatten(1),
        6 * 24,
    ),
    "dropout that is off": (lambda x: F.dropout(x, 0.5, training=False).mean((2, 3)), 6),
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_ways_of_writing_a_network_are_understood(idiom: str) -> None:
    function, features = IDIOMS[idiom]
    torch.manual_seed(0)
    model = Functional(function, features).eval()
    x = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    # The cast is to float32 in float64 too.
    limit = 1e-6 if idiom == "cast to float" else LIMIT
    double = copy.deepcopy(model).double() if idiom != "cast to float" else model
    with torch.no_grad():
        expected = double(x if idiom != "cast to float" else x.float()).double()
    graph = legalise(unroll(model, (1, 3, 12, 8)))
    assert relative_error(graph, x, expected) <= limit


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(), r"(?s)batch axis is lost: \[1, 6, 1, 1\].*flatten"),
        (lambda x: x.mean((2, 3)).view(6), "batch axis is lost"),
        (lambda x: x.permute(1, 0, 2, 3).mean((2, 3)).t(), "moves the batch axis"),
        (lambda x: x.permute(0, 2, 3, 1), "(?s)linear layer on 4 axes.*1×1 convolution"),
        (lambda x: F.dropout(x, 0.5).mean((2, 3)), "(?s)drops values in evaluation too.*self.training"),
        (lambda x: F.log_softmax(x.mean((2, 3)), 1), "(?s)log_softmax.*logits themselves"),
        (lambda x: x.clamp(0, 1).mean((2, 3)), r"(?s)clamp to \[0, 1\].*\[0, 6\]"),
        (lambda x: F.pad(x, (1,) * 4, mode="reflect").mean((2, 3)), "(?s)reflect.*own-network"),
        (lambda x: (x * x.mean(1, keepdim=True)).mean((2, 3)), r"(?s)mean over axes \[1\].*height and width"),
        (lambda x: F.elu(x, 0.5).mean((2, 3)), r"(?s)ELU whose alpha.*\(0.5, 1.0, 1.0\).*nn.ELU"),
        (lambda x: F.max_pool2d(x, 2, dilation=2).mean((2, 3)), "dilated pool"),
        (
            lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True).mean((2, 3)),
            "(?s)ceil mode that counts its padding.*count_include_pad",
        ),
        (lambda x: x.half().float().mean((2, 3)), "float16"),
        (lambda x: {"here": x}["gone"], "KeyError"),
        (lambda x: x[99], "torch.export"),
    ],
)
def test_what_cannot_be_written_gets_a_way_out(function: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(CaptureError, match=says) as caught:
        capture(Functional(function), (1, 3, 12, 8))
    assert caught.value.fix


def _change_a_slice(x: Tensor) -> Tensor:
    x[:, :3].mul_(2)
    return x.mean((2, 3))


def _change_a_view(x: Tensor) -> Tensor:
    torch.relu_(x.view(x.shape[0], -1).sub_(0.3))
    return x.mean((2, 3))


@pytest.mark.parametrize("function", [_change_a_slice, _change_a_view])
def test_a_change_through_a_view_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match="in place"):
        capture(Functional(function), (1, 3, 12, 8))


def test_changes_in_place_that_nobody_else_sees_are_fine() -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.relu_(x.sub_(0.2))
        flat = (x + y).view(x.shape[0], 6, -1)
        return torch.relu_(flat.sub_(0.1)).mean(2)

    check_passes(Functional(function), (3, 12, 8), "stepwise")


class Returning(nn.Module):
    def __init__(self, shape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.ones(1, 3))

    def forward(self, x: Tensor) -> Any:
        return self.shape(x.mean((2, 3)) * self.weight)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (lambda y: {"logits": y}, "dict"),
        (lambda y: (y,), "tuple"),
        (lambda y: (y, y * 2), "2 tensors"),
        (lambda y: None, "None"),
    ],
)
def test_anything_but_one_tensor_is_refused(shape: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(CaptureError, match=says):
        capture(Returning(shape), (1, 3, 4, 4))


def test_an_output_that_is_a_constant_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * 2

    with pytest.raises(CaptureError, match="does not depend"):
        capture(Constant(), (1, 3, 4, 4))


def test_a_layer_that_stands_in_two_places_is_one() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(6, 6, 3, padding=1)
            self.second = self.first
            csrify(self, ["first"], 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x))).mean((2, 3))  # type: ignore[no-any-return]

    graph = check_passes(Aliased(), (6, 8, 8), "stepwise")
    uses = Counter(n.inputs[1] for n in graph.nodes if n.op == "conv2d")
    assert uses == {"first.cell.v": 6, "first.cell.u": 4}


def test_a_parameter_may_be_called_like_the_input() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Parameter(torch.rand(3, 1, 1))
            self.head = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.image).mean((2, 3))  # type: ignore[no-any-return]

    check_passes(Scaled(), (3, 8, 8), "stepwise")


def test_a_broken_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="before it is defined"):
        build_graph([Node("relu", ("nothing",), "y")], {}, "x", (1, 3, 2, 2), "y")
    with pytest.raises(GraphError, match="unknown operation"):
        build_graph([Node("fft", ("x",), "y")], {}, "x", (1, 3, 2, 2), "y")
    with pytest.raises(GraphError, match="twice"):
        build_graph([Node("relu", ("x",), "x")], {}, "x", (1, 3, 2, 2), "x")
