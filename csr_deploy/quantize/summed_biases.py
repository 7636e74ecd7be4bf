"""One bias where two convolutions are added: V*x + U*h needs no more than one.

A bias costs 4 bytes a channel, and a tensor with its scales, in every step of every layer. That of the first
convolution moves into the second, whose sum is the same; what is left without one shares a table of zeros.

Only small ones move, as those of bias correction are: the ranges of both summands were found with the biases
where they were, and a bias of many steps would leave them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from csr_deploy.quantize.scheme import QuantizedGraph
from csr_deploy.unroll.graph import Graph, Node

# In units of the summands' own quantisation: more would clip what the ranges were chosen to hold.
_MOST_STEPS = 1.0


def merge_summed_biases(quantized: QuantizedGraph) -> QuantizedGraph:
    """Moves the bias of one summand into the other wherever an addition sums two bare convolutions.

    Their sum changes by less than half a unit of the second bias a channel.
    """
    graph = quantized.graph
    biases = dict(quantized.biases)
    for first, second in _summands(graph):
        if not (quantized.is_weighted(first) and quantized.is_weighted(second)):
            continue
        if first.output not in biases or second.output not in biases:
            continue
        parts = [_real(quantized, biases, node) for node in (first, second)]
        step = min(_step(quantized, node) for node in (first, second))
        if np.abs(parts[0]).max(initial=0.0) > _MOST_STEPS * step:
            continue
        total = sum(parts)
        kept = np.rint(total / quantized.bias_scales(second).astype(np.float64))
        limits = np.iinfo(np.int32)
        # A channel of tiny weights has a scale to match, in which the other's bias may not fit.
        if not ((limits.min <= kept) & (kept <= limits.max)).all():
            continue
        biases[second.output] = kept.astype(np.int32)
        del biases[first.output]
    return replace(quantized, biases=biases)


def _real(quantized: QuantizedGraph, biases: dict[str, NDArray[np.int32]], node: Node) -> NDArray[np.float64]:
    return np.asarray(biases[node.output] * quantized.bias_scales(node).astype(np.float64))


def _step(quantized: QuantizedGraph, node: Node) -> float:
    """What the integers of a convolution's output count."""
    return quantized.activations[node.output].scale if node.output in quantized.activations else 0.0


def _summands(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs of convolutions without activation that nothing but one addition reads, each the same way."""
    producers, consumers = graph.producers(), graph.consumers()

    def bare(name: str) -> tuple[Node, tuple[object, ...]] | None:
        """The convolution behind a value, and the pixels that its filters compute at once."""
        node = producers.get(name)
        views: tuple[object, ...] = ()
        while node is not None and name != graph.output and len(consumers[name]) == 1:
            if node.op == "conv2d":
                return None if node.attrs.get("activation") else (node, views)
            if node.op != "channels_to_width":
                return None
            views = (*views, node.attrs["block"])
            name = node.inputs[0]
            node = producers.get(name)
        return None

    pairs = []
    for add in graph.nodes:
        if add.op != "add" or add.inputs[0] == add.inputs[1]:
            continue
        first, second = (bare(name) for name in add.inputs)
        if first and second and first[1] == second[1]:
            pairs.append((first[0], second[0]))
    return pairs
