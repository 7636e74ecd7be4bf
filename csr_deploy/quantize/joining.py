"""Which steps of a recurrence int8 can afford to make one convolution of.

A joined step reads x_t and h_{t-1} as one picture, and a picture has one scale. Where states grow along t
they are tens of times larger than x, which the common scale then rounds to a few values: and with it whatever
else shares the scale of x, the first step and the shortcut around the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from csr_deploy.data import Preprocessing
from csr_deploy.quantize.scheme import QuantizedGraph, Scheme
from csr_deploy.quantize.simulate import Simulation
from csr_deploy.quantize.static import QuantizeOptions, activation_scales, quantize
from csr_deploy.types import Quantization
from csr_deploy.unroll.evaluate import evaluate
from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.lowering import JoinRule, Lowered

JOIN_IMAGES = 32
"""Calibration images that joining is judged by."""
GOOD_ERROR = 0.1
"""Relative RMS error of the logits up to which no other lowering is tried, if not told otherwise."""
_LIMITS = (4.0, 0.0)
"""Of scales in a joined picture, tried in turns where joining without a limit costs too much."""
_GAIN = 0.67
"""What the error must fall to for a dearer lowering to be worth it."""


@dataclass
class ScaleLimit:
    """Forbids to join pictures whose scales differ too much.

    Attributes:
        images: [N, C, H, W] float32, normalised calibration images.
        preprocessing: Gives the exact range of the input.
        options: How the graph will be quantised.
        scheme: What the format's integers can be.
        most: Most that one scale may be of the other; below 1 nothing is joined.
    """

    images: Tensor
    preprocessing: Preprocessing
    options: QuantizeOptions
    scheme: Scheme
    most: float

    def __post_init__(self) -> None:
        self._graph: Graph | None = None
        self._scales: dict[str, Quantization] = {}

    def __call__(self, graph: Graph, first: Node, second: Node) -> bool:
        """Whether the inputs of two convolutions may have one scale."""
        if self.most < 1:
            return False
        # All steps of a graph are asked for one after the other.
        if graph is not self._graph:
            self._graph = graph
            self._scales = activation_scales(
                graph, [self.images], self.preprocessing, self.options, self.scheme
            )
        a, b = (self._scales[node.inputs[0]].scale for node in (first, second))
        return max(a, b) <= self.most * min(a, b)


def lower_and_quantize(
    lowered: Lowered,
    lower: Callable[[JoinRule], Lowered],
    calibration: Sequence[Tensor],
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    scheme: Scheme,
    good_error: float = GOOD_ERROR,
) -> tuple[Lowered, QuantizedGraph, JoinRule | None]:
    """The cheapest lowering that int8 is good enough in.

    Where joined steps move the logits of the calibration images too far, lowerings that join fewer steps, or
    none, are quantised as well.

    Args:
        lowered: The network, all steps joined that pay.
        lower: Lowers it again, joining only what a rule allows.
        calibration: Batches [N, C, H, W] float32 of normalised calibration images.
        preprocessing: Gives the exact range of the input.
        options: How to quantise.
        scheme: What the format's integers can be.
        good_error: Relative RMS error of the logits up to which no other lowering is tried.

    Returns:
        The lowering, whose figures tell of the error and of the limit, the quantised graph, and the rule that
        it was lowered with.
    """
    quantized = quantize(lowered.graph, calibration, preprocessing, options, scheme)
    rule: ScaleLimit | None = None
    if not lowered.figures.get("joined_steps"):
        return lowered, quantized, rule
    images = torch.cat(list(calibration))[:JOIN_IMAGES]
    error = logit_error(quantized, images)
    for most in _LIMITS:
        if error <= good_error:
            break
        limit = ScaleLimit(images, preprocessing, options, scheme, most)
        other = lower(limit)
        if other.figures["joined_steps"] == lowered.figures["joined_steps"]:
            continue
        tried = quantize(other.graph, calibration, preprocessing, options, scheme)
        found = logit_error(tried, images)
        if found < _GAIN * error:
            lowered, quantized, error, rule = other, tried, found, limit
    figures = {**lowered.figures, "int8_error": round(error, 4)}
    if rule is not None:
        figures["joined_up_to_scales"] = rule.most
    return replace(lowered, figures=figures), quantized, rule


def logit_error(quantized: QuantizedGraph, images: Tensor) -> float:
    """RMS error of the quantised graph's output, relative to the RMS of the float graph's.

    Args:
        quantized: The graph.
        images: [N, C, H, W] float32, normalised.
    """
    graph = quantized.graph
    exact = evaluate(graph, images)[graph.output]
    size = float(exact.square().mean().sqrt())
    error = float((Simulation(quantized).run(images) - exact).square().mean().sqrt())
    return error / size if size else error
