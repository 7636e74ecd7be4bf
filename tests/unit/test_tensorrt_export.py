"""The ONNX for TensorRT: strongly typed, symmetric, and in the patterns that its builder fuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper, shape_inference

from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.errors import ExportError, OptionError
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.targets import TARGETS
from tests.networks import NETWORKS

NAMES = ["odd", "resnet20-5x3"]


@pytest.fixture(scope="module", params=NAMES)
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, onnx.ModelProto]:
    build, (channels, height, width) = NETWORKS[request.param]
    preprocessing = Preprocessing(height, width, (0.3,) * channels, (0.35,) * channels)
    classes = {"odd": 5}.get(request.param, 10)
    network = Network(request.param, build(), tuple(str(i) for i in range(classes)), preprocessing)
    images = sample(open_dataset("fashion-mnist", "train"), preprocessing, 32, 0)
    data = ExportData(images, images, labels=None)
    out = tmp_path_factory.mktemp("tensorrt")
    made = {}
    for name in ("tensorrt-fp16", "tensorrt-int8"):
        artifact = export(network, TARGETS[name], data, out / name, ExportOptions(agreement=0.0))
        made[name] = onnx.load(artifact.model_file)
    return made


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return types | {i.name: i.data_type for i in graph.initializer}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def test_float16_is_a_type_of_the_graph(models: dict[str, onnx.ModelProto]) -> None:
    model = models["tensorrt-fp16"]
    types = element_types(model)
    for node in model.graph.node:
        wanted = (
            TensorProto.FLOAT if node.op_type in ("Softmax", "GlobalAveragePool") else TensorProto.FLOAT16
        )
        if node.op_type not in ("Cast", "Reshape", "Slice", "Pad"):
            assert {types[i] for i in node.input} == {wanted}, node.op_type
    assert types[model.graph.input[0].name] == types[model.graph.output[0].name] == TensorProto.FLOAT
    assert not any(c.dtype == np.float32 for c in constants(model).values())


def test_int8_is_symmetric_and_biases_are_real(models: dict[str, onnx.ModelProto]) -> None:
    model = models["tensorrt-int8"]
    values, types = constants(model), element_types(model)
    quantising = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantising
    for node in quantising:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    assert TensorProto.INT32 not in types.values()
    assert TensorProto.UINT8 not in types.values()


def test_kernels_read_integers_and_additions_take_an_accumulator(models: dict[str, onnx.ModelProto]) -> None:
    graph = models["tensorrt-int8"].graph
    producer = {n.output[0]: n for n in graph.node}
    users: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    biased = {i.name for i in graph.initializer}
    additions = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [producer[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2
        if node.op_type == "Add" and not biased.intersection(node.input):
            kinds = sorted(producer[i].op_type for i in node.input)
            if "Conv" in kinds:
                additions += 1
                assert kinds == ["Conv", "DequantizeLinear"]
                accumulator = next(i for i in node.input if producer[i].op_type == "Conv")
                assert users[accumulator] == ["Add"]
    assert additions


def test_scales_stand_in_tables(models: dict[str, onnx.ModelProto]) -> None:
    """Layers of one shape must not differ in scalars, which would be written into generated code."""
    model = models["tensorrt-int8"]
    values = constants(model)
    scalars = [
        float(values[n.input[1]])
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and not values[n.input[1]].shape
    ]
    assert scalars.count(1.0) > len(scalars) / 2


def test_a_tied_kernel_is_one_initializer(models: dict[str, onnx.ModelProto]) -> None:
    for model in models.values():
        names = [i.name for i in model.graph.initializer if i.name.endswith((".cell.u", ".cell.v"))]
        assert names
        assert len(names) == len(set(names))
        reads = [name for node in model.graph.node for name in node.input]
        assert all(reads.count(name) >= 1 for name in names)
        assert any(reads.count(name) > 1 for name in names)


def test_the_same_network_in_batches(tmp_path: Path) -> None:
    build, (channels, height, width) = NETWORKS["resnet20-5x3"]
    preprocessing = Preprocessing(height, width, (0.3,) * channels, (0.35,) * channels)
    network = Network("net", build(), tuple("0123456789"), preprocessing)
    images = sample(open_dataset("fashion-mnist", "train"), preprocessing, 32, 0)
    options = ExportOptions(agreement=0.0, batch=4)
    artifact = export(
        network, TARGETS["tensorrt-int8"], ExportData(images, images, labels=None), tmp_path / "a", options
    )
    assert artifact.input.shape == (4, channels, height, width)


@pytest.mark.parametrize("lowering", ["stepwise", "time-major"])
@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-int8", "onnx"])
def test_a_free_batch_size(tmp_path: Path, target: str, lowering: str) -> None:
    build, (channels, height, width) = NETWORKS["resnet20-5x3"]
    preprocessing = Preprocessing(height, width, (0.3,) * channels, (0.35,) * channels)
    network = Network("net", build(), tuple("0123456789"), preprocessing)
    images = sample(open_dataset("fashion-mnist", "train"), preprocessing, 32, 0)
    options = ExportOptions(agreement=0.0, batch=2, batch_profile=(1, 2, 5), lowering=lowering)
    artifact = export(
        network, TARGETS[target], ExportData(images, images, labels=None), tmp_path / "a", options
    )
    assert artifact.options["batch_profile"] == [1, 2, 5]
    session = onnxruntime.InferenceSession(str(artifact.model_file), providers=["CPUExecutionProvider"])
    x = artifact.preprocessing.normalize(images.images[:5])
    whole = session.run(None, {"image": x})[0]
    single = np.concatenate([session.run(None, {"image": x[i : i + 1]})[0] for i in range(5)])
    assert np.abs(whole - single).max() <= 1e-4 * np.ptp(whole)


def test_a_batch_that_is_mixed_is_refused(tmp_path: Path) -> None:
    class Mixing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, -1, 4, 4).mean((2, 3)).reshape(x.shape[0], -1)

    network = Network("mixing", Mixing(), ("a", "b", "c"), Preprocessing(4, 4, (0.3,) * 3, (0.35,) * 3))
    images = sample(open_dataset("fashion-mnist", "test"), network.preprocessing, 16, 0)
    options = ExportOptions(agreement=0.0, batch=2, batch_profile=(1, 2, 4))
    with pytest.raises(ExportError, match="does not grow with the batch"):
        export(
            network, TARGETS["tensorrt-fp32"], ExportData(None, images, labels=None), tmp_path / "a", options
        )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("profile", [(2, 1, 4), (1, 4, 2), (0, 1, 2), (1, 3, 4)])
def test_a_profile_that_makes_no_sense(profile: tuple[int, int, int]) -> None:
    with pytest.raises(OptionError, match="makes no sense"):
        ExportOptions(batch=1, batch_profile=profile)


def test_tflite_has_a_fixed_batch(tmp_path: Path) -> None:
    build, (channels, height, width) = NETWORKS["resnet20-5x3"]
    preprocessing = Preprocessing(height, width, (0.3,) * channels, (0.35,) * channels)
    network = Network("net", build(), tuple("0123456789"), preprocessing)
    images = sample(open_dataset("fashion-mnist", "train"), preprocessing, 16, 0)
    options = ExportOptions(agreement=0.0, batch_profile=(1, 1, 4))
    with pytest.raises(OptionError, match="fixed batch size"):
        export(
            network, TARGETS["tflite-fp32"], ExportData(images, images, labels=None), tmp_path / "a", options
        )
