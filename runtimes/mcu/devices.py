"""The one table of boards, and what may stand after --device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from csr_deploy.errors import OptionError

BOARD_FILES = Path(__file__).parent / "boards"
HOST = "host"
DEFAULT_BAUD = 115200
_SERIAL = re.compile(r"serial:(?P<port>[^@]+)(@(?P<baud>[1-9]\d*))?")


@dataclass(frozen=True)
class Board:
    """A board that QEMU emulates.

    Attributes:
        processor: As typed after "qemu:" and -mcpu=, e.g. "cortex-m4".
        machine: QEMU's name of the board.
        summary: What it is.
        flags: Compiler flags of the processor.
        folder: Folder of its files under boards/.
        linker_script: In that folder.
        instructions_per_tick: With `-icount shift=0` an instruction takes a nanosecond of the board's time;
            SysTick counts cycles of its processor clock.
    """

    processor: str
    machine: str
    summary: str
    flags: tuple[str, ...]
    folder: str
    linker_script: str
    instructions_per_tick: Fraction


_HARD_FLOAT = "-mfloat-abi=hard"
_AT_25_MHZ = Fraction(1000, 25)
_AT_32_MHZ = Fraction(1000, 32)

BOARDS: dict[str, Board] = {
    b.processor: b
    for b in (
        Board(
            "cortex-m3", "mps2-an385", "Arm MPS2, AN385: Cortex-M3",
            ("-mcpu=cortex-m3", "-mthumb"), "mps2", "mps2.ld", _AT_25_MHZ,
        ),
        Board(
            "cortex-m4", "mps2-an386", "Arm MPS2, AN386: Cortex-M4 with FPU",
            ("-mcpu=cortex-m4", "-mthumb", _HARD_FLOAT), "mps2", "mps2.ld", _AT_25_MHZ,
        ),
        Board(
            "cortex-m7", "mps2-an500", "Arm MPS2, AN500: Cortex-M7 with FPU",
            ("-mcpu=cortex-m7", "-mthumb", _HARD_FLOAT), "mps2", "mps2.ld", _AT_25_MHZ,
        ),
        Board(
            "cortex-m55", "mps3-an547", "Arm MPS3, AN547: Cortex-M55 with Helium",
            ("-mcpu=cortex-m55", "-mthumb", _HARD_FLOAT), "mps3", "an547.ld", _AT_32_MHZ,
        ),
    )
}  # fmt: skip

DEVICES = (HOST, *(f"qemu:{name}" for name in BOARDS), "serial:PORT[@BAUD]")


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Attributes:
        text: As typed.
        board: The emulated board, None elsewhere.
        port: The serial port of a real board, None elsewhere.
        baud: Its speed in bits a second.
    """

    text: str
    board: Board | None = None
    port: str | None = None
    baud: int = DEFAULT_BAUD

    @property
    def is_host(self) -> bool:
        """Whether the model runs on this machine's own processor."""
        return self.board is None and self.port is None


def parse_device(text: str) -> Device:
    """Reads "host", "qemu:PROCESSOR" or "serial:PORT[@BAUD]". Both "cortex-m4" and "m4" are understood.

    Raises:
        OptionError: If it is none of them.
    """
    if text == HOST:
        return Device(text)
    if text.startswith("qemu:"):
        processor = text.removeprefix("qemu:")
        board = BOARDS.get(processor) or BOARDS.get(f"cortex-{processor}")
        if board is not None:
            return Device(f"qemu:{board.processor}", board)
    if found := _SERIAL.fullmatch(text):
        return Device(text, port=found["port"], baud=int(found["baud"] or DEFAULT_BAUD))
    raise OptionError(f"unknown device '{text}'", fix=f"Devices: {', '.join(DEVICES)}.")
