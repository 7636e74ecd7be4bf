"""Folds per-channel affines (BatchNorm) into the convolution, linear layer or affine before them."""

from __future__ import annotations

from csr_deploy.unroll.graph import Array, Graph, GraphEditor, Node


def fold_affine(graph: Graph) -> Graph:
    """Folds where the producer feeds only the affine, carries no activation and owns its weights.

    A weight used by more than one node is left alone: folding would untie it. That is what keeps the
    BatchNorm after a CSR-Conv out of U and V.
    """
    editor = GraphEditor(graph)
    consumers = graph.consumers()
    emitted: dict[str, int] = {}
    for node in editor:
        producer = editor.nodes[emitted[node.inputs[0]]] if node.inputs[0] in emitted else None
        if node.op == "affine" and producer is not None and _foldable(graph, consumers, producer):
            gain, bias = (editor.constants[i] for i in node.inputs[1:])
            editor.nodes[emitted[producer.output]] = _folded(editor, producer, gain, bias, node)
            editor.alias(node.output, producer.output)
            continue
        emitted[node.output] = len(editor.nodes)
        editor.keep(node)
    return editor.done()


def _foldable(graph: Graph, consumers: dict[str, list[Node]], producer: Node) -> bool:
    if producer.op not in ("conv2d", "linear", "affine") or producer.attrs.get("activation"):
        return False
    alone = producer.output != graph.output and len(consumers.get(producer.output, [])) == 1
    owned = all(len(consumers.get(w, [])) <= 1 for w in producer.inputs[1:])
    return alone and owned


def _folded(editor: GraphEditor, producer: Node, gain: Array, bias: Array, affine: Node) -> Node:
    weights = editor.constants[producer.inputs[1]]
    if producer.op == "affine":
        new_weights = weights * gain
        new_bias = editor.constants[producer.inputs[2]] * gain + bias
    else:
        new_weights = weights * gain.reshape(-1, *([1] * (weights.ndim - 1)))
        old_bias = editor.constants[producer.inputs[2]] if len(producer.inputs) > 2 else 0.0
        new_bias = old_bias * gain + bias
    name = editor.constant(f"{producer.inputs[1]}.folded", new_weights)
    bias_name = editor.constant(f"{affine.inputs[2]}.folded", new_bias)
    return Node(
        producer.op,
        (producer.inputs[0], name, bias_name),
        producer.output,
        {**producer.attrs, "activation": affine.attrs.get("activation")},
        producer.origin,
    )
