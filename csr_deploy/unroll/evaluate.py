"""Runs a static graph with torch: the float reference of every pass and the source of calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from csr_deploy.errors import GraphError
from csr_deploy.unroll.graph import Graph, Node

_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "elu": F.elu,
}


def activate(x: Tensor, activation: str | None) -> Tensor:
    """Applies the activation a compute node carries."""
    return _ACTIVATIONS[activation](x)


def spatial_pad(x: Tensor, padding: tuple[int, int, int, int], value: float = 0.0) -> Tensor:
    """Pads H and W by (top, left, bottom, right)."""
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def linear_part(node: Node, inputs: list[Tensor]) -> Tensor:
    """A conv2d, linear or affine node without its activation."""
    a = node.attrs
    bias = inputs[2] if len(inputs) > 2 else None
    if node.op == "conv2d":
        x = spatial_pad(inputs[0], a["padding"])
        return F.conv2d(x, inputs[1], bias, a["stride"], 0, a["dilation"], a["groups"])
    if node.op == "linear":
        return F.linear(inputs[0], inputs[1], bias)
    tail = (1,) * (inputs[0].ndim - 2)
    return inputs[0] * inputs[1].view(-1, *tail) + inputs[2].view(-1, *tail)


def evaluate_node(node: Node, inputs: list[Tensor]) -> Tensor:
    """Runs one node on any batch: views keep the batch outermost, so its size is free."""
    a = node.attrs
    x = inputs[0]
    if node.op in ("conv2d", "linear", "affine"):
        return activate(linear_part(node, inputs), a.get("activation"))
    if node.op == "add":
        return activate(x + inputs[1], a.get("activation"))
    if node.op == "sub":
        return activate(x - inputs[1], a.get("activation"))
    if node.op == "mul":
        return activate(x * inputs[1], a.get("activation"))
    if node.op in _UNARY:
        return _UNARY[node.op](x)
    if node.op == "leaky_relu":
        return F.leaky_relu(x, a["slope"])
    if node.op == "gelu":
        return F.gelu(x, approximate="tanh" if a["tanh"] else "none")
    if node.op == "prelu":
        return F.prelu(x, inputs[1].reshape(-1))
    if node.op == "softmax":
        return torch.softmax(x, a["axis"])
    if node.op == "max_pool2d":
        return F.max_pool2d(spatial_pad(x, a["padding"], float("-inf")), a["kernel"], a["stride"])
    if node.op == "avg_pool2d":
        out = F.avg_pool2d(spatial_pad(x, a["padding"]), a["kernel"], a["stride"])
        if any(a["padding"]) and not a["count_padding"]:
            ones = spatial_pad(torch.ones_like(x[:1, :1]), a["padding"])
            out = out / F.avg_pool2d(ones, a["kernel"], a["stride"])
        return out
    if node.op == "mean_hw":
        return x.mean((2, 3), keepdim=True)
    if node.op == "slice":
        index = tuple(slice(*p) for p in zip(a["starts"], a["stops"], a["steps"], strict=True))
        return x[(slice(None), *index[1:])]
    if node.op == "pad":
        fill = float("-inf") if a.get("lowest") else 0.0
        return F.pad(x, [p for pair in reversed(a["pads"]) for p in pair], value=fill)
    if node.op == "concat":
        return torch.cat(inputs, a["axis"])
    if node.op == "reshape":
        return x.reshape(-1, *a["shape"][1:])
    if node.op == "transpose":
        return x.permute(a["perm"])
    if node.op == "channels_to_width":
        n, c, height, width = x.shape
        parts = x.reshape(n, a["block"], c // a["block"], height, width)
        return parts.permute(0, 2, 3, 4, 1).reshape(n, c // a["block"], height, width * a["block"])
    if node.op == "width_to_channels":
        n, c, height, width = x.shape
        parts = x.reshape(n, c, height, width // a["block"], a["block"])
        return parts.permute(0, 4, 1, 2, 3).reshape(n, c * a["block"], height, width // a["block"])
    raise GraphError(f"'{node.op}' cannot be evaluated: unroll the graph first", where=node.output)


def evaluate(
    graph: Graph,
    x: Tensor,
    *,
    visit: Callable[[Node, Tensor], None] | None = None,
    keep: bool = False,
) -> dict[str, Tensor]:
    """Runs the graph on a batch.

    Args:
        graph: The graph; its constants take the type of `x`.
        x: [N, C, H, W] of a float type; N may be any number.
        visit: Called with every node and its value.
        keep: Keep every value; otherwise values are dropped after their last use.

    Returns:
        Values by name; the graph's output among them.
    """
    constants = torch_constants(graph, x.dtype)
    values: dict[str, Tensor] = {graph.input: x}
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            last[name] = index
    with torch.no_grad():
        for index, node in enumerate(graph.nodes):
            value = evaluate_node(node, [values[i] if i in values else constants[i] for i in node.inputs])
            values[node.output] = value
            if visit:
                visit(node, value)
            if not keep:
                for name in set(node.inputs):
                    if last[name] == index and name != graph.output:
                        values.pop(name, None)
    return values


def torch_constants(graph: Graph, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """The graph's constants as tensors."""
    return {k: torch.as_tensor(v).to(dtype) for k, v in graph.constants.items()}


def run_graph(graph: Graph, x: Tensor) -> Tensor:
    """The graph's output for a batch."""
    out: Any = evaluate(graph, x)[graph.output]
    return out  # type: ignore[no-any-return]
