"""A small network of each cell × target: the parity gate, tied weights, the same integers everywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.nn import CELLS, CSRConv2d
from csr_deploy.runtimes import RuntimeOptions, open_runtime
from csr_deploy.runtimes.trt.build import BuildOptions
from csr_deploy.runtimes.trt.engines import build_engine_for, has_engine, identify
from csr_deploy.targets import TARGETS
from tests.cell_networks import Differences, TwoLayers
from tests.networks import settle
from tests.trt_models import rtx

PREPROCESSING = Preprocessing(28, 28, (0.3,), (0.35,))


@cache
def network(cell: str) -> Network:
    torch.manual_seed(0)
    model = settle(TwoLayers(cell), (1, 1, 28, 28))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".alpha", ".beta", ".eta")):
                parameter.mul_(0.7).add_(0.1)
    return Network(cell, model, tuple(str(i) for i in range(10)), PREPROCESSING)


@cache
def pictures() -> ExportData:
    train, test = open_dataset("fashion-mnist", "train"), open_dataset("fashion-mnist", "test")
    return ExportData(sample(train, PREPROCESSING, 64, 0), sample(test, PREPROCESSING, 40, 0), labels=None)


# Untrained logits lie close together: what int8 must keep here is the error below, not the ranking.
OPTIONS = ExportOptions(agreement=0.0)


@pytest.mark.parametrize("target_name", TARGETS)
@pytest.mark.parametrize("cell", CELLS)
def test_parity(cell: str, target_name: str, tmp_path: Path) -> None:
    target = TARGETS[target_name]
    made = export(network(cell), target, pictures(), tmp_path / "a", OPTIONS)
    limit = target.tolerance.relative_error or 0.08
    assert made.parity["relative_error"] <= limit
    kernels = sum(p.numel() for p in network(cell).model.parameters() if p.ndim > 1)
    assert made.ledger["weight_elements"] <= 1.5 * kernels


@pytest.mark.parametrize("cell", CELLS)
def test_integer_runtimes_agree_and_weights_are_stored_once(cell: str, tmp_path: Path) -> None:
    options = ExportOptions(agreement=0.0, lowering="stepwise")
    images = pictures().parity.images
    flatbuffer = export(network(cell), TARGETS["tflite-int8"], pictures(), tmp_path / "a", options)
    model, ledger = network(cell).model, flatbuffer.ledger
    assert ledger["weight_elements"] <= sum(p.numel() for p in model.parameters() if p.ndim > 1)
    for name in ("first", "second"):
        assert isinstance(model.get_submodule(name), CSRConv2d)
        assert ledger["shared"][f"{name}.cell.v"] == 3
    with open_runtime("litert", flatbuffer, RuntimeOptions(kernels="reference")) as reference:
        expected = reference.logits(images)
    with open_runtime("tflm", flatbuffer) as micro:
        assert np.array_equal(micro.logits(images), expected)
    compiled = export(network(cell), TARGETS["mcu"], pictures(), tmp_path / "c", options)
    with open_runtime("mcu", compiled) as runtime:
        assert np.array_equal(runtime.logits(images), expected)


@pytest.mark.full
@pytest.mark.parametrize("cell", CELLS)
def test_a_trained_network_passes_the_usual_gate(
    cell: str, fashion_mnist_path: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    train, test = open_dataset(fashion_mnist_path, "train"), open_dataset(fashion_mnist_path, "test")
    chosen = sample(train, PREPROCESSING, 12_800, 0)
    x = torch.from_numpy(PREPROCESSING.normalize(chosen.images))
    y = torch.from_numpy(chosen.labels)
    torch.manual_seed(0)
    model = TwoLayers(cell).train()
    steps = 400
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        batch = torch.arange(64) + 64 * (step % 200)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    trained = Network(cell, model.eval(), network(cell).labels, PREPROCESSING)
    calibration, images = sample(train, PREPROCESSING, 800, 1), sample(test, PREPROCESSING, 1000, 0)
    data = ExportData(calibration, images, images.labels)
    for target_name in ("onnx", "onnx-int8", "tflite-int8", "tensorrt-int8"):
        made = export(trained, TARGETS[target_name], data, tmp_path / target_name, ExportOptions())
        for figure in ("float_top1", "exported_top1", "top1_agreement"):
            record_property(f"{target_name} {figure}", made.parity[figure])
        assert made.parity["float_top1"] > 0.6
        assert made.parity["exported_top1"] >= made.parity["float_top1"] - 0.02


@pytest.mark.full
@pytest.mark.parametrize("target_name", [t.name for t in TARGETS.values() if has_engine(t)])
@pytest.mark.parametrize("cell", CELLS)
def test_tensorrt_builds(cell: str, target_name: str, tmp_path: Path) -> None:
    library = rtx()
    made = export(network(cell), TARGETS[target_name], pictures(), tmp_path / "a", OPTIONS)
    report = build_engine_for(made, library, identify(made, library, BuildOptions(), ["8.6"]))
    assert report is not None


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("lowering", ["time-major", "wide"])
def test_other_lowerings(cell: str, lowering: str, tmp_path: Path) -> None:
    options = ExportOptions(agreement=0.0, lowering=lowering, batch=2)
    for target_name in ("onnx", "tflite-int8"):
        made = export(network(cell), TARGETS[target_name], pictures(), tmp_path / target_name, options)
        assert made.parity["relative_error"] <= 0.08


@pytest.mark.parametrize(
    "target_name", ["onnx-int8", "tflite-int8", "tflm", "mcu", "native", "tensorrt-int8"]
)
def test_subtractions_and_gates_that_broadcast(target_name: str, tmp_path: Path) -> None:
    model = settle(Differences(), (1, 3, 28, 28))
    three = Preprocessing(28, 28, (0.3,) * 3, (0.35,) * 3)
    train, test = open_dataset("fashion-mnist", "train"), open_dataset("fashion-mnist", "test")
    data = ExportData(sample(train, three, 64, 0), sample(test, three, 40, 0), labels=None)
    made = export(
        Network("differences", model, tuple("abcd"), three),
        TARGETS[target_name],
        data,
        tmp_path / "a",
        OPTIONS,
    )
    assert made.parity["relative_error"] <= 0.03
