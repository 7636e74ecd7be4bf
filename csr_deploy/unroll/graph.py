"""The static graph: plain operations on named values, checked after every pass. NumPy only.

Activations are NCHW; every node has one output. Weights are constants by name: a weight used by several
nodes is one constant, which is how tied weights stay tied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import GraphError
from csr_deploy.unroll.ops import OPS, Shape

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: Key of `csr_deploy.unroll.ops.OPS`.
        inputs: Names of values or constants, in the order the operation defines.
        output: Name of the value it makes.
        attrs: Attributes the operation defines.
        origin: The module it comes from, for messages.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    def with_attrs(self, **attrs: Any) -> Node:
        """A copy with some attributes changed."""
        return replace(self, attrs={**self.attrs, **attrs})


@dataclass(frozen=True)
class Graph:
    """A static graph with one input and one output.

    Attributes:
        nodes: In an order in which every value is made before it is used.
        constants: Weights by name.
        input: Name of the input value.
        output: Name of the output value.
        shapes: Shape of every value (not of constants).
        arranged: Constant → the kernels that a pass arranged it from, zeros between them perhaps.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    input: str
    output: str
    shapes: Mapping[str, Shape]
    arranged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        """Shape of a value or constant."""
        return self.shapes[name] if name in self.shapes else tuple(self.constants[name].shape)

    def producers(self) -> dict[str, Node]:
        """Value name → the node that makes it."""
        return {n.output: n for n in self.nodes}

    def consumers(self) -> dict[str, list[Node]]:
        """Name → the nodes that use it, in order."""
        out: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                out.setdefault(name, []).append(node)
        return out

    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        total = 0
        for node in self.nodes:
            if node.op in ("conv2d", "linear"):
                weight = self.shape(node.inputs[1])
                out = self.shapes[node.output]
                total += int(np.prod(out)) * int(np.prod(weight[1:]))
        return total // self.shapes[self.input][0]


def build_graph(
    nodes: Iterable[Node],
    constants: Mapping[str, Array],
    graph_input: str,
    input_shape: Shape,
    output: str,
    arranged: Mapping[str, tuple[str, ...]] | None = None,
) -> Graph:
    """Makes a checked graph: infers shapes, drops dead nodes and unused constants.

    Raises:
        GraphError: If it is not well formed, naming the node.
    """
    shapes: dict[str, Shape] = {graph_input: tuple(input_shape)}
    ordered = list(nodes)
    for node in ordered:
        if node.op not in OPS:
            raise GraphError(f"unknown operation '{node.op}'", where=node.output)
        if node.output in shapes or node.output in constants:
            raise GraphError("is defined twice", where=node.output)
        arguments = []
        for name in node.inputs:
            if name in shapes:
                arguments.append(shapes[name])
            elif name in constants:
                arguments.append(tuple(constants[name].shape))
            else:
                raise GraphError(f"uses '{name}' before it is defined", where=node.output)
        try:
            shapes[node.output] = OPS[node.op].infer(arguments, node.attrs)
        except GraphError as error:
            raise GraphError(
                error.what, where=f"{node.output} ({node.op} of {node.origin or 'graph'})"
            ) from error
    if output not in shapes:
        raise GraphError("the output is never defined", where=output)
    live = {output}
    kept: list[Node] = []
    for node in reversed(ordered):
        if node.output in live:
            live.update(node.inputs)
            kept.append(node)
    kept.reverse()
    return Graph(
        tuple(kept),
        {k: v for k, v in constants.items() if k in live},
        graph_input,
        output,
        {k: v for k, v in shapes.items() if k in live or k == graph_input},
        {k: v for k, v in (arranged or {}).items() if k in live},
    )


class GraphEditor:
    """Rewrites a graph node by node: a pass walks the nodes and emits what replaces them.

    Values that a pass replaces are recorded as aliases, so later nodes pick up the new name.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.constants: dict[str, Array] = dict(graph.constants)
        self.shapes: dict[str, Shape] = {graph.input: graph.shapes[graph.input]}
        self.arranged: dict[str, tuple[str, ...]] = dict(graph.arranged)
        self.nodes: list[Node] = []
        self.output = graph.output
        self._aliases: dict[str, str] = {}
        self._taken = {*graph.shapes, *graph.constants}

    def __iter__(self) -> Iterator[Node]:
        """The original nodes with their inputs renamed to what replaced them."""
        for node in self.graph.nodes:
            yield replace(node, inputs=tuple(self.resolve(i) for i in node.inputs))

    def resolve(self, name: str) -> str:
        """What a name of the original graph is called now."""
        while name in self._aliases:
            name = self._aliases[name]
        return name

    def alias(self, old: str, new: str) -> None:
        """Lets every later use of `old` mean `new`."""
        if old != new:
            self._aliases[old] = new

    def shape(self, name: str) -> Shape:
        """Shape of an emitted value or a constant."""
        return self.shapes[name] if name in self.shapes else tuple(self.constants[name].shape)

    def keep(self, node: Node) -> str:
        """Emits a node as it is."""
        arguments = [self.shape(i) for i in node.inputs]
        self.shapes[node.output] = OPS[node.op].infer(arguments, node.attrs)
        self.nodes.append(node)
        return node.output

    def add(self, op: str, inputs: Sequence[str], hint: str, origin: str = "", **attrs: Any) -> str:
        """Emits a new node and returns the fresh name of its value."""
        return self.keep(Node(op, tuple(inputs), self.fresh(hint), attrs, origin))

    def constant(self, hint: str, value: Array) -> str:
        """Adds a constant under a fresh name."""
        name = self.fresh(hint)
        self.constants[name] = value
        return name

    def arrangement(self, hint: str, value: Array, sources: Sequence[str]) -> str:
        """Adds a constant that holds the values of kernels in another order, zeros between them perhaps."""
        name = self.constant(hint, value)
        kernels = [k for source in sources for k in self.arranged.get(source, (source,))]
        self.arranged[name] = tuple(dict.fromkeys(kernels))
        return name

    def fresh(self, hint: str) -> str:
        """A name not in use, `hint` itself where possible."""
        name, count = hint, 1
        while name in self._taken:
            name, count = f"{hint}.{count}", count + 1
        self._taken.add(name)
        return name

    def done(self) -> Graph:
        """The rewritten graph, checked."""
        graph = self.graph
        return build_graph(
            self.nodes,
            self.constants,
            graph.input,
            graph.shapes[graph.input],
            self.resolve(self.output),
            self.arranged,
        )
