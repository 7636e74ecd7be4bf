"""Moves views of several pixels a filter behind what does not care, so that fewer are left.

Operations on single values, and concatenations along any axis but the channels, give the same on
[N, b·C, H, W/b] as on [N, C, H, W]: the view comes once, after them, instead of once an input before them.
From a value that is added to such a view on, a chain of residual blocks stays in that shape.
"""

from __future__ import annotations

from csr_deploy.unroll.graph import Graph, GraphEditor, Node
from csr_deploy.unroll.ops import ACTIVATION_OPS

_VALUEWISE = frozenset({"add", "sub", "mul"}) | ACTIVATION_OPS
_CHANNELS = 1


def sink_views(graph: Graph) -> Graph:
    """Lets every `channels_to_width` sink as far as it goes."""
    editor = GraphEditor(graph)
    views: dict[str, Node] = {}
    for node in editor:
        block = _sinks_with(node, views, editor)
        if block is not None:
            inputs = [_narrow(name, block, views, node, editor) for name in node.inputs]
            narrow = editor.add(node.op, inputs, f"{node.output}.narrow", node.origin, **node.attrs)
            node = Node("channels_to_width", (narrow,), node.output, {"block": block}, node.origin)
        editor.keep(node)
        if node.op == "channels_to_width":
            views[node.output] = node
    return editor.done()


def _sinks_with(node: Node, views: dict[str, Node], editor: GraphEditor) -> int | None:
    """Pixels of the views that may come behind a node instead of before it; None if they may not."""
    blocks = {views[i].attrs["block"] for i in node.inputs if i in views}
    if len(blocks) != 1:
        return None
    if node.op == "concat":
        sinks = node.attrs["axis"] != _CHANNELS and all(i in views for i in node.inputs)
    else:
        sinks = node.op in _VALUEWISE and len({editor.shape(i) for i in node.inputs}) == 1
    return int(blocks.pop()) if sinks else None


def _narrow(name: str, block: int, views: dict[str, Node], node: Node, editor: GraphEditor) -> str:
    """An input as it is before the view, or brought into that shape."""
    if name in views:
        return views[name].inputs[0]
    return editor.add("width_to_channels", [name], f"{node.output}.folded", node.origin, block=block)
