"""The mcu runtime on this machine and on boards in QEMU, with a model written here."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact, FileRecord
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import ArtifactError, BenchError, OptionError, RuntimeUnavailableError
from csr_deploy.runtimes import RuntimeOptions, open_runtime
from csr_deploy.runtimes.mcu import measure, session
from csr_deploy.runtimes.mcu.build import CompileOptions, build_firmware, find_sources
from csr_deploy.runtimes.mcu.devices import BOARD_FILES, BOARDS
from csr_deploy.runtimes.mcu.session import QemuSession
from csr_deploy.types import Quantization, TensorSpec

INPUTS, OUTPUTS = 8, 4
TIMEOUT = 60.0
WEIGHTS = np.arange(OUTPUTS * INPUTS).reshape(OUTPUTS, INPUTS) % 7 - 3

HEADER = """
#ifndef MODEL_H
#define MODEL_H
#include <stddef.h>
#include <stdint.h>
#define MODEL_NAME "tiny"
#ifndef WIDTH
#define WIDTH 1
#endif
#define MODEL_INPUT_BYTES (8u * WIDTH)
#define MODEL_OUTPUT_BYTES 4u
#define MODEL_ARENA_BYTES (MODEL_INPUT_BYTES + 16u)
enum { MODEL_OK = 0, MODEL_ERROR_NULL = 1, MODEL_ERROR_ALIGNMENT = 2, MODEL_ERROR_ARENA = 3 };
typedef struct { unsigned char *arena; size_t arena_bytes; } model_t;
int model_init(model_t *model, void *arena, size_t arena_bytes);
int8_t *model_input(const model_t *model);
const int8_t *model_output(const model_t *model);
int model_run(model_t *model);
#endif
"""
# RUN is what a test lets it do besides.
SOURCE = """
#include "model.h"
#include <string.h>
#ifndef RUN
#define RUN(model)
#endif
#ifndef GLOBALS
#define GLOBALS
#endif
GLOBALS
static const int8_t weights[4][8] = {@WEIGHTS@};

int model_init(model_t *model, void *arena, size_t arena_bytes)
{
    if (model == NULL || arena == NULL) {
        return MODEL_ERROR_NULL;
    }
    if ((uintptr_t)arena % 16u != 0) {
        return MODEL_ERROR_ALIGNMENT;
    }
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
    int8_t *const input = (int8_t *)model->arena;
    int8_t *const output = input + MODEL_INPUT_BYTES;
    RUN(model)
    for (int o = 0; o != 4; ++o) {
        int32_t sum = 0;
        for (unsigned i = 0; i != MODEL_INPUT_BYTES; ++i) {
            sum += weights[o][i % 8u] * input[i];
        }
        output[o] = (int8_t)(sum >> 8);
    }
    memset(input, 0x55, model->arena_bytes - 16u);
    return MODEL_OK;
}
""".replace("@WEIGHTS@", ", ".join("{" + ", ".join(map(str, row)) + "}" for row in WEIGHTS.tolist()))

KNOWN_LOOP = (
    "RUN(model)=uint32_t n = ROUNDS; "
    '__asm volatile(".p2align 2\\n1: subs %0, %0, #1\\n bne 1b" : "+l"(n) : : "cc");'
)


def reference(inputs: NDArray[np.int8]) -> NDArray[np.int8]:
    weights = np.tile(WEIGHTS, (1, inputs.shape[1] // INPUTS))
    return ((inputs.astype(np.int32) @ weights.T) >> 8).astype(np.int8)


def random_inputs(count: int, width: int = 1) -> NDArray[np.int8]:
    return np.random.default_rng(0).integers(-128, 128, (count, INPUTS * width)).astype(np.int8)


def demand(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, which is not installed")


@pytest.fixture
def boards() -> None:
    demand("arm-none-eabi-gcc", "qemu-system-arm")


@pytest.fixture
def host() -> None:
    demand("cc")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-mcu")
    (folder / "src").mkdir()
    (folder / "src" / "model.h").write_text(HEADER)
    (folder / "src" / "model.c").write_text(SOURCE)
    return folder


@pytest.fixture
def artifact(model: Path) -> Artifact:
    quantization = Quantization(1.0, 0)
    return Artifact(
        model,
        "tiny",
        "mcu",
        tuple(FileRecord(f"src/model.{suffix}", 1, "0") for suffix in ("c", "h")),
        TensorSpec("input", (1, 2, 4, 1), "int8", "NHWC", quantization),
        TensorSpec("output", (1, OUTPUTS), "int8", "NC", quantization),
        Preprocessing(2, 4, (0.0,), (1.0,)),
        (),
    )


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test may leave a process or a temporary file."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield
    assert list(temporary.iterdir()) == []
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if children.exists():
        names = [Path(f"/proc/{pid}/comm").read_text() for pid in children.read_text().split()]
        assert not [name for name in names if name.startswith("qemu")]


def test_on_this_machine(host: None, model: Path) -> None:
    inputs = random_inputs(20)
    result = measure(model, "host", inputs)
    np.testing.assert_array_equal(result.outputs, reference(inputs))
    assert result.arena_bytes == INPUTS + 16
    assert (result.instructions, result.stack_bytes, dict(result.flash)) == (None, None, {})
    assert result.flags == ("-O2", "-std=c99")


@pytest.mark.parametrize("processor", BOARDS)
def test_on_a_board(boards: None, model: Path, processor: str) -> None:
    inputs = random_inputs(5)
    result = measure(model, f"qemu:{processor}", inputs)
    np.testing.assert_array_equal(result.outputs, reference(inputs))
    assert result.arena_bytes == INPUTS + 16
    assert result.instructions is not None
    # 32 products, and a counter that counts 40 at once.
    assert all(40 <= count <= 1000 for count in result.instructions)
    assert result.stack_bytes is not None and 0 < result.stack_bytes < 200
    assert result.calibration is not None
    instructions, counted = result.calibration
    assert abs(counted - instructions) <= 2 * BOARDS[processor].instructions_per_tick
    flash = result.flash
    assert flash["model"]["constants"] == WEIGHTS.size
    assert 100 < flash["model"]["code"] < 600
    # memset of newlib, which the firmware itself does without.
    assert flash["libraries"]["code"] > 0
    parts = [flash[group] for group in ("model", "libraries", "firmware", "padding")]
    assert sum(p["code"] for p in parts) == flash["sections"][".text"]
    assert sum(p["zeroed"] for p in parts) == flash["sections"][".bss"]
    assert f"-mcpu={processor}" in result.flags


@pytest.mark.parametrize("processor", ["cortex-m4", "cortex-m55"])
def test_instructions_are_counted_exactly(boards: None, model: Path, processor: str) -> None:
    counts = []
    for rounds in (100_000, 1_100_000):
        result = measure(
            model, f"qemu:{processor}", random_inputs(2), defines=[f"ROUNDS={rounds}", KNOWN_LOOP]
        )
        assert result.instructions is not None
        counts.append(result.instructions[0])
    assert abs(counts[1] - counts[0] - 2_000_000) <= 2 * BOARDS[processor].instructions_per_tick


def test_the_counter_goes_round(boards: None, model: Path, tmp_path: Path) -> None:
    board = BOARDS["cortex-m4"]
    sources = find_sources(model, defines=["ROUNDS=1000000", KNOWN_LOOP])
    built = build_firmware(sources, board, tmp_path, firmware_defines=["CSR_TURN_BITS=14"])
    running = QemuSession(built.file, board, TIMEOUT)
    try:
        count = running.infer(random_inputs(1).tobytes()).instructions
    finally:
        running.close()
    # Every 16,384 ticks an interrupt of a few instructions comes in between: three of them.
    assert count is not None
    assert 2_000_000 <= count <= 2_001_000


def test_an_interrupt_is_not_counted_as_stack(boards: None, model: Path, tmp_path: Path) -> None:
    board = BOARDS["cortex-m4"]
    sources = find_sources(model, defines=["ROUNDS=100000", KNOWN_LOOP])
    built = build_firmware(sources, board, tmp_path, firmware_defines=["CSR_TURN_BITS=13"])
    running = QemuSession(built.file, board, TIMEOUT)
    try:
        depths = [running.infer(random_inputs(1).tobytes()).stack_bytes for _ in range(6)]
    finally:
        running.close()
    result = measure(model, "qemu:m4", random_inputs(1), defines=["ROUNDS=100000", KNOWN_LOOP])
    assert depths[0] != depths[-1] == result.stack_bytes


def test_a_count_that_is_off_is_refused(boards: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without -icount the counter follows the clock on the wall.
    options = tuple(o for o in session._QEMU_OPTIONS if o not in ("-icount", "shift=0"))
    monkeypatch.setattr(session, "_QEMU_OPTIONS", options)
    with pytest.raises(BenchError, match="mps2-an386: the count of instructions is off: a loop of 200,000"):
        measure(model, "qemu:m4", random_inputs(1))


def test_many_large_inputs(boards: None, model: Path) -> None:
    inputs = random_inputs(50, 384)
    result = measure(model, "qemu:m7", inputs, defines=["WIDTH=384"])
    np.testing.assert_array_equal(result.outputs, reference(inputs))


def test_the_stack_is_measured(boards: None, model: Path) -> None:
    depths = []
    for size in (1000, 3000):
        run = f"RUN(model)=volatile char used[{size}]; for (int i = 0; i != {size}; ++i) used[i] = 1;"
        result = measure(model, "qemu:m3", random_inputs(1), defines=[run])
        assert result.stack_bytes is not None
        depths.append(result.stack_bytes)
    assert depths[1] - depths[0] == 2000
    assert 1000 <= depths[0] <= 1200


def test_helium(boards: None, model: Path) -> None:
    run = (
        "RUN(model)=int8x16_t v = vldrbq_z_s8(input, vctp8q(8)); vstrbq_p_s8(input, vnegq_s8(v), vctp8q(8));"
    )
    inputs = random_inputs(3).clip(-127)
    result = measure(model, "qemu:m55", inputs, defines=[run], flags=["-include", "arm_mve.h"])
    np.testing.assert_array_equal(result.outputs, reference(-inputs))


USE_70_KB = "volatile char used[70000]; for (int i = 70000; i-- != 0;) used[i] = 1;"


@pytest.mark.parametrize(
    ("device", "run", "message"),
    [
        ("host", "model->arena[MODEL_ARENA_BYTES] = 1;", "wrote outside its arena"),
        ("host", "return 7;", r"model_run returned 7 \(not a code of model.h\)"),
        ("qemu:m4", "model->arena[-1] = 1;", "wrote outside its arena"),
        ("qemu:m4", "return MODEL_ERROR_ARENA;", "model_run returned 3"),
        ("qemu:m4", "*(volatile int *)0xF0000000 = 1;", "fault, CFSR 000[0-9a-f]{5}"),
        ("qemu:m4", USE_70_KB, "the model used the whole stack"),
        ("qemu:m55", USE_70_KB, "the model used the whole stack"),
    ],
)
def test_models_that_misbehave(
    request: pytest.FixtureRequest, model: Path, device: str, run: str, message: str
) -> None:
    request.getfixturevalue("host" if device == "host" else "boards")
    with pytest.raises(RuntimeUnavailableError, match=message):
        measure(model, device, random_inputs(1), defines=[f"RUN(model)={run}"], opt="-O1")


def test_a_model_that_hangs_is_ended(boards: None, model: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="no answer to 'infer 1 0' within 2 s"):
        measure(model, "qemu:m4", random_inputs(1), defines=["RUN(model)=for (;;) {}"], timeout=2)


def test_a_model_that_does_not_fit(boards: None, model: Path) -> None:
    large = "GLOBALS=const char large[5000000] = {1};"
    with pytest.raises(
        RuntimeUnavailableError, match=r"mps2-an386\): the model does not fit: \S+ bytes too many"
    ):
        measure(
            model,
            "qemu:m4",
            random_inputs(1),
            defines=[large, "RUN(model)=output[0] = ((volatile const char *)large)[input[0]];"],
        )


def test_sources_that_do_not_compile(host: None, model: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="could not compile model.c:\n.*error"):
        measure(model, "host", random_inputs(1), defines=["RUN(model)=this is not C;"])


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("host", "apt-get install gcc"),
        ("qemu:m4", "needs arm-none-eabi-gcc, which is not installed\n.*install gcc-arm-none-eabi"),
    ],
)
def test_a_compiler_that_is_missing(
    model: Path, monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeUnavailableError, match=message):
        measure(model, device, random_inputs(1))


def test_qemu_that_is_missing(boards: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if "qemu" in name else find(name))
    with pytest.raises(RuntimeUnavailableError, match="apt-get install qemu-system-arm"):
        measure(model, "qemu:m4", random_inputs(1))


def test_input_of_the_wrong_size(host: None, model: Path) -> None:
    with pytest.raises(OptionError, match="a row of the inputs has 16 bytes, the input of the model 8"):
        measure(model, "host", random_inputs(1, 2))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no model.h"):
        measure(tmp_path / "temporary", "host", random_inputs(1))


def test_the_firmware_compiles_without_a_warning(boards: None, model: Path, tmp_path: Path) -> None:
    warnings = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-std=c99", "-Os")
    for board in BOARDS.values():
        for file in BOARD_FILES.rglob("*.c"):
            if file.parent.name == "host":
                continue
            includes = (
                f"-I{BOARD_FILES / 'firmware'}",
                f"-I{BOARD_FILES / 'cortex_m'}",
                f"-I{model / 'src'}",
            )
            command = ["arm-none-eabi-gcc", *board.flags, *warnings, *includes, "-fsyntax-only", str(file)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr


def test_the_project_for_a_nucleo_board(model: Path, tmp_path: Path) -> None:
    demand("arm-none-eabi-gcc", "make")
    makefile = BOARD_FILES / "nucleo_f446re" / "Makefile"
    command = ["make", "-s", "-f", str(makefile), f"MODEL={model}", f"BUILD={tmp_path / 'out'}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    image = (tmp_path / "out" / "firmware.bin").read_bytes()
    stack_top, reset = (int.from_bytes(image[i : i + 4], "little") for i in (0, 4))
    assert 0x20000000 < stack_top <= 0x20020000
    assert 0x08000000 < reset < 0x08000000 + len(image) and reset % 2 == 1
    assert f"m-identity-[{find_sources(model).identity}]".encode() in image


# --- the runtime ---


@pytest.mark.parametrize("device", ["host", "qemu:m7"])
def test_the_runtime(request: pytest.FixtureRequest, artifact: Artifact, device: str) -> None:
    request.getfixturevalue("host" if device == "host" else "boards")
    inputs = random_inputs(3).reshape(3, 1, 2, 4, 1)
    with open_runtime("mcu", artifact, RuntimeOptions(device=device)) as runtime:
        outputs = np.concatenate([runtime.run(i).output for i in inputs])
        settings = dict(runtime.settings)
        assert runtime.arena == INPUTS + 16
    np.testing.assert_array_equal(outputs, reference(inputs.reshape(3, -1)))
    if device == "host":
        assert settings["timed"] and settings["device"] == "host" and "instructions" not in settings
    else:
        assert (settings["timed"], settings["device"]) == (False, "qemu:cortex-m7")
        assert settings["board"] == "mps2-an500"
        assert 40 <= settings["instructions"] <= 1000 and settings["stack_bytes"] > 0
        assert settings["flash"]["model"]["constants"] == WEIGHTS.size


def test_the_runtime_opens_again(host: None, artifact: Artifact) -> None:
    runtime = open_runtime("mcu", artifact)
    for _ in range(2):
        with runtime:
            runtime.run(random_inputs(1).reshape(1, 2, 4, 1))


def test_the_runtime_compiles_only_what_the_manifest_lists(host: None, artifact: Artifact) -> None:
    stray = artifact.path / "src" / "stray.c"
    stray.write_text("#error stray\n")
    try:
        with open_runtime("mcu", artifact) as runtime:
            runtime.run(random_inputs(1).reshape(1, 2, 4, 1))
    finally:
        stray.unlink()


def test_a_record_that_does_not_fit_the_code(host: None, artifact: Artifact) -> None:
    wrong = dataclasses.replace(artifact, output=dataclasses.replace(artifact.output, shape=(1, 5)))
    with pytest.raises(ArtifactError, match="'output' has 4 bytes in the compiled model and 5 in the record"):
        open_runtime("mcu", wrong).__enter__()


def test_the_device_is_for_this_runtime_only(artifact: Artifact) -> None:
    onnx = dataclasses.replace(artifact, files=(FileRecord("model.onnx", 1, "0"),))
    with pytest.raises(OptionError, match="no choice of a device\n.*The mcu runtime has it"):
        open_runtime("ort", onnx, RuntimeOptions(device="host"))
    with pytest.raises(OptionError, match="unknown device 'qemu:m0'"):
        open_runtime("mcu", artifact, RuntimeOptions(device="qemu:m0"))


# --- over a serial port: a pseudo-terminal with the emulated board behind it ---


@pytest.fixture
def wired(boards: None, tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    pytest.importorskip("serial", reason="needs pyserial for a serial port")
    board = BOARDS["cortex-m4"]
    ends: list[Callable[[], None]] = []

    def wire(folder: Path) -> str:
        built = build_firmware(find_sources(folder), board, tmp_path, CompileOptions())
        command = [
            "qemu-system-arm", "-M", board.machine, *session._QEMU_OPTIONS, *session._SEMIHOSTING,
            "-kernel", str(built.file),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin is not None and process.stdout is not None
        ours, theirs = os.openpty()
        tty.setraw(theirs)

        def carry(source: int, sink: int) -> None:
            try:
                while data := os.read(source, 4096):
                    os.write(sink, data)
            except OSError:
                return

        threads = [
            threading.Thread(target=carry, args=pair)
            for pair in ((ours, process.stdin.fileno()), (process.stdout.fileno(), ours))
        ]
        for thread in threads:
            thread.start()

        def end() -> None:
            process.kill()
            process.wait()
            os.close(theirs)
            for thread in threads:
                thread.join()
            os.close(ours)
            process.stdin.close()
            process.stdout.close()

        ends.append(end)
        return f"serial:{os.ttyname(theirs)}"

    yield wire
    for end in ends:
        end()


def test_a_board_on_a_serial_port(wired: Callable[[Path], str], artifact: Artifact, model: Path) -> None:
    device = wired(model)
    inputs = random_inputs(4).reshape(4, 1, 2, 4, 1)
    with open_runtime("mcu", artifact, RuntimeOptions(device=device)) as runtime:
        outputs = np.concatenate([runtime.run(i).output for i in inputs])
        assert runtime.arena == INPUTS + 16
        assert runtime.settings["timed"] and runtime.settings["stack_bytes"] > 0
    np.testing.assert_array_equal(outputs, reference(inputs.reshape(4, -1)))
    # The board keeps running, as a real one does.
    result = measure(model, device, inputs)
    np.testing.assert_array_equal(result.outputs, reference(inputs.reshape(4, -1)))


def test_a_board_with_another_model(
    wired: Callable[[Path], str], artifact: Artifact, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    text = (other / "src" / "model.c").read_text()
    (other / "src" / "model.c").write_text(re.sub("sum >> 8", "sum >> 7", text))
    with pytest.raises(ArtifactError, match="the board runs the model 'tiny' of other sources"):
        open_runtime("mcu", artifact, RuntimeOptions(device=wired(other))).__enter__()


def test_a_port_that_is_not_there(artifact: Artifact) -> None:
    pytest.importorskip("serial", reason="needs pyserial for a serial port")
    with pytest.raises(RuntimeUnavailableError, match="/dev/nowhere: cannot be opened.*\n.*dialout"):
        open_runtime("mcu", artifact, RuntimeOptions(device="serial:/dev/nowhere")).__enter__()
