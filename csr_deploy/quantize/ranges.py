"""Activation ranges from calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csr_deploy.data import Preprocessing
from csr_deploy.quantize.scheme import QMAX, QMIN, Scheme
from csr_deploy.types import Quantization
from csr_deploy.unroll.evaluate import evaluate
from csr_deploy.unroll.graph import Graph, Node

RANGES = ("least-squares", "min-max")
MOVES = frozenset(
    {"slice", "reshape", "transpose", "concat", "pad", "channels_to_width", "width_to_channels"}
)
_SAMPLES_PER_BATCH = 2048
_RATIOS = np.linspace(1.0, 0.3, 36)


@dataclass
class Statistics:
    """What calibration saw of a group of values: exact extremes and a sample."""

    low: float = 0.0
    high: float = 0.0
    samples: list[NDArray[np.float32]] = field(default_factory=list)

    def observe(self, value: Tensor, generator: torch.Generator) -> None:
        """Adds one value of a batch."""
        flat = value.reshape(-1)
        low, high = torch.aminmax(flat)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        index = torch.randint(0, flat.numel(), (_SAMPLES_PER_BATCH,), generator=generator)
        self.samples.append(flat[index].float().numpy())

    def min_max(self, scheme: Scheme) -> Quantization:
        """Covers everything seen."""
        return scheme.choose(self.low, self.high)

    def least_squares(self, scheme: Scheme) -> Quantization:
        """The range whose quantisation error (rounding and clipping) over the sample is smallest."""
        values = np.concatenate([*self.samples, np.asarray([self.low, self.high], np.float32)])
        best, least = self.min_max(scheme), np.inf
        for ratio in _RATIOS:
            candidate = scheme.choose(self.low * ratio, self.high * ratio)
            integers = np.clip(np.rint(values / candidate.scale) + candidate.zero_point, QMIN, QMAX)
            error = float(np.square((integers - candidate.zero_point) * candidate.scale - values).mean())
            if error < least:
                best, least = candidate, error
        return best


def collect(
    graph: Graph, batches: Iterable[Tensor], groups: Mapping[str, str], seed: int
) -> dict[str, Statistics]:
    """Runs the float graph over calibration batches.

    Args:
        graph: The float graph.
        batches: [N, C, H, W] float32 each.
        groups: Value → representative of its scale group; statistics are pooled by group.
        seed: Fixes the samples drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Statistics] = {}

    def visit(node: Node, value: Tensor) -> None:
        # Values that are only moved were seen where they were made, unless their scale is their own.
        if node.op in MOVES and groups.get(node.inputs[0]) == groups[node.output]:
            return
        found.setdefault(groups[node.output], Statistics()).observe(value, generator)

    for batch in batches:
        found.setdefault(groups[graph.input], Statistics()).observe(batch, generator)
        evaluate(graph, batch, visit=visit)
    return found


def choose_scales(
    found: Mapping[str, Statistics],
    scheme: Scheme,
    fixed: Mapping[str, str],
    source: str,
    result: str,
    preprocessing: Preprocessing,
    ranges: str,
) -> dict[str, Quantization]:
    """The quantisation of every group of values.

    Args:
        found: Group → what calibration saw of it.
        scheme: What the format's integers can be.
        fixed: Groups whose scale an operation prescribes → that operation.
        source: Group of the graph's input.
        result: Group of the graph's output.
        preprocessing: Gives the exact range of the input.
        ranges: One of `RANGES`.
    """
    out: dict[str, Quantization] = {}
    for group, statistics in found.items():
        if group in fixed:
            out[group] = scheme.fixed_output[fixed[group]]
        elif group == source:
            bounds = [
                (np.array([0.0, 1.0]) - m) / s
                for m, s in zip(preprocessing.mean, preprocessing.std, strict=True)
            ]
            # Exact for the picture, and wide enough for what else may have been joined to it.
            low = min(float(np.min(bounds)), statistics.low)
            out[group] = scheme.choose(low, max(float(np.max(bounds)), statistics.high))
        elif group == result or ranges == "min-max":
            # Clipping logits would tie the classes that matter most.
            out[group] = statistics.min_max(scheme)
        else:
            out[group] = statistics.least_squares(scheme)
    return out
