"""Static post-training quantisation with least-squares ranges and sequential bias correction.

Bias correction: the mean error that a rounded weight and rounded inputs leave on each output channel is
measured on the calibration set and taken out of that node's int32 bias. In an unrolled recurrence each step
has a bias of its own while V and U stay tied, so the drift that would add up along t is removed where it
arises (after Nagel et al. 2019, section 4.2, applied node by node).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csr_deploy.data import Preprocessing
from csr_deploy.errors import OptionError
from csr_deploy.quantize.factors import largest_weight_scales, raise_small_summands
from csr_deploy.quantize.groups import fixed_groups, scale_groups, separate_fixed_scales
from csr_deploy.quantize.ranges import RANGES, choose_scales, collect
from csr_deploy.quantize.scheme import (
    AFFINE,
    QuantizedGraph,
    Scheme,
    WeightQuantization,
    quantize_weight,
)
from csr_deploy.quantize.sensitivity import check_layers, layer_nodes, sensitivity
from csr_deploy.quantize.simulate import fake_quantize, rounded_constants
from csr_deploy.quantize.summed_biases import merge_summed_biases
from csr_deploy.types import Quantization
from csr_deploy.unroll.evaluate import activate, evaluate_node, linear_part, torch_constants
from csr_deploy.unroll.graph import Graph, Node

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
        equal_steps: One scale for all V terms of a layer and one for all its U terms.
        float_layers: Modules that compute with real numbers, between a dequantisation and a quantisation.
        keep_worst: That many more of them: those that move the logits most when they alone are quantised.
    """

    ranges: str = "least-squares"
    bias_correction: bool = True
    seed: int = 0
    equal_steps: bool = False
    float_layers: tuple[str, ...] = ()
    keep_worst: int = 0

    def __post_init__(self) -> None:
        if self.ranges not in RANGES:
            raise OptionError(f"unknown ranges '{self.ranges}'", fix=f"Use one of {', '.join(RANGES)}.")
        if self.keep_worst < 0:
            raise OptionError(f"{self.keep_worst} layers cannot be kept in float", fix="Give 0 or more.")


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
    if (options.float_layers or options.keep_worst) and scheme.real_constants:
        raise OptionError(
            "this target has no layers in float between integer ones",
            fix="Leave out the layers to keep in float, or export to TFLite or ONNX.",
        )
    graph = separate_fixed_scales(graph, scheme)
    layers = layer_nodes(graph)
    check_layers(options.float_layers, layers)
    made = _quantize(graph, calibration, preprocessing, options, scheme, options.float_layers)
    if not options.keep_worst:
        return made
    ranked = [name for name in sensitivity(made, calibration) if name not in options.float_layers]
    kept = (*options.float_layers, *ranked[: options.keep_worst])
    return _quantize(graph, calibration, preprocessing, options, scheme, kept)


def _quantize(
    graph: Graph,
    calibration: Sequence[Tensor],
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    scheme: Scheme,
    float_layers: Sequence[str],
) -> QuantizedGraph:
    kept = set(float_layers)
    real_nodes = frozenset(node.output for node in graph.nodes if node.origin in kept)
    groups, scales = _group_scales(graph, calibration, preprocessing, options, scheme, real_nodes)
    real = scheme.real(graph, groups) | _only_real(graph, real_nodes)
    activations = {name: scales[groups[name]] for name in graph.shapes if name not in real}
    weights: dict[str, WeightQuantization] = {}
    integer = [node for node in graph.nodes if node.output not in real_nodes]
    for name, most in largest_weight_scales(graph, integer, activations, scheme).items():
        weights[name] = quantize_weight(graph.constants[name], most)
    constants = {} if scheme.real_constants else _constant_operands(graph, integer, scheme)
    quantized = QuantizedGraph(graph, {**activations, **constants}, weights, {}, real_nodes)
    biases = _biases(quantized, calibration, options.bias_correction)
    return merge_summed_biases(replace(quantized, biases=biases))


def activation_scales(
    graph: Graph,
    calibration: Sequence[Tensor],
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    scheme: Scheme = AFFINE,
) -> dict[str, Quantization]:
    """Value name → quantisation that `quantize` would give it, for every value of a graph.

    Args and raises: see `quantize`. Layers that are to be kept in float are not looked at.
    """
    groups, scales = _group_scales(graph, calibration, preprocessing, options, scheme, frozenset())
    return {name: scales[group] for name, group in groups.items()}


def _group_scales(
    graph: Graph,
    calibration: Sequence[Tensor],
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    scheme: Scheme,
    real_nodes: frozenset[str],
) -> tuple[dict[str, str], dict[str, Quantization]]:
    """Value → representative of its group, and representative → quantisation."""
    groups = scale_groups(graph, scheme, equal_steps=options.equal_steps, real_nodes=real_nodes)
    found = collect(graph, calibration, groups, options.seed)
    fixed = fixed_groups(graph, groups, scheme)
    scales = choose_scales(
        found,
        scheme,
        fixed,
        groups[graph.input],
        groups[graph.output],
        preprocessing,
        options.ranges,
    )
    return groups, raise_small_summands(graph, groups, scales, fixed)


def _only_real(graph: Graph, real_nodes: frozenset[str]) -> frozenset[str]:
    """Results of real nodes that no integer node reads."""
    read = {graph.output}
    for node in graph.nodes:
        if node.output not in real_nodes:
            read.update(node.inputs)
    return real_nodes - read


def _constant_operands(graph: Graph, nodes: Sequence[Node], scheme: Scheme) -> dict[str, Quantization]:
    """Quantisation of constants that stand as operands of add, sub, mul and prelu."""
    out: dict[str, Quantization] = {}
    for node in nodes:
        if node.op in ("add", "sub", "mul", "prelu"):
            for name in node.inputs:
                if name in graph.constants:
                    value = graph.constants[name]
                    out[name] = scheme.choose(float(value.min()), float(value.max()))
    return out


def _rounded(value: Tensor, quantized: QuantizedGraph, name: str) -> Tensor:
    q = quantized.activations.get(name)
    return value if q is None else fake_quantize(value, q)


def _as_read(
    name: str, values: Mapping[str, Tensor], constants: Mapping[str, Tensor], quantized: QuantizedGraph
) -> Tensor:
    """What an integer node reads."""
    if name not in values:
        return constants[name]
    return _rounded(values[name], quantized, name) if name in quantized.real_nodes else values[name]


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
            if quantized.is_weighted(node) and len(node.inputs) > 2:
                biases[node.output] = _integer_bias(_float_bias(graph, node), quantized.bias_scales(node))
        return biases
    # Every image goes through one node before the next node is met: what is held at once is bounded here.
    largest = max(math.prod(shape[1:]) for shape in graph.shapes.values())
    x = torch.cat(list(calibration))[: max(_LEAST_IMAGES, _MOST_VALUES // largest)]
    exact_constants = torch_constants(graph, torch.float32)
    integer_constants = rounded_constants(quantized)
    exact: dict[str, Tensor] = {graph.input: x}
    rounded: dict[str, Tensor] = {graph.input: _rounded(x, quantized, graph.input)}
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    with torch.no_grad():
        for index, node in enumerate(graph.nodes):
            a = [exact[i] if i in exact else exact_constants[i] for i in node.inputs]
            if node.output in quantized.real_nodes:
                b = [rounded[i] if i in rounded else exact_constants[i] for i in node.inputs]
            else:
                b = [_as_read(i, rounded, integer_constants, quantized) for i in node.inputs]
            if quantized.is_weighted(node):
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
            real = node.output in quantized.real_nodes
            rounded[node.output] = value if real else _rounded(value, quantized, node.output)
            for name in set(node.inputs):
                if last[name] == index and name != graph.output:
                    exact.pop(name, None)
                    rounded.pop(name, None)
    return biases
