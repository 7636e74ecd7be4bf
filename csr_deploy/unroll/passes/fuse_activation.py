"""Moves ReLU and ReLU6 into the operation that feeds them."""

from __future__ import annotations

from csr_deploy.unroll.graph import Graph, GraphEditor
from csr_deploy.unroll.ops import ACTIVATIONS, OPS


def fuse_activation(graph: Graph) -> Graph:
    """Fuses where the activation is the only use of its input and the producer can carry it."""
    editor = GraphEditor(graph)
    consumers = graph.consumers()
    emitted: dict[str, int] = {}
    for node in editor:
        if node.op in ACTIVATIONS and node.inputs[0] in emitted:
            source = node.inputs[0]
            producer = editor.nodes[emitted[source]]
            alone = len(consumers.get(source, [])) == 1 and source != graph.output
            if alone and OPS[producer.op].fuses_activation and not producer.attrs.get("activation"):
                editor.nodes[emitted[source]] = producer.with_attrs(activation=node.op)
                editor.alias(node.output, source)
                continue
        emitted[node.output] = len(editor.nodes)
        editor.keep(node)
    return editor.done()
