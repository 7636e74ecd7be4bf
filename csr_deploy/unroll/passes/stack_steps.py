"""One convolution a step: relu(V * x + U * h) as a single convolution over both pictures.

No addition is left, a quantised graph rounds once instead of three times, and V and U are one tensor. There
are two ways to join the pictures:

- *channels*: conv([x; h], [V U]). In NHWC that interleaves a few bytes a pixel.
- *rows*: side by side, [N, d, H, 2W], which in row-major memory is the tall picture [N, d, 2H, W] whose rows
  come from the two in turns. A kernel of twice the height, moving two rows at a time, computes the sum. In
  NHWC that copies whole rows and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from csr_deploy.unroll.graph import Array, Graph, GraphEditor, Node

Joint = Literal["rows", "channels"]
Chooser = Callable[[Graph, Node, Node, Node], Joint | None]
"""Graph, the addition and its two convolutions → how to join them, or None to leave them alone."""


def stack_steps(graph: Graph, choose: Chooser) -> Graph:
    """Replaces the additions of two like convolutions that `choose` picks; see the module's description."""
    consumers = graph.consumers()
    producers = graph.producers()
    editor = GraphEditor(graph)
    stacked: dict[tuple[str, str, Joint], str] = {}
    for node in editor:
        pair = _summands(graph, node, producers, consumers)
        joint = None if pair is None else choose(graph, node, *pair)
        if pair is None or joint is None:
            editor.keep(node)
            continue
        first, second = pair
        a = first.attrs
        x, h = (editor.resolve(n.inputs[0]) for n in pair)
        key = (first.inputs[1], second.inputs[1], joint)
        if key not in stacked:
            both = _kernel(editor.constants[key[0]], editor.constants[key[1]], joint)
            hint = f"{key[0]}+{key[1].rpartition('.')[2]}"
            stacked[key] = editor.arrangement(hint, both, key[:2])
        inputs = [_joined(editor, x, h, node, joint), stacked[key], *_bias(editor, pair, node)]
        attrs = {**a, "activation": node.attrs.get("activation")}
        if joint == "rows":
            top, left, bottom, right = a["padding"]
            attrs["stride"] = (2 * a["stride"][0], a["stride"][1])
            attrs["padding"] = (2 * top, left, 2 * bottom, right)
        editor.keep(Node("conv2d", tuple(inputs), node.output, attrs, node.origin))
    return editor.done()


def _kernel(v: Array, u: Array, joint: Joint) -> Array:
    """[O, d, kh, kw] twice → [O, d, 2·kh, kw] or [O, 2·d, kh, kw]."""
    if joint == "channels":
        return np.concatenate([v, u], axis=1)
    return np.stack([v, u], axis=3).reshape(v.shape[0], v.shape[1], 2 * v.shape[2], v.shape[3])


def _joined(editor: GraphEditor, x: str, h: str, node: Node, joint: Joint) -> str:
    if joint == "channels":
        return editor.add("concat", [x, h], f"{node.output}.both", node.origin, axis=1)
    beside = editor.add("concat", [x, h], f"{node.output}.beside", node.origin, axis=3)
    batch, channels, height, width = editor.shape(x)
    shape = (batch, channels, 2 * height, width)
    return editor.add("reshape", [beside], f"{node.output}.rows", node.origin, shape=shape)


def _summands(
    graph: Graph, node: Node, producers: dict[str, Node], consumers: dict[str, list[Node]]
) -> tuple[Node, Node] | None:
    """The two convolutions that an addition sums, where they can become one."""
    if node.op != "add" or node.inputs[0] == node.inputs[1]:
        return None
    found = [producers.get(i) for i in node.inputs]
    first, second = found
    if first is None or second is None:
        return None
    for each in (first, second):
        alone = each.output != graph.output and len(consumers[each.output]) == 1
        if each.op != "conv2d" or each.attrs.get("activation") or not alone or each.attrs["groups"] != 1:
            return None
    geometry = ("stride", "padding", "dilation")
    alike = all(first.attrs[k] == second.attrs[k] for k in geometry) and first.attrs["dilation"] == (1, 1)
    same_weights = graph.shape(first.inputs[1]) == graph.shape(second.inputs[1])
    same_input = graph.shapes[first.inputs[0]] == graph.shapes[second.inputs[0]]
    # A picture of one pixel's height is as well served by channels; kernels of height 1 gain nothing here.
    return (first, second) if alike and same_weights and same_input else None


def _bias(editor: GraphEditor, pair: tuple[Node, Node], node: Node) -> list[str]:
    biases = [editor.constants[n.inputs[2]] for n in pair if len(n.inputs) > 2]
    if not biases:
        return []
    return [editor.constant(f"{node.output}.bias", np.sum(biases, axis=0))]
