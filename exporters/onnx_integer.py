"""Static int8 ONNX whose convolutions are QLinearConv, and whose slices and joins move integers.

Written as Q/DQ around real operations, a network of many small ones has five times as many nodes until ONNX
Runtime has fused them at load: that is time to load, bytes in the file, and memory that is not given back.
QLinearConv is of the standard, and needs no fusing. What has no integer operation there keeps its Q/DQ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from csr_deploy.exporters.base import WriteRequest
from csr_deploy.exporters.onnx import OnnxWriter
from csr_deploy.quantize.scheme import QuantizedGraph
from csr_deploy.unroll.graph import Node


class IntegerWriter(OnnxWriter):
    """Writes a quantised graph."""

    quantized: QuantizedGraph

    def __init__(self, request: WriteRequest) -> None:
        super().__init__(request)
        self._in_integers = False

    def operand(self, name: str) -> str:
        """A real-valued input, or its integers for an operation that only moves them."""
        return self._take(self._held(name), name) if self._in_integers else super().operand(name)

    def finish(self, node: Node, name: str) -> None:
        """Takes a result: real, or moved integers."""
        if self._in_integers:
            self.values[node.output] = self._keep(name, node.output)
        else:
            super().finish(node, name)

    def _moves(self, node: Node, emit: Callable[[Node], None]) -> None:
        """Emits a node that gives back some of the values that it reads."""
        of = self.quantized.activations
        self._in_integers = not self._in_real and all(of[i] == of[node.output] for i in node.inputs)
        emit(node)
        self._in_integers = False

    def _convolves(self, node: Node, emit: Callable[[Node], None], kind: str, **attrs: Any) -> None:
        """Emits a convolution; one whose activation is more than the integers' bounds stays real."""
        if self._in_real or not self._clips(node):
            emit(node)
            return
        name = node.inputs[1]
        weight = self.quantized.weights[name]
        # A gain of an affine is [C]; as the kernel of a depth-wise convolution it is [C, 1, 1, 1].
        shape = weight.values.shape if weight.values.ndim == 4 else (-1, 1, 1, 1)
        self._initializer(name, weight.values.reshape(shape), kind)
        self._used(name)
        zeros = self._initializer(
            f"zeros_int8_{len(weight.scales)}", np.zeros(len(weight.scales), np.int8), "table"
        )
        source = node.inputs[0]
        inputs = [self._take(self._held(source), source), *self._scale(self.quantized.activations[source])]
        inputs += [name, self._vector("scales", weight.scales), zeros]
        inputs += self._scale(self.quantized.activations[node.output])
        if node.output in self.quantized.biases:
            bias = self.quantized.biases[node.output]
            inputs.append(self._initializer(f"{node.output}.bias", bias, "bias"))
        self.values[node.output] = self._keep(self._node("QLinearConv", inputs, **attrs), node.output)

    def _clips(self, node: Node) -> bool:
        """Whether the bounds of the integers do what a node's activation does."""
        activation = node.attrs.get("activation")
        return activation is None or (activation == "relu" and self._clips_at_zero(node.output))

    def conv2d(self, node: Node) -> None:
        """QLinearConv."""
        self._convolves(node, super().conv2d, "weight", **self._geometry(node))

    def affine(self, node: Node) -> None:
        """QLinearConv, depth-wise."""
        channels = self.graph.shapes[node.inputs[0]][1]
        self._convolves(node, super().affine, "gain", group=channels)

    def pool(self, node: Node) -> None:
        """MaxPool of integers, or AveragePool of real numbers."""
        if node.op == "max_pool2d":
            self._moves(node, super().pool)
        else:
            super().pool(node)

    def slice(self, node: Node) -> None:
        """Slice."""
        self._moves(node, super().slice)

    def pad(self, node: Node) -> None:
        """Pad with the integer that means zero."""
        self._moves(node, super().pad)

    def _filling(self, node: Node) -> list[str]:
        return self._scale(self.quantized.activations[node.output])[1:] if self._in_integers else []

    def concat(self, node: Node) -> None:
        """Concat."""
        self._moves(node, super().concat)

    def reshape(self, node: Node) -> None:
        """Reshape."""
        self._moves(node, super().reshape)

    def transpose(self, node: Node) -> None:
        """Transpose."""
        self._moves(node, super().transpose)

    def channels_to_width(self, node: Node) -> None:
        """Reshape, Transpose, Reshape."""
        self._moves(node, super().channels_to_width)

    def width_to_channels(self, node: Node) -> None:
        """Reshape, Transpose, Reshape."""
        self._moves(node, super().width_to_channels)
