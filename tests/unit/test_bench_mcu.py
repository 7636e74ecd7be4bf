"""Real worker processes on a small model in C: on this machine and on boards in QEMU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from csr_deploy.artifact import GOLDEN, Artifact, Golden, record_file, write_golden, write_manifest
from csr_deploy.bench.measure import WorkerProcess, run_plan
from csr_deploy.bench.plan import QUICK, BenchOptions, make_plan
from csr_deploy.bench.report import markdown, rows
from csr_deploy.bench.results import BenchResult
from csr_deploy.data import Preprocessing
from csr_deploy.errors import BenchError, OptionError, ParityError
from csr_deploy.types import Quantization, TensorSpec
from tests.onnx_artifact import CLASSES, SIDE, make_artifact, pictures

PIXELS = SIDE * SIDE
# Int8 pixels are 128 below those of the picture, the logits are means of a colour.
PREPROCESSING = Preprocessing(SIDE, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
INPUT = TensorSpec("image", (1, SIDE, SIDE, 3), "int8", "NHWC", Quantization(1 / 255, -128))
OUTPUT = TensorSpec("logits", (1, 3), "int8", "NC", Quantization(1 / 255, -128))
FAST = replace(QUICK, images=9, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)
ON_M4 = replace(FAST, device="qemu:cortex-m4")

HEADER = """
#include <stddef.h>
#include <stdint.h>
#define MODEL_NAME "colours"
#define MODEL_INPUT_BYTES 768u
#define MODEL_OUTPUT_BYTES 3u
#define MODEL_ARENA_BYTES 784u
enum { MODEL_OK = 0, MODEL_ERROR_NULL = 1, MODEL_ERROR_ALIGNMENT = 2, MODEL_ERROR_ARENA = 3 };
typedef struct { unsigned char *arena; size_t arena_bytes; } model_t;
int model_init(model_t *model, void *arena, size_t arena_bytes);
int8_t *model_input(const model_t *model);
const int8_t *model_output(const model_t *model);
int model_run(model_t *model);
"""
# A table of TABLE bytes is read through and through, ROUNDS times, and adds nothing.
SOURCE = """
#include "model.h"

static const int8_t table[@TABLE@] = {0};

int model_init(model_t *model, void *arena, size_t arena_bytes)
{
    model->arena = arena;
    model->arena_bytes = arena_bytes;
    return arena_bytes < MODEL_ARENA_BYTES ? MODEL_ERROR_ARENA : MODEL_OK;
}

int8_t *model_input(const model_t *model)
{
    return (int8_t *)model->arena;
}

const int8_t *model_output(const model_t *model)
{
    return (const int8_t *)model->arena + MODEL_INPUT_BYTES;
}

int model_run(model_t *model)
{
    const int8_t *const input = (const int8_t *)model->arena;
    for (unsigned colour = 0; colour != 3; ++colour) {
        int32_t sum = 0;
        for (unsigned i = 0; i != MODEL_INPUT_BYTES; i += 3) {
            sum += input[i + 2 - colour];
        }
        for (volatile unsigned round = 0; round != @ROUNDS@; ++round) {
            for (unsigned i = 0; i != sizeof table; ++i) {
                sum += *(const volatile int8_t *)&table[i];
            }
        }
        model->arena[MODEL_INPUT_BYTES + colour] = (unsigned char)(sum / 256@BIAS@);
    }
    return MODEL_OK;
}
"""


def reference(images: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The same in NumPy; C rounds towards zero."""
    sums = (images.astype(np.int64) - 128).reshape(len(images), -1, 3).sum(axis=1)[:, ::-1]
    means: NDArray[np.int8] = np.trunc(sums / PIXELS).astype(np.int8)
    return means


def make_mcu(path: Path, name: str, *, table: int = 64, rounds: int = 1, bias: str = "") -> Artifact:
    """Writes an artifact as the mcu target does."""
    (path / "src").mkdir(parents=True)
    source = SOURCE.replace("@TABLE@", str(table)).replace("@ROUNDS@", str(rounds)).replace("@BIAS@", bias)
    (path / "src" / "model.c").write_text(source)
    (path / "src" / "model.h").write_text(HEADER)
    images, labels = pictures(6, seed=1)
    outputs = reference(images)
    write_golden(path / GOLDEN, Golden(images, labels, OUTPUT.decode(outputs), outputs))
    artifact = Artifact(
        path,
        name,
        "mcu",
        tuple(record_file(path / file, path) for file in ("src/model.c", "src/model.h", GOLDEN)),
        INPUT,
        OUTPUT,
        PREPROCESSING,
        CLASSES,
        model={"parameters": table, "macs": 1000, "constant_bytes": table + 8, "table_bytes": 8},
    )
    write_manifest(artifact)
    return artifact


def silent(stage: str, subject: str, done: int, total: int) -> None:
    pass


def measure(*paths: Path, options: BenchOptions) -> BenchResult:
    return run_plan(make_plan(paths, options), silent).demand_complete()


def cells(result: BenchResult, name: str) -> tuple[str, ...]:
    return next(row.cells for row in rows(result) if row.name == name)


def demand(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, which is not installed")


@pytest.fixture(scope="module")
def host() -> None:
    demand("cc")


@pytest.fixture(scope="module")
def boards(host: None) -> None:
    demand("arm-none-eabi-gcc", "qemu-system-arm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mcu")
    make_mcu(root / "backbone", "backbone", table=4096, rounds=2)
    make_mcu(root / "csr", "csr", table=2048)
    return root


@pytest.fixture(scope="module")
def emulated(boards: None, folder: Path, image_folder: Path) -> BenchResult:
    options = replace(ON_M4, data=str(image_folder), limit=None)
    return measure(folder / "backbone", folder / "csr", options=options)


def test_what_a_microcontroller_is_asked(emulated: BenchResult) -> None:
    backbone, csr = (m.microcontroller for m in emulated.measurements)
    assert backbone is not None and csr is not None
    assert (csr.device, csr.board, csr.cycles) == ("qemu:cortex-m4", "mps2-an386", None)
    assert csr.instructions is not None and backbone.instructions is not None
    # Three colours, and at least a load, an addition, a comparison and a branch for each byte of the table.
    assert 3 * 2048 * 3 < csr.instructions < 3 * 2048 * 12
    assert 3.5 < backbone.instructions / csr.instructions < 4.5
    assert csr.instructions_per_mac == csr.instructions / 1000
    assert csr.stack_bytes is not None and 0 < csr.stack_bytes < 300
    assert csr.ram_bytes == 784 + csr.stack_bytes
    assert csr.flash_bytes is not None and 2048 < csr.flash_bytes < 3000
    assert csr.compiler and csr.flags and "-mcpu=cortex-m4" in csr.flags


def test_ratios_to_the_baseline(emulated: BenchResult) -> None:
    assert "(×0.2" in cells(emulated, "instructions of an inference")[1]
    assert "(×0.2" in cells(emulated, "instructions per MAC")[1]
    assert "(×0.5" in cells(emulated, "flash: constants and code")[1]
    assert cells(emulated, "constants in flash") == ("4.0 KiB", "2.0 KiB (×0.50)")
    assert cells(emulated, "stored weights") == ("4.0 KiB", "2.0 KiB (×0.50)")
    assert cells(emulated, "arena")[1] == "0.8 KiB (×1.00)"
    assert "(×" in cells(emulated, "stack, deepest")[1] and "(×" in cells(emulated, "RAM: arena and stack")[1]


def test_an_emulator_gives_no_time_and_no_memory(emulated: BenchResult) -> None:
    assert cells(emulated, "latency") == ("not measured (emulated)",) * 2
    assert cells(emulated, "runtime") == ("mcu on qemu:cortex-m4",) * 2
    assert all(m.latency is None and m.memory is None and m.energy is None for m in emulated.measurements)
    assert (emulated.telemetry, emulated.void) == (None, ())
    # Counted, so without an interval, and no latency.
    (comparison,) = emulated.comparisons
    assert (comparison.metric, comparison.low, comparison.confidence) == (
        "instructions",
        comparison.ratio,
        1.0,
    )
    assert 0.2 < comparison.ratio < 0.3
    text = markdown(emulated)
    assert " ms" not in text and "private memory" not in text and "busy" not in text
    assert "Cortex-M4 with FPU (mps2-an386)" in text and "they are no time" in text
    assert "Compiled by arm-none-eabi-gcc" in text


def test_accuracy_is_that_of_the_same_c_on_this_machine(emulated: BenchResult) -> None:
    for measurement in emulated.measurements:
        assert measurement.golden is not None and measurement.golden.exact
        assert measurement.accuracy is not None
        assert (measurement.accuracy.images, measurement.accuracy.top1) == (24, 1.0)
        assert measurement.accuracy.device == "host"
    assert any("by the same C on this machine" in note for note in emulated.notes)


def test_json_has_it_all(emulated: BenchResult) -> None:
    values = json.loads(json.dumps(emulated.to_json(), allow_nan=False))
    csr = values["measurements"][1]
    assert csr["microcontroller"]["instructions"] == csr["settings"]["instructions"]
    assert csr["settings"]["timed"] is False and csr["latency"] is None
    assert csr["settings"]["flash"]["model"]["constants"] == 2048
    assert csr["sizes"]["constant_bytes"] == 2056
    assert csr["sizes"]["file_bytes"] == len(SOURCE.replace("@TABLE@", "2048")) - len("@ROUNDS@@BIAS@") + 1
    assert values["options"]["device"] == "qemu:cortex-m4"
    assert "instructions" in values["timed_region"]["microcontroller"]


def test_the_device_can_classify_images_itself(boards: None, folder: Path, image_folder: Path) -> None:
    options = replace(
        FAST, device="qemu:m7", data=str(image_folder), limit=None, device_images=5, latency=False
    )
    result = measure(folder / "csr", options=options)
    (measurement,) = result.measurements
    assert measurement.accuracy is not None and measurement.accuracy.device == "qemu:cortex-m7"
    assert (measurement.accuracy.images, measurement.accuracy.top1) == (5, 1.0)
    assert measurement.microcontroller is not None and measurement.microcontroller.board == "mps2-an500"
    assert any("were classified by qemu:cortex-m7" in note for note in result.notes)


def test_accuracy_is_not_borrowed_where_outputs_differ(
    boards: None, tmp_path: Path, image_folder: Path
) -> None:
    # On a Cortex-M a count more: within what golden vectors allow, but not the same bytes.
    profile = "defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'"
    path = make_mcu(tmp_path / "a", "a", bias=f"\n#if {profile}\n + 1\n#endif\n").path
    options = replace(ON_M4, data=str(image_folder), limit=3)
    with pytest.raises(ParityError, match="not the same here and on qemu:cortex-m4") as caught:
        measure(path, options=options)
    assert "--device-images" in str(caught.value)
    (measurement,) = measure(path, options=replace(options, device_images=3)).measurements
    assert measurement.golden is not None and measurement.golden.max_difference == 1


def test_on_this_machine_it_is_timed_like_others(host: None, folder: Path, image_folder: Path) -> None:
    options = replace(FAST, data=str(image_folder), limit=6)
    result = measure(folder / "backbone", folder / "csr", options=options)
    for measurement in result.measurements:
        assert measurement.runtime == "mcu" and measurement.microcontroller is None
        assert measurement.latency is not None and measurement.memory is not None
        assert measurement.sizes.arena_bytes == 784
        assert measurement.accuracy is not None and measurement.accuracy.device == "host"
    assert cells(result, "constants in flash") == ("4.0 KiB", "2.0 KiB (×0.50)")
    assert cells(result, "arena") == ("0.8 KiB", "0.8 KiB (×1.00)")
    assert len(result.comparisons) == 1
    assert any("say nothing about one" in note for note in result.notes)


def test_beside_other_targets(host: None, folder: Path, tmp_path: Path) -> None:
    onnx = make_artifact(tmp_path / "a").path
    result = measure(onnx, folder / "csr", options=FAST)
    size, constants = cells(result, "model file (mcu: constants in flash)")
    assert size == f"{(onnx / 'model.onnx').stat().st_size / 1024:.1f} KiB" and "2.0 KiB" in constants
    with pytest.raises(OptionError, match="colours-onnx: the ort runtime has no choice of a device"):
        measure(onnx, folder / "csr", options=ON_M4)


def test_a_board_runs_one_model(folder: Path) -> None:
    with pytest.raises(OptionError, match="flashed with, 2 subjects were given"):
        make_plan([folder / "backbone", folder / "csr"], BenchOptions(device="serial:/dev/ttyACM0"))


def test_what_was_compared_with_a_file_says_nothing_of_float(emulated: BenchResult) -> None:
    parity = {"top1_agreement": 1.0, "images": 16, "threshold": {"equal_bytes": 1.0}}
    changed = tuple(replace(m, parity=parity) for m in emulated.measurements)
    names = [row.name for row in rows(replace(emulated, measurements=changed))]
    assert "same top-1 as float, at export" not in names


def emulators(worker: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(worker).children(recursive=True) if p.name().startswith("qemu")]


def start(worker: WorkerProcess, path: Path) -> psutil.Process:
    worker.ask(
        "start", "reading", path=str(path), kind="artifact", runtime=None, threads=1, kernels=None, batch=1,
        device="qemu:cortex-m4",
    )  # fmt: skip
    worker.ask("check", "checking")
    (emulator,) = emulators(worker.pid)
    return emulator


@pytest.mark.parametrize("end", ["normal", "error", "killed"])
def test_no_emulator_and_no_file_outlives_its_worker(
    boards: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = {"normal": None, "error": RuntimeError, "killed": BenchError}[end]
    if error is None:
        with WorkerProcess("a") as worker:
            emulator = start(worker, folder / "csr")
    else:
        with pytest.raises(error), WorkerProcess("a") as worker:
            emulator = start(worker, folder / "csr")
            if end == "error":
                raise RuntimeError("stop")
            os.kill(worker.pid, signal.SIGKILL)
            worker.ask("accuracy", "being killed")
    deadline = time.monotonic() + 30
    while emulator.is_running() and emulator.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not emulator.is_running() or emulator.status() == psutil.STATUS_ZOMBIE
    assert list(tmp_path.iterdir()) == []
