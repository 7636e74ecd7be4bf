"""The int8 ONNX writers: what stands in the file, and that layout and form do not change the integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import nn

from csr_deploy.data import Preprocessing
from csr_deploy.exporters.base import WriteRequest
from csr_deploy.exporters.onnx import EXPORTER, OnnxWriter
from csr_deploy.exporters.onnx_channels_last import ChannelsLastWriter, pays
from csr_deploy.exporters.onnx_integer import IntegerWriter
from csr_deploy.nn import CSRConv2d
from csr_deploy.quantize import QuantizedGraph, QuantizeOptions, quantize
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.evaluate import run_graph
from csr_deploy.unroll.graph import Graph, Node, build_graph
from csr_deploy.unroll.lowering import LOWERINGS
from csr_deploy.unroll.passes.sink_views import sink_views
from tests.networks import settle

SIZE = 8
PREPROCESSING = Preprocessing(SIZE, SIZE, (0.5,) * 3, (0.25,) * 3)


def pictures(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)


def quantized(graph: Graph, float_layers: tuple[str, ...] = ()) -> QuantizedGraph:
    options = QuantizeOptions(bias_correction=False, float_layers=float_layers)
    return quantize(graph, [pictures()], PREPROCESSING, options, EXPORTER.scheme)


def written(
    writer: type[OnnxWriter], graph: QuantizedGraph, *, signed: bool = False, free_batch: bool = False
) -> onnx.ModelProto:
    request = WriteRequest(
        graph.graph, graph, 8, Path("unused"), "net", free_batch=free_batch, signed_activations=signed
    )
    return onnx.load_from_string(writer(request).write()[0])


def session(model: onnx.ModelProto, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def outputs(model: onnx.ModelProto, x: torch.Tensor) -> NDArray[np.float32]:
    running = session(model)
    batch = running.get_inputs()[0].shape[0]
    parts = [x] if isinstance(batch, str) else x.split(batch)
    return np.concatenate([running.run(None, {"image": part.numpy()})[0] for part in parts])


def csr_network(lowering: str) -> Graph:
    torch.manual_seed(0)
    first, second = (CSRConv2d(8, 8, 3, 2, padding=1) for _ in range(2))
    blocks = [first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(8)]
    stem, head = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*stem, *blocks, *head, nn.Linear(8, 4))
    return LOWERINGS[lowering](capture(settle(model, (1, 3, SIZE, SIZE)), (1, 3, SIZE, SIZE)))


def every_operation() -> Graph:
    """A graph with each operation whose axes depend on the layout."""
    draw = np.random.default_rng(0)
    constants = {
        "w0": draw.normal(0, 0.3, (8, 3, 3, 3)), "w1": draw.normal(0, 0.3, (4, 2, 3, 3)),
        "gain": draw.normal(1, 0.1, 8), "bias": draw.normal(0, 0.1, 8),
        "each": draw.normal(0, 1, (1, 8, 1, 1)), "w2": draw.normal(0, 0.2, (5, 16)), "b2": np.zeros(5),
    }  # fmt: skip
    conv = {"dilation": (1, 1), "stride": (1, 1), "padding": (1, 1, 1, 1), "activation": "relu"}
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0)}
    half = {"starts": (0, 2, 1, 0), "stops": (1, 6, 5, 4), "steps": (1, 1, 2, 1)}
    nodes = [
        Node("conv2d", ("x", "w0"), "a", {**conv, "groups": 1}),
        Node("affine", ("a", "gain", "bias"), "b", {"activation": "relu"}),
        Node("mul", ("b", "each"), "c", {"activation": None}),
        Node("width_to_channels", ("c",), "d", {"block": 2}),
        Node("channels_to_width", ("d",), "e", {"block": 4}),
        Node("reshape", ("e",), "f", {"shape": (1, 4, 16, 8)}),
        Node("conv2d", ("f", "w1"), "g", {**conv, "groups": 2, "activation": None}),
        Node("max_pool2d", ("g",), "h", pool),
        Node("pad", ("h",), "i", {"pads": ((0, 0), (2, 2), (1, 0), (0, 0))}),
        Node("slice", ("i",), "j", half),
        Node("concat", ("j", "j"), "k", {"axis": 2}),
        Node("avg_pool2d", ("k",), "l", {**pool, "count_padding": False}),
        Node("transpose", ("l",), "m", {"perm": (0, 3, 2, 1)}),
        Node("concat", ("m", "m"), "n", {"axis": 1}),
        Node("relu6", ("n",), "o", {}),
        Node("reshape", ("o",), "p", {"shape": (1, 32)}),
        Node("slice", ("p",), "q", {"starts": (0, 0), "stops": (1, 32), "steps": (1, 2)}),
        Node("linear", ("q", "w2", "b2"), "y", {"activation": None}),
    ]
    return build_graph(nodes, constants, "x", (1, 3, SIZE, SIZE), "y")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("free_batch", [False, True])
def test_layout_and_form_do_not_change_the_integers(signed: bool, free_batch: bool) -> None:
    graph = quantized(every_operation())
    x = pictures(4, seed=1)
    plain = outputs(written(OnnxWriter, graph, free_batch=free_batch), x)
    step = graph.activations[graph.graph.output].scale
    exact = run_graph(graph.graph, x.double()).numpy() if not free_batch else None
    assert exact is None or np.abs(plain - exact).max() < 0.1 * np.abs(exact).max()
    for writer in (IntegerWriter, ChannelsLastWriter):
        same = outputs(written(writer, graph, signed=signed, free_batch=free_batch), x)
        # Operations in between that ONNX Runtime fuses in one form only round half a step differently.
        assert np.abs(same - plain).max() <= 2 * step * 1.001


@pytest.mark.parametrize("signed", [False, True])
def test_convolutions_and_moves_are_of_integers(signed: bool) -> None:
    graph = quantized(csr_network("grouped"))
    model = written(IntegerWriter, graph, signed=signed)
    kinds = Counter(n.op_type for n in model.graph.node)
    weighted = sum(n.op in ("conv2d", "affine") for n in graph.graph.nodes)
    assert kinds["QLinearConv"] == weighted and not kinds["Conv"]
    producers = {o: n.op_type for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type in ("Slice", "Concat", "QLinearConv"):
            assert producers[node.input[0]] != "DequantizeLinear"
    types = {TensorProto.INT8} if signed else {TensorProto.UINT8}
    constants = {i.name: i for i in model.graph.initializer}
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert quantizers and {constants[n.input[2]].data_type for n in quantizers} == types


def test_tied_weights_are_one_initializer() -> None:
    graph = quantized(csr_network("grouped"))
    model = written(IntegerWriter, graph)
    used = Counter(n.input[3] for n in model.graph.node if n.op_type == "QLinearConv")
    assert sorted(used.values())[-2:] == [2, 2]
    stored = {i.name for i in model.graph.initializer}
    assert set(used) <= stored


def test_onnx_runtime_is_left_with_views(tmp_path: Path) -> None:
    graph = quantized(csr_network("wide"))
    assert pays(graph.graph)
    session(written(ChannelsLastWriter, graph, signed=True), tmp_path / "optimized.onnx")
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    # Of the image, and of a vector before it becomes one.
    assert kinds["Transpose"] <= 2
    assert kinds["QLinearConv"] == sum(n.op in ("conv2d", "affine") for n in graph.graph.nodes)
    assert kinds["Conv"] == 0


def test_a_wide_network_computes_what_the_plain_one_does() -> None:
    x = pictures(4, seed=2)
    plain, wide = (quantized(csr_network(name)) for name in ("stacked", "wide"))
    a, b = (outputs(written(w, g), x) for w, g in ((IntegerWriter, plain), (ChannelsLastWriter, wide)))
    assert np.abs(a - b).max() <= 2 * plain.activations[plain.graph.output].scale


def test_layers_in_real_numbers_stay_real_in_both_layouts() -> None:
    for name, writer in (("grouped", IntegerWriter), ("wide", ChannelsLastWriter)):
        captured = csr_network(name)
        layer = next(n.origin for n in captured.nodes if n.origin.startswith("2"))
        graph = quantized(captured, (layer,))
        model = written(writer, graph)
        assert any(n.op_type == "Conv" for n in model.graph.node)
        x = pictures(2, seed=3)
        exact = run_graph(captured, x.double()).numpy()
        assert np.abs(outputs(model, x) - exact).max() < 0.1 * np.abs(exact).max()


def test_zero_is_padded_with_the_integer_that_means_it() -> None:
    graph = quantized(every_operation())
    model = written(IntegerWriter, graph)
    (pad,) = (n for n in model.graph.node if n.op_type == "Pad")
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert constants[pad.input[2]] == graph.activations["i"].zero_point + 128


def test_views_sink_below_what_does_not_care() -> None:
    shape = (1, 8, 4, 4)
    nodes = [
        Node("channels_to_width", ("x",), "a", {"block": 2}),
        Node("relu", ("a",), "b", {}),
        Node("slice", ("a",), "c", {"starts": (0, 0, 0, 0), "stops": (1, 4, 4, 8), "steps": (1,) * 4}),
        Node("add", ("b", "c"), "d", {"activation": None}),
        Node("concat", ("d", "a"), "e", {"axis": 3}),
        Node("concat", ("e", "e"), "f", {"axis": 1}),
    ]
    graph = build_graph(nodes, {}, "x", shape, "f")
    sunk = sink_views(graph)
    assert [n.op for n in sunk.nodes].count("channels_to_width") == 2
    before = [n.op for n in sunk.nodes[: [n.op for n in sunk.nodes].index("concat")]]
    assert before.count("channels_to_width") == 1
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(run_graph(sunk, x), run_graph(graph, x), rtol=0, atol=0)
