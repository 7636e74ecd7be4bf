"""The shipped networks on Cortex-M in QEMU: their outputs are TFLite Micro's, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch to export")
pytest.importorskip("tflite_micro", reason="needs tflite-micro")

from csr_deploy.artifact import Artifact
from csr_deploy.data import open_dataset, sample
from csr_deploy.export import ExportOptions, Network, export, load_export_data
from csr_deploy.exporters.mcu.exporter import TfliteSource, export_tflite
from csr_deploy.runtimes import open_runtime
from csr_deploy.runtimes.mcu import measure
from csr_deploy.targets import TARGETS

MODELS = Path(__file__).parents[2] / "demos" / "models"
DEVICES = ("cortex-m4", "cortex-m7", "cortex-m55")
IMAGES = 200


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    for program in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def _compiled(name: str, data: str, folder: Path) -> tuple[Artifact, Artifact]:
    """The network as a flatbuffer and as C made from it."""
    network = Network.from_checkpoint(MODELS / f"{name}.pt")
    options = ExportOptions(parity_images=200, calibration_images=200)
    images = load_export_data(network, data, options, quantized=True)
    flatbuffer = export(network, TARGETS["tflite-int8"], images, folder / "flatbuffer", options)
    source = TfliteSource(flatbuffer.model_file, name, network.labels, network.preprocessing)
    return flatbuffer, export_tflite(source, folder / "c")


def _check(name: str, data: str, devices: tuple[str, ...], count: int, folder: Path) -> None:
    flatbuffer, compiled = _compiled(name, data, folder)
    images = sample(open_dataset(data, "test"), flatbuffer.preprocessing, count, 1).images
    with open_runtime("tflm", flatbuffer) as micro:
        expected = micro.logits(images)
    inputs = compiled.encode(images)
    for device in devices:
        found = measure(compiled, f"qemu:{device}", inputs)
        assert np.array_equal(found.outputs.reshape(expected.shape), expected), f"{name} on {device}"
        assert found.arena_bytes == compiled.model["arena_bytes"]


def test_a_shipped_network_on_every_board(tmp_path: Path) -> None:
    _check("fashion-resnet20-csr", "fashion-mnist", (*DEVICES, "cortex-m3"), 2, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["fashion-resnet20", "fashion-resnet20-csr"])
def test_200_images_of_fashion_mnist(name: str, device: str, tmp_path: Path) -> None:
    _check(name, "fashion-mnist", (device,), IMAGES, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["resnet56", "resnet56-csr2"])
def test_200_images_of_cifar10(name: str, device: str, cifar10_path: Path, tmp_path: Path) -> None:
    _check(name, str(cifar10_path), (device,), IMAGES, tmp_path)
