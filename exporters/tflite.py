"""TFLite: float32, float16 weights, or full integer, written straight from the static graph.

NHWC throughout; tied weights are one tensor; all buffers are inline, so that TFLite Micro reads them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.base import Exporter, ModelFile, WriteRequest
from csr_deploy.exporters.flatbuffer import BufferTable, pack
from csr_deploy.exporters.tflite_legalise import legalise, padding_scheme, window_of
from csr_deploy.ledger import Ledger, Stored
from csr_deploy.quantize.scheme import QMIN, QuantizedGraph
from csr_deploy.types import Quantization, TensorSpec
from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.ops import Shape

_Op = schema.BuiltinOperator
_NHWC = (0, 2, 3, 1)
_COMPUTED = 0
"""The buffer of values that are computed."""
_ACTIVATIONS = {
    None: schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
}
# Operator versions with int8 kernels, from TFLite's op_version.cc.
_INT8_VERSIONS = {
    _Op.CONV_2D: 3, _Op.DEPTHWISE_CONV_2D: 3, _Op.ADD: 2, _Op.SUB: 2, _Op.MUL: 2, _Op.SLICE: 2,
    _Op.STRIDED_SLICE: 2, _Op.CONCATENATION: 2, _Op.PAD: 2, _Op.MEAN: 2, _Op.AVERAGE_POOL_2D: 2,
    _Op.MAX_POOL_2D: 2, _Op.SOFTMAX: 2, _Op.LOGISTIC: 2, _Op.TANH: 2, _Op.RELU: 2, _Op.RELU6: 2,
    _Op.TRANSPOSE: 2, _Op.SPACE_TO_DEPTH: 2, _Op.PADV2: 2, _Op.LEAKY_RELU: 2, _Op.GELU: 2,
}  # fmt: skip


def nhwc(shape: Shape) -> Shape:
    """An NCHW shape in TFLite's order; other ranks stay."""
    return tuple(shape[i] for i in _NHWC) if len(shape) == 4 else shape


def axis_of(axis: int, rank: int) -> int:
    """An NCHW axis in TFLite's order."""
    return (0, 3, 1, 2)[axis] if rank == 4 else axis


class TfliteWriter:
    """Builds one TFLite model from one graph."""

    def __init__(self, request: WriteRequest) -> None:
        self.graph: Graph = request.graph
        self.quantized: QuantizedGraph | None = request.quantized
        self.half = request.weight_bits == 16
        self.name = request.name
        self.buffers = BufferTable()
        self.tensors: list[schema.TensorT] = []
        self.operators: list[schema.OperatorT] = []
        self.codes: list[schema.OperatorCodeT] = []
        self._codes: dict[tuple[int, int], int] = {}
        self._values: dict[str, int] = {}
        self._reals: dict[str, int] = {}
        """Values as real numbers, in a model whose other values are integers."""
        self._in_real = False
        self._constants: dict[Any, int] = {}
        self._stored: dict[int, tuple[str, int, int, str]] = {}
        self._uses: dict[int, int] = {}
        self._half_sources: dict[int, int] = {}
        """Dequantised tensor → the float16 tensor it comes from."""

    def write(self) -> tuple[bytes, ModelFile]:
        """The file's bytes and a description."""
        graph = self.graph
        source = self._value(graph.input)
        for node in graph.nodes:
            emit = _EMITTERS.get(node.op)
            if emit is None:
                raise ExportError(
                    f"TFLite has no operation for '{node.op}'", where=node.origin or node.output
                )
            self._in_real = self.quantized is not None and node.output in self.quantized.real_nodes
            emit(self, node)
            if self._in_real:
                self._leave_real(node.output)
        self._in_real = False
        sink = self._values[graph.output]
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = self.tensors, self.operators
        subgraph.inputs, subgraph.outputs, subgraph.name = [source], [sink], "main"
        self.tensors[source].name, self.tensors[sink].name = "image", "logits"
        described = ModelFile(
            self._spec(graph.input, "image"), self._spec(graph.output, "logits"), self._ledger()
        )
        return pack(subgraph, self.codes, self.buffers, f"csr-deploy {self.name}"), described

    def _spec(self, value: str, name: str) -> TensorSpec:
        shape = self.graph.shapes[value]
        layout = "NHWC" if len(shape) == 4 else "NC"
        q = self.quantized.activations[value] if self.quantized else None
        return TensorSpec(name, nhwc(shape), "int8" if q else "float32", layout, q)

    def _ledger(self) -> Ledger:
        return Ledger(
            tuple(
                Stored(name, elements, size, self._uses.get(buffer, 0), kind)
                for buffer, (name, elements, size, kind) in self._stored.items()
            )
        )

    # Tensors

    def _tensor(
        self, shape: Shape, dtype: str, buffer: int, quantization: Any = None, name: str | None = None
    ) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), _TYPES[dtype], buffer
        tensor.name, tensor.quantization = name, quantization
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _activation(self, shape: Shape, q: Quantization | None) -> int:
        if q is None:
            return self._tensor(shape, "float32", _COMPUTED)
        return self._tensor(shape, "int8", _COMPUTED, _per_tensor(q))

    def _value(self, name: str) -> int:
        """Tensor of a value, or of a constant that stands as an operand."""
        if self._in_real and name in self.graph.shapes:
            return self._real_value(name)
        known = self._reals if self._in_real else self._values
        if name in known:
            return known[name]
        q = self._q(name)
        if name in self.graph.constants:
            value = self.graph.constants[name].astype(np.float32)
            if value.ndim == 4:
                value = value.transpose(_NHWC)
            index = (
                self._constant(name, value, "float32", "bias")
                if q is None
                else self._constant(name, q.quantize(value, "int8"), "int8", "bias", _per_tensor(q))
            )
        else:
            index = self._activation(nhwc(self.graph.shapes[name]), q)
        known[name] = index
        return index

    def _real_value(self, name: str) -> int:
        """Float tensor of a value, for a node that computes with real numbers."""
        if name not in self._reals:
            self._reals[name] = self._activation(nhwc(self.graph.shapes[name]), None)
            if name in self._values:
                self._operator(_Op.DEQUANTIZE, [self._values[name]], self._reals[name], None, None, version=2)
        return self._reals[name]

    def _leave_real(self, name: str) -> None:
        """Quantises what a node that computes with real numbers gave, where an integer node reads it."""
        self._in_real = False
        if self.quantized is not None and name in self.quantized.activations:
            self._operator(_Op.QUANTIZE, [self._reals[name]], self._value(name), None, None, version=1)

    def _constant(
        self, name: str, value: NDArray[Any], dtype: str, kind: str, quantization: Any = None
    ) -> int:
        content = np.ascontiguousarray(value).tobytes()
        buffer = self.buffers.add(content)
        self._stored.setdefault(buffer, (name, value.size, len(content), kind))
        # Only kernels are worth a name in the file: whoever opens it looks for those.
        shown = name if kind == "weight" else None
        return self._tensor(value.shape, dtype, buffer, quantization, shown)

    def _table(self, values: Any) -> int:
        """A small int32 constant: shapes, axes, pads."""
        array = np.asarray(values, np.int32)
        key = ("table", array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._constant(f"c{len(self.tensors)}", array, "int32", "table")
        return self._constants[key]

    def _weight(
        self, node: Node, arrange: Callable[[NDArray[Any]], NDArray[Any]], axis: int, kind: str
    ) -> int:
        """The weight of a conv2d, linear or affine node; one tensor however many nodes use it."""
        name = node.inputs[1]
        key = ("weight", name, axis, self._in_real)
        if key not in self._constants:
            self._constants[key] = self._make_weight(name, arrange, axis, kind)
        buffer = self.tensors[self._constants[key]].buffer
        source = self._half_sources.get(self._constants[key])
        buffer = self.tensors[source].buffer if source is not None else buffer
        self._uses[buffer] = self._uses.get(buffer, 0) + 1
        return self._constants[key]

    def _make_weight(
        self, name: str, arrange: Callable[[NDArray[Any]], NDArray[Any]], axis: int, kind: str
    ) -> int:
        if self.quantized and not self._in_real:
            weight = self.quantized.weights[name]
            return self._constant(
                name, arrange(weight.values), "int8", kind, _per_channel(weight.scales, axis)
            )
        value = arrange(self.graph.constants[name].astype(np.float32))
        if not self.half:
            return self._constant(name, value, "float32", kind)
        stored = self._constant(name, value.astype(np.float16), "float16", kind)
        index = self._tensor(value.shape, "float32", _COMPUTED)
        self._half_sources[index] = stored
        self._operator(_Op.DEQUANTIZE, [stored], index, None, None, version=3)
        return index

    def _bias(self, node: Node) -> int:
        """The bias of a node; zeros where it has none, as TFLite Micro's kernels expect one."""
        channels = self.graph.shape(node.inputs[1])[0]
        if not self.quantized or self._in_real:
            real = self.graph.constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros(channels)
            return self._shared(real.astype(np.float32), "float32", None)
        integer = self.quantized.biases.get(node.output, np.zeros(channels, np.int32))
        return self._shared(integer, "int32", self.quantized.bias_scales(node))

    def _shared(self, value: NDArray[Any], dtype: str, scales: NDArray[np.float32] | None) -> int:
        key = ("bias", value.tobytes(), None if scales is None else scales.tobytes())
        if key not in self._constants:
            quantization = None if scales is None else _per_channel(scales, 0)
            short = f"b{len(self.tensors)}"
            self._constants[key] = self._constant(short, value, dtype, "bias", quantization)
        return self._constants[key]

    # Operators

    def _operator(
        self,
        op: int,
        inputs: list[int],
        output: int,
        options_type: int | None,
        options: Any,
        version: int | None = None,
    ) -> int:
        if version is None:
            version = _INT8_VERSIONS.get(op, 1) if self.quantized and not self._in_real else 1
        key = (op, version)
        if key not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = op, version
            code.deprecatedBuiltinCode = min(op, 127)
            self._codes[key] = len(self.codes)
            self.codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._codes[key], inputs, [output]
        if options is not None:
            operator.builtinOptionsType, operator.builtinOptions = options_type, options
        self.operators.append(operator)
        return output

    def _q(self, name: str) -> Quantization | None:
        return self.quantized.activations[name] if self.quantized and not self._in_real else None

    def conv2d(self, node: Node) -> None:
        """CONV_2D or DEPTHWISE_CONV_2D."""
        a = node.attrs
        weight_shape = self.graph.shape(node.inputs[1])
        channels = self.graph.shapes[node.inputs[0]][1]
        scheme = padding_scheme(
            self.graph.shapes[node.inputs[0]], window_of(node, weight_shape), a["stride"], a["padding"]
        )
        if scheme is None:
            raise ExportError(f"padding {a['padding']} was not legalised", where=node.output)
        depthwise = a["groups"] > 1 and a["groups"] == channels and weight_shape[1] == 1
        options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        options.padding = getattr(schema.Padding, scheme)
        options.strideH, options.strideW = a["stride"]
        options.dilationHFactor, options.dilationWFactor = a["dilation"]
        options.fusedActivationFunction = _ACTIVATIONS[a.get("activation")]
        if depthwise:
            options.depthMultiplier = weight_shape[0] // channels
            weight = self._weight(node, lambda w: w.transpose(1, 2, 3, 0), 3, "weight")
            op, kind = _Op.DEPTHWISE_CONV_2D, schema.BuiltinOptions.DepthwiseConv2DOptions
        else:
            weight = self._weight(node, lambda w: w.transpose(0, 2, 3, 1), 0, "weight")
            op, kind = _Op.CONV_2D, schema.BuiltinOptions.Conv2DOptions
        inputs = [self._value(node.inputs[0]), weight, self._bias(node)]
        self._operator(op, inputs, self._value(node.output), kind, options)

    def affine(self, node: Node) -> None:
        """A per-channel gain and bias as a 1×1 DEPTHWISE_CONV_2D, which carries the activation."""
        options = schema.DepthwiseConv2DOptionsT()
        options.padding = schema.Padding.VALID
        options.strideH = options.strideW = options.depthMultiplier = 1
        options.fusedActivationFunction = _ACTIVATIONS[node.attrs.get("activation")]
        weight = self._weight(node, lambda w: w.reshape(1, 1, 1, -1), 3, "gain")
        inputs = [self._value(node.inputs[0]), weight, self._bias(node)]
        kind = schema.BuiltinOptions.DepthwiseConv2DOptions
        self._operator(_Op.DEPTHWISE_CONV_2D, inputs, self._value(node.output), kind, options)

    def elementwise(self, node: Node) -> None:
        """ADD, SUB or MUL."""
        name = node.op.capitalize()
        options = getattr(schema, f"{name}OptionsT")()
        options.fusedActivationFunction = _ACTIVATIONS[node.attrs.get("activation")]
        kind = getattr(schema.BuiltinOptions, f"{name}Options")
        inputs = [self._value(i) for i in node.inputs]
        self._operator(getattr(_Op, node.op.upper()), inputs, self._value(node.output), kind, options)

    def unary(self, node: Node) -> None:
        """Stand-alone activations."""
        op = {
            "relu": _Op.RELU, "relu6": _Op.RELU6, "sigmoid": _Op.LOGISTIC,
            "tanh": _Op.TANH, "hard_swish": _Op.HARD_SWISH, "elu": _Op.ELU,
        }[node.op]  # fmt: skip
        self._operator(op, [self._value(node.inputs[0])], self._value(node.output), None, None)

    def leaky_relu(self, node: Node) -> None:
        """LEAKY_RELU."""
        options = schema.LeakyReluOptionsT()
        options.alpha = node.attrs["slope"]
        kind = schema.BuiltinOptions.LeakyReluOptions
        self._operator(_Op.LEAKY_RELU, [self._value(node.inputs[0])], self._value(node.output), kind, options)

    def gelu(self, node: Node) -> None:
        """GELU."""
        options = schema.GeluOptionsT()
        options.approximate = node.attrs["tanh"]
        kind = schema.BuiltinOptions.GeluOptions
        self._operator(_Op.GELU, [self._value(node.inputs[0])], self._value(node.output), kind, options)

    def prelu(self, node: Node) -> None:
        """PRELU, a slope for each channel."""
        inputs = [self._value(i) for i in node.inputs]
        self._operator(_Op.PRELU, inputs, self._value(node.output), None, None)

    def softmax(self, node: Node) -> None:
        """SOFTMAX over the last axis."""
        rank = len(self.graph.shapes[node.output])
        if axis_of(node.attrs["axis"], rank) != rank - 1:
            raise ExportError("TFLite's SOFTMAX runs over channels only", where=node.origin)
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        kind = schema.BuiltinOptions.SoftmaxOptions
        self._operator(_Op.SOFTMAX, [self._value(node.inputs[0])], self._value(node.output), kind, options)

    def pool(self, node: Node) -> None:
        """MAX_POOL_2D or AVERAGE_POOL_2D."""
        a = node.attrs
        scheme = padding_scheme(self.graph.shapes[node.inputs[0]], a["kernel"], a["stride"], a["padding"])
        if scheme is None:
            raise ExportError(f"padding {a['padding']} was not legalised", where=node.output)
        options = schema.Pool2DOptionsT()
        options.padding = getattr(schema.Padding, scheme)
        (options.filterHeight, options.filterWidth), (options.strideH, options.strideW) = (
            a["kernel"],
            a["stride"],
        )
        op = _Op.MAX_POOL_2D if node.op == "max_pool2d" else _Op.AVERAGE_POOL_2D
        kind = schema.BuiltinOptions.Pool2DOptions
        self._operator(op, [self._value(node.inputs[0])], self._value(node.output), kind, options)

    def mean_hw(self, node: Node) -> None:
        """MEAN over height and width, kept as axes of size 1."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        inputs = [self._value(node.inputs[0]), self._table([1, 2])]
        self._operator(
            _Op.MEAN, inputs, self._value(node.output), schema.BuiltinOptions.ReducerOptions, options
        )

    def slice(self, node: Node) -> None:
        """SLICE; an even subsampling of the picture becomes SPACE_TO_DEPTH and SLICE, which XNNPACK has."""
        a, x = node.attrs, node.inputs[0]
        shape = self.graph.shapes[x]
        starts, stops, steps = a["starts"], a["stops"], a["steps"]
        source, out = self._value(x), self._value(node.output)
        if _subsamples(shape, starts, stops, steps):
            block = steps[2]
            squeezed = (shape[0], shape[1] * block * block, shape[2] // block, shape[3] // block)
            options = schema.SpaceToDepthOptionsT()
            options.blockSize = block
            kind = schema.BuiltinOptions.SpaceToDepthOptions
            middle = self._activation(nhwc(squeezed), self._q(x))
            self._operator(_Op.SPACE_TO_DEPTH, [source], middle, kind, options)
            size = (shape[0], stops[1] - starts[1], *squeezed[2:])
            self._slice(middle, nhwc((0, starts[1], 0, 0)), nhwc(size), out)
        elif set(steps) == {1}:
            size = tuple(b - s for s, b in zip(starts, stops, strict=True))
            self._slice(source, nhwc(starts), nhwc(size), out)
        else:
            tables = [self._table(nhwc(t)) for t in (starts, stops, steps)]
            options, kind = schema.StridedSliceOptionsT(), schema.BuiltinOptions.StridedSliceOptions
            self._operator(_Op.STRIDED_SLICE, [source, *tables], out, kind, options)

    def _slice(self, source: int, begin: Shape, size: Shape, out: int) -> None:
        self._operator(_Op.SLICE, [source, self._table(begin), self._table(size)], out, None, None)

    def pad(self, node: Node) -> None:
        """PAD with zeros, or PADV2 with the least that there is."""
        pads = node.attrs["pads"]
        ordered = [pads[i] for i in _NHWC] if len(pads) == 4 else list(pads)
        inputs = [self._value(node.inputs[0]), self._table(ordered)]
        if node.attrs.get("lowest"):
            inputs.append(self._lowest(self._q(node.output)))
        self._operator(
            _Op.PADV2 if len(inputs) > 2 else _Op.PAD, inputs, self._value(node.output), None, None
        )

    def _lowest(self, q: Quantization | None) -> int:
        """A constant that is the least of its type."""
        key = ("lowest", q)
        if key not in self._constants:
            name = f"c{len(self.tensors)}"
            self._constants[key] = (
                self._constant(name, np.full(1, np.finfo(np.float32).min, np.float32), "float32", "table")
                if q is None
                else self._constant(name, np.full(1, QMIN, np.int8), "int8", "table", _per_tensor(q))
            )
        return self._constants[key]

    def concat(self, node: Node) -> None:
        """CONCATENATION."""
        options = schema.ConcatenationOptionsT()
        options.axis = axis_of(node.attrs["axis"], len(self.graph.shapes[node.output]))
        inputs = [self._value(i) for i in node.inputs]
        kind = schema.BuiltinOptions.ConcatenationOptions
        self._operator(_Op.CONCATENATION, inputs, self._value(node.output), kind, options)

    def reshape(self, node: Node) -> None:
        """RESHAPE, by way of NCHW order where that differs from NHWC order."""
        before, after = self.graph.shapes[node.inputs[0]], self.graph.shapes[node.output]
        if len(before) == len(after) == 4 and before[:2] == after[:2]:
            # Rows are cut or joined, and in both orders the channels stay where they are.
            self._reshape(self._value(node.inputs[0]), nhwc(after), self._value(node.output))
            return
        x = self._ordered(node.inputs[0], self._value(node.inputs[0]))
        shape = self.graph.shapes[node.output]
        if len(shape) == 4 and not _order_free(shape):
            middle = self._activation(shape, self._q(node.output))
            self._reshape(x, shape, middle)
            self._transpose(middle, _NHWC, self._value(node.output))
        else:
            self._reshape(x, nhwc(shape), self._value(node.output))

    def channels_to_width(self, node: Node) -> None:
        """RESHAPE: in NHWC the bytes are in this order already."""
        self._reshape(
            self._value(node.inputs[0]), nhwc(self.graph.shapes[node.output]), self._value(node.output)
        )

    def _ordered(self, name: str, tensor: int) -> int:
        """The tensor with its values in NCHW order."""
        shape = self.graph.shapes[name]
        if len(shape) != 4 or _order_free(shape):
            return tensor
        return self._transpose(tensor, (0, 3, 1, 2), self._activation(shape, self._q(name)))

    def _reshape(self, x: int, shape: Shape, out: int) -> None:
        options = schema.ReshapeOptionsT()
        options.newShape = list(shape)
        # A second input with the shape says it again.
        self._operator(_Op.RESHAPE, [x], out, schema.BuiltinOptions.ReshapeOptions, options)

    def _transpose(self, x: int, perm: tuple[int, ...], out: int) -> int:
        return self._operator(_Op.TRANSPOSE, [x, self._table(list(perm))], out, None, None)

    def transpose(self, node: Node) -> None:
        """TRANSPOSE."""
        perm = node.attrs["perm"]
        if len(perm) == 4:
            perm = tuple(axis_of(perm[i], 4) for i in _NHWC)
        self._transpose(self._value(node.inputs[0]), perm, self._value(node.output))


def _order_free(shape: Shape) -> bool:
    """Whether NCHW and NHWC order are the same sequence of values."""
    return shape[1] == 1 or shape[2] * shape[3] == 1


def _subsamples(shape: Shape, starts: Shape, stops: Shape, steps: Shape) -> bool:
    if len(shape) != 4 or steps[2] != steps[3] or steps[2] < 2 or steps[:2] != (1, 1):
        return False
    block = steps[2]
    return all(shape[i] % block == 0 and starts[i] == 0 and stops[i] > shape[i] - block for i in (2, 3))


def _per_tensor(q: Quantization) -> schema.QuantizationParametersT:
    out = schema.QuantizationParametersT()
    out.scale, out.zeroPoint = [q.scale], [q.zero_point]
    return out


def _per_channel(scales: NDArray[np.float32], axis: int) -> schema.QuantizationParametersT:
    out = schema.QuantizationParametersT()
    out.scale, out.zeroPoint = scales, np.zeros(len(scales), np.int64)
    out.quantizedDimension = axis
    return out


_EMITTERS: dict[str, Callable[[TfliteWriter, Node], None]] = {
    "conv2d": TfliteWriter.conv2d,
    "affine": TfliteWriter.affine,
    "add": TfliteWriter.elementwise,
    "sub": TfliteWriter.elementwise,
    "mul": TfliteWriter.elementwise,
    "relu": TfliteWriter.unary,
    "relu6": TfliteWriter.unary,
    "sigmoid": TfliteWriter.unary,
    "tanh": TfliteWriter.unary,
    "hard_swish": TfliteWriter.unary,
    "elu": TfliteWriter.unary,
    "leaky_relu": TfliteWriter.leaky_relu,
    "gelu": TfliteWriter.gelu,
    "prelu": TfliteWriter.prelu,
    "softmax": TfliteWriter.softmax,
    "max_pool2d": TfliteWriter.pool,
    "avg_pool2d": TfliteWriter.pool,
    "mean_hw": TfliteWriter.mean_hw,
    "slice": TfliteWriter.slice,
    "pad": TfliteWriter.pad,
    "concat": TfliteWriter.concat,
    "reshape": TfliteWriter.reshape,
    "transpose": TfliteWriter.transpose,
    "channels_to_width": TfliteWriter.channels_to_width,
    "width_to_channels": TfliteWriter.channels_to_width,
}


def write_tflite(request: WriteRequest) -> ModelFile:
    """Writes the model file."""
    content, described = TfliteWriter(request).write()
    request.path.write_bytes(content)
    return described


EXPORTER = Exporter(
    ".tflite", "stepwise", legalise, write_tflite, ("ai-edge-litert", "flatbuffers"), costs="litert"
)
