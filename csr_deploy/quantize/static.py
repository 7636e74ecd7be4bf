"""Static post-training quantisation with least-squares ranges and sequential bias correction.

Bias correction: the mean error that a rounded weight and rounded inputs leave on each output channel is
measured on the calibration set and taken out of that node's int32 bias. In an unrolled recurrence each step
has a bias of its own while V and U stay tied, so the drift that would add up along t is removed where it
arises (after Nagel et al. 2019, section 4.2, applied node by node).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csr_deploy.data import Preprocessing
from csr_deploy.errors import OptionError
from csr_deploy.quantize.groups import fixed_groups, scale_groups, separate_fixed_scales
from csr_deploy.quantize.ranges import Statistics, collect
from csr_deploy.quantize.scheme import (
    AFFINE,
    QuantizedGraph,
    Scheme,
    WeightQuantization,
    quantize_weight,
)
from csr_deploy.quantize.simulate import fake_quantize
from csr_deploy.types import Quantization
from csr_deploy.unroll.evaluate import activate, evaluate_node, linear_part, torch_constants
from csr_deploy.unroll.graph import Graph, Node

RANGES = ("least-squares", "min-max")
_LEAST_IMAGES = 16
_MOST_VALUES = 64_000_000
"""Of one activation over all images that bias correction uses, 256 MB in float32."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How a graph is quantised.

    Attributes:
        ranges: How activation ranges are chosen, one of `RANGES`.
        bias_correction: Take the mean error of every output channel out of its bias.
        seed: Fixes the samples that ranges are chosen from.
    """

    ranges: str = "least-squares"
    bias_correction: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ranges not in RANGES:
            raise OptionError(f"unknown ranges '{self.ranges}'", fix=f"Use one of {', '.join(RANGES)}.")


def quantize(
    graph: Graph,
    calibration: Sequence[Tensor],
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    scheme: Scheme = AFFINE,
) -> QuantizedGraph:
    """Quantises a static graph.

    Args:
        graph: Lowered float graph; the result's may have nodes that change a scale.
        calibration: Batches [N, C, H, W] float32 of normalised calibration images.
        preprocessing: Gives the exact range of the input.
        options: How.
        scheme: What the format's integers can be.
    """
    graph = separate_fixed_scales(graph, scheme)
    groups = scale_groups(graph, scheme)
    found = collect(graph, calibration, groups, options.seed)
    scales = _choose(graph, groups, found, preprocessing, options, scheme)
    real = scheme.real(graph, groups)
    activations = {name: scales[groups[name]] for name in graph.shapes if name not in real}
    weights: dict[str, WeightQuantization] = {}
    for node in graph.nodes:
        if node.op in scheme.weighted and node.inputs[1] not in weights:
            weights[node.inputs[1]] = quantize_weight(graph.constants[node.inputs[1]])
    constants = _constant_operands(graph, scheme)
    quantized = QuantizedGraph(graph, {**activations, **constants}, weights, {})
    biases = _biases(quantized, calibration, options.bias_correction)
    return QuantizedGraph(graph, quantized.activations, weights, biases)


def _constant_operands(graph: Graph, scheme: Scheme) -> dict[str, Quantization]:
    """Quantisation of constants that stand as operands of add and mul."""
    out: dict[str, Quantization] = {}
    for node in graph.nodes:
        if node.op in ("add", "mul") and not scheme.real_constants:
            for name in node.inputs:
                if name in graph.constants:
                    value = graph.constants[name]
                    out[name] = scheme.choose(float(value.min()), float(value.max()))
    return out


def _choose(
    graph: Graph,
    groups: dict[str, str],
    found: dict[str, Statistics],
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    scheme: Scheme,
) -> dict[str, Quantization]:
    fixed = fixed_groups(graph, groups, scheme)
    out: dict[str, Quantization] = {}
    for group, statistics in found.items():
        if group in fixed:
            out[group] = scheme.fixed_output[fixed[group]]
        elif group == groups[graph.input]:
            bounds = [
                (np.array([0.0, 1.0]) - m) / s
                for m, s in zip(preprocessing.mean, preprocessing.std, strict=True)
            ]
            # Exact for the picture, and wide enough for what else may have been joined to it.
            low, high = (
                min(float(np.min(bounds)), statistics.low),
                max(float(np.max(bounds)), statistics.high),
            )
            out[group] = scheme.choose(low, high)
        elif group == groups[graph.output] or options.ranges == "min-max":
            # Clipping logits would tie the classes that matter most.
            out[group] = statistics.min_max(scheme)
        else:
            out[group] = statistics.least_squares(scheme)
    return out


def _is_weighted(node: Node, quantized: QuantizedGraph) -> bool:
    return len(node.inputs) > 1 and node.inputs[1] in quantized.weights


def _rounded(value: Tensor, quantized: QuantizedGraph, name: str) -> Tensor:
    q = quantized.activations.get(name)
    return value if q is None else fake_quantize(value, q)


def _float_bias(graph: Graph, node: Node) -> NDArray[np.float64]:
    if len(node.inputs) > 2:
        return np.asarray(graph.constants[node.inputs[2]], np.float64)
    return np.zeros(graph.shape(node.inputs[1])[0])


def _integer_bias(bias: NDArray[np.float64], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    limits = np.iinfo(np.int32)
    return np.clip(np.rint(bias / scales.astype(np.float64)), limits.min, limits.max).astype(np.int32)


def _biases(
    quantized: QuantizedGraph, calibration: Sequence[Tensor], correct: bool
) -> dict[str, NDArray[np.int32]]:
    """int32 biases; nodes without a bias get one only where correction finds an error worth one count."""
    graph = quantized.graph
    biases: dict[str, NDArray[np.int32]] = {}
    if not correct:
        for node in graph.nodes:
            if _is_weighted(node, quantized) and len(node.inputs) > 2:
                biases[node.output] = _integer_bias(_float_bias(graph, node), quantized.bias_scales(node))
        return biases
    # Every image goes through one node before the next node is met: what is held at once is bounded here.
    largest = max(math.prod(shape[1:]) for shape in graph.shapes.values())
    x = torch.cat(list(calibration))[: max(_LEAST_IMAGES, _MOST_VALUES // largest)]
    exact_constants = torch_constants(graph, torch.float32)
    rounded_constants = dict(exact_constants)
    for name, weight in quantized.weights.items():
        rounded_constants[name] = torch.from_numpy(weight.dequantize())
    for name in graph.constants:
        if name in quantized.activations:
            rounded_constants[name] = fake_quantize(exact_constants[name], quantized.activations[name])
    exact: dict[str, Tensor] = {graph.input: x}
    rounded: dict[str, Tensor] = {graph.input: _rounded(x, quantized, graph.input)}
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    with torch.no_grad():
        for index, node in enumerate(graph.nodes):
            a = [exact[i] if i in exact else exact_constants[i] for i in node.inputs]
            b = [rounded[i] if i in rounded else rounded_constants[i] for i in node.inputs]
            if _is_weighted(node, quantized):
                scales = quantized.bias_scales(node)
                exact_sum, rounded_sum = linear_part(node, a), linear_part(node, b)
                axes = [0, *range(2, exact_sum.ndim)]
                error = (exact_sum - rounded_sum).mean(axes).double().numpy()
                bias = _integer_bias(_float_bias(graph, node) + error, scales)
                if len(node.inputs) > 2 or bias.any():
                    biases[node.output] = bias
                applied = bias * scales.astype(np.float64) - _float_bias(graph, node)
                tail = (1,) * (exact_sum.ndim - 2)
                shift = torch.from_numpy(applied).float().view(-1, *tail)
                activation = node.attrs.get("activation")
                exact[node.output] = activate(exact_sum, activation)
                value = activate(rounded_sum + shift, activation)
            else:
                exact[node.output] = evaluate_node(node, a)
                value = evaluate_node(node, b)
            rounded[node.output] = _rounded(value, quantized, node.output)
            for name in set(node.inputs):
                if last[name] == index and name != graph.output:
                    exact.pop(name, None)
                    rounded.pop(name, None)
    return biases
