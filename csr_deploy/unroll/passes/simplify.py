"""Clean-up: common subexpressions, slices of slices, pads of pads, slices of concatenations, no-ops."""

from __future__ import annotations

from csr_deploy.unroll.graph import Graph, GraphEditor, Node


def simplify(graph: Graph) -> Graph:
    """Repeats the local rewrites until nothing changes."""
    while True:
        simpler = _simplify_once(graph)
        if [(n.op, n.inputs, n.attrs) for n in simpler.nodes] == [
            (n.op, n.inputs, n.attrs) for n in graph.nodes
        ]:
            return simpler
        graph = simpler


def _simplify_once(graph: Graph) -> Graph:
    editor = GraphEditor(graph)
    seen: dict[object, str] = {}
    made: dict[str, Node] = {}
    for node in editor:
        node = _merge(node, made, editor)
        if _is_identity(node, editor):
            editor.alias(node.output, node.inputs[0])
            continue
        key = (node.op, node.inputs, tuple(sorted(node.attrs.items(), key=lambda kv: kv[0])))
        if node.op != "csr_conv2d" and key in seen:
            editor.alias(node.output, seen[key])
            continue
        editor.keep(node)
        made[node.output] = node
        if node.op != "csr_conv2d":
            seen[key] = node.output
    return editor.done()


def _is_identity(node: Node, editor: GraphEditor) -> bool:
    if node.op in ("channels_to_width", "width_to_channels"):
        return bool(node.attrs["block"] == 1)
    if node.op not in ("slice", "pad", "reshape", "transpose", "concat"):
        return False
    x = editor.shape(node.inputs[0])
    if node.op == "slice":
        return (
            node.attrs["starts"] == (0,) * len(x)
            and node.attrs["stops"] == x
            and set(node.attrs["steps"]) == {1}
        )
    if node.op == "pad":
        return all(p == (0, 0) for p in node.attrs["pads"])
    if node.op == "reshape":
        return tuple(node.attrs["shape"]) == x
    if node.op == "transpose":
        return tuple(node.attrs["perm"]) == tuple(range(len(x)))
    return len(node.inputs) == 1


def _merge(node: Node, made: dict[str, Node], editor: GraphEditor) -> Node:
    """Lets a view read from its producer's source, where the producer is a view as well."""
    source = made.get(node.inputs[0])
    if source is None:
        return node
    a, b = source.attrs, node.attrs
    if node.op == source.op == "slice":
        starts = tuple(s + t * p for s, t, p in zip(a["starts"], b["starts"], a["steps"], strict=True))
        steps = tuple(p * q for p, q in zip(a["steps"], b["steps"], strict=True))
        stops = tuple(
            min(stop, s + p * (t - 1) + 1)
            for stop, s, p, t in zip(a["stops"], a["starts"], a["steps"], b["stops"], strict=True)
        )
        return Node(
            "slice",
            source.inputs,
            node.output,
            {"starts": starts, "stops": stops, "steps": steps},
            node.origin,
        )
    if node.op == source.op == "pad":
        pads = tuple((p[0] + q[0], p[1] + q[1]) for p, q in zip(a["pads"], b["pads"], strict=True))
        return Node("pad", source.inputs, node.output, {"pads": pads}, node.origin)
    if node.op == source.op == "reshape":
        return Node("reshape", source.inputs, node.output, b, node.origin)
    if node.op == "width_to_channels" and source.op == "channels_to_width":
        return _unfolded(node, source)
    if node.op == "slice" and source.op == "concat" and set(b["steps"]) == {1}:
        return _slice_of_concat(node, source, editor)
    return node


def _unfolded(node: Node, source: Node) -> Node:
    """Moving pixels out of the channels and more of them back in is moving the rest."""
    out_of, into = source.attrs["block"], node.attrs["block"]
    if into % out_of == 0:
        return Node("width_to_channels", source.inputs, node.output, {"block": into // out_of}, node.origin)
    if out_of % into == 0:
        return Node("channels_to_width", source.inputs, node.output, {"block": out_of // into}, node.origin)
    return node


def _slice_of_concat(node: Node, source: Node, editor: GraphEditor) -> Node:
    """A slice that lies within one piece of a concatenation reads that piece."""
    axis = source.attrs["axis"]
    start, stop = node.attrs["starts"][axis], node.attrs["stops"][axis]
    offset = 0
    for name in source.inputs:
        size = editor.shape(name)[axis]
        if offset <= start and stop <= offset + size:
            starts = tuple(start - offset if i == axis else s for i, s in enumerate(node.attrs["starts"]))
            stops = tuple(stop - offset if i == axis else s for i, s in enumerate(node.attrs["stops"]))
            attrs = {**node.attrs, "starts": starts, "stops": stops}
            return Node("slice", (name,), node.output, attrs, node.origin)
        offset += size
    return node
