"""One bias for a sum of two convolutions: the sum stays, and the others keep theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from csr_deploy.quantize import QuantizedGraph
from csr_deploy.quantize.scheme import activation_quantization, quantize_weight
from csr_deploy.quantize.summed_biases import merge_summed_biases
from csr_deploy.unroll.graph import Graph, Node, build_graph
from csr_deploy.unroll.passes.widen import widen

CHANNELS, SIDE = 3, 4
CONV = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1, "activation": None}


def sum_of_two(second: str | None = None) -> Graph:
    """relu(V*x + U*h) and V*x, with the activation `second` in U's convolution."""
    generator = np.random.default_rng(0)
    kernels = {k: generator.normal(size=(CHANNELS, CHANNELS, 3, 3)) for k in ("v", "u")}
    nodes = [
        Node("conv2d", ("x", "v"), "h", {**CONV, "activation": "relu"}),
        Node("conv2d", ("x", "v"), "a", CONV),
        Node("conv2d", ("h", "u"), "b", {**CONV, "activation": second}),
        Node("add", ("a", "b"), "y", {"activation": "relu"}),
    ]
    return build_graph(nodes, kernels, "x", (1, CHANNELS, SIDE, SIDE), "y")


def quantized(graph: Graph, seed: int, size: int) -> QuantizedGraph:
    generator = np.random.default_rng(seed)
    biases = {
        n.output: generator.integers(-size, size + 1, graph.shape(n.inputs[1])[0]).astype(np.int32)
        for n in graph.nodes
        if n.op == "conv2d"
    }
    weights = {name: quantize_weight(value) for name, value in graph.constants.items()}
    scales = generator.uniform(1, 9, len(graph.shapes))
    activations = {k: activation_quantization(-s, s) for k, s in zip(graph.shapes, scales, strict=True)}
    return QuantizedGraph(graph, activations, weights, biases)


def real_bias(q: QuantizedGraph, output: str) -> np.ndarray:  # type: ignore[type-arg]
    node = q.graph.producers()[output]
    scales = q.bias_scales(node).astype(np.float64)
    return q.biases.get(output, np.zeros(len(scales), np.int32)) * scales


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), size=st.sampled_from([0, 1, 4]))
def test_the_sum_of_both_stays(seed: int, size: int) -> None:
    before = quantized(sum_of_two(), seed, size)
    after = merge_summed_biases(before)
    assert set(after.biases) == {"h", "b"}
    np.testing.assert_array_equal(after.biases["h"], before.biases["h"])
    moved = real_bias(after, "a") + real_bias(after, "b") - real_bias(before, "a") - real_bias(before, "b")
    unit = before.bias_scales(before.graph.producers()["b"])
    assert (np.abs(moved) <= 0.5001 * unit).all()


def test_wide_filters_are_seen_through() -> None:
    wide = widen(sum_of_two(), lambda *_: 2)
    producers = wide.producers()
    assert producers["a"].op == producers["b"].op == "channels_to_width"
    after = merge_summed_biases(quantized(wide, 0, 4))
    left = set(after.biases)
    assert producers["b"].inputs[0] in left
    assert producers["a"].inputs[0] not in left


def test_filters_of_unlike_width_keep_their_biases() -> None:
    one = widen(sum_of_two(), lambda graph, node: 2 if node.output == "a" else 1)
    q = quantized(one, 0, 4)
    assert merge_summed_biases(q).biases.keys() == q.biases.keys()


def test_behind_an_activation_it_stays() -> None:
    q = quantized(sum_of_two("relu"), 0, 4)
    assert merge_summed_biases(q).biases.keys() == q.biases.keys()


def test_a_bias_of_many_steps_would_leave_the_ranges() -> None:
    q = quantized(sum_of_two(), 0, 2**10)
    assert merge_summed_biases(q).biases.keys() == q.biases.keys()


def test_what_does_not_fit_stays() -> None:
    graph = sum_of_two()
    tiny = replace(graph, constants={**graph.constants, "u": graph.constants["u"] * 1e-12})
    q = quantized(tiny, 0, 4)
    assert merge_summed_biases(q).biases.keys() == q.biases.keys()
