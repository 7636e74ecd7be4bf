"""What an int8 graph is, for the formats that differ in it.

Everywhere: activations are int8 per tensor, weights int8, symmetric, per output channel, biases int32 with
scale input·weight. TFLite's specification (`AFFINE`), which ONNX Runtime takes as well, quantises every
value. TensorRT (`SYMMETRIC`) has no zero points and leaves real what a kernel keeps in its accumulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csr_deploy.types import Quantization
from csr_deploy.unroll.graph import Graph, Node

QMIN, QMAX = -128, 127

SAME_SCALE_OPS = frozenset(
    {
        "slice",
        "pad",
        "reshape",
        "transpose",
        "channels_to_width",
        "width_to_channels",
        "concat",
        "max_pool2d",
        "avg_pool2d",
    }
)
"""Operations whose inputs and output must have one scale in TFLite."""

_FIXED_OUTPUT: dict[str, Quantization] = {
    "sigmoid": Quantization(1 / 256, -128),
    "softmax": Quantization(1 / 256, -128),
    "tanh": Quantization(1 / 128, 0),
}
"""Outputs whose scale TFLite prescribes."""


@dataclass(frozen=True)
class WeightQuantization:
    """An int8 weight.

    Attributes:
        values: int8, shape of the float weight.
        scales: [O], one per output channel (axis 0), float32.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]

    def dequantize(self) -> NDArray[np.float32]:
        """The weight as float32."""
        return self.values.astype(np.float32) * self.scales.reshape(-1, *([1] * (self.values.ndim - 1)))


@dataclass(frozen=True)
class QuantizedGraph:
    """A static graph with its integer parameters.

    Attributes:
        graph: The float graph; conv2d, linear and affine nodes are the ones with integer weights.
        activations: Value name → quantisation; values that stay real have none.
        weights: Constant name → integer weight; tied weights have one entry.
        biases: Output name of a node → int32 bias [O].
        real_nodes: Output names of the nodes that compute with real numbers in a format whose other nodes
            are all integer. Such a node reads real inputs and constants; its output is a real value, which
            has a quantisation too where an integer node, or the model's border, reads it.
    """

    graph: Graph
    activations: Mapping[str, Quantization]
    weights: Mapping[str, WeightQuantization]
    biases: Mapping[str, NDArray[np.int32]]
    real_nodes: frozenset[str] = frozenset()

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Modules that the nodes with real numbers come from, in order."""
        return tuple(dict.fromkeys(n.origin for n in self.graph.nodes if n.output in self.real_nodes))

    def is_weighted(self, node: Node) -> bool:
        """Whether a node has an integer weight."""
        return node.output not in self.real_nodes and len(node.inputs) > 1 and node.inputs[1] in self.weights

    def bias_scales(self, node: Node) -> NDArray[np.float32]:
        """Scale of a node's int32 bias, per output channel."""
        scales = self.weights[node.inputs[1]].scales
        return (np.float32(self.activations[node.inputs[0]].scale) * scales).astype(np.float32)


def quantize_weight(
    weight: NDArray[np.floating], most: NDArray[np.floating] | float = np.inf
) -> WeightQuantization:
    """Symmetric, per output channel; a channel of zeros gets a harmless scale.

    Args:
        weight: [O, …].
        most: [O] or one for all: the largest scales, beyond which weights are clipped.
    """
    flat = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1)
    scales = (flat / QMAX).astype(np.float32)
    # Also of a channel whose scale is no float32.
    scales = np.minimum(np.where(scales > 0, scales, np.float32(1.0)), most).astype(np.float32)
    shaped = scales.reshape(-1, *([1] * (weight.ndim - 1)))
    return WeightQuantization(np.clip(np.rint(weight / shaped), -QMAX, QMAX).astype(np.int8), scales)


def activation_quantization(low: float, high: float) -> Quantization:
    """The affine quantisation whose integers cover [low, high] and represent zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9:
        return Quantization(1.0 / 255, QMIN if low == 0 else 0)
    scale = float(np.float32((high - low) / (QMAX - QMIN)))
    zero_point = int(np.clip(round(QMIN - low / scale), QMIN, QMAX))
    return Quantization(scale, zero_point)


def symmetric_quantization(low: float, high: float) -> Quantization:
    """The quantisation without zero point whose integers cover [low, high]."""
    largest = max(-low, high, 0.0)
    return Quantization(float(np.float32(largest / QMAX)) if largest > 1e-9 else 1.0 / QMAX, 0)


@dataclass(frozen=True)
class Scheme:
    """What a format's integers can be.

    Attributes:
        weighted: Operations with integer weights.
        same_scale: Operations whose inputs and output have one scale.
        fixed_output: Operation → the scale its output must have.
        choose: (low, high) → the quantisation that covers it.
        real: Graph and scale groups → values that are not quantised.
        real_constants: Whether constant operands of add, sub and mul stay real.
    """

    weighted: frozenset[str]
    same_scale: frozenset[str]
    fixed_output: Mapping[str, Quantization]
    choose: Callable[[float, float], Quantization]
    real: Callable[[Graph, Mapping[str, str]], frozenset[str]]
    real_constants: bool


def _none_real(graph: Graph, groups: Mapping[str, str]) -> frozenset[str]:
    return frozenset()


def _real_between_kernels(graph: Graph, groups: Mapping[str, str]) -> frozenset[str]:
    """Values that no int8 kernel of TensorRT reads.

    Its kernels convolve int8, add an int8 branch to the accumulator, apply a ReLU and round once: what a
    convolution gives to such an addition, the additions' other branch aside, is never seen outside. All other
    operations run in floating point between them, fused, so that rounding in between would only cost.
    """
    consumers = graph.consumers()
    producers = graph.producers()
    order = {node.output: index for index, node in enumerate(graph.nodes)}
    inside, read = set(), set()
    for node in graph.nodes:
        if node.op in ("conv2d", "linear"):
            read.add(node.inputs[0])
        if node.op != "add":
            continue
        summed = [
            name
            for name in node.inputs
            if name in producers
            and producers[name].op == "conv2d"
            and producers[name].attrs.get("activation") is None
            and [n.output for n in consumers[name]] == [node.output]
            and graph.shapes[name] == graph.shapes[node.output]
        ]
        if summed and node.inputs[0] != node.inputs[1]:
            fused = max(summed, key=lambda name: order[name])
            inside.add(fused)
            read.update(n for n in node.inputs if n != fused and n in graph.shapes)
    groups_read = {groups[name] for name in read}
    integer = {name for name in graph.shapes if groups[name] in groups_read} - inside - {graph.output}
    return frozenset(graph.shapes) - frozenset(integer)


AFFINE = Scheme(
    frozenset({"conv2d", "linear", "affine"}),
    SAME_SCALE_OPS,
    _FIXED_OUTPUT,
    activation_quantization,
    _none_real,
    real_constants=False,
)
SYMMETRIC = Scheme(
    frozenset({"conv2d", "linear"}),
    SAME_SCALE_OPS - {"avg_pool2d"},
    {},
    symmetric_quantization,
    _real_between_kernels,
    real_constants=True,
)
