"""From a torch module to a static graph, through torch.export.

A CSRConv2d is kept as one node (`csr_conv2d`), whatever its cell computes: the recurrence is unrolled
later, by a lowering strategy. Everything else is read from the ATen operations of the exported program.
"""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from csr_deploy.errors import CaptureError, GraphError
from csr_deploy.nn import CSRConv2d, StepCell
from csr_deploy.unroll.graph import Array, Graph, Node, build_graph
from csr_deploy.unroll.ops import Shape

INPUT = "image"

aten = torch.ops.aten


@dataclass(frozen=True)
class CsrLayer:
    """What the unroll pass needs to know of a CSRConv2d with T > 1.

    Attributes:
        scope: Its module name, the prefix of its weights in the graph's constants.
        in_channels: C_in.
        out_channels: C_out.
        num_steps: T.
        group_in: d.
        group_out: D.
        kernel_size: Of V and U.
        stride: Of V.
        padding: Of V.
        used_steps: Steps whose state reaches the output.
        channel_fill: "zero" or "wrap".
        bias: Whether the layer has a bias, `<scope>.bias`.
        cell: The step cell, which lowers itself.
    """

    scope: str
    in_channels: int
    out_channels: int
    num_steps: int
    group_in: int
    group_out: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    used_steps: int
    channel_fill: str
    bias: bool
    cell: StepCell


@torch.library.custom_op("csr_deploy::csr_conv2d", mutates_args=())
def _csr_conv2d(x: Tensor, scope: str, geometry: list[int]) -> Tensor:
    raise CaptureError("the CSR-Conv placeholder only exists while a model is captured", where=scope)


@_csr_conv2d.register_fake
def _(x: Tensor, scope: str, geometry: list[int]) -> Tensor:
    out_channels, kh, kw, sh, sw, ph, pw = geometry
    height = (x.shape[2] + 2 * ph - kh) // sh + 1
    width = (x.shape[3] + 2 * pw - kw) // sw + 1
    return x.new_empty(x.shape[0], out_channels, height, width)


class _Placeholder(nn.Module):
    """Stands for a CSRConv2d while the model is exported."""

    def __init__(self, scope: str, layer: CSRConv2d) -> None:
        super().__init__()
        self.scope = scope
        self.geometry = [layer.out_channels, *layer.kernel_size, *layer.stride, *layer.padding]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.csr_deploy.csr_conv2d(x, self.scope, self.geometry)
        return out


def capture(model: nn.Module, input_shape: Shape) -> Graph:
    """Captures a classification network in evaluation mode.

    Args:
        model: Any torch module with one image input and one tensor output; it is not changed.
        input_shape: [N, C, H, W]; the graph is static in all of them.

    Returns:
        The graph, float64 constants, with a `csr_conv2d` node for each CSRConv2d with T > 1.

    Raises:
        CaptureError: If torch.export cannot follow the model, or it uses an operation that is not known.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    layers: dict[str, CsrLayer] = {}
    weights: dict[str, Array] = {}
    placeholders: dict[nn.Module, _Placeholder] = {}
    # A layer may stand in several places: all of them read the weights of the first.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, CSRConv2d) or module.num_steps == 1:
            continue
        if not name:
            raise CaptureError("the model is a bare CSRConv2d", fix="Wrap it in nn.Sequential.")
        if module not in placeholders:
            layers[name] = _describe(name, module)
            weights.update({f"{name}.{k}": _array(v) for k, v in module.state_dict().items()})
            weights.update(_derived(name, module))
            placeholders[module] = _Placeholder(name, module)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, placeholders[module])
    with _quiet():
        try:
            program = torch.export.export(model, (torch.zeros(input_shape),))
        except Exception as error:
            # Whatever the model's own code raises comes out here.
            said = (str(error).splitlines() or [""])[0]
            raise CaptureError(
                f"torch.export cannot turn this model into a static graph: {type(error).__name__}: {said}",
                fix=f"Its forward must take one tensor {list(input_shape)} and nothing else, and must not "
                "depend on its values.",
            ) from error
    return _Reader(program, layers, weights, tuple(input_shape)).graph()


def _describe(name: str, module: CSRConv2d) -> CsrLayer:
    return CsrLayer(
        name,
        module.in_channels,
        module.out_channels,
        module.num_steps,
        module.group_in,
        module.group_out,
        module.kernel_size,
        module.stride,
        module.padding,
        module.used_steps,
        module.channel_fill,
        module.bias is not None,
        module.cell,
    )


def _derived(name: str, module: CSRConv2d) -> dict[str, Array]:
    """What the cell computes from its parameters, in float64."""
    with torch.no_grad():
        derived = copy.deepcopy(module.cell).double().derived()
    return {f"{name}.cell.{k}": _array(v) for k, v in derived.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    names = ("torch.export", "torch._dynamo", "torch.fx", "torch._subclasses.fake_tensor")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        # What goes wrong is raised as well.
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()


def _pair(value: Any, default: int | None = None) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    values = list(value)
    if not values and default is not None:
        return (default, default)
    return (int(values[0]), int(values[-1]))


def _args(node: fx.Node) -> tuple[Any, ...]:
    """A node's arguments; what they are follows from its operation."""
    return node.args


class _Reader:
    """Reads the ATen graph of an exported program."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        layers: Mapping[str, CsrLayer],
        weights: Mapping[str, Array],
        input_shape: Shape,
    ) -> None:
        self.program = program
        self.layers = layers
        self.constants: dict[str, Array] = dict(weights)
        self.nodes: list[Node] = []
        self.names: dict[fx.Node, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.input_shape = input_shape
        signature = program.graph_signature
        self._weights = {*weights, *signature.parameters, *signature.buffers}

    def graph(self) -> Graph:
        signature = self.program.graph_signature
        parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        image: str | None = None
        output: str | None = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in parameters:
                    key = parameters[node.name]
                    tensor = self.program.state_dict.get(key)
                    tensor = self.program.constants[key] if tensor is None else tensor
                    self._constant(node, key, tensor)
                elif node.name in constants:
                    self._constant(node, constants[node.name], self.program.constants[constants[node.name]])
                elif image is None:
                    self.names[node] = image = INPUT
                else:
                    raise CaptureError("the model takes more than one input", where=node.name)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                output = self._output(_args(node)[0])
        if image is None or output is None:
            raise CaptureError("the model has no input or no output")
        try:
            return build_graph(self.nodes, self.constants, image, self.input_shape, output)
        except GraphError as error:
            raise CaptureError(error.what, where=error.where) from error

    def _output(self, results: Any) -> str:
        """Name of the one value that the model returns."""
        fix = "Return the logits only, as a tensor."
        if len(results) != 1:
            raise CaptureError(f"the model returns {len(results)} tensors", fix=fix)
        structure = self.program.call_spec.out_spec
        if structure is not None and not structure.is_leaf():
            kind = getattr(structure.type, "__name__", "structure")
            raise CaptureError(f"the model returns a {kind} around its tensor", fix=fix)
        if not isinstance(results[0], fx.Node):
            raise CaptureError(f"the model returns {results[0]!r} instead of a tensor", fix=fix)
        name = self.names[results[0]]
        if name in self.constants:
            raise CaptureError("what the model returns does not depend on its input", fix=fix)
        return name

    def _constant(self, node: fx.Node, key: str, tensor: Any) -> None:
        if key == INPUT:
            key = f"{INPUT}."
        self.names[node] = key
        self.constants.setdefault(key, _array(tensor))

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if _is_mutable(target):
            self._check_mutation(node)
        if not node.users:
            # Checks, results that nobody reads: they need no translation.
            return
        if target in _IGNORED:
            self.names[node] = self._name(_args(node)[0])
            return
        if node.all_input_nodes and all(self.names.get(n) in self.constants for n in node.all_input_nodes):
            self._fold(node)
            return
        reader = _READERS.get(target)
        if reader is None:
            raise CaptureError(
                f"the operation {target} is not supported", where=self.origin(node), fix=_way_out(target)
            )
        try:
            reader(self, node)
        except CaptureError as error:
            if error.fix:
                raise
            raise CaptureError(error.what, where=error.where, fix=_way_out(target)) from error

    def _check_mutation(self, node: fx.Node) -> None:
        """Refuses what changes a view in place and is then read through the value it is a view of.

        Later uses of the changed name itself are uses of `node` already.
        """
        order = {each: index for index, each in enumerate(self.program.graph.nodes)}
        seen = _args(node)[0]
        while isinstance(seen, fx.Node) and _is_view(seen):
            seen = _args(seen)[0]
            if any(order[user] > order[node] for user in seen.users):
                raise CaptureError(
                    f"{node.target} changes a part of a tensor that is read as a whole later",
                    where=self.origin(node),
                    fix="Write it without changing a tensor in place.",
                )

    def _fold(self, node: fx.Node) -> None:
        """Computes a node whose inputs are all constants."""

        def value(argument: fx.Node) -> Tensor:
            return torch.from_numpy(self.constants[self.names[argument]])

        arguments = fx.map_arg(node.args, value)
        keywords = fx.map_arg(node.kwargs, value)
        name = self._free_name(node)
        self.constants[name] = node.target(*arguments, **keywords).numpy()  # type: ignore[operator]
        self.names[node] = name

    def _free_name(self, node: fx.Node) -> str:
        """A node's name, or one like it where the model has a weight of that name."""
        name = node.name
        while name in self._weights:
            name += "_"
        return name

    def origin(self, node: fx.Node) -> str:
        """Name of the innermost module a node comes from."""
        stack = node.meta.get("nn_module_stack") or {}
        names = [str(entry[0]) for entry in stack.values()]
        last = names[-1] if names else ""
        return last.replace("L['self'].", "").replace("L__self___", "") or "model"

    def _name(self, argument: Any) -> str:
        if not isinstance(argument, fx.Node):
            raise CaptureError(f"a scalar or list {argument!r} stands where a tensor is needed")
        return self.names[argument]

    def argument(self, node: fx.Node, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or name."""
        if len(node.args) > position:
            return _args(node)[position]
        return node.kwargs.get(name, default)

    def shape_of(self, node: Any) -> Shape:
        """Shape of a node's value."""
        return tuple(int(v) for v in node.meta["val"].shape)

    def emit(self, node: fx.Node, op: str, inputs: list[str], **attrs: Any) -> None:
        """Adds one graph node as the translation of an ATen node."""
        name = self._free_name(node)
        self.nodes.append(Node(op, tuple(inputs), name, attrs, self.origin(node)))
        self.names[node] = name

    def intermediate(self, node: fx.Node, suffix: str, op: str, inputs: list[str], **attrs: Any) -> str:
        """Adds a graph node that has no ATen counterpart."""
        name = f"{node.name}.{suffix}"
        self.nodes.append(Node(op, tuple(inputs), name, attrs, self.origin(node)))
        return name

    def scalar_constant(self, node: fx.Node, value: float, rank: int, suffix: str = "scalar") -> str:
        """A number as a constant that broadcasts."""
        key = f"{node.name}.{suffix}"
        self.constants[key] = np.full((1,) * rank, float(value))
        return key


_Read = Callable[[_Reader, fx.Node], None]
_READERS: dict[Any, _Read] = {}
_IGNORED = {
    aten.contiguous.default,
    aten.clone.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
}
_WAYS_OUT = {
    aten.log_softmax.int: "Return the logits themselves: their order is the same.",
    aten.group_norm.default: "Use BatchNorm.",
    aten.instance_norm.default: "Use BatchNorm.",
    aten.layer_norm.default: "Use BatchNorm.",
}


def _is_mutable(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _is_view(node: fx.Node) -> bool:
    """Whether a node's value may share memory with its first argument's."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def _way_out(target: Any) -> str:
    """What to do about an operation that cannot be read."""
    return _WAYS_OUT.get(
        target, "Rewrite it with the operations that docs/own-network.md lists, or leave that layer out."
    )


def _reads(*targets: Any) -> Callable[[_Read], _Read]:
    def register(function: _Read) -> _Read:
        for target in targets:
            _READERS[target] = function
        return function

    return register


@_reads(torch.ops.csr_deploy.csr_conv2d.default)
def _read_csr(reader: _Reader, node: fx.Node) -> None:
    layer = reader.layers[str(_args(node)[1])]
    weights = [k for k in reader.constants if k.startswith(f"{layer.scope}.")]
    reader.emit(node, "csr_conv2d", [reader._name(_args(node)[0]), *weights], layer=layer)


@_reads(aten.conv2d.default, aten.conv2d.padding, aten.convolution.default)
def _read_conv2d(reader: _Reader, node: fx.Node) -> None:
    x, weight = _args(node)[0], _args(node)[1]
    bias = reader.argument(node, 2, "bias")
    stride = _pair(reader.argument(node, 3, "stride", 1), 1)
    padding = reader.argument(node, 4, "padding", 0)
    dilation = _pair(reader.argument(node, 5, "dilation", 1), 1)
    if node.target is aten.convolution.default:
        if reader.argument(node, 6, "transposed", False):
            raise CaptureError("a transposed convolution is not supported", where=reader.origin(node))
        groups = reader.argument(node, 8, "groups", 1)
    else:
        groups = reader.argument(node, 6, "groups", 1)
    kernel = reader.shape_of(weight)[2:]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        pads = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        ph, pw = _pair(padding, 0)
        pads = (ph, pw, ph, pw)
    inputs = [reader._name(x), reader._name(weight)] + ([] if bias is None else [reader._name(bias)])
    reader.emit(
        node, "conv2d", inputs,
        stride=stride, padding=pads, dilation=dilation, groups=int(groups), activation=None,
    )  # fmt: skip


@_reads(aten.linear.default)
def _read_linear(reader: _Reader, node: fx.Node) -> None:
    rank = len(reader.shape_of(_args(node)[0]))
    if rank != 2:
        raise CaptureError(
            f"a linear layer on {rank} axes is not supported",
            where=reader.origin(node),
            fix="Give it [N, features]: flatten(1) keeps the batch, squeeze() does not. Over the channels of "
            "pictures it is a 1×1 convolution.",
        )
    bias = reader.argument(node, 2, "bias")
    inputs = [reader._name(_args(node)[0]), reader._name(_args(node)[1])]
    reader.emit(node, "linear", inputs + ([] if bias is None else [reader._name(bias)]), activation=None)


@_reads(aten.batch_norm.default)
def _read_batch_norm(reader: _Reader, node: fx.Node) -> None:
    x, weight, bias, mean, var = _args(node)[:5]
    epsilon = float(reader.argument(node, 7, "eps"))
    if mean is None or var is None:
        raise CaptureError(
            "a BatchNorm without running statistics cannot be exported", where=reader.origin(node)
        )
    centre = reader.constants[reader._name(mean)]
    gain = 1.0 / np.sqrt(reader.constants[reader._name(var)] + epsilon)
    if weight is not None:
        gain = gain * reader.constants[reader._name(weight)]
    offset = -centre * gain
    if bias is not None:
        offset = offset + reader.constants[reader._name(bias)]
    scope = reader._name(mean).removesuffix("running_mean") or f"{node.name}."
    reader.constants[f"{scope}gain"] = gain
    reader.constants[f"{scope}offset"] = offset
    reader.emit(node, "affine", [reader._name(x), f"{scope}gain", f"{scope}offset"], activation=None)


def _unary(op: str) -> _Read:
    def read(reader: _Reader, node: fx.Node) -> None:
        reader.emit(node, op, [reader._name(_args(node)[0])])

    return read


_reads(aten.relu.default, aten.relu_.default)(_unary("relu"))
_reads(aten.relu6.default, aten.relu6_.default)(_unary("relu6"))
_reads(aten.sigmoid.default, aten.sigmoid_.default)(_unary("sigmoid"))
_reads(aten.tanh.default, aten.tanh_.default)(_unary("tanh"))
_reads(aten.hardsigmoid.default, aten.hardsigmoid_.default)(_unary("hard_sigmoid"))
_reads(aten.hardswish.default, aten.hardswish_.default)(_unary("hard_swish"))


@_reads(aten.leaky_relu.default, aten.leaky_relu_.default)
def _read_leaky_relu(reader: _Reader, node: fx.Node) -> None:
    slope = float(reader.argument(node, 1, "negative_slope", 0.01))
    reader.emit(node, "leaky_relu", [reader._name(_args(node)[0])], slope=slope)


@_reads(aten.prelu.default)
def _read_prelu(reader: _Reader, node: fx.Node) -> None:
    x, weight = (reader._name(a) for a in _args(node)[:2])
    if weight not in reader.constants:
        raise CaptureError("a PReLU whose slopes are computed is not supported", where=reader.origin(node))
    if reader.constants[weight].size == 1:
        reader.emit(node, "leaky_relu", [x], slope=float(reader.constants[weight].item()))
    else:
        rank = len(reader.shape_of(node))
        slopes = f"{weight}.of{rank}axes"
        reader.constants[slopes] = reader.constants[weight].reshape(1, -1, *[1] * (rank - 2))
        reader.emit(node, "prelu", [x, slopes])


@_reads(aten.elu.default, aten.elu_.default)
def _read_elu(reader: _Reader, node: fx.Node) -> None:
    factors = tuple(
        float(reader.argument(node, i, n, 1.0)) for i, n in enumerate(("alpha", "scale", "input_scale"), 1)
    )
    if factors != (1.0, 1.0, 1.0):
        raise CaptureError(
            f"an ELU whose alpha, scale and input scale are {factors} is not supported",
            where=reader.origin(node),
            fix="Use nn.ELU() as it is.",
        )
    reader.emit(node, "elu", [reader._name(_args(node)[0])])


@_reads(aten.gelu.default)
def _read_gelu(reader: _Reader, node: fx.Node) -> None:
    approximate = str(reader.argument(node, 1, "approximate", "none"))
    reader.emit(node, "gelu", [reader._name(_args(node)[0])], tanh=approximate == "tanh")


@_reads(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default)
def _read_dropout(reader: _Reader, node: fx.Node) -> None:
    if reader.argument(node, 2, "train", False) and reader.argument(node, 1, "p", 0.5):
        raise CaptureError(
            "this dropout drops values in evaluation too",
            where=reader.origin(node),
            fix="Use nn.Dropout, or F.dropout(x, p, self.training).",
        )
    reader.names[node] = reader._name(_args(node)[0])


@_reads(aten.neg.default)
def _read_neg(reader: _Reader, node: fx.Node) -> None:
    minus = reader.scalar_constant(node, -1.0, len(reader.shape_of(node)))
    reader.emit(node, "mul", [reader._name(_args(node)[0]), minus], activation=None)


@_reads(
    aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_.default,
    aten.clamp_min.default, aten.clamp_min_.default,
)  # fmt: skip
def _read_clamp(reader: _Reader, node: fx.Node) -> None:
    if node.target in (aten.hardtanh.default, aten.hardtanh_.default):
        low, high = reader.argument(node, 1, "min_val", -1.0), reader.argument(node, 2, "max_val", 1.0)
    else:
        low, high = reader.argument(node, 1, "min"), reader.argument(node, 2, "max")
    if (low, high) == (0, 6):
        reader.emit(node, "relu6", [reader._name(_args(node)[0])])
    elif (low, high) == (0, None):
        reader.emit(node, "relu", [reader._name(_args(node)[0])])
    else:
        raise CaptureError(
            f"a clamp to [{low}, {high}] is not supported",
            where=reader.origin(node),
            fix="Clamp to [0, 6] or from 0 upwards.",
        )


@_reads(aten.silu.default, aten.silu_.default)
def _read_silu(reader: _Reader, node: fx.Node) -> None:
    x = reader._name(_args(node)[0])
    gate = reader.intermediate(node, "sigmoid", "sigmoid", [x])
    reader.emit(node, "mul", [x, gate], activation=None)


def _operand(reader: _Reader, node: fx.Node, value: Any, rank: int) -> str:
    """An operand of an element-wise operation: a value, or a constant with as many axes."""
    if not isinstance(value, fx.Node):
        return reader.scalar_constant(node, float(value), rank)
    name = reader._name(value)
    if name in reader.constants:
        content = reader.constants[name]
        name = f"{node.name}.constant"
        reader.constants[name] = content.reshape((1,) * (rank - content.ndim) + content.shape)
    elif len(reader.shape_of(value)) != rank:
        raise CaptureError("operands of different rank are not supported", where=reader.origin(node))
    return name


def _check_alpha(reader: _Reader, node: fx.Node) -> None:
    if float(reader.argument(node, 2, "alpha", 1)) != 1:
        raise CaptureError("an addition with alpha is not supported", where=reader.origin(node))


def _is_value(reader: _Reader, argument: Any) -> bool:
    return isinstance(argument, fx.Node) and reader.names[argument] not in reader.constants


def _commutative(op: str) -> _Read:
    def read(reader: _Reader, node: fx.Node) -> None:
        _check_alpha(reader, node)
        x, y = _args(node)[:2]
        if not _is_value(reader, x):
            x, y = y, x
        rank = len(reader.shape_of(x))
        reader.emit(node, op, [reader._name(x), _operand(reader, node, y, rank)], activation=None)

    return read


_reads(aten.add.Tensor, aten.add_.Tensor)(_commutative("add"))
_reads(aten.mul.Tensor, aten.mul_.Tensor)(_commutative("mul"))


@_reads(aten.sub.Tensor, aten.sub_.Tensor, aten.rsub.Scalar)
def _read_sub(reader: _Reader, node: fx.Node) -> None:
    _check_alpha(reader, node)
    x, y = _args(node)[:2]
    if node.target is aten.rsub.Scalar:
        x, y = y, x
    rank = len(reader.shape_of(node))
    if _is_value(reader, x) and _is_value(reader, y):
        inputs = [reader._name(x), _operand(reader, node, y, rank)]
        reader.emit(node, "sub", inputs, activation=None)
        return
    # With a constant it is an addition, whose second operand broadcasts in every format.
    constant = _operand(reader, node, x if _is_value(reader, y) else y, rank)
    value = reader._name(y if _is_value(reader, y) else x)
    if _is_value(reader, y):
        minus = reader.scalar_constant(node, -1.0, rank, "minus")
        value = reader.intermediate(node, "negated", "mul", [value, minus], activation=None)
    else:
        reader.constants[f"{node.name}.negated"] = -reader.constants[constant]
        constant = f"{node.name}.negated"
    reader.emit(node, "add", [value, constant], activation=None)


@_reads(aten.div.Tensor, aten.div_.Tensor)
def _read_div(reader: _Reader, node: fx.Node) -> None:
    x, y = _args(node)[:2]
    if _is_value(reader, y):
        raise CaptureError("a division by a computed value is not supported", where=reader.origin(node))
    constant = _operand(reader, node, y, len(reader.shape_of(x)))
    reader.constants[f"{node.name}.reciprocal"] = 1.0 / reader.constants[constant]
    reader.emit(node, "mul", [reader._name(x), f"{node.name}.reciprocal"], activation=None)


@_reads(aten.cat.default)
def _read_cat(reader: _Reader, node: fx.Node) -> None:
    tensors = _args(node)[0]
    axis = int(reader.argument(node, 1, "dim", 0))
    rank = len(reader.shape_of(node))
    reader.emit(node, "concat", [reader._name(t) for t in tensors], axis=axis % rank)


@_reads(aten.mean.dim)
def _read_mean(reader: _Reader, node: fx.Node) -> None:
    x = _args(node)[0]
    shape = reader.shape_of(x)
    axes = sorted(int(a) % len(shape) for a in _args(node)[1] or range(len(shape)))
    name = reader._name(x)
    if len(shape) == 3 and axes == [2]:
        # One spatial axis, of pictures that were flattened.
        shape = (*shape, 1)
        name, axes = reader.intermediate(node, "picture", "reshape", [name], shape=shape), [2, 3]
    if len(shape) != 4 or not set(axes) <= {2, 3}:
        raise CaptureError(
            f"a mean over axes {axes} of {len(shape)} is not supported",
            where=reader.origin(node),
            fix="Means are taken over height and width, the last axes.",
        )
    if axes == [2, 3]:
        op, attrs = "mean_hw", {}
    else:
        kernel = (shape[2] if 2 in axes else 1, shape[3] if 3 in axes else 1)
        op, attrs = "avg_pool2d", _windows(kernel)
    out = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    if reader.shape_of(node) == out:
        reader.emit(node, op, [name], **attrs)
        return
    mean = reader.intermediate(node, "mean", op, [name], **attrs)
    reader.emit(node, "reshape", [mean], shape=reader.shape_of(node))


def _windows(kernel: tuple[int, int]) -> dict[str, Any]:
    """Attributes of an average pool of windows that lie side by side."""
    return {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0), "count_padding": False}


@_reads(aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default)
def _read_adaptive_pool(reader: _Reader, node: fx.Node) -> None:
    x = _args(node)[0]
    average = node.target is aten.adaptive_avg_pool2d.default
    height, width = _pair(_args(node)[1])
    size = reader.shape_of(x)[2:]
    if average and (height, width) == (1, 1):
        reader.emit(node, "mean_hw", [reader._name(x)])
    elif size[0] % height == 0 and size[1] % width == 0:
        attrs = _windows((size[0] // height, size[1] // width))
        if not average:
            del attrs["count_padding"]
        reader.emit(node, "avg_pool2d" if average else "max_pool2d", [reader._name(x)], **attrs)
    else:
        raise CaptureError(
            f"an adaptive pool from {size} to {(height, width)} has windows of different sizes",
            where=reader.origin(node),
            fix="Use an input size that is a multiple of the pool's output.",
        )


def _pool(op: str) -> _Read:
    def read(reader: _Reader, node: fx.Node) -> None:
        kernel = _pair(_args(node)[1])
        stride = _pair(reader.argument(node, 2, "stride", None) or kernel)
        ph, pw = _pair(reader.argument(node, 3, "padding", 0), 0)
        if op == "max_pool2d":
            if _pair(reader.argument(node, 4, "dilation", 1), 1) != (1, 1):
                raise CaptureError("a dilated pool is not supported", where=reader.origin(node))
            attrs: dict[str, Any] = {}
        else:
            attrs = {"count_padding": bool(reader.argument(node, 5, "count_include_pad", True))}
            if reader.argument(node, 6, "divisor_override", None) is not None:
                raise CaptureError("a pool with divisor_override is not supported", where=reader.origin(node))
        size, out = reader.shape_of(_args(node)[0])[2:], reader.shape_of(node)[2:]
        # In ceil mode the last window may reach beyond the padding: it ends there in torch, too.
        reach = [(o - 1) * t + k - s for o, t, k, s in zip(out, stride, kernel, size, strict=True)]
        bottom, right = max(reach[0] - ph, ph), max(reach[1] - pw, pw)
        if (bottom, right) != (ph, pw) and attrs.get("count_padding"):
            if ph or pw:
                raise CaptureError(
                    "an average pool in ceil mode that counts its padding is not supported",
                    where=reader.origin(node),
                    fix="Give count_include_pad=False, or no padding.",
                )
            attrs["count_padding"] = False
        reader.emit(
            node, op, [reader._name(_args(node)[0])],
            kernel=kernel, stride=stride, padding=(ph, pw, bottom, right), **attrs,
        )  # fmt: skip

    return read


_reads(aten.max_pool2d.default)(_pool("max_pool2d"))
_reads(aten.avg_pool2d.default)(_pool("avg_pool2d"))


_SQUEEZES = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)


@_reads(
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dims, aten.squeeze.dim,
    aten.squeeze.default, aten.unsqueeze.default, aten._unsafe_view.default, aten.unflatten.int,
)  # fmt: skip
def _read_reshape(reader: _Reader, node: fx.Node) -> None:
    before, after = reader.shape_of(_args(node)[0]), reader.shape_of(node)
    # A batch of one is an axis of size 1 like any other to a squeeze; a batch of two is none.
    squeezed = node.target in _SQUEEZES and len(after) < len(before) and after[:1] != before[:1]
    if squeezed or (len(after) < 2 and len(before) > 1):
        raise CaptureError(
            f"the batch axis is lost: {list(before)} becomes {list(after)}",
            where=reader.origin(node),
            fix="Use flatten(1), or name the axes that are squeezed.",
        )
    reader.emit(node, "reshape", [reader._name(_args(node)[0])], shape=reader.shape_of(node))


@_reads(aten.permute.default)
def _read_permute(reader: _Reader, node: fx.Node) -> None:
    rank = len(reader.shape_of(node))
    _emit_transpose(reader, node, tuple(int(p) % rank for p in _args(node)[1]))


def _emit_transpose(reader: _Reader, node: fx.Node, perm: tuple[int, ...]) -> None:
    if perm[0] != 0:
        raise CaptureError(
            "a transposition that moves the batch axis is not supported",
            where=reader.origin(node),
            fix="Keep the batch as the first axis.",
        )
    reader.emit(node, "transpose", [reader._name(_args(node)[0])], perm=perm)


@_reads(aten.transpose.int, aten.t.default)
def _read_transpose(reader: _Reader, node: fx.Node) -> None:
    perm = list(range(len(reader.shape_of(node))))
    a, b = (int(v) % len(perm) for v in _args(node)[1:3] or (0, -1))
    perm[a], perm[b] = perm[b], perm[a]
    _emit_transpose(reader, node, tuple(perm))


def emit_slice(reader: _Reader, node: fx.Node, x: Any, axis: int, start: int, stop: int, step: int) -> None:
    """Adds a slice along one axis."""
    shape = reader.shape_of(x)
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[axis], stops[axis], steps[axis] = start, stop, step
    reader.emit(
        node, "slice", [reader._name(x)], starts=tuple(starts), stops=tuple(stops), steps=tuple(steps)
    )


@_reads(aten.slice.Tensor)
def _read_slice(reader: _Reader, node: fx.Node) -> None:
    x = _args(node)[0]
    shape = reader.shape_of(x)
    axis = int(reader.argument(node, 1, "dim", 0)) % len(shape)
    index = slice(
        reader.argument(node, 2, "start"),
        reader.argument(node, 3, "end"),
        reader.argument(node, 4, "step", 1),
    )
    start, stop, step = index.indices(shape[axis])
    if (start, stop, step) == (0, shape[axis], 1):
        reader.names[node] = reader._name(x)
        return
    emit_slice(reader, node, x, axis, start, stop, step)


@_reads(aten.select.int)
def _read_select(reader: _Reader, node: fx.Node) -> None:
    x, axis, index = _args(node)[:3]
    shape = reader.shape_of(x)
    axis, starts, stops = int(axis) % len(shape), [0] * len(shape), list(shape)
    if axis == 0:
        raise CaptureError("taking one image of a batch is not supported", where=reader.origin(node))
    starts[axis] = int(index) % shape[axis]
    stops[axis] = starts[axis] + 1
    piece = reader.intermediate(
        node, "slice", "slice", [reader._name(x)],
        starts=tuple(starts), stops=tuple(stops), steps=(1,) * len(shape),
    )  # fmt: skip
    reader.emit(node, "reshape", [piece], shape=reader.shape_of(node))


@_reads(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def _read_split(reader: _Reader, node: fx.Node) -> None:
    # The pieces are read where they are taken out, by getitem.
    return None


# Their second result says where the maxima are.
_WITH_INDICES = (aten.adaptive_max_pool2d.default,)


def _read_getitem(reader: _Reader, node: fx.Node) -> None:
    source, index = _args(node)
    if isinstance(source, fx.Node) and source.target in _WITH_INDICES and index == 0:
        reader.names[node] = reader.names[source]
        return
    if not isinstance(source, fx.Node) or _READERS.get(source.target) is not _read_split:
        raise CaptureError(f"taking item {index!r} of {source} is not supported", where=reader.origin(node))
    axis = int(reader.argument(source, 2, "dim", 0))
    pieces = [tuple(v.shape) for v in source.meta["val"]]
    axis %= len(pieces[0])
    start = sum(int(p[axis]) for p in pieces[: int(index)])
    emit_slice(reader, node, _args(source)[0], axis, start, start + int(pieces[int(index)][axis]), 1)


_READERS[operator.getitem] = _read_getitem


@_reads(aten.to.dtype, aten.type_as.default)
def _read_cast(reader: _Reader, node: fx.Node) -> None:
    if node.meta["val"].dtype is not torch.float32:
        raise CaptureError(
            f"computing with {node.meta['val'].dtype} is not supported",
            where=reader.origin(node),
            fix="Leave the cast out: the target decides in which type it computes.",
        )
    reader.names[node] = reader._name(_args(node)[0])


@_reads(aten.pad.default, aten.constant_pad_nd.default)
def _read_pad(reader: _Reader, node: fx.Node) -> None:
    if node.target is aten.pad.default:
        mode, value = reader.argument(node, 2, "mode", "constant"), reader.argument(node, 3, "value", 0)
    else:
        mode, value = "constant", reader.argument(node, 2, "value", 0)
    if mode != "constant" or value not in (None, 0, 0.0):
        raise CaptureError(
            f"padding with mode '{mode}' and value {value} is not supported", where=reader.origin(node)
        )
    widths = [int(v) for v in _args(node)[1]]
    rank = len(reader.shape_of(_args(node)[0]))
    pads = [(0, 0)] * rank
    for i in range(len(widths) // 2):
        pads[rank - 1 - i] = (widths[2 * i], widths[2 * i + 1])
    if any(w < 0 for w in widths):
        raise CaptureError("negative padding is not supported", where=reader.origin(node))
    reader.emit(node, "pad", [reader._name(_args(node)[0])], pads=tuple(pads))


@_reads(aten.softmax.int, aten._softmax.default)
def _read_softmax(reader: _Reader, node: fx.Node) -> None:
    rank = len(reader.shape_of(node))
    reader.emit(node, "softmax", [reader._name(_args(node)[0])], axis=int(_args(node)[1]) % rank)
