"""From a module to the static graph an exporter writes: capture, then a list of passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from csr_deploy.errors import OptionError
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.choose import (
    CHANNEL_WEIGHTS,
    cheapest_fold,
    cheapest_joint,
    cheapest_width,
    fill_lanes,
    fold_lanes,
    rows_always,
)
from csr_deploy.unroll.cost import CostModel
from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.ops import Shape
from csr_deploy.unroll.passes import fold_pixels as folding
from csr_deploy.unroll.passes import stack_steps as stacking
from csr_deploy.unroll.passes import widen as widening
from csr_deploy.unroll.passes.absorb_truncation import absorb_truncation
from csr_deploy.unroll.passes.fold_affine import fold_affine
from csr_deploy.unroll.passes.fuse_activation import fuse_activation
from csr_deploy.unroll.passes.keep_groups import keep_groups
from csr_deploy.unroll.passes.lift_vectors import lift_vectors
from csr_deploy.unroll.passes.simplify import simplify
from csr_deploy.unroll.passes.sink_views import sink_views
from csr_deploy.unroll.passes.unroll import unroll_stepwise, unroll_time_major

Pass = Callable[[Graph], Graph]
JoinRule = Callable[[Graph, Node, Node], bool]
"""Graph and the convolutions of x and h of a step → whether they may become one."""
AUTO = "auto"
WEIGHT_BUDGET = 1.3
"""What "auto" may store, in parts of the step-wise graph: joined and wide kernels repeat weights."""
_PRICES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Of a stored weight, in parts of what the step-wise graph costs for each of its weights."""


@dataclass(frozen=True)
class Lowering:
    """A strategy: how CSR-Convs become plain operations.

    Attributes:
        unroll: Writes the recurrence out.
        groups: Keep the channel groups of consecutive CSR-Convs apart.
        joint: How V and U of a step become one convolution; None for never.
        pixels: How many pixels a filter computes; None for one, always.
        folded: How many pixels become one for an affine; None for one, always.
    """

    unroll: Pass
    groups: bool = False
    joint: stacking.Chooser | None = None
    pixels: widening.Chooser | None = None
    folded: folding.Chooser | None = None

    def passes(self) -> tuple[Pass, ...]:
        """All passes in their order, the unrolling first."""
        return (*self.first_passes(), *self.last_passes())

    def first_passes(self) -> tuple[Pass, ...]:
        """Those that depend on `unroll` and `groups` only."""
        chosen: list[Pass] = [self.unroll, simplify, absorb_truncation, simplify]
        if self.groups:
            chosen += [keep_groups, simplify]
        return (*chosen, fold_affine, fuse_activation)

    def last_passes(self) -> tuple[Pass, ...]:
        """Those behind them."""
        chosen: list[Pass] = []
        if self.joint is not None:
            chosen += [partial(stacking.stack_steps, choose=self.joint), simplify]
        if self.pixels is not None:
            chosen += [partial(widening.widen, choose=self.pixels)]
        if self.folded is not None:
            chosen += [partial(folding.fold_pixels, choose=self.folded)]
        return (*chosen, lift_vectors, simplify, sink_views, simplify)

    def __call__(self, graph: Graph) -> Graph:
        """Lowers a captured graph."""
        return _apply(self.passes(), graph)

    def limited(self, may_join: JoinRule | None) -> Lowering:
        """The same, but joining no step that the rule forbids."""
        choose = self.joint
        if choose is None or may_join is None:
            return self

        def allowed(graph: Graph, add: Node, first: Node, second: Node) -> stacking.Joint | None:
            return choose(graph, add, first, second) if may_join(graph, first, second) else None

        return replace(self, joint=allowed)


def _apply(passes: Iterable[Pass], graph: Graph) -> Graph:
    for each in passes:
        graph = each(graph)
    return graph


LOWERINGS: dict[str, Lowering] = {
    "stepwise": Lowering(unroll_stepwise),
    "time-major": Lowering(unroll_time_major),
    "grouped": Lowering(unroll_stepwise, groups=True),
    "stacked": Lowering(unroll_stepwise, groups=True, joint=rows_always),
    "wide": Lowering(unroll_stepwise, groups=True, joint=rows_always, pixels=fill_lanes, folded=fold_lanes),
}
"""Strategies by name, each the same for all layers. "auto" chooses for each layer by cost."""


@dataclass(frozen=True)
class Lowered:
    """A lowered graph and how it came about.

    Attributes:
        graph: The legalised graph.
        lowering: Key of `LOWERINGS`, or "auto".
        figures: What was chosen and why, plain values for the manifest.
    """

    graph: Graph
    lowering: str
    figures: dict[str, Any]


def unroll(model: nn.Module, input_shape: Shape, lowering: str = "stepwise") -> Graph:
    """Turns a network into a static graph of plain operations.

    Args:
        model: Any torch module with one image input and one tensor output.
        input_shape: [N, C, H, W].
        lowering: Key of `LOWERINGS`.

    Raises:
        OptionError: If the strategy is unknown.
        CaptureError: If the model cannot be captured.
    """
    return find_lowering(lowering)(capture(model, input_shape))


def find_lowering(name: str) -> Lowering:
    """The strategy of that name.

    Raises:
        OptionError: If there is none.
    """
    if name not in LOWERINGS:
        raise OptionError(f"unknown lowering '{name}'", fix=f"Known: {AUTO}, {', '.join(LOWERINGS)}.")
    return LOWERINGS[name]


def lower(
    model: nn.Module,
    input_shape: Shape,
    lowering: str,
    legalise: Pass,
    costs: CostModel | None = None,
    weight_budget: float = WEIGHT_BUDGET,
    may_join: JoinRule | None = None,
) -> Lowered:
    """Lowers a network for a format, by a given strategy or by the cheapest.

    With "auto", every strategy and the mixtures that the cost model favours layer by layer are lowered, and
    the cheapest whole graph within the budget of stored weights wins; the plain step-wise one is always among
    them. To stay within the budget, stored weights are given a price, and the price is raised.

    Args:
        model: The network.
        input_shape: [N, C, H, W].
        lowering: Key of `LOWERINGS`, or "auto".
        legalise: Makes a graph expressible in the format.
        costs: Of the runtime that will run it; needed for "auto".
        weight_budget: Most that "auto" may store, weights and tables, in parts of the step-wise graph.
        may_join: Which steps "auto" may make one convolution of; None for all.

    Raises:
        OptionError: If the strategy is unknown, or "auto" has no costs to choose by.
        CaptureError: If the model cannot be captured.
    """
    captured = capture(model, input_shape)
    if lowering != AUTO:
        return Lowered(legalise(find_lowering(lowering)(captured)), lowering, {})
    if costs is None:
        raise OptionError("there is no cost model to choose a lowering by", fix="Give --lowering by name.")
    fronts: dict[tuple[Pass, bool], Graph] = {}

    def lowered(strategy: Lowering) -> Graph:
        key = strategy.unroll, strategy.groups
        if key not in fronts:
            fronts[key] = _apply(strategy.first_passes(), captured)
        return legalise(_apply(strategy.limited(may_join).last_passes(), fronts[key]))

    graphs = {name: lowered(strategy) for name, strategy in LOWERINGS.items()}
    plain = graphs["stepwise"]
    most = weight_budget * _stored(plain)
    price = costs.graph(plain) / max(1, _stored(plain))
    for share in _PRICES:
        joint = partial(cheapest_joint, costs, share * price)
        pixels = partial(cheapest_width, costs, share * price)
        folded = partial(cheapest_fold, costs, share * price)
        for groups in (False, True):
            name = f"mixed, {'groups apart' if groups else 'groups joined'}, weights at {share:g}"
            graphs[name] = lowered(Lowering(unroll_stepwise, groups, joint, pixels, folded))
    totals = {
        name: costs.graph(graph) for name, graph in graphs.items() if graph is plain or _stored(graph) <= most
    }
    best = min(totals, key=lambda name: totals[name])
    figures = {
        "cost_model": costs.name,
        "chosen": best,
        # A network without a layer that computes costs nothing in any lowering.
        "cost_of_stepwise": round(totals[best] / totals["stepwise"], 4) if totals["stepwise"] else 1.0,
        "stored_weights": round(_stored(graphs[best]) / max(1, _stored(plain)), 3),
        "joined_steps": _joined(graphs[best]),
        "pixels_at_once": _pixels(graphs[best]),
        "cost_shares": costs.shares(graphs[best]),
    }
    return Lowered(graphs[best], AUTO, figures)


def _stored(graph: Graph) -> int:
    """What weights and tables of output channels take, in int8 weights; shared ones once."""
    nodes = [n for n in graph.nodes if n.op in ("conv2d", "linear", "affine")]
    kernels = sum(graph.constants[name].size for name in {n.inputs[1] for n in nodes})
    # A bias and its scales belong to one node: the steps of a recurrence differ in them.
    return kernels + CHANNEL_WEIGHTS * sum(graph.shape(n.inputs[1])[0] for n in nodes)


def _joined(graph: Graph) -> int:
    """Convolutions that read both the input and the state."""
    return sum(n.op == "conv2d" and len(graph.arranged.get(n.inputs[1], ())) > 1 for n in graph.nodes)


def _pixels(graph: Graph) -> dict[str, int]:
    """Pixels that a filter or an affine computes at once → number of such operations, for more than one."""
    found = Counter(n.attrs["block"] for n in graph.nodes if n.op == "channels_to_width")
    return {str(k): v for k, v in sorted(found.items())}
