"""What a network needs on a small device at int8: activations, weights, and how deep it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.lowering import LOWERINGS
from csr_deploy.unroll.passes.fold_affine import fold_affine
from csr_deploy.unroll.passes.fuse_activation import fuse_activation
from csr_deploy.unroll.passes.simplify import simplify

_BYTES_A_CHANNEL = 12
"""Of each filter or gain: a 32-bit bias, multiplier and shift."""
_WORK = frozenset({"conv2d", "linear"})


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes for one image at int8, one byte an activation and a weight.

    Attributes:
        peak_fused: Most bytes of activations alive at once where a recurrence is one kernel that writes its
            states in place, as in the `mcu` target.
        peak_fused_at: Name of the layer during which that is.
        peak_stepwise: The same where every step is an operation of its own, as in stock interpreters.
        flash: Kernels once each, and bias, multiplier and shift of every channel; without code.
        depth: Layer → convolutions and matrix products on the longest way up to and through it.
    """

    peak_fused: int
    peak_fused_at: str
    peak_stepwise: int
    flash: int
    depth: Mapping[str, int]


def memory_figures(captured: Graph) -> MemoryFigures:
    """The figures of a captured graph.

    Activations are counted from the operation that makes them to the last that reads them, input and output
    of an operation together; BatchNorm and ReLU are part of the convolution before them. An arena has
    scratch memory and alignment on top.

    Args:
        captured: From `csr_deploy.unroll.capture`, CSR-Convs as one node each.
    """
    graph = captured
    for each in (simplify, fold_affine, fuse_activation, simplify):
        graph = each(graph)
    fused, where = peak_activations(graph)
    unrolled = LOWERINGS["stepwise"](captured)
    stepwise, _ = peak_activations(unrolled)
    return MemoryFigures(fused, where, stepwise, _flash(unrolled), _depths(graph))


def peak_activations(graph: Graph) -> tuple[int, str]:
    """Most values alive at once for one image, and the module during whose operation that is."""
    batch = graph.shapes[graph.input][0]
    source = {graph.input: graph.input}
    size = {graph.input: int(np.prod(graph.shapes[graph.input])) // batch}
    last: dict[str, int] = {graph.input: 0}
    for index, node in enumerate(graph.nodes):
        # A reshape is the same bytes under another name.
        source[node.output] = source[node.inputs[0]] if node.op == "reshape" else node.output
        size.setdefault(source[node.output], int(np.prod(graph.shapes[node.output])) // batch)
        for name in (*node.inputs, node.output):
            if name in source:
                last[source[name]] = index
    last[source[graph.output]] = len(graph.nodes)
    best, where, alive = 0, "", {graph.input}
    for index, node in enumerate(graph.nodes):
        alive.add(source[node.output])
        total = sum(size[name] for name in alive)
        if total > best:
            best, where = total, node.origin
        alive = {name for name in alive if last[name] > index}
    return best, where


def _flash(graph: Graph) -> int:
    """Of a graph in which every step is written out: what the steps share counts once."""
    nodes = [node for node in graph.nodes if node.op in _WORK or node.op == "affine"]
    weights = {node.inputs[1]: graph.constants[node.inputs[1]] for node in nodes}
    return sum(w.size + _BYTES_A_CHANNEL * w.shape[0] for w in weights.values())


def _depths(graph: Graph) -> dict[str, int]:
    reached = {graph.input: 0}
    by_layer: dict[str, int] = {}
    for node in graph.nodes:
        depth = max((reached[name] for name in node.inputs if name in reached), default=0)
        depth += _steps(node)
        reached[node.output] = depth
        if _steps(node):
            name = node.attrs["layer"].scope if node.op == "csr_conv2d" else node.origin
            by_layer[name] = max(depth, by_layer.get(name, 0))
    return by_layer


def _steps(node: Node) -> int:
    if node.op == "csr_conv2d":
        return int(node.attrs["layer"].used_steps)
    return int(node.op in _WORK)
