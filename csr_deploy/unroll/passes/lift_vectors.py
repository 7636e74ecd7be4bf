"""Turns a per-channel affine of a vector into one of a 1×1 picture, which every target has."""

from __future__ import annotations

from csr_deploy.unroll.graph import Graph, GraphEditor, Node


def lift_vectors(graph: Graph) -> Graph:
    """For BatchNorms of vectors that could not be folded: [N, C] → [N, C, 1, 1], affine, and back."""
    editor = GraphEditor(graph)
    for node in editor:
        shape = graph.shapes[node.output]
        if node.op != "affine" or len(shape) != 2:
            editor.keep(node)
            continue
        x = editor.add("reshape", [node.inputs[0]], f"{node.output}.1x1", node.origin, shape=(*shape, 1, 1))
        out = editor.add("affine", [x, *node.inputs[1:]], f"{node.output}.lifted", node.origin, **node.attrs)
        editor.keep(Node("reshape", (out,), node.output, {"shape": shape}, node.origin))
    return editor.done()
