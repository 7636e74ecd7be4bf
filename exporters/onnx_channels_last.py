"""ONNX whose pictures are NHWC between the operations, with plain transpositions around what takes NCHW.

ONNX Runtime turns int8 convolutions into NHWC anyway and cancels its transpositions against these. What is
left are views: several pixels a filter or an affine (`unroll/passes/widen.py`) are a reshape of channels-last
memory, which in NCHW would move every value.
"""

from __future__ import annotations

from collections.abc import Callable

from csr_deploy.exporters.base import WriteRequest
from csr_deploy.exporters.onnx_integer import IntegerWriter
from csr_deploy.unroll.graph import Graph, Node

_LAST = (0, 2, 3, 1)
_FIRST = (0, 3, 1, 2)
_VIEWS = frozenset({"channels_to_width", "width_to_channels"})


def pays(graph: Graph) -> bool:
    """Whether a graph has views that are free in NHWC only."""
    return any(n.op in _VIEWS for n in graph.nodes)


class ChannelsLastWriter(IntegerWriter):
    """Keeps values of four axes in NHWC."""

    def __init__(self, request: WriteRequest) -> None:
        super().__init__(request)
        self._in_first = False
        self._views: dict[str, tuple[str, Node]] = {}
        """View → the tensor it shows and its node; written when an operation reads it."""

    def _from_border(self, name: str) -> str:
        return self._node("Transpose", [name], perm=list(_LAST))

    def _to_border(self, name: str) -> str:
        is_picture = len(self.graph.shapes[self.graph.output]) == 4
        return self._node("Transpose", [name], perm=list(_FIRST)) if is_picture else name

    def _axes(self, rank: int) -> tuple[int, ...]:
        return _LAST if rank == 4 else super()._axes(rank)

    def _keep(self, tensor: str, value: str) -> str:
        moves = self._in_first and len(self.graph.shapes[value]) == 4
        return self._node("Transpose", [tensor], perm=list(_LAST)) if moves else tensor

    def _take(self, tensor: str, value: str) -> str:
        moves = self._in_first and len(self.graph.shape(value)) == 4
        return self._node("Transpose", [tensor], perm=list(_FIRST)) if moves else tensor

    def _channels_first(self, node: Node, emit: Callable[[Node], None]) -> None:
        """Emits a node that ONNX defines in NCHW."""
        self._in_first = True
        emit(node)
        self._in_first = False

    def conv2d(self, node: Node) -> None:
        """Conv."""
        self._channels_first(node, super().conv2d)

    def affine(self, node: Node) -> None:
        """Conv, depth-wise."""
        self._channels_first(node, super().affine)

    def pool(self, node: Node) -> None:
        """MaxPool or AveragePool."""
        self._channels_first(node, super().pool)

    def mean_hw(self, node: Node) -> None:
        """GlobalAveragePool."""
        self._channels_first(node, super().mean_hw)

    def softmax(self, node: Node) -> None:
        """Softmax."""
        self._channels_first(node, super().softmax)

    def transpose(self, node: Node) -> None:
        """Transpose."""
        self._channels_first(node, super().transpose)

    def reshape(self, node: Node) -> None:
        """Reshape: a view where channels stay channels."""
        before, after = self.graph.shapes[node.inputs[0]], self.graph.shapes[node.output]
        if len(before) == len(after) == 4 and before[:2] == after[:2]:
            self._view(node)
        else:
            self._channels_first(node, super().reshape)

    def channels_to_width(self, node: Node) -> None:
        """A view."""
        self._view(node)

    def width_to_channels(self, node: Node) -> None:
        """A view."""
        self._view(node)

    def _view(self, node: Node) -> None:
        """Another shape of the same memory; a view of a view shows the first one."""
        if self._in_real:
            self.finish(node, self._reshaped(self.operand(node.inputs[0]), node))
            return
        name = node.inputs[0]
        shown = self._views[name][0] if name in self._views else self._held(name)
        self._views[node.output] = shown, node

    def _held(self, name: str) -> str:
        if name in self._views and name not in self.values:
            self.values[name] = self._reshaped(*self._views[name])
        return super()._held(name)

    def _reshaped(self, tensor: str, node: Node) -> str:
        shape = self.graph.shapes[node.output]
        rest = [shape[axis] for axis in _LAST[1:]]
        return self._node("Reshape", [tensor, self._table([-1 if self.free_batch else shape[0], *rest])])
