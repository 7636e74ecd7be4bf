"""Keeps the channel groups of consecutive CSR-Convs apart: lists instead of concatenations.

The T states of a layer are joined, pass through channel-wise operations (BatchNorm, activation, residual
addition, pooling) and are split again by the next layer. Where both splits agree, the channel-wise operations
are applied to each group, and neither the concatenation nor the slices are left. In NHWC both copy a few
bytes a pixel, which costs as much as a narrow convolution.
"""

from __future__ import annotations

from collections.abc import Callable

from csr_deploy.unroll.graph import Graph, GraphEditor, Node
from csr_deploy.unroll.ops import ACTIVATION_OPS
from csr_deploy.unroll.passes.unroll import channels

Sizes = tuple[int, ...]

_WITH_TABLES = ACTIVATION_OPS | {"max_pool2d", "avg_pool2d", "mean_hw", "affine", "prelu"}
"""Operations on one value; their other inputs are constants [C] or [1, C, 1, 1]."""
_CHANNELWISE = _WITH_TABLES | {"add", "sub", "mul"}


def keep_groups(graph: Graph) -> Graph:
    """See the module's description."""
    splits = _possible_splits(graph)
    wanted = _wanted(graph, splits)
    editor = GraphEditor(graph)
    pieces: dict[str, list[str]] = {}
    whole: dict[str, str] = {}

    def joined(name: str) -> str:
        """The whole value, for an operation that needs it."""
        if name not in pieces:
            return editor.resolve(name)
        if name not in whole:
            whole[name] = editor.add("concat", pieces[name], f"{name}.joined", "", axis=1)
        return whole[name]

    def parts(name: str, sizes: Sizes) -> list[str]:
        if name not in pieces or _sizes(editor, pieces[name]) != sizes:
            source, start, made = joined(name), 0, []
            for index, size in enumerate(sizes):
                made.append(channels(editor, source, start, start + size, f"{name}.group{index + 1}", ""))
                start += size
            return made
        return pieces[name]

    for node in graph.nodes:
        if node.output in wanted:
            sizes = splits[node.output]
            if node.op == "concat":
                pieces[node.output] = [joined(i) for i in node.inputs]
            else:
                pieces[node.output] = _apply(graph, editor, node, sizes, parts)
            continue
        if node.op == "slice" and node.inputs[0] in pieces:
            piece = _piece(graph, node, splits[node.inputs[0]], pieces[node.inputs[0]], editor)
            if piece is not None:
                editor.alias(node.output, piece)
                continue
        editor.keep(
            Node(node.op, tuple(joined(i) for i in node.inputs), node.output, node.attrs, node.origin)
        )
    if graph.output in pieces:
        editor.alias(graph.output, joined(graph.output))
    return editor.done()


def _sizes(editor: GraphEditor, names: list[str]) -> Sizes:
    return tuple(editor.shape(n)[1] for n in names)


def _possible_splits(graph: Graph) -> dict[str, Sizes]:
    """Value → sizes of the channel groups that it is made of."""
    splits: dict[str, Sizes] = {}
    for node in graph.nodes:
        if len(graph.shapes[node.output]) != 4:
            continue
        if node.op == "concat" and node.attrs["axis"] == 1:
            splits[node.output] = tuple(graph.shape(i)[1] for i in node.inputs)
        elif node.op in _WITH_TABLES:
            if node.inputs[0] in splits:
                splits[node.output] = splits[node.inputs[0]]
        elif node.op in ("add", "sub", "mul"):
            known = {splits[i] for i in node.inputs if i in splits}
            alike = all(
                i in graph.shapes and graph.shapes[i] == graph.shapes[node.output] for i in node.inputs
            )
            if len(known) == 1 and alike:
                splits[node.output] = known.pop()
    return splits


def _wanted(graph: Graph, splits: dict[str, Sizes]) -> set[str]:
    """Values whose groups somebody reads one by one."""
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        for name in node.inputs:
            if name not in splits:
                continue
            carried = (
                node.op in _CHANNELWISE and node.output in wanted and splits[node.output] == splits[name]
            )
            if carried or (node.op == "slice" and _group_index(graph, node, splits[name]) is not None):
                wanted.add(name)
    return wanted


def _group_index(graph: Graph, node: Node, sizes: Sizes) -> int | None:
    """Which group a slice lies in, if it takes nothing else and cuts channels only."""
    starts, stops, steps = (node.attrs[k] for k in ("starts", "stops", "steps"))
    shape = graph.shapes[node.inputs[0]]
    if any((starts[i], stops[i], steps[i]) != (0, shape[i], 1) for i in (0, 2, 3)) or steps[1] != 1:
        return None
    offset = 0
    for index, size in enumerate(sizes):
        if offset <= starts[1] and stops[1] <= offset + size:
            return index
        offset += size
    return None


def _piece(graph: Graph, node: Node, sizes: Sizes, pieces: list[str], editor: GraphEditor) -> str | None:
    index = _group_index(graph, node, sizes)
    if index is None:
        return None
    offset = sum(sizes[:index])
    start, stop = node.attrs["starts"][1] - offset, node.attrs["stops"][1] - offset
    return channels(editor, pieces[index], start, stop, node.output, node.origin)


def _apply(
    graph: Graph, editor: GraphEditor, node: Node, sizes: Sizes, parts: Callable[[str, Sizes], list[str]]
) -> list[str]:
    """A channel-wise node, group by group."""
    values = [parts(i, sizes) for i in node.inputs if i in graph.shapes]
    constants = [i for i in node.inputs if i not in graph.shapes]
    out, start = [], 0
    for index, size in enumerate(sizes):
        inputs = [v[index] for v in values]
        for name in constants:
            key = f"{name}.group{index + 1}of{len(sizes)}.{start}"
            if key not in editor.constants:
                value = editor.constants[name]
                axis = 1 if value.ndim > 1 else 0
                editor.constant(key, value.take(range(start, start + size), axis))
            inputs.append(key)
        out.append(editor.add(node.op, inputs, f"{node.output}.group{index + 1}", node.origin, **node.attrs))
        start += size
    return out
