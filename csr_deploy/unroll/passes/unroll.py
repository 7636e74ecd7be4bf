"""Unrolls CSR-Conv nodes into plain operations, by one of two strategies."""

from __future__ import annotations

from collections.abc import Callable

from csr_deploy.unroll.builder import GraphBuilder
from csr_deploy.unroll.capture import CsrLayer
from csr_deploy.unroll.graph import Graph, GraphEditor, Node


def unroll_stepwise(graph: Graph) -> Graph:
    """One slice and one V convolution a step: the plainest graph, right for NHWC runtimes."""
    return _unroll(graph, _stepwise_terms)


def unroll_time_major(graph: Graph) -> Graph:
    """V of all steps in one convolution, time in the batch axis.

    The views between [N, T·d, H, W] and [N·T, d, H, W] cost nothing in NCHW.
    """
    return _unroll(graph, _time_major_terms)


_Terms = Callable[[GraphEditor, GraphBuilder, CsrLayer, str], list[str]]


def _unroll(graph: Graph, terms_of: _Terms) -> Graph:
    editor = GraphEditor(graph)
    for node in editor:
        if node.op != "csr_conv2d":
            editor.keep(node)
            continue
        layer: CsrLayer = node.attrs["layer"]
        builder = GraphBuilder(editor, layer.scope)
        x = _fill(editor, layer, node)
        state: tuple[str, ...] | None = None
        states = []
        for step, term in enumerate(terms_of(editor, builder, layer, x), start=1):
            builder.step = step
            state = layer.cell.lower_step(builder, f"{layer.scope}.cell", term, state)
            states.append(state[0])
        out = editor.add("concat", states, f"{layer.scope}.states", layer.scope, axis=1)
        out = channels(editor, out, 0, layer.out_channels, f"{layer.scope}.cut", layer.scope)
        if layer.bias:
            bias = f"{layer.scope}.bias"
            shaped = editor.constant(f"{bias}.nchw", editor.constants[bias].reshape(1, -1, 1, 1))
            out = editor.add("add", [out, shaped], f"{layer.scope}.biased", layer.scope, activation=None)
        editor.alias(node.output, out)
    return editor.done()


def channels(editor: GraphEditor, x: str, start: int, stop: int, hint: str, origin: str) -> str:
    """Channels start..stop of x; x itself where that is all of them."""
    shape = editor.shape(x)
    if (start, stop) == (0, shape[1]):
        return x
    starts = tuple(start if axis == 1 else 0 for axis in range(len(shape)))
    stops = tuple(stop if axis == 1 else size for axis, size in enumerate(shape))
    return editor.add("slice", [x], hint, origin, starts=starts, stops=stops, steps=(1,) * len(shape))


def _fill(editor: GraphEditor, layer: CsrLayer, node: Node) -> str:
    """Fills the channels that are missing for T whole groups."""
    x = node.inputs[0]
    missing = layer.group_in * layer.num_steps - layer.in_channels
    if not missing:
        return x
    if layer.channel_fill == "wrap":
        first = channels(editor, x, 0, missing, f"{layer.scope}.wrap", layer.scope)
        return editor.add("concat", [x, first], f"{layer.scope}.fill", layer.scope, axis=1)
    pads = ((0, 0), (0, missing), (0, 0), (0, 0))
    return editor.add("pad", [x], f"{layer.scope}.fill", layer.scope, pads=pads)


def _stepwise_terms(editor: GraphEditor, builder: GraphBuilder, layer: CsrLayer, x: str) -> list[str]:
    terms = []
    for step in range(layer.used_steps):
        builder.step = step + 1
        start = step * layer.group_in
        name = f"{layer.scope}.t{step + 1}.x"
        group = channels(editor, x, start, start + layer.group_in, name, layer.scope)
        terms.append(layer.cell.lower_input(builder, f"{layer.scope}.cell", group))
    return terms


def _time_major_terms(editor: GraphEditor, builder: GraphBuilder, layer: CsrLayer, x: str) -> list[str]:
    batch, _, height, width = editor.shape(x)
    steps = layer.num_steps
    shape = (batch * steps, layer.group_in, height, width)
    groups = editor.add("reshape", [x], f"{layer.scope}.groups", layer.scope, shape=shape)
    builder.step = 0
    terms = layer.cell.lower_input(builder, f"{layer.scope}.cell", groups)
    _, size, out_height, out_width = editor.shape(terms)
    shape = (batch, steps * size, out_height, out_width)
    joined = editor.add("reshape", [terms], f"{layer.scope}.terms", layer.scope, shape=shape)
    return [
        channels(editor, joined, t * size, (t + 1) * size, f"{layer.scope}.t{t + 1}.term", layer.scope)
        for t in range(layer.used_steps)
    ]
