"""The host side of MLPerf Tiny's line protocol, against boards that are not there."""

from __future__ import annotations

import os
import sys
import time
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csr_deploy.errors import OptionError, RuntimeUnavailableError
from csr_deploy.runtimes.mcu.build import read_flash
from csr_deploy.runtimes.mcu.devices import BOARDS, parse_device
from csr_deploy.runtimes.mcu.protocol import (
    DeviceRefusalError,
    DeviceTimeoutError,
    DeviceUnderTest,
    ProcessTransport,
)

COMMAND_SIZE = 80
SOON = 5.0


class Board:
    """A board that answers as MLPerf Tiny's own firmware does; with `own`, as ours."""

    def __init__(self, size: int, *, own: bool = False, silent: int = 0) -> None:
        self.size = size
        self.own = own
        self.silent = silent
        self.received = bytearray()
        self.announced = 0
        self.longest = 0
        self.runs: tuple[int, int] | None = None
        self._pending = ""
        self._lines: deque[str] = deque()
        self.is_closed = False

    def write(self, data: bytes, deadline: float) -> None:
        self._pending += data.decode()
        while "%" in self._pending:
            command, _, self._pending = self._pending.partition("%")
            if self.silent:
                self.silent -= 1
                continue
            self.longest = max(self.longest, len(command))
            if not self.own:
                command = command[:COMMAND_SIZE]
            self._lines += (*self.answer(*command.split(" ")), "m-ready")

    def answer(self, word: str, *arguments: str) -> list[str]:
        if word == "name":
            return ["m-name-dut-[Somebody]"]
        if word == "profile":
            return ["m-profile-[Firmware 1]", "m-model-[ic01]"]
        if word == "db" and arguments[0] == "load":
            self.announced, self.received = int(arguments[1]), bytearray()
            return [f"m-[Expecting {self.announced} bytes]"]
        if word == "db":
            self.received += bytes.fromhex(arguments[0])
            return ["m-load-done"] if len(self.received) == self.announced else []
        if word == "infer":
            self.runs = (int(arguments[0]), int(arguments[1]))
            laps = ["m-lap-us-1000", "m-lap-us-3500"]
            outputs = (
                ["m-output-[80007f]", "m-results-[-128,0,127]"] if self.own else ["m-results-[0.125,0.5,]"]
            )
            return ["m-warmup-start-0", "m-warmup-done", "m-infer-start-1", *laps, "m-infer-done", *outputs]
        if word == "stats" and self.own:
            numbers = {"input-bytes": self.size, "output-bytes": 3, "arena-bytes": 64, "stack-bytes": 24}
            counts = {"ticks": 7, "inferences": 1, "calibration-ticks": 5000}
            texts = {"counter": "qemu", "identity": "unknown", "calibration-instructions": 200000}
            return [f"m-{name}-[{value}]" for name, value in (texts | numbers | counts).items()]
        return [f"e-[Unknown command: {word}]"]

    def read_line(self, deadline: float) -> str:
        if not self._lines:
            raise DeviceTimeoutError("no answer in time")
        return self._lines.popleft()

    def discard(self) -> None:
        self._lines.clear()

    def close(self) -> None:
        self.is_closed = True


def test_a_board_of_somebody_else() -> None:
    board = Board(100)
    device = DeviceUnderTest(board, "board", SOON)
    assert device.greet() == "Somebody"
    assert device.model() == "ic01"
    assert device.stats() is None
    device.load(bytes(range(100)))
    assert bytes(board.received) == bytes(range(100))
    assert board.longest <= COMMAND_SIZE
    answer = device.infer(3, 2)
    assert board.runs == (3, 2)
    assert (answer.output, answer.results, answer.microseconds) == (None, (0.125, 0.5), 2500)


def test_a_board_with_our_firmware() -> None:
    board = Board(3072, own=True)
    device = DeviceUnderTest(board, "board", SOON)
    stats = device.stats()
    assert stats is not None
    assert (stats.counter, stats.ticks, stats.calibration_instructions) == ("qemu", 7, 200000)
    device.load(bytes(3072))
    # In one line.
    assert board.longest > 2 * 3072
    assert device.infer().output == b"\x80\x00\x7f"


@given(st.binary(min_size=1, max_size=300), st.booleans())
def test_any_input_arrives(data: bytes, own: bool) -> None:
    board = Board(len(data), own=own)
    DeviceUnderTest(board, "board", SOON).load(data)
    assert bytes(board.received) == data


def test_a_board_that_needs_a_moment() -> None:
    assert DeviceUnderTest(Board(1, silent=2), "board", SOON).greet() == "Somebody"


def test_a_board_that_never_answers() -> None:
    with pytest.raises(RuntimeUnavailableError, match="port7: the device does not answer\n.*baud rate"):
        DeviceUnderTest(Board(1, silent=1000), "port7", SOON).greet()


def test_errors_of_the_board_are_told() -> None:
    with pytest.raises(DeviceRefusalError, match="port7: 'dance' failed: Unknown command: dance"):
        DeviceUnderTest(Board(1), "port7", SOON).command("dance")


def test_an_input_that_was_not_taken() -> None:
    board = Board(8, own=True)
    board.answer = lambda word, *arguments: [] if word == "db" else Board.answer(board, word)  # type: ignore[method-assign]
    with pytest.raises(RuntimeUnavailableError, match="strange answer to 'db'"):
        DeviceUnderTest(board, "board", SOON).load(bytes(8))


@pytest.mark.parametrize("line", ["m-lap-us-1", "m-results-[1,x]", "m-output-[0g]"])
def test_an_answer_that_makes_no_sense(line: str) -> None:
    board = Board(8)
    board.answer = lambda word, *arguments: [line]  # type: ignore[method-assign]
    with pytest.raises(RuntimeUnavailableError, match="strange answer to 'infer'"):
        DeviceUnderTest(board, "board", SOON).infer()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_hangs_is_ended() -> None:
    transport = ProcessTransport([sys.executable, "-c", "import time; time.sleep(600)"], "it")
    device = DeviceUnderTest(transport, "it", 0.3)
    start = time.monotonic()
    with pytest.raises(DeviceTimeoutError, match=r"it: no answer to 'name' within 0\.3 s"):
        device.command("name")
    device.close(leave=True)
    assert time.monotonic() - start < SOON
    assert not is_alive(transport.pid)


def test_a_process_that_does_not_read_does_not_hang_us() -> None:
    transport = ProcessTransport([sys.executable, "-c", "import time; time.sleep(600)"], "it")
    with pytest.raises(DeviceTimeoutError):
        transport.write(bytes(10_000_000), time.monotonic() + 0.3)
    transport.close()
    assert not is_alive(transport.pid)


def test_what_a_process_says_when_it_dies_is_told() -> None:
    transport = ProcessTransport([sys.executable, "-c", "print('e-[oh]'); exit('it fell over')"], "it")
    device = DeviceUnderTest(transport, "it", 30)
    with pytest.raises(RuntimeUnavailableError, match=r"it stopped at 'start': e-\[oh\]; .*it fell over"):
        device.wait()
    device.close(leave=True)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(RuntimeUnavailableError, match="cannot run /nowhere/qemu"):
        ProcessTransport(["/nowhere/qemu"], "it")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", ("host", None, None, 115200)),
        ("qemu:cortex-m4", ("qemu:cortex-m4", BOARDS["cortex-m4"], None, 115200)),
        ("qemu:m55", ("qemu:cortex-m55", BOARDS["cortex-m55"], None, 115200)),
        ("serial:/dev/ttyACM0", ("serial:/dev/ttyACM0", None, "/dev/ttyACM0", 115200)),
        ("serial:/dev/ttyUSB1@921600", ("serial:/dev/ttyUSB1@921600", None, "/dev/ttyUSB1", 921600)),
    ],
)
def test_devices(text: str, expected: tuple[object, ...]) -> None:
    device = parse_device(text)
    assert (device.text, device.board, device.port, device.baud) == expected
    assert device.is_host == (text == "host")


@pytest.mark.parametrize(
    "text", ["", "qemu", "qemu:", "qemu:cortex-m0", "serial:", "serial:/dev/x@fast", "pi"]
)
def test_devices_that_there_are_not(text: str) -> None:
    with pytest.raises(OptionError, match="unknown device .*\n.*qemu:cortex-m55"):
        parse_device(text)


LINK_MAP = """
Discarded input sections

 .text.unused   0x00000000       0x99 /tmp/x/model-000-model.o

Linker script and memory map

.text           0x00000000       0x5a
 *(.vectors)
 .vectors       0x00000000       0x10 /tmp/x/firmware-000-main.o
                0x00000000                csr_vectors
 .text.a_name_that_needs_a_line_of_its_own
                0x00000010       0x20 /tmp/x/model-000-model.o
 *fill*         0x00000030        0x2 \n .text          0x00000032       0x28 /usr/libc.a(memcpy.o)

.rodata         0x0000005c       0x40
 .rodata        0x0000005c       0x40 /tmp/x/model-001-kernel.o

.data           0x20000000        0x4 load address 0x0000009c
 .data          0x20000000        0x4 /tmp/x/firmware-000-main.o

.bss            0x20000004        0x8
 COMMON         0x20000004        0x8 /tmp/x/firmware-000-main.o

.debug_info     0x00000000       0x77
 .debug_info    0x00000000       0x77 /tmp/x/model-000-model.o
"""
SIZES = """firmware.elf  :
section      size        addr
.text          90           0
.rodata        64          92
.data           4   536870912
.bss            8   536870916
.debug_info   119           0
Total         285
"""


def test_whose_the_flash_is() -> None:
    names = {
        "model-000-model.o": ("model", "model.c"),
        "model-001-kernel.o": ("model", "kernel.c"),
        "firmware-000-main.o": ("firmware", "main.c"),
    }
    flash = read_flash(SIZES, LINK_MAP, names)
    assert flash["flash_bytes"] == 90 + 64 + 4
    assert flash["ram_bytes"] == 4 + 8
    assert flash["model"] == {"code": 32, "constants": 64, "data": 0, "zeroed": 0}
    assert flash["libraries"]["code"] == 40
    assert flash["firmware"] == {"code": 16, "constants": 0, "data": 4, "zeroed": 8}
    assert flash["padding"]["code"] == 2
    assert flash["model_flash_bytes"] == 32 + 64 + 40
    assert flash["files"] == {
        "model.c": {"code": 32, "constants": 0, "data": 0, "zeroed": 0},
        "kernel.c": {"code": 0, "constants": 64, "data": 0, "zeroed": 0},
    }
