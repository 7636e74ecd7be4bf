"""Several output pixels a filter: narrow convolutions fill the SIMD lanes that are made for 16 channels.

A convolution with O filters of width kw and stride s becomes one with p·O filters of width kw + (p − 1)·s and
stride p·s, whose filter j·O + o holds filter o moved right by j·s and zeros beside it. Its output
[N, p·O, H, W/p] has, in NHWC, the very bytes of [N, O, H, W].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from csr_deploy.unroll.graph import Array, Graph, GraphEditor, Node

Chooser = Callable[[Graph, Node], int]
"""Graph and a conv2d node → how many pixels a filter should compute; 1 to leave it alone."""


def widen(graph: Graph, choose: Chooser) -> Graph:
    """Widens the convolutions that `choose` picks, where the width allows it."""
    editor = GraphEditor(graph)
    made: dict[tuple[str, int, int], str] = {}
    for node in editor:
        pixels = choose(graph, node) if can_widen(graph, node, 2) else 1
        if pixels < 2 or not can_widen(graph, node, pixels):
            editor.keep(node)
            continue
        stride = node.attrs["stride"]
        key = (node.inputs[1], pixels, stride[1])
        if key not in made:
            wide = widened(editor.constants[node.inputs[1]], pixels, stride[1])
            made[key] = editor.arrangement(f"{node.inputs[1]}.x{pixels}", wide, [node.inputs[1]])
        inputs = [node.inputs[0], made[key]]
        if len(node.inputs) > 2:
            bias = np.tile(editor.constants[node.inputs[2]], pixels)
            inputs.append(editor.constant(f"{node.inputs[2]}.x{pixels}", bias))
        attrs = {**node.attrs, "stride": (stride[0], pixels * stride[1])}
        top, left, bottom, _ = node.attrs["padding"]
        width, out = editor.shape(node.inputs[0])[3], graph.shapes[node.output][3]
        right = max(0, (out - 1) * stride[1] + editor.shape(node.inputs[1])[3] - width - left)
        attrs["padding"] = (top, left, bottom, right)
        wide_out = editor.add("conv2d", inputs, f"{node.output}.x{pixels}", node.origin, **attrs)
        editor.keep(
            Node("channels_to_width", (wide_out,), node.output, {"block": pixels}, node.origin),
        )
    return editor.done()


def can_widen(graph: Graph, node: Node, pixels: int) -> bool:
    """Whether a node is a convolution whose output can be computed `pixels` at a time."""
    if node.op != "conv2d" or node.attrs["groups"] != 1 or node.attrs["dilation"] != (1, 1):
        return False
    return graph.shapes[node.output][3] % pixels == 0


def widened(weight: Array, pixels: int, stride: int) -> Array:
    """[O, I, kh, kw] → [pixels·O, I, kh, kw + (pixels − 1)·stride]."""
    out, inner, height, width = weight.shape
    wide = np.zeros((pixels, out, inner, height, width + (pixels - 1) * stride), weight.dtype)
    for pixel in range(pixels):
        wide[pixel, ..., pixel * stride : pixel * stride + width] = weight
    return wide.reshape(pixels * out, inner, height, -1)
