"""What a static graph costs on a runtime: a small linear model, fitted to measurements.

The cost of a graph is the sum over its operations of non-negative coefficients times features that say how a
kernel walks over its data: tiles of a convolution, contiguous runs that a copy moves, elements of an
element-wise operation, and one for each operation. Units are those of the measurements it was fitted to,
instructions or nanoseconds; only ratios matter to who chooses by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import OptionError
from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.ops import Shape

_VERSION = 1
_TILES = ((8, 1), (8, 4), (16, 1), (16, 4), (16, 8), (32, 4))
"""(output channels, input channels) of a kernel's tile that a fit may choose between."""

_GATHERED = 64
"""Input channels from which ONNX Runtime convolves on arm64 without gathering windows."""

Features = dict[str, float]

_KINDS = {
    "conv.mac": "multiply-accumulates",
    "conv": "convolutions beyond them",
    "depthwise": "affines and depth-wise convolutions",
    "elementwise": "additions, products",
    "copy": "slices, concatenations, pads",
    "view": "reshapes",
    "transpose": "transposes",
    "pool": "pooling",
    "unary": "activations",
}
"""Feature, or what stands before its dot → kind of work."""


def _round(value: int, to: int) -> int:
    return -(-value // to) * to


@dataclass(frozen=True)
class CostModel:
    """Coefficients for one runtime, number format and processor.

    Attributes:
        name: What it was measured on.
        channels_last: Whether the runtime keeps channels innermost, which decides what is contiguous.
        tile: (output channels, input channels) that a convolution's kernel rounds up to.
        coefficients: Feature → cost of one unit.
        error: Median relative error on the graphs it was fitted to.
        signed_activations: Whether they were measured with int8 activations where a format has uint8 as well.
    """

    name: str
    channels_last: bool
    tile: tuple[int, int]
    coefficients: Mapping[str, float]
    error: float = 0.0
    signed_activations: bool = False

    def graph(self, graph: Graph) -> float:
        """Cost of one inference."""
        return sum(self.node(graph, node) for node in graph.nodes)

    def node(self, graph: Graph, node: Node) -> float:
        """Cost of one operation."""
        shapes = [graph.shape(i) for i in node.inputs]
        return self.operation(node.op, shapes, graph.shapes[node.output], node.attrs)

    def operation(
        self, op: str, inputs: Sequence[Shape], output: Shape, attrs: Mapping[str, Any] | None = None
    ) -> float:
        """Cost of an operation that need not exist yet: its inputs' and output's shapes and attributes."""
        features = node_features(op, inputs, output, attrs or {}, self.channels_last, self.tile)
        return sum(self.coefficients.get(k, 0.0) * v for k, v in features.items())

    def shares(self, graph: Graph) -> dict[str, float]:
        """Where the cost of a graph goes: kind of work → share of the whole.

        `multiply-accumulates` are those of whole tiles, so the lanes that narrow layers leave empty count.
        """
        features = _sum(graph, self.channels_last, self.tile)
        total: dict[str, float] = {}
        for key, units in features.items():
            kind = _KINDS.get(key) or _KINDS[key.partition(".")[0]]
            total[kind] = total.get(kind, 0.0) + self.coefficients.get(key, 0.0) * units
        whole = sum(total.values()) or 1.0
        return {kind: round(cost / whole, 4) for kind, cost in sorted(total.items())}

    def record(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "version": _VERSION,
            "name": self.name,
            "channels_last": self.channels_last,
            "tile": list(self.tile),
            "coefficients": {k: float(f"{v:.5g}") for k, v in sorted(self.coefficients.items())},
            "error": round(self.error, 4),
            "signed_activations": self.signed_activations,
        }


def read_cost_model(path: Path) -> CostModel:
    """Reads what `CostModel.record` gave, as JSON.

    Raises:
        OptionError: If the file cannot be read or is none.
    """
    where = str(path)
    fix = "Give a file that tools/calibrate_costs.py wrote."
    try:
        record = json.loads(path.read_text())
        if record["version"] != _VERSION:
            raise OptionError(f"has version {record['version']}, known is {_VERSION}", where=where, fix=fix)
        nr, kr = record["tile"]
        coefficients = {str(k): float(v) for k, v in record["coefficients"].items()}
        model = CostModel(
            str(record["name"]),
            bool(record["channels_last"]),
            (int(nr), int(kr)),
            coefficients,
            float(record["error"]),
            # Files of before this was a choice have uint8.
            bool(record.get("signed_activations", False)),
        )
    except OSError as error:
        raise OptionError(f"cannot be read: {error.strerror or error}", where=where, fix=fix) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(f"is no cost model: {error!r}", where=where, fix=fix) from error
    if not all(math.isfinite(v) and v >= 0 for v in coefficients.values()):
        raise OptionError("has costs that are negative or not finite", where=where, fix=fix)
    return model


def node_features(
    op: str,
    inputs: Sequence[Shape],
    output: Shape,
    attrs: Mapping[str, Any],
    channels_last: bool,
    tile: tuple[int, int],
) -> Features:
    """What a kernel does for an operation, in units that costs are given for."""
    elements = math.prod(output)
    if op == "conv2d":
        return _convolution(inputs, output, attrs, tile)
    if op == "linear":
        weights = math.prod(inputs[1])
        return {"conv": 1, "conv.mac": weights * output[0]}
    if op == "affine":
        pixels = elements // output[1]
        return _depthwise(pixels, output[1], 1)
    if op in ("add", "sub", "mul"):
        return {"elementwise": 1, "elementwise.element": elements}
    if op in ("max_pool2d", "avg_pool2d", "mean_hw"):
        window = math.prod(attrs["kernel"]) if "kernel" in attrs else math.prod(inputs[0][2:])
        return {"pool": 1, "pool.tap": elements * window}
    if op in ("concat", "slice", "pad"):
        return {"copy": 1, "copy.run": _runs(op, inputs, output, attrs, channels_last), "copy.byte": elements}
    if op in ("reshape", "channels_to_width", "width_to_channels"):
        moves = op != "reshape" and not channels_last
        return (
            {"transpose": 1, "transpose.element": elements} if moves else {"view": 1, "view.byte": elements}
        )
    if op == "transpose":
        return {"transpose": 1, "transpose.element": elements}
    return {"unary": 1, "unary.element": elements}


def _convolution(
    inputs: Sequence[Shape], output: Shape, attrs: Mapping[str, Any], tile: tuple[int, int]
) -> Features:
    filters, inner, height, width = inputs[1]
    pixels, taps = output[0] * output[2] * output[3], height * width
    groups = attrs.get("groups", 1)
    if groups > 1 and inner == 1:
        return _depthwise(pixels, output[1], taps)
    columns, depth = _round(filters // groups, tile[0]) * groups, _round(inner, tile[1])
    tiles = columns // tile[0]
    return {
        "conv": groups,
        "conv.mac": pixels * taps * columns * depth,
        "conv.tap": pixels * taps * tiles,
        "conv.tile": pixels * tiles,
        "conv.pixel": pixels,
        # A kernel that gathers its windows first copies them row by row. ONNX Runtime does so for fewer
        # than 64 input channels, and lists pointers for more.
        "conv.row" if inner < _GATHERED else "conv.deep_row": pixels * height if taps > 1 else 0,
    }


def _depthwise(pixels: int, channels: int, taps: int) -> Features:
    """Of a depth-wise convolution: what an element costs whatever its taps stands apart from them."""
    elements = pixels * _round(channels, 8)
    return {
        "depthwise": 1,
        "depthwise.pixel": pixels,
        "depthwise.element": elements,
        "depthwise.tap": elements * taps,
    }


def _runs(
    op: str, inputs: Sequence[Shape], output: Shape, attrs: Mapping[str, Any], channels_last: bool
) -> int:
    """Contiguous runs that are copied."""

    def memory(shape: Sequence[int]) -> list[int]:
        return [shape[i] for i in (0, 2, 3, 1)] if channels_last and len(shape) == 4 else list(shape)

    if op == "concat":
        axis: int = attrs["axis"]
        order = memory(list(range(len(output))))
        outer = [output[i] for i in order[: order.index(axis)]]
        return math.prod(outer) * len(inputs)
    source, target = memory(inputs[0]), memory(output)
    larger = target if op == "pad" else source
    smaller = source if op == "pad" else target
    cut = [i for i, (a, b) in enumerate(zip(larger, smaller, strict=True)) if a != b]
    steps = memory(attrs["steps"]) if op == "slice" else [1] * len(target)
    if any(s != 1 for s in steps):
        return math.prod(smaller) // (smaller[-1] if steps[-1] == 1 else 1)
    return math.prod(smaller[: cut[-1]]) if cut else 1


def fit(name: str, graphs: Sequence[Graph], costs: Sequence[float], *, channels_last: bool) -> CostModel:
    """Fits a model to measured costs of whole graphs, by relative error.

    Args:
        name: What was measured.
        graphs: Legalised graphs.
        costs: Of one inference of each.
        channels_last: The runtime's layout.

    Raises:
        OptionError: If there are too few graphs.
    """
    if len(graphs) < 8 or len(graphs) != len(costs):
        raise OptionError(f"{len(graphs)} graphs and {len(costs)} costs are too few to fit a model")
    best: CostModel | None = None
    least = math.inf
    target = np.asarray(costs, np.float64)
    for tile in _TILES:
        rows = [_sum(graph, channels_last, tile) for graph in graphs]
        names = sorted({k for row in rows for k in row} - _not_told_apart(rows))
        matrix = np.array([[row.get(k, 0.0) for k in names] for row in rows]) / target[:, None]
        solution = non_negative_least_squares(matrix, np.ones(len(target)))
        residual = np.abs(matrix @ solution - 1)
        if (error := float(np.square(residual).mean())) < least:
            least = error
            coefficients = {k: float(v) for k, v in zip(names, solution, strict=True) if v > 0}
            best = CostModel(name, channels_last, tile, coefficients, float(np.median(residual)))
    assert best is not None
    return best


def _not_told_apart(rows: Sequence[Features]) -> set[str]:
    """Costs an operation that equal sizes in all graphs make the same as costs an element.

    The element keeps the cost: charged to the operation, a small one would cost as much as a large one.
    """
    found = set()
    for name in {k for row in rows for k in row if "." not in k}:
        ratios = {row.get(f"{name}.element", 0.0) / row[name] for row in rows if row.get(name)}
        if len(ratios) == 1 and ratios != {0.0}:
            found.add(name)
    return found


def _sum(graph: Graph, channels_last: bool, tile: tuple[int, int]) -> Features:
    total: Features = {}
    for node in graph.nodes:
        shapes = [graph.shape(i) for i in node.inputs]
        found = node_features(node.op, shapes, graph.shapes[node.output], node.attrs, channels_last, tile)
        for key, value in found.items():
            total[key] = total.get(key, 0.0) + value
    return total


def non_negative_least_squares(
    matrix: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solution x ≥ 0 with the least ‖matrix · x − target‖, by coordinate descent on scaled columns."""
    norms = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(norms > 0, norms, 1.0)
    gram, right = scaled.T @ scaled, scaled.T @ target
    x = np.zeros(matrix.shape[1])
    for _ in range(20_000):
        largest = 0.0
        for j in _used(norms):
            value = max(0.0, x[j] + (right[j] - gram[j] @ x))
            largest = max(largest, abs(value - x[j]))
            x[j] = value
        if largest < 1e-10:
            break
    return np.asarray(x / np.where(norms > 0, norms, 1.0))


def _used(norms: NDArray[np.float64]) -> Iterable[int]:
    return (j for j, norm in enumerate(norms) if norm > 0)
