"""Which values must share a scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr_deploy.quantize.scheme import Scheme
from csr_deploy.unroll.graph import Graph, GraphEditor


def scale_groups(
    graph: Graph,
    scheme: Scheme,
    *,
    equal_steps: bool = False,
    real_nodes: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Value name → representative of its group, for every value of the graph.

    Args:
        graph: The graph.
        scheme: Says which operations keep the scale.
        equal_steps: Also give the results of one tied weight one scale, whichever step they belong to:
            all terms V*x_t, all terms U*h_t. (The states share one already, with their concatenation.)
        real_nodes: Outputs of nodes that compute with real numbers, and so tie nothing.
    """
    parent = {name: name for name in graph.shapes}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    terms: dict[tuple[str, object], str] = {}
    for node in graph.nodes:
        if node.output in real_nodes:
            continue
        if node.op in scheme.same_scale:
            for name in node.inputs:
                if name in parent:
                    parent[find(name)] = find(node.output)
        elif equal_steps and node.op == "conv2d":
            # h_1 is the result of V behind a ReLU: its range is not that of the bare terms.
            kind = (node.inputs[1], node.attrs.get("activation"))
            parent[find(node.output)] = find(terms.setdefault(kind, node.output))
    return {name: find(name) for name in graph.shapes}


def separate_fixed_scales(graph: Graph, scheme: Scheme) -> Graph:
    """Gives a value of prescribed scale a scale of its own choice before it joins a concatenation.

    A sigmoid ends at 1 by specification; without this, what it is joined with would be clipped there.
    """
    fixed: dict[str, str] = {}
    mixed: set[str] = set()
    for node in graph.nodes:
        if node.op in scheme.fixed_output:
            fixed[node.output] = node.op
        elif node.op in scheme.same_scale:
            # What only moves keeps the prescribed scale, as the gates of one sigmoid do.
            rules = {fixed.get(name) for name in node.inputs}
            rule = rules.pop() if len(rules) == 1 else None
            if rule is not None:
                fixed[node.output] = rule
            elif rules:
                mixed.add(node.output)
    if not mixed:
        return graph
    editor = GraphEditor(graph)
    freed: dict[str, str] = {}
    for node in editor:
        inputs = list(node.inputs)
        for position, name in enumerate(inputs):
            shape = editor.shape(name)
            if node.output not in mixed or name not in fixed or len(shape) != 4:
                continue
            if name not in freed:
                gain = editor.constant(f"{name}.one", np.ones(shape[1]))
                bias = editor.constant(f"{name}.zero", np.zeros(shape[1]))
                freed[name] = editor.add("affine", [name, gain, bias], f"{name}.free", "", activation=None)
            inputs[position] = freed[name]
        editor.keep(replace(node, inputs=tuple(inputs)))
    return editor.done()


def fixed_groups(graph: Graph, groups: dict[str, str], scheme: Scheme) -> dict[str, str]:
    """Representative → operation that prescribes the group's scale."""
    return {groups[n.output]: n.op for n in graph.nodes if n.op in scheme.fixed_output}
