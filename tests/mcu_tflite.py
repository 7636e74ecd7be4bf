"""Small int8 .tflite files for tests of the microcontroller compiler, and the two interpreters that run them.

A `GraphBuilder` has one method an operation; each returns the `Value` it makes. Shapes are NHWC, `Quant` is
(scale, zero point) of an output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]
Quant = tuple[float, int]

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, whose schema it writes with")

from ai_edge_litert import schema_py_generated as schema  # noqa: E402

from csr_deploy.exporters.flatbuffer import BufferTable, pack  # noqa: E402

_OPTIONS = {
    "ABS": "AbsOptions",
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GELU": "GeluOptions",
    "HARD_SWISH": "HardSwishOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "NEG": "NegOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "QUANTIZE": "QuantizeOptions",
    "RESHAPE": "ReshapeOptions",
    "SLICE": "SliceOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "SPLIT": "SplitOptions",
    "SPLIT_V": "SplitVOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "TRANSPOSE": "TransposeOptions",
}
_TYPES = {
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "float32": schema.TensorType.FLOAT32,
}
_ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_PADDINGS = {"SAME": 0, "VALID": 1}


@dataclass(frozen=True)
class Value:
    """A tensor of the file: (scale, zero point) in `quant`, None if it is not quantised."""

    index: int
    shape: Shape
    dtype: str = "int8"
    quant: Quant | None = None

    @property
    def quantised(self) -> Quant:
        assert self.quant is not None
        return self.quant


class GraphBuilder:
    """Writes one subgraph, operation by operation."""

    def __init__(self) -> None:
        self._buffers = BufferTable()
        self._tensors: list[schema.TensorT] = []
        self._operators: list[schema.OperatorT] = []
        self._codes: list[str] = []
        self._inputs: list[int] = []

    # Tensors

    def _tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        scales: Sequence[float] | Array | None,
        zero_points: Sequence[int],
        axis: int = 0,
        data: Array | None = None,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = f"t{len(self._tensors)}"
        tensor.shape, tensor.type = [int(n) for n in shape], _TYPES[dtype]
        tensor.buffer = 0 if data is None else self._buffers.add(np.ascontiguousarray(data).tobytes())
        if scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [float(s) for s in scales]
            tensor.quantization.zeroPoint = [int(z) for z in zero_points]
            tensor.quantization.quantizedDimension = axis
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def value(self, shape: Sequence[int], quant: Quant | None, dtype: str = "int8") -> Value:
        """A tensor that an operation is going to make."""
        scales, zeros = ([], []) if quant is None else ([quant[0]], [quant[1]])
        index = self._tensor(shape, dtype, scales if quant else None, zeros)
        return Value(index, tuple(int(n) for n in shape), dtype, quant)

    def input(self, shape: Sequence[int], quant: Quant | None, dtype: str = "int8") -> Value:
        """The input of the graph."""
        made = self.value(shape, quant, dtype)
        self._inputs.append(made.index)
        return made

    def constant(self, data: Array, quant: Quant | None = None) -> Value:
        """A constant with at most one scale."""
        scales, zeros = ([], []) if quant is None else ([quant[0]], [quant[1]])
        index = self._tensor(data.shape, str(data.dtype), scales if quant else None, zeros, data=data)
        return Value(index, data.shape, str(data.dtype), quant)

    def weights(self, data: Array, scales: Sequence[float] | Array, axis: int = 0) -> Value:
        """Symmetric int8 weights with a scale for every slice along an axis, or one."""
        index = self._tensor(data.shape, str(data.dtype), scales, [0] * len(scales), axis, data)
        return Value(index, data.shape, str(data.dtype))

    def _ints(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int32))

    # Operations

    def op(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Any operation; `options` are the fields of its table in the schema."""
        operator = schema.OperatorT()
        if kind not in self._codes:
            self._codes.append(kind)
        operator.opcodeIndex = self._codes.index(kind)
        operator.inputs = [-1 if v is None else v.index for v in inputs]
        operator.outputs = [v.index for v in outputs]
        if kind in _OPTIONS:
            name = _OPTIONS[kind]
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(schema, f"{name}T")()
            for key, value in (options or {}).items():
                # A misspelt field would be dropped without a word.
                assert hasattr(operator.builtinOptions, key), f"{name} has no field {key}"
                setattr(operator.builtinOptions, key, value)
        else:
            assert not options, f"{kind} has no options"
        self._operators.append(operator)

    def _window(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        padding: str,
        x: Value,
    ) -> tuple[int, int]:
        extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        if padding == "SAME":
            return -(-x.shape[1] // stride[0]), -(-x.shape[2] // stride[1])
        return (x.shape[1] - extents[0]) // stride[0] + 1, (x.shape[2] - extents[1]) // stride[1] + 1

    def _bias(self, bias: Array | None, x: Value, scales: Sequence[float] | Array) -> Value | None:
        if bias is None:
            return None
        return self.weights(bias.astype(np.int32), [x.quantised[0] * float(s) for s in scales])

    def conv2d(
        self,
        x: Value,
        weights: Array,
        scales: Sequence[float] | Array,
        bias: Array | None,
        out: Quant,
        *,
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        activation: str = "NONE",
    ) -> Value:
        """Weights [O, kh, kw, I], bias [O]."""
        size = self._window((weights.shape[1], weights.shape[2]), stride, dilation, padding, x)
        made = self.value((x.shape[0], *size, weights.shape[0]), out)
        options = {
            "padding": _PADDINGS[padding], "strideH": stride[0], "strideW": stride[1],
            "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
            "fusedActivationFunction": _ACTIVATIONS[activation],
        }  # fmt: skip
        inputs = [x, self.weights(weights, scales), self._bias(bias, x, scales)]
        self.op("CONV_2D", inputs[: 2 if bias is None else 3], [made], options)
        return made

    def depthwise_conv2d(
        self,
        x: Value,
        weights: Array,
        scales: Sequence[float] | Array,
        bias: Array | None,
        out: Quant,
        *,
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        activation: str = "NONE",
    ) -> Value:
        """Weights [1, kh, kw, C · multiplier], scales along the last axis."""
        size = self._window((weights.shape[1], weights.shape[2]), stride, dilation, padding, x)
        made = self.value((x.shape[0], *size, weights.shape[3]), out)
        options = {
            "padding": _PADDINGS[padding], "strideH": stride[0], "strideW": stride[1],
            "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
            "depthMultiplier": weights.shape[3] // x.shape[3],
            "fusedActivationFunction": _ACTIVATIONS[activation],
        }  # fmt: skip
        inputs = [x, self.weights(weights, scales, 3), self._bias(bias, x, scales)]
        self.op("DEPTHWISE_CONV_2D", inputs[: 2 if bias is None else 3], [made], options)
        return made

    def fully_connected(
        self,
        x: Value,
        weights: Array,
        scales: Sequence[float] | Array,
        bias: Array | None,
        out: Quant,
        *,
        activation: str = "NONE",
    ) -> Value:
        """Weights [O, I]."""
        made = self.value((math.prod(x.shape) // weights.shape[1], weights.shape[0]), out)
        inputs = [x, self.weights(weights, scales), self._bias(bias, x, scales)]
        options = {"fusedActivationFunction": _ACTIVATIONS[activation]}
        self.op("FULLY_CONNECTED", inputs[: 2 if bias is None else 3], [made], options)
        return made

    def binary(self, kind: str, a: Value, b: Value, out: Quant, *, activation: str = "NONE") -> Value:
        """ADD, SUB, MUL, MINIMUM, MAXIMUM or PRELU, with broadcasting; the last three have no activation."""
        made = self.value(np.broadcast_shapes(a.shape, b.shape), out)
        fused = {"fusedActivationFunction": _ACTIVATIONS[activation]}
        self.op(kind, [a, b], [made], fused if kind in ("ADD", "SUB", "MUL") else None)
        return made

    def add(self, a: Value, b: Value, out: Quant, *, activation: str = "NONE") -> Value:
        return self.binary("ADD", a, b, out, activation=activation)

    def sub(self, a: Value, b: Value, out: Quant, *, activation: str = "NONE") -> Value:
        return self.binary("SUB", a, b, out, activation=activation)

    def mul(self, a: Value, b: Value, out: Quant, *, activation: str = "NONE") -> Value:
        return self.binary("MUL", a, b, out, activation=activation)

    def pool(
        self,
        kind: str,
        x: Value,
        kernel: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        activation: str = "NONE",
    ) -> Value:
        """AVERAGE_POOL_2D or MAX_POOL_2D."""
        size = self._window(kernel, stride, (1, 1), padding, x)
        made = self.value((x.shape[0], *size, x.shape[3]), x.quant)
        options = {
            "padding": _PADDINGS[padding], "strideH": stride[0], "strideW": stride[1],
            "filterHeight": kernel[0], "filterWidth": kernel[1],
            "fusedActivationFunction": _ACTIVATIONS[activation],
        }  # fmt: skip
        self.op(kind, [x], [made], options)
        return made

    def mean(self, x: Value, axes: Sequence[int], out: Quant, *, keep_dims: bool = False) -> Value:
        reduced = {a % len(x.shape) for a in axes}
        shape = [1 if i in reduced else n for i, n in enumerate(x.shape) if keep_dims or i not in reduced]
        made = self.value(shape, out)
        self.op("MEAN", [x, self._ints(*axes)], [made], {"keepDims": keep_dims})
        return made

    def softmax(self, x: Value, beta: float = 1.0) -> Value:
        made = self.value(x.shape, (1 / 256, -128))
        self.op("SOFTMAX", [x], [made], {"beta": beta})
        return made

    def unary(self, kind: str, x: Value, out: Quant | None, dtype: str = "int8", **options: Any) -> Value:
        """An operation of one input whose output has its shape."""
        made = self.value(x.shape, out, dtype)
        self.op(kind, [x], [made], options)
        return made

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        first = values[0]
        axis %= len(first.shape)
        total = sum(v.shape[axis] for v in values)
        made = self.value((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.quant, first.dtype)
        self.op("CONCATENATION", values, [made], {"axis": axis})
        return made

    def slice(self, x: Value, begin: Sequence[int], size: Sequence[int]) -> Value:
        made = self.value(size, x.quant, x.dtype)
        self.op("SLICE", [x, self._ints(*begin), self._ints(*size)], [made])
        return made

    def strided_slice(
        self, x: Value, begin: Sequence[int], end: Sequence[int], steps: Sequence[int], **masks: int
    ) -> Value:
        """The shape follows from begin, end (not negative) and steps; masks are the schema's fields."""
        ends = [
            n if masks.get("endMask", 0) >> i & 1 else e
            for i, (e, n) in enumerate(zip(end, x.shape, strict=True))
        ]
        starts = [0 if masks.get("beginMask", 0) >> i & 1 else b for i, b in enumerate(begin)]
        shape = [-(-(e - b) // s) for b, e, s in zip(starts, ends, steps, strict=True)]
        made = self.value(shape, x.quant, x.dtype)
        self.op("STRIDED_SLICE", [x, self._ints(*begin), self._ints(*end), self._ints(*steps)], [made], masks)
        return made

    def split(self, x: Value, axis: int, parts: int) -> list[Value]:
        shape = [n // parts if i == axis else n for i, n in enumerate(x.shape)]
        made = [self.value(shape, x.quant, x.dtype) for _ in range(parts)]
        # The axis is a scalar.
        self.op("SPLIT", [self.constant(np.array(axis, np.int32)), x], made, {"numSplits": parts})
        return made

    def split_v(self, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        shapes = [[s if i == axis else n for i, n in enumerate(x.shape)] for s in sizes]
        made = [self.value(shape, x.quant, x.dtype) for shape in shapes]
        inputs = [x, self._ints(*sizes), self.constant(np.array(axis, np.int32))]
        self.op("SPLIT_V", inputs, made, {"numSplits": len(sizes)})
        return made

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        made = self.value(shape, x.quant, x.dtype)
        self.op("RESHAPE", [x, self._ints(*shape)], [made], {"newShape": list(shape)})
        return made

    def transpose(self, x: Value, permutation: Sequence[int]) -> Value:
        made = self.value([x.shape[p] for p in permutation], x.quant, x.dtype)
        self.op("TRANSPOSE", [x, self._ints(*permutation)], [made])
        return made

    def pad(self, x: Value, pads: Sequence[tuple[int, int]], value: int | None = None) -> Value:
        """PAD, or PADV2 where a value is given; `pads` are (before, after) of every axis."""
        made = self.value([n + b + a for n, (b, a) in zip(x.shape, pads, strict=True)], x.quant, x.dtype)
        inputs = [x, self.constant(np.array(pads, np.int32))]
        if value is not None:
            inputs.append(self.constant(np.array([value], np.int8), x.quant))
        self.op("PAD" if value is None else "PADV2", inputs, [made])
        return made

    def space_to_depth(self, x: Value, block: int) -> Value:
        n, h, w, c = x.shape
        made = self.value((n, h // block, w // block, c * block * block), x.quant, x.dtype)
        self.op("SPACE_TO_DEPTH", [x], [made], {"blockSize": block})
        return made

    def build(self, *outputs: Value) -> bytes:
        """The file."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self._tensors, self._operators, "main"
        graph.inputs, graph.outputs = self._inputs, [v.index for v in outputs]
        codes = []
        for kind in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
            codes.append(code)
        return pack(graph, codes, self._buffers, "test")


@dataclass(frozen=True)
class Spec:
    """A tensor of `one_op_model`: a constant if it has data."""

    shape: Shape
    quant: Quant | None = None
    dtype: str = "int8"
    data: Array | None = None


def one_op_model(
    kind: str, inputs: Sequence[Spec], output: Spec, options: Mapping[str, Any] | None = None
) -> bytes:
    """A file of one operation; options are the fields of its table in the schema."""
    graph = GraphBuilder()
    values = [
        graph.input(s.shape, s.quant, s.dtype) if s.data is None else graph.constant(s.data, s.quant)
        for s in inputs
    ]
    made = graph.value(output.shape, output.quant, output.dtype)
    graph.op(kind, values, [made], options)
    return graph.build(made)


def run_tflm(content: bytes, *pictures: Array, arena: int = 1 << 20) -> list[Array]:
    """Outputs of TFLite Micro for each of several inputs of a model with one input and one output.

    Args:
        content: The file.
        pictures: Inputs, each of the model's shape.
        arena: Bytes, enough for any model that a test builds; too few end the process.
    """
    runtime = pytest.importorskip("tflite_micro", reason="needs tflite-micro").runtime
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena)
    out = []
    for picture in pictures:
        interpreter.set_input(picture, 0)
        interpreter.invoke()
        out.append(np.array(interpreter.get_output(0)))
    return out


def run_litert(content: bytes, *pictures: Array) -> list[Array]:
    """The same of LiteRT's reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1
    )
    interpreter.allocate_tensors()
    out = []
    for picture in pictures:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
        interpreter.invoke()
        out.append(np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])))
    return out
