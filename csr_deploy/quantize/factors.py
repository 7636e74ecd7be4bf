"""Factors between scales that runtimes can requantise by.

XNNPACK refuses a convolution whose factor input·weight/output reaches 2^8, and an addition whose factor
input/output is below 2^-10: LiteRT then cannot load the file at all. Neither costs anything to avoid.
Beyond the first one count of the input saturates every output, and below the second a summand is less than a
quarter of a count of the sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from csr_deploy.quantize.scheme import Scheme
from csr_deploy.types import Quantization
from csr_deploy.unroll.graph import Graph, Node

_MOST_FACTOR = 255.0
_LEAST_FACTOR = 2.0**-9
"""Twice the limit, as scales are float32 and others may move with them."""


def largest_weight_scales(
    graph: Graph, nodes: Sequence[Node], activations: Mapping[str, Quantization], scheme: Scheme
) -> dict[str, float]:
    """Weight name → the largest scale that each of its channels may have, in the order of their use.

    Args:
        graph: The graph.
        nodes: Those that compute with integers.
        activations: Value name → quantisation; real values have none and set no limit.
        scheme: Says which nodes have weights.
    """
    most: dict[str, float] = {}
    for node in nodes:
        if node.op not in scheme.weighted:
            continue
        source, result = (activations.get(name) for name in (node.inputs[0], node.output))
        limit = np.inf if source is None or result is None else _MOST_FACTOR * result.scale / source.scale
        most[node.inputs[1]] = min(limit, most.get(node.inputs[1], np.inf))
    return most


def raise_small_summands(
    graph: Graph,
    groups: Mapping[str, str],
    scales: Mapping[str, Quantization],
    fixed: Collection[str],
) -> dict[str, Quantization]:
    """Scales in which no summand is too small for its sum.

    Args:
        graph: The graph.
        groups: Value name → representative of its scale group.
        scales: Representative → quantisation.
        fixed: Representatives whose scale an operation prescribes; those stay.
    """
    out = dict(scales)
    sums = [n for n in reversed(graph.nodes) if n.op in ("add", "sub") and groups[n.output] in out]
    # A summand that is raised may be a sum itself: a pass from the end reaches most, and further ones those
    # whose groups span several places.
    for _ in range(len(sums) + 1):
        changed = False
        for node in sums:
            least = _LEAST_FACTOR * out[groups[node.output]].scale
            for group in {groups[name] for name in node.inputs if name in groups}:
                if group in out and group not in fixed and out[group].scale < least:
                    out[group] = replace(out[group], scale=_float32(least))
                    changed = True
        if not changed:
            break
    return out


def _float32(value: float) -> float:
    rounded: NDArray[np.float32] = np.asarray(value, np.float32)
    return float(rounded)
