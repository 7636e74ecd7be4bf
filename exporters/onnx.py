"""ONNX written straight from the static graph: float32, or integers with Q/DQ around real operations.

NCHW throughout; tied weights are one initializer; nothing but the graph is in the file: no stack traces, no
paths, no external data. Every use of a quantised value has a DequantizeLinear of its own. What ONNX Runtime
runs best in int8 are the writers of `onnx_integer` and `onnx_channels_last`, which extend this one.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from csr_deploy import __version__
from csr_deploy.errors import ExportError
from csr_deploy.exporters.base import Exporter, ModelFile, WriteRequest
from csr_deploy.ledger import Ledger, Stored
from csr_deploy.quantize.scheme import QMIN, QuantizedGraph
from csr_deploy.types import Quantization, TensorSpec
from csr_deploy.unroll.graph import Graph, Node

OPSET = 17
IR_VERSION = 8
"""What ONNX Runtime ≥ 1.14 and TensorRT ≥ 8.6 read: old devices stay usable."""


class OnnxWriter:
    """Builds one ONNX model from one graph."""

    opset = OPSET
    ir_version = IR_VERSION
    real: type[np.floating[Any]] = np.float32
    """Type of what is not an integer."""

    def __init__(self, request: WriteRequest) -> None:
        self.graph: Graph = request.graph
        self.quantized: QuantizedGraph | None = request.quantized
        self.name = request.name
        self.free_batch = request.free_batch
        self.signed = request.signed_activations
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, str] = {}
        self._reals: dict[str, str] = {}
        """Values as real numbers that a node of an integer model computed as such."""
        self._in_real = False
        self._stored: dict[str, Stored] = {}
        self._shorts: dict[tuple[str, object], str] = {}
        self._count = 0

    def write(self) -> tuple[bytes, ModelFile]:
        """The file's bytes and a description."""
        graph = self.graph
        self._quantize_value(graph.input, self._from_border("image"))
        for node in graph.nodes:
            emit = _EMITTERS.get(node.op)
            if emit is None:
                raise ExportError(
                    f"ONNX export has no operation for '{node.op}'", where=node.origin or node.output
                )
            self._in_real = self.quantized is not None and node.output in self.quantized.real_nodes
            getattr(self, emit)(node)
        self._in_real = False
        result = self._to_border(self.operand(graph.output))
        self.nodes.append(helper.make_node("Identity", [result], ["logits"]))
        specs = [
            TensorSpec("image", graph.shapes[graph.input], "float32", "NCHW"),
            TensorSpec("logits", graph.shapes[graph.output], "float32", "NC"),
        ]
        infos = [
            helper.make_tensor_value_info(
                s.name, TensorProto.FLOAT, ("batch", *s.shape[1:]) if self.free_batch else s.shape
            )
            for s in specs
        ]
        proto = helper.make_model(
            helper.make_graph(
                _without_identity(self.nodes),
                self.name,
                infos[:1],
                infos[1:],
                list(self.initializers.values()),
            ),
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=self.ir_version,
            producer_name="csr-deploy",
            producer_version=__version__,
        )
        onnx.checker.check_model(proto, full_check=True)
        ledger = Ledger(tuple(self._stored.values()))
        return proto.SerializeToString(deterministic=True), ModelFile(specs[0], specs[1], ledger)

    def _from_border(self, name: str) -> str:
        """The model's input, float32, in the type that is computed in."""
        return name

    def _to_border(self, name: str) -> str:
        """The result in the type of the model's output, float32."""
        return name

    # Constants

    def _initializer(self, name: str, value: NDArray[Any], kind: str) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
            self._stored[name] = Stored(name, value.size, value.nbytes, 0, kind)
        return name

    def _table(self, values: Any) -> str:
        array = np.asarray(values, np.int64)
        return self._initializer(f"i64_{'_'.join(str(v) for v in array.reshape(-1))}", array, "table")

    def _scale(self, q: Quantization) -> list[str]:
        """Scale and zero point of an activation, int8 or uint8."""
        zero = np.asarray(self._stored_as(q).zero_point, np.int8 if self.signed else np.uint8)
        scale = self._initializer(self._short("s", q.scale), np.asarray(q.scale, np.float32), "table")
        return [scale, self._initializer(f"z:{zero}", zero, "table")]

    def _short(self, prefix: str, key: object) -> str:
        """A name for a table, as no module has one: thousands of uses would repeat a long one."""
        return self._shorts.setdefault((prefix, key), f"{prefix}:{len(self._shorts)}")

    def _stored_as(self, q: Quantization) -> Quantization:
        """What the integers in the file mean."""
        return q if self.signed else Quantization(q.scale, q.zero_point - QMIN)

    def _used(self, name: str) -> None:
        s = self._stored[name]
        self._stored[name] = Stored(s.name, s.elements, s.size, s.uses + 1, s.kind)

    def _weight(self, node: Node, kind: str, shape: tuple[int, ...] | None = None) -> str:
        """The weight of a conv2d, linear or affine node; one initializer however many nodes use it."""
        name = node.inputs[1]
        if self.quantized is None or self._in_real:
            value = self.graph.constants[name].astype(self.real)
            self._initializer(name, value if shape is None else value.reshape(shape), kind)
            self._used(name)
            return name
        weight = self.quantized.weights[name]
        values = weight.values if shape is None else weight.values.reshape(shape)
        self._initializer(name, values, kind)
        self._used(name)
        return self._dequantize_constant(name, weight.scales, np.zeros(len(weight.scales), np.int8))

    def _bias(self, node: Node) -> list[str]:
        if self.quantized is None or self._in_real:
            if len(node.inputs) < 3:
                return []
            bias = self.graph.constants[node.inputs[2]].astype(self.real)
            return [self._initializer(f"{node.output}.bias", bias, "bias")]
        if node.output not in self.quantized.biases:
            return []
        values = self.quantized.biases[node.output]
        scales = self.quantized.bias_scales(node)
        name = self._initializer(f"{node.output}.bias", values, "bias")
        return [self._dequantize_constant(name, scales, np.zeros(len(scales), np.int32))]

    def _dequantize_constant(self, name: str, scales: NDArray[np.float32], zeros: NDArray[Any]) -> str:
        scale = self._vector("scales", scales.astype(self.real))
        zero = self._initializer(f"zeros_{zeros.dtype}_{len(zeros)}", zeros, "table")
        return self._node("DequantizeLinear", [name, scale, zero], axis=0)

    def _vector(self, kind: str, values: NDArray[Any]) -> str:
        """A table by content: the T steps of a recurrence have the same scales."""
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        return self._initializer(self._short("v", (kind, digest)), values, "table")

    # Values

    def _fresh(self) -> str:
        self._count += 1
        return f":{self._count}"

    def _node(self, op: str, inputs: list[str], **attrs: Any) -> str:
        out = self._fresh()
        self.nodes.append(helper.make_node(op, inputs, [out], **attrs))
        return out

    def _quantize_value(self, value: str, name: str) -> None:
        """Quantises a value; its uses dequantise it."""
        if self.quantized is not None:
            name = self._node("QuantizeLinear", [name, *self._scale(self.quantized.activations[value])])
        self.values[value] = self._keep(name, value)

    def _keep(self, tensor: str, value: str) -> str:
        """What an operation gave, as the value lies in memory between operations."""
        return tensor

    def _take(self, tensor: str, value: str) -> str:
        """A value as it lies in memory, as the operation at hand reads it."""
        return tensor

    def _axes(self, rank: int) -> tuple[int, ...]:
        """The graph's axes in the order in which they lie in memory."""
        return tuple(range(rank))

    def _arrange(self, value: NDArray[Any]) -> NDArray[Any]:
        """A constant operand as it lies in memory."""
        return value.transpose(self._axes(value.ndim))

    def finish(self, node: Node, name: str) -> None:
        """Applies the node's activation and quantisation to what was computed."""
        activation = node.attrs.get("activation")
        if activation == "relu" and (self._in_real or not self._clips_at_zero(node.output)):
            name = self._node("Relu", [name])
        elif activation == "relu6":
            name = self._relu6(name)
        if self._in_real:
            self._reals[node.output] = self._keep(name, node.output)
            if self.quantized is None or node.output not in self.quantized.activations:
                return
        self._quantize_value(node.output, name)

    def _clips_at_zero(self, value: str) -> bool:
        """Whether quantising does what ReLU does, because the smallest integer means zero."""
        return self.quantized is not None and self.quantized.activations[value].zero_point == QMIN

    def _relu6(self, x: str) -> str:
        bounds = [self._initializer(f"bound_{v}", np.asarray(v, self.real), "table") for v in (0.0, 6.0)]
        return self._node("Clip", [x, *bounds])

    def operand(self, name: str) -> str:
        """A real-valued input: a value, or a constant that stands as an operand."""
        if self._in_real and name in self._reals:
            return self._take(self._reals[name], name)
        if self._in_real and name in self.graph.constants:
            value = self._arrange(self.graph.constants[name].astype(self.real))
            return self._initializer(f"{name}.real", value, "bias")
        tensor = self._take(self._held(name), name)
        if self.quantized is None:
            return tensor
        return self._node("DequantizeLinear", [tensor, *self._scale(self.quantized.activations[name])])

    def _held(self, name: str) -> str:
        """The tensor that holds a value or a constant operand: integers in an integer model."""
        if name not in self.values:
            value = self._arrange(self.graph.constants[name].astype(self.real))
            if self.quantized is not None:
                q = self._stored_as(self.quantized.activations[name])
                value = q.quantize(value, "int8" if self.signed else "uint8")
            self.values[name] = self._initializer(name, value, "bias")
        return self.values[name]

    # Operations

    def conv2d(self, node: Node) -> None:
        """Conv."""
        inputs = [self.operand(node.inputs[0]), self._weight(node, "weight"), *self._bias(node)]
        self.finish(node, self._node("Conv", inputs, **self._geometry(node)))

    def _geometry(self, node: Node) -> dict[str, Any]:
        """Attributes of a convolution, without those that say what ONNX assumes."""
        a = node.attrs
        given = {"strides": a["stride"], "pads": a["padding"], "dilations": a["dilation"]}
        usual = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
        said: dict[str, Any] = {k: list(v) for k, v in given.items() if tuple(v) != usual[k]}
        return said if a["groups"] == 1 else {**said, "group": a["groups"]}

    def affine(self, node: Node) -> None:
        """A per-channel gain and bias as a depth-wise 1×1 Conv."""
        shape = self.graph.shapes[node.inputs[0]]
        weight = self._weight(node, "gain", (shape[1], 1, 1, 1))
        inputs = [self.operand(node.inputs[0]), weight, *self._bias(node)]
        self.finish(node, self._node("Conv", inputs, kernel_shape=[1, 1], group=shape[1]))

    def linear(self, node: Node) -> None:
        """Gemm."""
        inputs = [self.operand(node.inputs[0]), self._weight(node, "weight"), *self._bias(node)]
        self.finish(node, self._node("Gemm", inputs, transB=1))

    def elementwise(self, node: Node) -> None:
        """Add, Sub or Mul."""
        inputs = [self.operand(i) for i in node.inputs]
        self.finish(node, self._node({"add": "Add", "sub": "Sub", "mul": "Mul"}[node.op], inputs))

    def unary(self, node: Node) -> None:
        """Stand-alone activations."""
        x = self.operand(node.inputs[0])
        if node.op == "relu6":
            out = self._relu6(x)
        elif node.op == "hard_sigmoid":
            out = self._node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        elif node.op == "leaky_relu":
            out = self._node("LeakyRelu", [x], alpha=node.attrs["slope"])
        elif node.op == "gelu":
            out = self._gelu(x, node.attrs["tanh"])
        else:
            op = {
                "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hard_swish": "HardSwish", "elu": "Elu",
            }[node.op]  # fmt: skip
            out = self._node(op, [x])
        self.finish(node, out)

    def _gelu(self, x: str, tanh: bool) -> str:
        """GELU in parts, as opset 17 has no operation for it."""

        def constant(value: float) -> str:
            return self._initializer(f"constant_{value!r}", np.asarray(value, self.real), "table")

        if tanh:
            cube = self._node("Mul", [x, self._node("Mul", [x, x])])
            inner = self._node("Add", [x, self._node("Mul", [cube, constant(0.044715)])])
            curve = self._node("Tanh", [self._node("Mul", [inner, constant(math.sqrt(2 / math.pi))])])
        else:
            curve = self._node("Erf", [self._node("Div", [x, constant(math.sqrt(2))])])
        doubled = self._node("Mul", [x, self._node("Add", [curve, constant(1.0)])])
        return self._node("Mul", [doubled, constant(0.5)])

    def prelu(self, node: Node) -> None:
        """PRelu."""
        self.finish(node, self._node("PRelu", [self.operand(i) for i in node.inputs]))

    def softmax(self, node: Node) -> None:
        """Softmax."""
        self.finish(node, self._node("Softmax", [self.operand(node.inputs[0])], axis=node.attrs["axis"]))

    def pool(self, node: Node) -> None:
        """MaxPool or AveragePool."""
        a = node.attrs
        attrs: dict[str, Any] = {"kernel_shape": list(a["kernel"]), "strides": list(a["stride"])}
        attrs["pads"] = list(a["padding"])
        if node.op == "avg_pool2d":
            attrs["count_include_pad"] = int(a["count_padding"])
        op = "MaxPool" if node.op == "max_pool2d" else "AveragePool"
        self.finish(node, self._node(op, [self.operand(node.inputs[0])], **attrs))

    def mean_hw(self, node: Node) -> None:
        """GlobalAveragePool."""
        self.finish(node, self._node("GlobalAveragePool", [self.operand(node.inputs[0])]))

    def slice(self, node: Node) -> None:
        """Slice along the axes that are cut."""
        a, shape = node.attrs, self.graph.shapes[node.inputs[0]]
        cut = [
            (place, axis)
            for place, axis in enumerate(self._axes(len(shape)))
            if (a["starts"][axis], a["stops"][axis], a["steps"][axis]) != (0, shape[axis], 1)
        ]
        tables = [self._table([a[k][axis] for _, axis in cut]) for k in ("starts", "stops")]
        tables += [self._table([p for p, _ in cut]), self._table([a["steps"][axis] for _, axis in cut])]
        self.finish(node, self._node("Slice", [self.operand(node.inputs[0]), *tables]))

    def pad(self, node: Node) -> None:
        """Pad with zeros."""
        pads = [node.attrs["pads"][axis] for axis in self._axes(len(node.attrs["pads"]))]
        table = self._table([p[0] for p in pads] + [p[1] for p in pads])
        inputs = [self.operand(node.inputs[0]), table, *self._filling(node)]
        self.finish(node, self._node("Pad", inputs))

    def _filling(self, node: Node) -> list[str]:
        """What stands for zero, where it is not zero itself."""
        return []

    def concat(self, node: Node) -> None:
        """Concat."""
        axis = self._axes(len(self.graph.shapes[node.output])).index(node.attrs["axis"])
        self.finish(node, self._node("Concat", [self.operand(i) for i in node.inputs], axis=axis))

    def reshape(self, node: Node) -> None:
        """Reshape."""
        shape = list(node.attrs["shape"])
        # The first axis is the batch, or a multiple of it, and the others are fixed.
        table = self._table([-1, *shape[1:]] if self.free_batch else shape)
        self.finish(node, self._node("Reshape", [self.operand(node.inputs[0]), table]))

    def channels_to_width(self, node: Node) -> None:
        """Reshape, Transpose, Reshape: in NCHW the values do move."""
        batch, channels, height, width = self.graph.shapes[node.inputs[0]]
        block = node.attrs["block"]
        first = -1 if self.free_batch else batch
        apart = self._table([first, block, channels // block, height * width])
        joined = self._table([first, channels // block, height, width * block])
        x = self._node("Reshape", [self.operand(node.inputs[0]), apart])
        x = self._node("Transpose", [x], perm=[0, 2, 3, 1])
        self.finish(node, self._node("Reshape", [x, joined]))

    def width_to_channels(self, node: Node) -> None:
        """Reshape, Transpose, Reshape."""
        batch, channels, height, width = self.graph.shapes[node.inputs[0]]
        block = node.attrs["block"]
        first = -1 if self.free_batch else batch
        apart = self._table([first, channels, height * (width // block), block])
        joined = self._table([first, block * channels, height, width // block])
        x = self._node("Reshape", [self.operand(node.inputs[0]), apart])
        x = self._node("Transpose", [x], perm=[0, 3, 1, 2])
        self.finish(node, self._node("Reshape", [x, joined]))

    def transpose(self, node: Node) -> None:
        """Transpose."""
        self.finish(
            node, self._node("Transpose", [self.operand(node.inputs[0])], perm=list(node.attrs["perm"]))
        )


def _without_identity(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Gives the last value the output's name, instead of a copy at run time."""
    *body, identity = nodes
    for node in body:
        for index, name in enumerate(node.output):
            if name == identity.input[0]:
                node.output[index] = identity.output[0]
        for index, name in enumerate(node.input):
            if name == identity.input[0]:
                node.input[index] = identity.output[0]
    return body


_EMITTERS: dict[str, str] = {
    "conv2d": "conv2d",
    "affine": "affine",
    "linear": "linear",
    "add": "elementwise",
    "sub": "elementwise",
    "mul": "elementwise",
    "relu": "unary",
    "relu6": "unary",
    "sigmoid": "unary",
    "tanh": "unary",
    "hard_sigmoid": "unary",
    "hard_swish": "unary",
    "elu": "unary",
    "leaky_relu": "unary",
    "gelu": "unary",
    "prelu": "prelu",
    "softmax": "softmax",
    "max_pool2d": "pool",
    "avg_pool2d": "pool",
    "mean_hw": "mean_hw",
    "slice": "slice",
    "pad": "pad",
    "concat": "concat",
    "reshape": "reshape",
    "transpose": "transpose",
    "channels_to_width": "channels_to_width",
    "width_to_channels": "width_to_channels",
}


def write_onnx(request: WriteRequest) -> ModelFile:
    """Writes the model file."""
    # Here, as both extend this module.
    from csr_deploy.exporters.onnx_channels_last import ChannelsLastWriter, pays
    from csr_deploy.exporters.onnx_integer import IntegerWriter

    writer: type[OnnxWriter] = OnnxWriter
    if request.quantized is not None:
        writer = ChannelsLastWriter if pays(request.graph) else IntegerWriter
    content, described = writer(request).write()
    request.path.write_bytes(content)
    return described


def _unchanged(graph: Graph) -> Graph:
    return graph


EXPORTER = Exporter(".onnx", "stepwise", _unchanged, write_onnx, ("onnx",), free_batch=True, costs="ort")
