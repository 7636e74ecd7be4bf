"""Several pixels as one for a per-channel affine of few channels, whose kernel pays for every pixel.

In NHWC, `p` neighbouring pixels of C channels are one pixel of p·C channels; gain and bias are repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from csr_deploy.unroll.graph import Graph, GraphEditor, Node

Chooser = Callable[[Graph, Node], int]
"""Graph and an affine node → how many pixels become one; 1 to leave it alone."""


def fold_pixels(graph: Graph, choose: Chooser) -> Graph:
    """Folds the pixels of the affines that `choose` picks, where the width allows it."""
    editor = GraphEditor(graph)
    repeated: dict[tuple[str, int], str] = {}

    def constant(name: str, pixels: int) -> str:
        if (name, pixels) not in repeated:
            value = np.tile(editor.constants[name], pixels)
            repeated[name, pixels] = editor.constant(f"{name}.x{pixels}", value)
        return repeated[name, pixels]

    for node in editor:
        pixels = choose(graph, node) if can_fold(graph, node, 2) else 1
        if pixels < 2 or not can_fold(graph, node, pixels):
            editor.keep(node)
            continue
        hint = f"{node.output}.folded"
        x = editor.add("width_to_channels", [node.inputs[0]], f"{hint}.in", node.origin, block=pixels)
        inputs = [x, *(constant(i, pixels) for i in node.inputs[1:])]
        out = editor.add("affine", inputs, hint, node.origin, **node.attrs)
        editor.keep(Node("channels_to_width", (out,), node.output, {"block": pixels}, node.origin))
    return editor.done()


def can_fold(graph: Graph, node: Node, pixels: int) -> bool:
    """Whether a node is an affine of a picture whose width is a multiple of `pixels`."""
    shape = graph.shapes[node.output]
    return node.op == "affine" and len(shape) == 4 and shape[3] % pixels == 0
