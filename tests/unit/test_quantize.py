"""Int8 quantisation: the specification, the ranges, the biases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from csr_deploy.data import Preprocessing
from csr_deploy.errors import OptionError
from csr_deploy.exporters import onnx as onnx_exporter
from csr_deploy.exporters import tflite as tflite_exporter
from csr_deploy.exporters.base import Exporter, WriteRequest
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.quantize import QuantizedGraph, QuantizeOptions, Simulation, quantize, sensitivity
from csr_deploy.quantize.ranges import Statistics
from csr_deploy.quantize.scheme import (
    AFFINE,
    SAME_SCALE_OPS,
    SYMMETRIC,
    activation_quantization,
    quantize_weight,
)
from csr_deploy.types import Quantization
from csr_deploy.unroll.evaluate import run_graph
from csr_deploy.unroll.graph import Graph
from csr_deploy.unroll.lowering import unroll
from tests.networks import NETWORKS

FLOATS = st.floats(-1e4, 1e4, allow_nan=False, width=32)


@given(low=FLOATS, high=FLOATS)
def test_activations_represent_zero_exactly_and_cover_the_range(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    q = activation_quantization(low, high)
    assert -128 <= q.zero_point <= 127
    assert q.dequantize(q.quantize(np.zeros(1, np.float32), "int8"))[0] == 0
    ends = np.asarray([min(low, 0.0), max(high, 0.0)], np.float32)
    back = q.dequantize(q.quantize(ends, "int8"))
    assert np.abs(back - ends).max() <= q.scale * 1.001


@given(st.lists(FLOATS, min_size=4, max_size=24))
def test_weights_are_symmetric_and_off_by_half_a_step_at_most(values: list[float]) -> None:
    weight = np.asarray(values[: len(values) // 2 * 2], np.float64).reshape(2, -1)
    q = quantize_weight(weight)
    assert q.values.min() >= -127
    error = np.abs(q.dequantize() - weight)
    assert (error <= q.scales[:, None] * 0.5001 + 1e-30).all()


def test_one_outlier_does_not_set_the_range() -> None:
    statistics = Statistics()
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).relu_()
    values[0] = 12.0
    statistics.observe(values, torch.Generator().manual_seed(0))
    statistics.samples = [values.numpy()]
    assert statistics.least_squares(AFFINE).scale < 0.8 * statistics.min_max(AFFINE).scale


def test_rounding_is_half_away_from_zero() -> None:
    q = Quantization(1.0, 0)
    assert q.quantize(np.asarray([0.5, -0.5, 1.5, 2.5, 300], np.float32), "int8").tolist() == [
        1,
        -1,
        2,
        3,
        127,
    ]


def test_unknown_ranges() -> None:
    with pytest.raises(OptionError, match="min-max"):
        QuantizeOptions(ranges="best")


@pytest.fixture(scope="module", params=["odd", "resnet20-5x3"])
def quantized(request: pytest.FixtureRequest) -> QuantizedGraph:
    build, (channels, height, width) = NETWORKS[request.param]
    graph = legalise(unroll(build(), (1, channels, height, width)))
    x = torch.randn(16, channels, height, width, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing(height, width, (0.5,) * channels, (0.25,) * channels)
    return quantize(graph, [x], preprocessing, QuantizeOptions())


def test_the_specification_holds(quantized: QuantizedGraph) -> None:
    graph = quantized.graph
    for node in graph.nodes:
        out = quantized.activations[node.output]
        if node.op in SAME_SCALE_OPS:
            assert all(quantized.activations[i] == out for i in node.inputs)
        if node.op in ("sigmoid", "tanh", "softmax"):
            assert out.scale in (1 / 256, 1 / 128)
    assert {n.inputs[1] for n in graph.nodes if n.op in ("conv2d", "affine")} == set(quantized.weights)
    assert all(b.dtype == np.int32 for b in quantized.biases.values())


def test_every_step_has_a_bias_of_its_own_and_the_weights_stay_tied(quantized: QuantizedGraph) -> None:
    shared: dict[str, list[str]] = {}
    for node in quantized.graph.nodes:
        if node.op == "conv2d" and ".cell." in node.inputs[1]:
            shared.setdefault(node.inputs[1], []).append(node.output)
    repeated = {w: outs for w, outs in shared.items() if len(outs) > 1}
    assert repeated
    for weight, outputs in repeated.items():
        assert weight in quantized.weights
        assert sum(o in quantized.biases for o in outputs) > 0


def test_a_sigmoid_does_not_clip_what_it_is_joined_with(quantized: QuantizedGraph) -> None:
    graph = quantized.graph
    producers = graph.producers()
    for node in graph.nodes:
        if node.op == "concat":
            assert not any(producers[i].op == "sigmoid" for i in node.inputs if i in producers)


def test_quantising_twice_gives_the_same_integers() -> None:
    build, (channels, height, width) = NETWORKS["odd"]
    graph = legalise(unroll(build(), (1, channels, height, width)))
    x = torch.randn(8, channels, height, width, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing(height, width, (0.5,) * channels, (0.25,) * channels)
    first, second = (quantize(graph, [x], preprocessing, QuantizeOptions(seed=3)) for _ in range(2))
    assert first.activations == second.activations
    assert all(np.array_equal(first.biases[k], second.biases[k]) for k in first.biases)


def test_the_symmetric_scheme_rounds_only_where_a_kernel_reads() -> None:
    build, (channels, height, width) = NETWORKS["resnet20-5x3"]
    graph = unroll(build(), (1, channels, height, width))
    x = torch.randn(16, channels, height, width, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing(height, width, (0.5,) * channels, (0.25,) * channels)
    made = quantize(graph, [x], preprocessing, QuantizeOptions(), SYMMETRIC)
    assert {q.zero_point for q in made.activations.values()} == {0}
    assert graph.output not in made.activations
    producers, consumers = graph.producers(), graph.consumers()
    for node in graph.nodes:
        if node.op in ("conv2d", "linear"):
            assert node.inputs[0] in made.activations
        if node.op == "concat":
            assert len({made.activations[i].scale for i in (*node.inputs, node.output)}) == 1
    fused = 0
    for node in graph.nodes:
        summed = [i for i in node.inputs if i in producers and producers[i].op == "conv2d"]
        if node.op == "add" and summed:
            fused += 1
            accumulators = [i for i in node.inputs if i not in made.activations]
            assert len(accumulators) == 1
            assert accumulators[0] in summed
            assert [c.output for c in consumers[accumulators[0]]] == [node.output]
    assert fused


SHAPE = (3, 32, 32)
PREPROCESSING = Preprocessing(32, 32, (0.5,) * 3, (0.25,) * 3)


def pictures(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return NETWORKS["resnet20-5x3"][0]()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> Graph:
    return legalise(unroll(network, (1, *SHAPE)))


def test_equal_steps_give_the_terms_of_a_layer_one_scale(graph: Graph) -> None:
    made = quantize(graph, [pictures()], PREPROCESSING, QuantizeOptions(equal_steps=True))
    scales: dict[tuple[str, object], set[Quantization]] = {}
    for node in made.graph.nodes:
        if node.op == "conv2d" and ".cell." in node.inputs[1]:
            key = (node.inputs[1], node.attrs["activation"])
            scales.setdefault(key, set()).add(made.activations[node.output])
    assert len(scales) > 20
    assert all(len(found) == 1 for found in scales.values())


def test_only_the_quantised_layer_moves_the_logits(graph: Graph) -> None:
    made = quantize(graph, [pictures()], PREPROCESSING, QuantizeOptions(bias_correction=False))
    simulation, x = Simulation(made), pictures(4)
    exact = run_graph(graph, x)
    assert torch.allclose(simulation.run(x, only=()), exact, atol=1e-5)
    errors = sensitivity(made, [x])
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert {"conv1", "layer3.2.conv2", "fc"} <= errors.keys()
    assert min(errors.values()) > 0


def test_the_worst_layers_stay_in_float(graph: Graph) -> None:
    every = quantize(graph, [pictures()], PREPROCESSING, QuantizeOptions(bias_correction=False))
    options = QuantizeOptions(bias_correction=False, keep_worst=2, float_layers=("layer2.0.conv1",))
    mixed = quantize(graph, [pictures()], PREPROCESSING, options)
    ranked = [name for name in sensitivity(every, [pictures()]) if name != "layer2.0.conv1"]
    assert set(mixed.float_layers) == {"layer2.0.conv1", *ranked[:2]}
    assert not any(n.output in mixed.real_nodes and mixed.is_weighted(n) for n in mixed.graph.nodes)


def test_a_layer_that_does_not_exist(graph: Graph) -> None:
    options = QuantizeOptions(float_layers=("layer3.2.conv",))
    with pytest.raises(OptionError, match=r"layer3\.2\.conv1"):
        quantize(graph, [pictures()], PREPROCESSING, options)
    with pytest.raises(OptionError, match="between integer ones"):
        quantize(graph, [pictures()], PREPROCESSING, QuantizeOptions(keep_worst=1), SYMMETRIC)


@pytest.mark.parametrize(
    "exporter", [tflite_exporter.EXPORTER, onnx_exporter.EXPORTER], ids=["tflite", "onnx"]
)
@pytest.mark.parametrize("layers", [("conv1", "layer3.1.conv1", "fc"), ("layer3.0.conv1", "layer3.0.conv2")])
def test_a_mixed_file_computes_what_the_simulation_computes(
    exporter: Exporter, layers: tuple[str, ...], network: nn.Module, tmp_path: Path
) -> None:
    plain = exporter.legalise(unroll(network, (1, *SHAPE)))
    made = quantize(plain, [pictures()], PREPROCESSING, QuantizeOptions(float_layers=layers))
    path = tmp_path / f"model{exporter.suffix}"
    written = exporter.write(WriteRequest(made.graph, made, 8, path, "mixed"))
    assert set(made.float_layers) == set(layers)
    x = pictures(4, 1)
    outputs = []
    for picture in torch.split(x, 1):
        values = written.input.encode(picture.numpy())
        if exporter.suffix == ".onnx":
            outputs.append(onnxruntime.InferenceSession(str(path)).run(None, {"image": values})[0])
            continue
        interpreter = Interpreter(str(path))
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
        interpreter.invoke()
        result = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        outputs.append(written.output.decode(result))
    expected = Simulation(made).run(x)
    real = run_graph(plain, x)
    # A value between two integers may be decided differently; a wrong scale would be far off.
    error = (torch.from_numpy(np.concatenate(outputs)) - expected).square().mean()
    assert error < 1.5 * (expected - real).square().mean()
    assert error < 0.1 * real.var()
