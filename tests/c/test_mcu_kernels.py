"""The C kernels against plain references, and their instructions on boards in QEMU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from csr_deploy.runtimes.mcu.devices import BOARD_FILES, BOARDS, Board

KERNELS = BOARD_FILES.parent / "c"
NAMES = (
    "add", "affine", "conv2d", "conv_core", "depthwise", "min_max", "mul", "prelu", "sub", "table",
)  # fmt: skip
SOURCES = tuple(KERNELS / f"csr_{name}.c" for name in NAMES)
PROGRAM = Path(__file__).with_name("mcu_kernels.c")
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror")
TIMEOUT = 120.0

HOST = """
#include "board.h"
#include <stdio.h>
#include <stdlib.h>
void board_init(void) {}
void board_write(const char *bytes, size_t size) { fwrite(bytes, 1, size, stdout); }
void board_exit(int status) { exit(status); }
"""

# Memories that end where nothing is: of what the kernels write, and of what they only read.
REGIONS = {
    "cortex-m3": "{0x21000000, 0x22000000}, {0x20600000, 0x20800000}",
    "cortex-m4": "{0x21000000, 0x22000000}, {0x20600000, 0x20800000}",
    "cortex-m7": "{0x60000000, 0x61000000}, {0x20600000, 0x20800000}",
    "cortex-m55": "{0x21200000, 0x21400000}, {0x20000000, 0x20080000}",
}

# Instructions a multiplication (or a value, of the element-wise kernels) that may not be exceeded.
MOST = {
    "cortex-m4": {
        "conv3x3-16-16": 1.2, "conv3x3-8-8": 1.85, "conv3x3-64-64": 0.9, "conv1x1-64-64": 1.4,
        "depthwise3x3-16": 4.5, "depthwise3x3-64": 4.15, "add": 18.0,
        "add-one": 19.5, "sub": 18.0, "mul": 15.0, "mul-one": 15.5, "maximum": 3.0, "table": 4.2,
    },
    "cortex-m55": {
        "conv3x3-16-16": 0.2, "conv3x3-8-8": 0.33, "conv3x3-8-8-of-32": 0.33, "conv3x3-16-16-of-64": 0.21,
        "conv3x3-64-64": 0.15, "conv1x1-64-64": 0.25,
        "depthwise3x3-16": 1.7, "depthwise3x3-64": 1.4, "add": 5.0, "mul": 4.0, "table": 0.3, "affine": 4.5,
        "add-one": 6.8, "sub": 5.0, "mul-one": 4.6, "maximum": 0.4,
    },
}  # fmt: skip


def run_tool(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"needs {tool}, which is not installed")
    return found


def defines(shapes: int, seed: int) -> list[str]:
    return [f"-DSHAPES={shapes}", f"-DSEED={seed}u", "-DMOST_MACS=200000"]


def includes() -> list[str]:
    return [f"-I{KERNELS}", f"-I{BOARD_FILES / 'firmware'}", f"-I{BOARD_FILES / 'cortex_m'}"]


def build_board(board: Board, folder: Path, options: list[str], flags: tuple[str, ...] = ("-O2",)) -> Path:
    compiler = need("arm-none-eabi-gcc")
    objects = []
    for source in SOURCES:
        objects.append(str(folder / f"{source.stem}.o"))
        run_tool([compiler, *board.flags, *flags, *FLAGS, "-c", str(source), "-o", objects[-1]])
    elf = folder / "kernels.elf"
    run_tool(
        [
            compiler, *board.flags, "-O2", "-std=c99", *includes(), *options,
            f"-DREGIONS={REGIONS[board.processor]}", "-nostartfiles", "--specs=nosys.specs",
            f"-L{BOARD_FILES / 'cortex_m'}", f"-T{BOARD_FILES / board.folder / board.linker_script}",
            str(PROGRAM), *map(str, sorted((BOARD_FILES / "cortex_m").glob("*.c"))),
            str(BOARD_FILES / board.folder / "board.c"), *objects, "-o", str(elf),
        ]
    )  # fmt: skip
    return elf


def run_board(board: Board, elf: Path, *, counting: bool = False) -> str:
    return run_tool(
        [
            need("qemu-system-arm"), "-M", board.machine, "-display", "none", "-monitor", "none",
            "-serial", "none", *(("-icount", "shift=0") if counting else ()),
            "-semihosting-config", "enable=on,target=native", "-kernel", str(elf),
        ]
    )  # fmt: skip


def test_kernels_on_the_host_are_exact_and_stay_inside_their_buffers(tmp_path: Path) -> None:
    host = tmp_path / "host.c"
    host.write_text(HOST)
    program = str(tmp_path / "kernels")
    run_tool(
        [
            need("gcc"), "-g", "-O1", *FLAGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
            *includes(), *defines(300, 1), str(PROGRAM), str(host), *map(str, SOURCES), "-o", program,
        ]
    )  # fmt: skip
    assert run_tool([program]) == "OK\n"


@pytest.mark.parametrize("processor", list(REGIONS))
def test_kernels_on_boards_are_exact_and_stay_inside_their_buffers(processor: str, tmp_path: Path) -> None:
    board = BOARDS[processor]
    elf = build_board(board, tmp_path, defines(300, 2))
    assert run_board(board, elf) == "OK\n"


@pytest.mark.parametrize(
    "flags",
    [
        ("-mcpu=cortex-m55", "-mfloat-abi=softfp", "-Os"),
        ("-mcpu=cortex-m55", "-mfloat-abi=hard", "-O0"),
        ("-mcpu=cortex-m55", "-mfloat-abi=hard", "-O3"),
        ("-mcpu=cortex-m55+nofp", "-mfloat-abi=hard", "-O2"),
        ("-mcpu=cortex-m55", "-mfloat-abi=soft", "-O2"),
        ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-O0"),
        ("-mcpu=cortex-m33", "-mfloat-abi=soft", "-Os"),
        ("-mcpu=cortex-m0", "-mfloat-abi=soft", "-Os"),
    ],
    ids=" ".join,
)
def test_kernels_compile_for_other_processors_and_levels(flags: tuple[str, ...], tmp_path: Path) -> None:
    compiler = need("arm-none-eabi-gcc")
    for source in SOURCES:
        run_tool([compiler, "-mthumb", *flags, *FLAGS, "-c", str(source), "-o", str(tmp_path / "kernel.o")])


@pytest.mark.parametrize("processor", list(MOST))
def test_kernels_take_no_more_instructions_than_they_did(processor: str, tmp_path: Path) -> None:
    board = BOARDS[processor]
    elf = build_board(board, tmp_path, [*defines(1, 1), "-DBENCHMARK"])
    text = run_board(board, elf, counting=True)
    counts = {
        found["name"]: int(found["ticks"]) * float(board.instructions_per_tick) / int(found["count"])
        for found in re.finditer(r"(?P<name>\S+) count=(?P<count>\d+) ticks=(?P<ticks>\d+)", text)
    }
    above = {name: counts[name] for name, most in MOST[processor].items() if counts[name] > most}
    assert not above, counts
