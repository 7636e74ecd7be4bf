"""Which lowering pays for one operation: fixed rules, and the choice by a cost model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from csr_deploy.unroll.cost import CostModel
from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.ops import Shape
from csr_deploy.unroll.passes.fold_pixels import can_fold
from csr_deploy.unroll.passes.stack_steps import Joint
from csr_deploy.unroll.passes.widen import can_widen

LANES = 16
"""Output channels of the int8 kernels of XNNPACK on ARM and x86."""
CHANNEL_WEIGHTS = 16
"""What the tables of an output channel take beside its weights (bias, scale, zero point), in int8 weights."""
_PIXELS = (1, 2, 4)
_FOLDS = (1, 2, 4, 8)


def rows_always(graph: Graph, add: Node, first: Node, second: Node) -> Joint | None:
    """Joins every step by rows."""
    return "rows"


def fill_lanes(graph: Graph, node: Node) -> int:
    """As many pixels as fit into the lanes that a filter of one pixel leaves empty."""
    filters = graph.shape(node.inputs[1])[0]
    return max((p for p in _PIXELS if p * filters <= LANES and can_widen(graph, node, p)), default=1)


def fold_lanes(graph: Graph, node: Node) -> int:
    """As many pixels as make an affine of at most four times the lanes."""
    channels = graph.shapes[node.output][1]
    able = (p for p in _FOLDS if p * channels <= 4 * LANES and can_fold(graph, node, p))
    return max(able, default=1)


def cheapest_fold(costs: CostModel, price: float, graph: Graph, node: Node) -> int:
    """The number of pixels as one, in an affine, that costs least.

    Args:
        costs: Of the runtime.
        price: Of one stored weight, in units of the costs: gains and biases are repeated for every pixel.
        graph: The graph.
        node: An affine.
    """
    n, c, h, w = graph.shapes[node.output]

    def cost(pixels: int) -> float:
        shape = (n, c * pixels, h, w // pixels)
        total = costs.operation("affine", [shape, (c * pixels,), (c * pixels,)], shape)
        total += price * CHANNEL_WEIGHTS * c * pixels
        if pixels > 1:
            attrs = {"block": pixels}
            total += costs.operation("width_to_channels", [(n, c, h, w)], shape, attrs)
            total += costs.operation("channels_to_width", [shape], (n, c, h, w), attrs)
        return total

    return min((p for p in _FOLDS if p == 1 or can_fold(graph, node, p)), key=cost)


def cheapest_width(costs: CostModel, price: float, graph: Graph, node: Node) -> int:
    """The number of pixels a filter that costs least.

    Args:
        costs: Of the runtime.
        price: Of one stored weight, in units of the costs: what zeros beside a filter take in the file.
        graph: The graph.
        node: A convolution.
    """
    able = [p for p in _PIXELS if p == 1 or can_widen(graph, node, p)]
    shape, weight = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    out = graph.shapes[node.output]
    share = price / _uses(graph, node)
    return min(able, key=lambda p: _wide_cost(costs, shape, weight, out, node.attrs, p, share))


def _uses(graph: Graph, node: Node) -> int:
    """Convolutions that share a node's weight."""
    return sum(n.op == "conv2d" and n.inputs[1] == node.inputs[1] for n in graph.nodes)


def cheapest_joint(
    costs: CostModel, price: float, graph: Graph, add: Node, first: Node, second: Node
) -> Joint | None:
    """How to join both convolutions of a step at least cost, or None where that does not pay.

    Args:
        costs: Of the runtime.
        price: Of one stored weight, in units of the costs: the first step still needs V alone.
        graph: The graph.
        add: The sum of both.
        first: One of its convolutions.
        second: The other.
    """
    steps = min(_uses(graph, first), _uses(graph, second))
    share = price / steps
    x, weight = graph.shape(first.inputs[0]), graph.shape(first.inputs[1])
    out = graph.shapes[add.output]
    batch, channels, height, width = x
    apart = costs.operation("add", [out, out], out, add.attrs)
    apart += sum(
        _best(costs, graph.shape(n.inputs[0]), graph.shape(n.inputs[1]), out, n.attrs, share)
        for n in (first, second)
    )
    attrs = first.attrs
    both = (batch, 2 * channels, height, width)
    by_channels = costs.operation("concat", [x, x], both, {"axis": 1})
    # The kernel that stays alone for the step without a state is stored as well.
    left = share * math.prod(weight) if _uses(graph, first) != _uses(graph, second) else 0.0
    by_channels += left + _best(costs, both, (weight[0], 2 * weight[1], *weight[2:]), out, attrs, share)
    beside, tall = (batch, channels, height, 2 * width), (batch, channels, 2 * height, width)
    by_rows = costs.operation("concat", [x, x], beside, {"axis": 3})
    by_rows += costs.operation("reshape", [beside], tall, {"shape": tall})
    tall_attrs = {**attrs, "stride": (2 * attrs["stride"][0], attrs["stride"][1])}
    kernel = (weight[0], weight[1], 2 * weight[2], weight[3])
    by_rows += left + _best(costs, tall, kernel, out, tall_attrs, share)
    choices: dict[Joint | None, float] = {None: apart, "rows": by_rows, "channels": by_channels}
    return min(choices, key=lambda k: choices[k])


def _best(
    costs: CostModel, x: Shape, weight: Shape, out: Shape, attrs: Mapping[str, Any], share: float
) -> float:
    able = [p for p in _PIXELS if out[3] % p == 0]
    return min(_wide_cost(costs, x, weight, out, attrs, p, share) for p in able)


def _wide_cost(
    costs: CostModel,
    x: Shape,
    weight: Shape,
    out: Shape,
    attrs: Mapping[str, Any],
    pixels: int,
    share: float,
) -> float:
    """Cost of a convolution of that many pixels a filter, and of its part in the stored weights."""
    stride = attrs["stride"][1]
    wide = (pixels * weight[0], *weight[1:3], weight[3] + (pixels - 1) * stride)
    shape = (out[0], pixels * out[1], out[2], out[3] // pixels)
    cost: float = costs.operation("conv2d", [x, wide], shape, attrs)
    cost += share * (math.prod(wide) + CHANNEL_WEIGHTS * wide[0])
    if pixels > 1:
        cost += costs.operation("channels_to_width", [shape], out, {"block": pixels})
        # Once a column is moved, padding may no longer be what the format calls SAME.
        if not _stays_same(x, wide, out, attrs, pixels):
            padded = (x[0], x[1], x[2] + sum(attrs["padding"][::2]), x[3] + sum(attrs["padding"][1::2]))
            cost += costs.operation("pad", [x], padded, {})
    return cost


def _stays_same(x: Shape, wide: Shape, out: Shape, attrs: Mapping[str, Any], pixels: int) -> bool:
    stride = attrs["stride"][1] * pixels
    total = max(0, (math.ceil(x[3] / stride) - 1) * stride + wide[3] - x[3])
    return not attrs["padding"][1] or total // 2 == attrs["padding"][1]
