"""A network of gates and element-wise operations on Cortex-M in QEMU: its outputs are TFLite Micro's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite_micro", reason="needs tflite-micro")

from csr_deploy.artifact import Artifact
from csr_deploy.exporters.mcu.exporter import TfliteSource, export_tflite
from csr_deploy.runtimes.mcu import measure
from csr_deploy.runtimes.mcu.devices import BOARDS
from tests.mcu_gates import SHAPE, gated_network
from tests.mcu_tflite import run_tflm

KERNELS = {"csr_add", "csr_depthwise", "csr_min_max", "csr_mul", "csr_prelu", "csr_sub", "csr_table"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("gates")
    (folder / "gates.tflite").write_bytes(gated_network())
    return export_tflite(TfliteSource(folder / "gates.tflite", "gates"), folder / "c")


def test_it_brings_the_kernels_it_needs_and_no_others(compiled: Artifact) -> None:
    sources = {Path(f.name).stem for f in compiled.files if f.name.startswith("src/csr_")}
    assert sources >= KERNELS
    assert not sources & {"csr_softmax", "csr_pool", "csr_cell", "csr_fused_cell", "csr_convert"}


@pytest.mark.parametrize("processor", list(BOARDS))
def test_a_network_of_gates_on_every_board(compiled: Artifact, processor: str) -> None:
    for program in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    inputs = np.random.default_rng(1).integers(-128, 128, (6, *SHAPE)).astype(np.int8)
    expected = np.array(run_tflm(gated_network(), *inputs)).reshape(len(inputs), -1)
    assert len(np.unique(expected)) > 50
    found = measure(compiled, f"qemu:{processor}", inputs.reshape(len(inputs), -1))
    np.testing.assert_array_equal(found.outputs, expected)
