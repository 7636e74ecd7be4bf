"""Removes the cut to C_out and the fill to d·T between CSR-Convs.

"Keep the first C_out channels" becomes zero gain and bias in the per-channel affine that follows, so the
surplus channels are zeros from there on, which is just what the next CSR-Conv's zero fill asks for. A cut is
therefore carried forward, through everything that keeps zero at zero, until it meets its fill (both vanish)
or an operation that needs the exact channels (there it is made explicit).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csr_deploy.unroll.graph import Graph, GraphEditor, Node
from csr_deploy.unroll.ops import ACTIVATION_OPS
from csr_deploy.unroll.passes.unroll import channels

_ZERO_KEEPING = (ACTIVATION_OPS - {"sigmoid", "hard_sigmoid"}) | {"max_pool2d", "avg_pool2d", "mean_hw"}


@dataclass(frozen=True)
class _Cut:
    """A value that is the first `size` channels of an emitted value, its `surplus` perhaps all zero.

    `origin` is the module that it comes from.
    """

    whole: str
    size: int
    zero: bool
    origin: str


class _Absorber:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.editor = GraphEditor(graph)
        self.cuts: dict[str, _Cut] = {}
        self.padded: dict[tuple[str, int], str] = {}
        self.consumers = graph.consumers()

    def run(self) -> Graph:
        for node in self.editor:
            cut = self.cuts.get(node.inputs[0])
            if self._is_cut(node):
                self._start(node, cut)
            elif not self._carry(node, cut):
                self._keep(node)
        if self.graph.output in self.cuts:
            self._explicit(self.graph.output)
        return self.editor.done()

    def _surplus(self, cut: _Cut) -> int:
        return self.editor.shape(cut.whole)[1] - cut.size

    def _explicit(self, name: str) -> str:
        """Emits the cut that was carried so far."""
        cut = self.cuts.pop(name)
        made = channels(self.editor, cut.whole, 0, cut.size, f"{name}.cut", cut.origin)
        self.editor.alias(name, made)
        return made

    def _keep(self, node: Node) -> None:
        inputs = tuple(self._explicit(i) if i in self.cuts else self.editor.resolve(i) for i in node.inputs)
        self.editor.keep(Node(node.op, inputs, node.output, node.attrs, node.origin))

    def _is_cut(self, node: Node) -> bool:
        """Whether a node keeps the first channels and everything else."""
        if node.op != "slice" or len(node.attrs["starts"]) != 4:
            return False
        name = node.inputs[0]
        source = self.graph.shapes[name] if name in self.cuts else self.editor.shape(name)
        starts, stops, steps = (node.attrs[k] for k in ("starts", "stops", "steps"))
        return all((starts[i], steps[i]) == (0, 1) and (i == 1 or stops[i] == source[i]) for i in range(4))

    def _start(self, node: Node, cut: _Cut | None) -> None:
        whole = node.inputs[0] if cut is None else cut.whole
        self.cuts[node.output] = _Cut(whole, node.attrs["stops"][1], False, node.origin)

    def _emit(self, node: Node, inputs: list[str], size: int, zero: bool, **attrs: object) -> bool:
        name = self.editor.add(
            node.op, inputs, f"{node.output}.whole", node.origin, **{**node.attrs, **attrs}
        )
        self.cuts[node.output] = _Cut(name, size, zero, node.origin)
        return True

    def _carry(self, node: Node, cut: _Cut | None) -> bool:
        """Applies a node to the uncut value; False where that is not possible or not worth it."""
        if node.op == "add":
            return self._carry_add(node)
        if cut is None:
            return False
        if node.op == "affine":
            return self._carry_affine(node, cut)
        if node.op in _ZERO_KEEPING:
            return self._emit(node, [cut.whole], cut.size, cut.zero)
        if node.op == "prelu":
            return self._emit(node, [cut.whole, *self._widened_tables(node, cut)], cut.size, cut.zero)
        if node.op == "slice":
            return self._carry_slice(node, cut)
        if node.op == "pad":
            return self._carry_pad(node, cut)
        return False

    def _carry_affine(self, node: Node, cut: _Cut) -> bool:
        return self._emit(node, [cut.whole, *self._widened_tables(node, cut)], cut.size, True)

    def _widened_tables(self, node: Node, cut: _Cut) -> list[str]:
        """The node's constants [C] or [1, C, 1, 1] with zeros for the surplus."""
        surplus = self._surplus(cut)
        made = []
        for name in node.inputs[1:]:
            wide = f"{name}.widened{surplus}"
            if wide not in self.editor.constants:
                value = self.editor.constants[name]
                channels_axis = 1 if value.ndim > 1 else 0
                widths = [(0, surplus if axis == channels_axis else 0) for axis in range(value.ndim)]
                self.editor.constant(wide, np.pad(value, widths))
            made.append(wide)
        return made

    def _carry_slice(self, node: Node, cut: _Cut) -> bool:
        starts, stops = node.attrs["starts"], node.attrs["stops"]
        if (starts[1], stops[1], node.attrs["steps"][1]) == (0, cut.size, 1):
            stops = (stops[0], self.editor.shape(cut.whole)[1], *stops[2:])
            return self._emit(node, [cut.whole], cut.size, cut.zero, stops=stops)
        self.editor.keep(Node("slice", (cut.whole,), node.output, node.attrs, node.origin))
        return True

    def _carry_pad(self, node: Node, cut: _Cut) -> bool:
        pads = node.attrs["pads"]
        before, after = pads[1]
        if not cut.zero:
            return False
        surplus = self._surplus(cut)
        size = cut.size + before + after
        rest = (pads[0], (before, max(0, after - surplus)), *pads[2:])
        whole = cut.whole
        if any(p != (0, 0) for p in rest):
            whole = self.editor.add("pad", [whole], f"{node.output}.whole", node.origin, pads=rest)
        if self.editor.shape(whole)[1] == size:
            self.editor.alias(node.output, whole)
        else:
            self.cuts[node.output] = _Cut(whole, size, True, node.origin)
        return True

    def _carry_add(self, node: Node) -> bool:
        cuts = [self.cuts.get(i) for i in node.inputs]
        known = [c for c in cuts if c is not None]
        if not known:
            return False
        size = known[0].size
        width = max(self.editor.shape(c.whole)[1] for c in known)
        wholes = []
        zero = True
        for name, cut in zip(node.inputs, cuts, strict=True):
            if cut is not None and self.editor.shape(cut.whole)[1] == width:
                wholes.append(cut.whole)
                zero = zero and cut.zero
                continue
            widened = None if cut is not None else self._widened(name, size, width)
            if widened is None:
                return False
            wholes.append(widened)
        return self._emit(node, wholes, size, zero)

    def _widened(self, name: str, size: int, width: int) -> str | None:
        """`name` with zero channels appended, where that costs nothing."""
        if name in self.editor.constants or self.editor.shape(name)[1] != size:
            return None
        shape = self.editor.shape(name)
        if (name, width) in self.padded:
            return self.padded[name, width]
        producer = next((n for n in self.editor.nodes if n.output == name), None)
        missing = width - shape[1]
        made: str | None = None
        if producer is not None and producer.op == "pad":
            pads = producer.attrs["pads"]
            pads = (pads[0], (pads[1][0], pads[1][1] + missing), *pads[2:])
            made = self.editor.add("pad", producer.inputs, f"{name}.wide", producer.origin, pads=pads)
        elif any(_fills(n, missing) for n in self._users(name)):
            pads = ((0, 0), (0, missing), *[(0, 0)] * (len(shape) - 2))
            made = self.editor.add("pad", [name], f"{name}.wide", "", pads=pads)
        if made is not None:
            self.padded[name, width] = made
        return made

    def _users(self, name: str) -> list[Node]:
        return [n for old, nodes in self.consumers.items() if self.editor.resolve(old) == name for n in nodes]


def _fills(node: Node, missing: int) -> bool:
    return node.op == "pad" and node.attrs["pads"] == ((0, 0), (0, missing), (0, 0), (0, 0))


def absorb_truncation(graph: Graph) -> Graph:
    """See the module's description."""
    return _Absorber(graph).run()
