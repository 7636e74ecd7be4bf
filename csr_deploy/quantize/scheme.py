"""What an int8 graph is: TFLite's int8 specification, which ONNX Q/DQ can express as well.

Activations: int8, affine, per tensor. Weights: int8, symmetric, per output channel. Biases: int32 with scale
input·weight, zero point 0. Operations that only move values have one scale for input and output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csr_deploy.types import Quantization
from csr_deploy.unroll.graph import Graph, Node

QMIN, QMAX = -128, 127

SAME_SCALE_OPS = frozenset({"slice", "pad", "reshape", "transpose", "concat", "max_pool2d", "avg_pool2d"})
"""Operations whose inputs and output must have one scale in TFLite."""

FIXED_OUTPUT: dict[str, Quantization] = {
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
        activations: Value name → quantisation.
        weights: Constant name → integer weight; tied weights have one entry.
        biases: Output name of a node → int32 bias [O].
    """

    graph: Graph
    activations: Mapping[str, Quantization]
    weights: Mapping[str, WeightQuantization]
    biases: Mapping[str, NDArray[np.int32]]

    def bias_scales(self, node: Node) -> NDArray[np.float32]:
        """Scale of a node's int32 bias, per output channel."""
        scales = self.weights[node.inputs[1]].scales
        return (np.float32(self.activations[node.inputs[0]].scale) * scales).astype(np.float32)


def quantize_weight(weight: NDArray[np.floating]) -> WeightQuantization:
    """Symmetric, per output channel; a channel of zeros gets a harmless scale."""
    flat = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1)
    scales = np.where(flat > 0, flat / QMAX, 1.0).astype(np.float32)
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
