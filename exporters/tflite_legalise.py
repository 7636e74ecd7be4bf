"""Makes a static graph expressible in TFLite.

Only SAME or VALID windows are left, and only operations whose kernels agree in LiteRT and TFLite Micro.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csr_deploy.unroll.graph import Graph, GraphEditor, Node
from csr_deploy.unroll.passes.simplify import simplify

Padding = tuple[int, int, int, int]

_NON_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "softmax"})
_MOVES = frozenset(
    {"slice", "pad", "reshape", "transpose", "max_pool2d", "avg_pool2d", "mean_hw", "concat"}
    | {"channels_to_width", "width_to_channels"}
)


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """TFLite's SAME padding along one axis, for a window of that (dilated) extent."""
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + window - size)
    return (total // 2, total - total // 2)


def padding_scheme(
    shape: tuple[int, ...], window: tuple[int, int], stride: tuple[int, int], padding: Padding
) -> str | None:
    """VALID or "SAME" where that gives this padding for an NCHW shape, else None."""
    if not any(padding):
        return "VALID"
    rows = same_padding(shape[2], window[0], stride[0])
    cols = same_padding(shape[3], window[1], stride[1])
    return "SAME" if (rows[0], cols[0], rows[1], cols[1]) == padding else None


def window_of(node: Node, graph_shape: tuple[int, ...]) -> tuple[int, int]:
    """Dilated extent of a convolution's or pool's window; `graph_shape` is that of the weight."""
    if node.op == "conv2d":
        (kh, kw), (dh, dw) = graph_shape[2:], node.attrs["dilation"]
        return (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    kernel: tuple[int, int] = node.attrs["kernel"]
    return kernel


class _Legaliser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.editor = GraphEditor(graph)
        self.padded: dict[tuple[str, Padding, bool], str] = {}
        self.made: dict[str, Node] = {}
        self.non_negative: set[str] = set()

    def run(self) -> Graph:
        for node in self.editor:
            if node.op in ("conv2d", "max_pool2d", "avg_pool2d"):
                node = self._windowed(node)
            elif node.op == "hard_sigmoid":
                self._hard_sigmoid(node)
                continue
            elif node.op == "linear":
                self._linear(node)
                continue
            self.editor.keep(node)
            self.made[node.output] = node
            if (
                node.op in _NON_NEGATIVE
                or node.attrs.get("activation")
                or (node.op in _MOVES and self.non_negative.issuperset(node.inputs))
            ):
                self.non_negative.add(node.output)
        return self.editor.done()

    def _windowed(self, node: Node) -> Node:
        weight = self.editor.shape(node.inputs[1]) if node.op == "conv2d" else ()
        shape = self.editor.shape(node.inputs[0])
        window, stride = window_of(node, weight), node.attrs["stride"]
        padding: Padding = node.attrs["padding"]
        counted = node.op == "avg_pool2d" and node.attrs["count_padding"] and any(padding)
        if padding_scheme(shape, window, stride, padding) and not counted:
            return node
        out = self.graph.shapes[node.output]
        # Only as much after the picture as the last window reaches.
        top, left = padding[:2]
        bottom = max(0, (out[2] - 1) * stride[0] + window[0] - shape[2] - top)
        right = max(0, (out[3] - 1) * stride[1] + window[1] - shape[3] - left)
        # Zeros are no maximum of values that are not negative, and XNNPACK has no other padding.
        lowest = node.op == "max_pool2d" and node.inputs[0] not in self.non_negative
        x = self._pad(node.inputs[0], (top, left, bottom, right), node.origin, lowest=lowest)
        attrs = {**node.attrs, "padding": (0, 0, 0, 0)}
        if node.op == "avg_pool2d" and not counted:
            rows = _shares(out[2], window[0], stride[0], top, shape[2])
            columns = _shares(out[3], window[1], stride[1], left, shape[3])
            gain = self.editor.constant(f"{node.output}.shares", np.outer(rows, columns)[None, None])
            pooled = self.editor.add(node.op, [x], f"{node.output}.padded", node.origin, **attrs)
            return Node("mul", (pooled, gain), node.output, {"activation": None}, node.origin)
        return Node(node.op, (x, *node.inputs[1:]), node.output, attrs, node.origin)

    def _pad(self, x: str, padding: Padding, origin: str, *, lowest: bool) -> str:
        """Pads a value, before its channels are split where it is one group of several."""
        producer = self.made.get(x)
        if producer is not None and _splits_channels(producer, self.editor):
            whole = self._pad(producer.inputs[0], padding, origin, lowest=lowest)
            shape = self.editor.shape(whole)
            stops = (producer.attrs["stops"][0], producer.attrs["stops"][1], *shape[2:])
            return self.editor.add(
                "slice", [whole], f"{x}.padded", origin, **{**producer.attrs, "stops": stops}
            )
        key = (x, padding, lowest)
        if key not in self.padded:
            top, left, bottom, right = padding
            pads: tuple[tuple[int, int], ...] = ((0, 0), (0, 0), (top, bottom), (left, right))
            source, name = x, f"{x}.lowest" if lowest else f"{x}.pad"
            if producer is not None and producer.op == "pad" and not lowest:
                source = producer.inputs[0]
                pads = tuple(
                    (a + c, b + d) for (a, b), (c, d) in zip(producer.attrs["pads"], pads, strict=True)
                )
            attrs = {"pads": pads, "lowest": True} if lowest else {"pads": pads}
            self.padded[key] = self.editor.add("pad", [source], name, origin, **attrs)
        return self.padded[key]

    def _linear(self, node: Node) -> None:
        """A linear layer as a 1×1 convolution.

        TFLite's and TFLite Micro's FULLY_CONNECTED round differently and have no common per-channel form;
        their CONV_2D agree bit for bit and are quantised per channel.
        """
        x, weight = node.inputs[:2]
        batch, features = self.editor.shape(x)
        filters = self.editor.constants[weight]
        name = f"{weight}.1x1"
        if name not in self.editor.constants:
            self.editor.constant(name, filters[:, :, None, None])
        origin = node.origin
        shape = (batch, features, 1, 1)
        picture = self.editor.add("reshape", [x], f"{node.output}.1x1", origin, shape=shape)
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
        activation = node.attrs.get("activation")
        inputs = [picture, name, *node.inputs[2:]]
        out = self.editor.add("conv2d", inputs, f"{node.output}.conv", origin, **attrs, activation=activation)
        self.editor.keep(Node("reshape", (out,), node.output, {"shape": (batch, len(filters))}, origin))

    def _hard_sigmoid(self, node: Node) -> None:
        x = node.inputs[0]
        rank = len(self.editor.shape(x))
        three = self.editor.constant(f"{node.output}.three", np.full((1,) * rank, 3.0))
        sixth = self.editor.constant(f"{node.output}.sixth", np.full((1,) * rank, 1 / 6))
        clipped = self.editor.add("add", [x, three], f"{node.output}.clip", node.origin, activation="relu6")
        scaled = self.editor.add(
            "mul", [clipped, sixth], f"{node.output}.scale", node.origin, activation=None
        )
        self.editor.alias(node.output, scaled)


def _shares(count: int, window: int, stride: int, before: int, size: int) -> NDArray[np.float64]:
    """Along one axis: size of each window over how much of it lies in the picture."""
    starts = np.arange(count) * stride - before
    return window / (np.minimum(starts + window, size) - np.maximum(starts, 0))


def _splits_channels(node: Node, editor: GraphEditor) -> bool:
    if node.op != "slice":
        return False
    shape, attrs = editor.shape(node.inputs[0]), node.attrs
    return len(shape) == 4 and all(
        i == 1 or (attrs["starts"][i], attrs["stops"][i], attrs["steps"][i]) == (0, shape[i], 1)
        for i in range(4)
    )


def legalise(graph: Graph) -> Graph:
    """See the module's description."""
    return simplify(_Legaliser(graph).run())
