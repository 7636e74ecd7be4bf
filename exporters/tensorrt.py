"""ONNX as TensorRT 10 and 11 want it: strongly typed, float32, float16, or int8 by explicit Q/DQ.

What differs from the ONNX for ONNX Runtime, and why:

- int8 is symmetric and biases stay floating point: TensorRT has no zero points and refuses int32 biases.
- Q/DQ stands where an int8 kernel reads (`csr_deploy.quantize.scheme.SYMMETRIC`). A convolution that is added
  to something gives its accumulator to the addition, the other branch comes in int8, and the sum is rounded
  once: the pattern that TensorRT fuses into one kernel. All pieces of a concatenation have one scale.
- Between the Q/DQ every value is in units of its scale, so that the scales themselves are 1. The factors
  stand in the weights' scales and in the biases, which are tables. A builder that generates code (TensorRT
  for RTX) writes scalars into it and stores a kernel for every layer; this way layers of one shape share it.
- A per-channel gain and bias is Mul and Add, which TensorRT fuses into its neighbours; as a depth-wise
  convolution it would be a kernel of its own.
- float16 is a type of the graph (Cast at the border, float32 where sums are long), not a flag of the builder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from csr_deploy.exporters.base import Exporter, ModelFile, WriteRequest
from csr_deploy.exporters.onnx import OnnxWriter
from csr_deploy.quantize.scheme import SYMMETRIC
from csr_deploy.unroll.graph import Graph, Node

OPSET = 19
"""The first whose Q/DQ have float16 scales; TensorRT ≥ 10.0 reads it."""
IR_VERSION = 9

_HOMOGENEOUS = (None, "relu")
"""Activations f with f(u·x) = u·f(x) for every u > 0."""


class TensorRtWriter(OnnxWriter):
    """Builds one ONNX model for TensorRT from one graph.

    A tensor of the model holds a value in some unit: value = unit · tensor. Floating-point models have no
    other unit than 1.
    """

    opset = OPSET
    ir_version = IR_VERSION

    def __init__(self, request: WriteRequest) -> None:
        super().__init__(request)
        self._units: dict[str, float] = {}
        self._unit = 1.0
        self._consumers = self.graph.consumers()

    # Units

    def _scale_of(self, value: str) -> float | None:
        """The scale of a value that is an integer."""
        if self.quantized is None or value not in self.quantized.activations:
            return None
        return self.quantized.activations[value].scale

    def _own_unit(self, value: str) -> float:
        """The unit in which a value needs no factor."""
        return self._scale_of(value) or self._units.get(value, 1.0)

    def _result_unit(self, node: Node) -> float:
        """The unit in which a node that can choose gives its result."""
        if node.attrs.get("activation") not in _HOMOGENEOUS:
            return 1.0
        scale = self._scale_of(node.output)
        if scale is not None:
            return scale
        users = self._consumers.get(node.output, [])
        if self.quantized is not None and len(users) == 1 and users[0].op == "add":
            return self._result_unit(users[0])
        return 1.0

    def _operand_in(self, name: str, unit: float) -> str:
        """An input in a unit."""
        if name not in self.values:
            kind = "bias"
            constant = (self.graph.constants[name] / unit).astype(self.real)
            return self._initializer(name if unit == 1.0 else f"{name}/{unit!r}", constant, kind)
        tensor, scale = self.values[name], self._scale_of(name)
        if scale is not None:
            return self._node("DequantizeLinear", [tensor, *self._scalar(scale / unit)])
        factor = self._units.get(name, 1.0) / unit
        return tensor if factor == 1.0 else self._scaled(tensor, factor)

    def _scaled(self, tensor: str, factor: float) -> str:
        name = self._initializer(f"factor_{factor!r}", np.asarray(factor, self.real), "table")
        return self._node("Mul", [tensor, name])

    def _scalar(self, scale: float) -> list[str]:
        name = self._initializer(f"scale_{scale!r}", np.asarray(scale, self.real), "table")
        return [name, self._initializer("zero_point", np.asarray(0, np.int8), "table")]

    def _finish_in(self, node: Node, tensor: str, unit: float) -> None:
        """Applies the node's activation to a result in a unit, and quantises it."""
        activation = node.attrs.get("activation")
        if activation == "relu":
            tensor = self._node("Relu", [tensor])
        elif activation is not None:
            tensor = self._relu6(tensor)
        scale = self._scale_of(node.output)
        if scale is not None:
            tensor = self._node("QuantizeLinear", [tensor, *self._scalar(scale / unit)])
        else:
            self._units[node.output] = unit
        self.values[node.output] = tensor

    # What the base class calls

    def _quantize_value(self, value: str, name: str) -> None:
        scale = self._scale_of(value)
        self.values[value] = (
            name if scale is None else self._node("QuantizeLinear", [name, *self._scalar(scale)])
        )

    def operand(self, name: str) -> str:
        """An input in the present unit."""
        return self._operand_in(name, self._unit)

    def finish(self, node: Node, name: str) -> None:
        """Takes a result in the present unit."""
        self._finish_in(node, name, self._unit)

    # Operations

    def conv2d(self, node: Node) -> None:
        """Conv."""
        a = node.attrs
        self._weighted(
            node, "Conv",
            kernel_shape=list(self.graph.shape(node.inputs[1])[2:]), strides=list(a["stride"]),
            pads=list(a["padding"]), dilations=list(a["dilation"]), group=a["groups"],
        )  # fmt: skip

    def linear(self, node: Node) -> None:
        """Gemm."""
        self._weighted(node, "Gemm", transB=1)

    def _weighted(self, node: Node, op: str, **attrs: Any) -> None:
        source, unit = self._own_unit(node.inputs[0]), self._result_unit(node)
        inputs = [self._operand_in(node.inputs[0], source)]
        if self.quantized is None:
            inputs += [self._weight(node, "weight"), *self._bias(node)]
        else:
            name = node.inputs[1]
            weight = self.quantized.weights[name]
            self._initializer(name, weight.values, "weight")
            self._used(name)
            scales = weight.scales.astype(np.float64) * (source / unit)
            inputs.append(
                self._dequantize_constant(name, scales.astype(np.float32), np.zeros(len(scales), np.int8))
            )
            if node.output in self.quantized.biases:
                bias = self.quantized.biases[node.output] * self.quantized.bias_scales(node)
                inputs.append(self._table_of(f"{node.output}.bias", bias / unit, "bias"))
        self._finish_in(node, self._node(op, inputs, **attrs), unit)

    def affine(self, node: Node) -> None:
        """A per-channel gain and bias as Mul and Add."""
        x, gain, bias = node.inputs
        source, unit = self._own_unit(x), self._result_unit(node)
        shape = (1, -1, *[1] * (len(self.graph.shapes[x]) - 2))
        gains = (self.graph.constants[gain] * (source / unit)).reshape(shape)
        name = gain if source == unit else f"{node.output}.gain"
        scaled = self._node("Mul", [self._operand_in(x, source), self._table_of(name, gains, "gain")])
        self._used(name)
        biases = (self.graph.constants[bias] / unit).reshape(shape)
        total = self._node("Add", [scaled, self._table_of(f"{node.output}.bias", biases, "bias")])
        self._finish_in(node, total, unit)

    def _table_of(self, name: str, values: NDArray[Any], kind: str) -> str:
        return self._initializer(name, values.astype(self.real), kind)

    def elementwise(self, node: Node) -> None:
        """Add, Sub or Mul."""
        if node.op == "mul":
            super().elementwise(node)
            return
        unit = self._result_unit(node)
        inputs = [self._operand_in(i, unit) for i in node.inputs]
        self._finish_in(node, self._node("Add" if node.op == "add" else "Sub", inputs), unit)

    def _in_own_unit(self, node: Node, emit: Callable[[Node], None]) -> None:
        """Emits a node that only moves values in the unit they are in: no factor, no rounding."""
        self._unit = self._own_unit(node.inputs[0])
        emit(node)
        self._unit = 1.0

    def pool(self, node: Node) -> None:
        """MaxPool or AveragePool."""
        self._in_own_unit(node, super().pool)

    def slice(self, node: Node) -> None:
        """Slice along the axes that are cut."""
        self._in_own_unit(node, super().slice)

    def pad(self, node: Node) -> None:
        """Pad with zeros."""
        self._in_own_unit(node, super().pad)

    def concat(self, node: Node) -> None:
        """Concat."""
        self._in_own_unit(node, super().concat)

    def reshape(self, node: Node) -> None:
        """Reshape."""
        self._in_own_unit(node, super().reshape)

    def transpose(self, node: Node) -> None:
        """Transpose."""
        self._in_own_unit(node, super().transpose)


class HalfWriter(TensorRtWriter):
    """The same in float16; float32 at the border and where sums or exponentials are over many values."""

    real = np.float16

    def _cast(self, name: str, kind: int) -> str:
        return self._node("Cast", [name], to=kind)

    def _from_border(self, name: str) -> str:
        return self._cast(name, TensorProto.FLOAT16)

    def _to_border(self, name: str) -> str:
        return self._cast(name, TensorProto.FLOAT)

    def _in_float(self, node: Node, op: str, **attrs: Any) -> None:
        wide = self._cast(self.operand(node.inputs[0]), TensorProto.FLOAT)
        self.finish(node, self._cast(self._node(op, [wide], **attrs), TensorProto.FLOAT16))

    def softmax(self, node: Node) -> None:
        """Softmax in float32."""
        self._in_float(node, "Softmax", axis=node.attrs["axis"])

    def mean_hw(self, node: Node) -> None:
        """GlobalAveragePool in float32."""
        self._in_float(node, "GlobalAveragePool")


def _writes(writer: type[TensorRtWriter]) -> Callable[[WriteRequest], ModelFile]:
    def write(request: WriteRequest) -> ModelFile:
        content, described = writer(request).write()
        request.path.write_bytes(content)
        return described

    return write


def _unchanged(graph: Graph) -> Graph:
    return graph


def _exporter(writer: type[TensorRtWriter]) -> Exporter:
    return Exporter(".onnx", "stepwise", _unchanged, _writes(writer), ("onnx",), SYMMETRIC, free_batch=True)


FLOAT32 = _exporter(TensorRtWriter)
FLOAT16 = _exporter(HalfWriter)
INT8 = _exporter(TensorRtWriter)
