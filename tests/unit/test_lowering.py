"""Strategies: what they leave of a graph, and that the cheapest is chosen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from csr_deploy.errors import LedgerError, OptionError
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.ledger import Ledger, Stored, check_ledger
from csr_deploy.nn import CSRConv2d
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.choose import fill_lanes
from csr_deploy.unroll.cost import CostModel, fit, non_negative_least_squares, read_cost_model
from csr_deploy.unroll.costs import find_costs
from csr_deploy.unroll.evaluate import evaluate_node, run_graph
from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.lowering import LOWERINGS, Lowering, lower, unroll
from csr_deploy.unroll.passes.stack_steps import Joint
from csr_deploy.unroll.passes.unroll import unroll_stepwise
from csr_deploy.unroll.passes.widen import can_widen, widened
from tests.networks import settle


class Block(nn.Module):
    """A residual block of two CSR-Convs."""

    def __init__(self, channels: int, steps: int, stride: int = 1) -> None:
        super().__init__()
        self.first = CSRConv2d(channels, channels, 3, steps, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = CSRConv2d(channels, channels, 3, steps, padding=1)
        self.again = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.again(self.second(torch.relu(self.norm(self.first(x)))))
        return torch.relu(x + out) if out.shape == x.shape else torch.relu(out)


def chain(channels: int, steps: int, *strides: int) -> nn.Module:
    blocks = [Block(channels, steps, stride) for stride in strides]
    return settle(nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU(), *blocks), (1, 3, 16, 16))


def check(model: nn.Module, strategy: Lowering, size: int = 16) -> Graph:
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = legalise(strategy(capture(model, (1, 3, size, size))))
    with torch.no_grad():
        expected = model.double().eval()(x)
    error = (run_graph(graph, x) - expected).abs().max() / expected.abs().max()
    assert float(error) <= 1e-10
    model.float()
    return graph


def operations(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes)


def test_groups_stay_apart_from_layer_to_layer() -> None:
    model = chain(16, 4, 1, 1)
    apart = operations(check(model, LOWERINGS["grouped"]))
    # The first layer's input is split, what the last addition takes is joined, and nothing between.
    assert (apart["slice"], apart["concat"]) == (4, 2)
    joined = operations(check(model, LOWERINGS["stepwise"]))
    assert (joined["slice"], joined["concat"]) == (16, 4)


def test_groups_of_another_size_are_joined() -> None:
    model = settle(
        nn.Sequential(
            CSRConv2d(3, 12, 3, 3, padding=1), nn.BatchNorm2d(12), CSRConv2d(12, 12, 3, 2, padding=1)
        ),
        (1, 3, 16, 16),
    )
    found = operations(check(model, LOWERINGS["grouped"]))
    assert found["concat"] == 2


@pytest.mark.parametrize("joint", ["rows", "channels"])
def test_a_step_is_one_convolution_with_one_weight(joint: Joint) -> None:
    model = chain(16, 4, 1, 1)
    strategy = Lowering(unroll_stepwise, groups=True, joint=lambda *_: joint)
    graph = check(model, strategy)
    assert operations(graph)["add"] == 4 + 1, "only the residual additions are left"
    assert operations(graph)["conv2d"] == 1 + 4 * 4
    used = Counter(n.inputs[1] for n in graph.nodes if n.op == "conv2d")
    assert sorted(used.values()) == [1] * 5 + [3] * 4
    for name, sources in graph.arranged.items():
        assert used[name] == 3
        assert [graph.constants.get(s, np.empty(0)).size for s in sources][0] * 2 == graph.constants[
            name
        ].size


def test_a_strided_step_stays_two_convolutions() -> None:
    graph = check(chain(16, 4, 2), LOWERINGS["stacked"])
    assert operations(graph)["add"] == 3


def test_filters_compute_as_many_pixels_as_fill_the_lanes() -> None:
    graph = check(chain(32, 4, 1), LOWERINGS["wide"])
    blocks = [n.attrs["block"] for n in graph.nodes if n.op == "channels_to_width"]
    # Convolutions of 8 filters by twos, affines of 8 channels by eights.
    assert Counter(blocks) == {2: 8, 8: 4} or Counter(blocks) == {2: 8}
    wide = {
        graph.shape(n.inputs[1])[0] for n in graph.nodes if n.op == "conv2d" and n.origin.startswith("2.")
    }
    assert wide == {16}


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(2, 13),
    steps=st.integers(1, 4),
    stride=st.sampled_from([1, 2]),
    pixels=st.sampled_from([1, 2, 4]),
    joint=st.sampled_from([None, "rows", "channels"]),
    groups=st.booleans(),
    folded=st.sampled_from([1, 2, 4]),
)
def test_every_mixture_keeps_the_function(
    channels: int, steps: int, stride: int, pixels: int, joint: Joint | None, groups: bool, folded: int
) -> None:
    model = chain(channels, min(steps, channels), stride, 1)
    check(model, Lowering(unroll_stepwise, groups, lambda *_: joint, lambda *_: pixels, lambda *_: folded))


def test_a_wide_filter_is_the_filter_moved() -> None:
    weight = np.arange(2 * 3 * 1 * 3, dtype=np.float64).reshape(2, 3, 1, 3)
    wide = widened(weight, 2, 2)
    assert wide.shape == (4, 3, 1, 5)
    np.testing.assert_array_equal(wide[:2, ..., :3], weight)
    np.testing.assert_array_equal(wide[2:, ..., 2:], weight)
    assert not wide[:2, ..., 3:].any() and not wide[2:, ..., :2].any()


def test_channels_to_width_is_a_view_of_channels_last_memory() -> None:
    x = torch.randn(2, 6, 3, 4)
    out = evaluate_node(Node("channels_to_width", ("x",), "y", {"block": 2}), [x])
    flat = x.permute(0, 2, 3, 1).reshape(2, 3, 8, 3)
    torch.testing.assert_close(out, flat.permute(0, 3, 1, 2))


def test_only_convolutions_whose_width_divides_are_widened() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4)), (1, 3, 15, 15))
    graph = capture(model, (1, 3, 15, 15))
    assert [can_widen(graph, n, 2) for n in graph.nodes] == [False, False]
    assert fill_lanes(graph, graph.nodes[0]) == 1


COSTS = CostModel("test", True, (16, 4), {"conv": 100.0, "conv.mac": 1.0, "copy": 50.0, "elementwise": 80.0})


def test_the_cheapest_graph_wins_and_stepwise_is_among_them() -> None:
    model = chain(16, 4, 1, 1)
    made = lower(model, (1, 3, 16, 16), "auto", legalise, COSTS, weight_budget=99)
    totals = [COSTS.graph(legalise(unroll(model, (1, 3, 16, 16), name))) for name in LOWERINGS]
    assert COSTS.graph(made.graph) <= min(totals)
    assert made.lowering == "auto"
    assert made.figures["cost_model"] == "test"
    assert made.figures["cost_of_stepwise"] < 1
    shares = made.figures["cost_shares"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares["multiply-accumulates"] > 0.5 > shares["reshapes"] == 0
    dear = CostModel("views are dear", True, (16, 4), {"view": 1e9, "copy": 1e3, "elementwise": 1.0})
    kept = lower(model, (1, 3, 16, 16), "auto", legalise, dear)
    assert operations(kept.graph)["channels_to_width"] == 0


@pytest.mark.parametrize("budget", [1.0, 1.2, 1.5, 3.0])
def test_stored_weights_stay_within_the_budget(budget: float) -> None:
    model = chain(32, 4, 1, 1)
    made = lower(model, (1, 3, 16, 16), "auto", legalise, COSTS, weight_budget=budget)
    assert made.figures["stored_weights"] <= budget
    dearer = lower(model, (1, 3, 16, 16), "auto", legalise, COSTS, weight_budget=1.0)
    assert COSTS.graph(made.graph) <= COSTS.graph(dearer.graph)


def test_auto_needs_costs_and_names_are_checked() -> None:
    with pytest.raises(OptionError, match="no cost model"):
        lower(chain(4, 2, 1), (1, 3, 16, 16), "auto", legalise)
    with pytest.raises(OptionError, match="unknown lowering 'fast'"):
        lower(chain(4, 2, 1), (1, 3, 16, 16), "fast", legalise)


def test_a_fit_finds_the_costs_that_made_the_measurements() -> None:
    graphs = [
        legalise(unroll(chain(c, t, 1), (1, 3, size, size), name))
        for c, t, size in ((8, 2, 8), (16, 4, 16), (12, 3, 8), (32, 4, 8))
        for name in ("stepwise", "grouped", "wide")
    ]
    model = fit("made", graphs, [COSTS.graph(g) for g in graphs], channels_last=True)
    assert model.error < 1e-3
    other = legalise(unroll(chain(24, 3, 1, 1), (1, 3, 16, 16), "stacked"))
    assert model.graph(other) == pytest.approx(COSTS.graph(other), rel=0.02)
    with pytest.raises(OptionError, match="too few"):
        fit("few", graphs[:3], [1.0, 2.0, 3.0], channels_last=True)


def test_least_squares_without_negative_costs() -> None:
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    np.testing.assert_allclose(non_negative_least_squares(matrix, matrix @ [2.0, 3.0]), [2, 3], rtol=1e-6)
    assert non_negative_least_squares(matrix, np.array([3.0, 2.0, 1.0]))[1] == 0


def test_cost_files_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    import json

    path = tmp_path / "mine.json"
    path.write_text(json.dumps(COSTS.record()))
    assert read_cost_model(path) == COSTS
    assert find_costs("litert", 8, str(path)) == COSTS
    assert find_costs("", 8, str(path)) is None
    for text, message in (
        ("{", "no cost model"),
        (json.dumps({**COSTS.record(), "version": 9}), "version 9"),
        (json.dumps({**COSTS.record(), "coefficients": {"conv": -1}}), "negative"),
    ):
        path.write_text(text)
        with pytest.raises(OptionError, match=message):
            read_cost_model(path)
    with pytest.raises(OptionError, match="cannot be read"):
        find_costs("litert", 8, str(tmp_path / "none.json"))
    with pytest.raises(OptionError, match="no costs of a processor 'pi9'"):
        find_costs("litert", 8, "pi9")


def test_a_kernel_arranged_once_a_step_is_a_defect() -> None:
    def stored(*names: str) -> Ledger:
        return Ledger(tuple(Stored(n, 10, 10, 1, "weight") for n in names))

    made = {f"v.{i}": ("v", "u") for i in range(3)}
    check_ledger(stored("v", "v.0", "v.1"), {"v": 10, "u": 10}, "net", made)
    with pytest.raises(LedgerError, match="stored 3 times"):
        check_ledger(stored("v.0", "v.1", "v.2"), {"v": 10, "u": 10}, "net", made)
