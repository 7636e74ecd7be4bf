"""Which values must share a scale."""

from __future__ import annotations

from csr_deploy.quantize.scheme import FIXED_OUTPUT, SAME_SCALE_OPS
from csr_deploy.unroll.graph import Graph


def scale_groups(graph: Graph) -> dict[str, str]:
    """Value name → representative of its group, for every value of the graph."""
    parent = {name: name for name in graph.shapes}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op in SAME_SCALE_OPS:
            for name in node.inputs:
                if name in parent:
                    parent[find(name)] = find(node.output)
    return {name: find(name) for name in graph.shapes}


def fixed_groups(graph: Graph, groups: dict[str, str]) -> dict[str, str]:
    """Representative → operation that prescribes the group's scale."""
    return {groups[n.output]: n.op for n in graph.nodes if n.op in FIXED_OUTPUT}
