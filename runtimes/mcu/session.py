"""A compiled model that runs: in this process, on a board in QEMU, or on a real board."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from csr_deploy.errors import ArtifactError, BenchError, RuntimeUnavailableError
from csr_deploy.runtimes.mcu.build import find_qemu
from csr_deploy.runtimes.mcu.devices import Board
from csr_deploy.runtimes.mcu.protocol import (
    DeviceUnderTest,
    ProcessTransport,
    SerialTransport,
    Stats,
)

_WROTE_OUTSIDE = -1
_ERRORS = {1: "a null pointer", 2: "the arena is not aligned", 3: "the arena is too small"}
# Reading the counter costs a few instructions and it counts in ticks, so one of two at each end.
_CALIBRATION_TICKS = 2
_QEMU_OPTIONS = ("-display", "none", "-monitor", "none", "-serial", "none", "-icount", "shift=0")
_SEMIHOSTING = ("-semihosting-config", "enable=on,target=native")


@dataclass(frozen=True)
class Sizes:
    """What a model is to its surroundings.

    Attributes:
        input_bytes: Of the input.
        output_bytes: Of the output.
        arena_bytes: Of the arena; None where a board does not tell.
    """

    input_bytes: int
    output_bytes: int
    arena_bytes: int | None


@dataclass(frozen=True)
class Inference:
    """One inference.

    Attributes:
        output: Its bytes; None from a board that only gives numbers.
        results: The output as numbers, where a board gave them.
        nanoseconds: By the device's own clock; None in QEMU, which has none that means anything.
        instructions: Of `model_run`, to within one tick of the counter (40 or 31.25); in QEMU only.
        cycles: Of `model_run`, on a real board.
        stack_bytes: Deepest stack of `model_run` so far, its own frame included.
    """

    output: bytes | None
    results: tuple[float, ...]
    nanoseconds: int | None
    instructions: int | None = None
    cycles: int | None = None
    stack_bytes: int | None = None


class Session(Protocol):
    """An open device with one model on it."""

    def sizes(self) -> Sizes | None:
        """Of the model; None where a board does not tell."""

    def infer(self, data: bytes) -> Inference:
        """Runs the model on one input.

        Raises:
            RuntimeUnavailableError: If the device or the model fails.
            BenchError: If the count of instructions cannot be trusted.
        """

    def close(self) -> None:
        """Ends it; more than once does no harm."""


class LibrarySession:
    """A shared library in this process.

    Args:
        library: Of `build_library`.

    Raises:
        RuntimeUnavailableError: If it cannot be loaded, or the model does not start.
    """

    def __init__(self, library: Path) -> None:
        self._where = str(library)
        try:
            self._library: ctypes.CDLL | None = ctypes.CDLL(self._where)
        except OSError as error:
            raise RuntimeUnavailableError(f"cannot be loaded: {error}", where=self._where) from error
        for name in ("arena", "input", "output"):
            getattr(self._library, f"csr_host_{name}_bytes").restype = ctypes.c_size_t
        self._run = self._library.csr_host_run
        self._run.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
        self._sizes = Sizes(
            self._library.csr_host_input_bytes(),
            self._library.csr_host_output_bytes(),
            self._library.csr_host_arena_bytes(),
        )
        self._output = ctypes.create_string_buffer(self._sizes.output_bytes)
        status = self._library.csr_host_open()
        if status:
            self.close()
            raise self._failed("model_init", status)

    def sizes(self) -> Sizes:
        return self._sizes

    def infer(self, data: bytes) -> Inference:
        if self._library is None:
            raise RuntimeUnavailableError("the library is closed", where=self._where)
        start = time.perf_counter_ns()
        status = self._run(data, self._output)
        elapsed = time.perf_counter_ns() - start
        if status == _WROTE_OUTSIDE:
            raise RuntimeUnavailableError("the model wrote outside its arena", where=self._where)
        if status:
            raise self._failed("model_run", status)
        return Inference(self._output.raw, (), elapsed)

    def close(self) -> None:
        if self._library is None:
            return
        unload = ctypes.CDLL(None).dlclose
        unload.argtypes = (ctypes.c_void_p,)
        unload(self._library._handle)
        self._library = None

    def _failed(self, function: str, status: int) -> RuntimeUnavailableError:
        reason = _ERRORS.get(status, "not a code of model.h")
        return RuntimeUnavailableError(f"{function} returned {status} ({reason})", where=self._where)


class QemuSession:
    """The firmware on a board in QEMU.

    Args:
        elf: Of `build_firmware`.
        board: The board it is for.
        timeout: Seconds that one command may take.

    Raises:
        RuntimeUnavailableError: If QEMU is missing or does not start, or the model does not.
    """

    def __init__(self, elf: Path, board: Board, timeout: float) -> None:
        self._board = board
        where = f"QEMU {board.machine}"
        command = [find_qemu(), "-M", board.machine, *_QEMU_OPTIONS, *_SEMIHOSTING, "-kernel", str(elf)]
        transport = ProcessTransport(command, where)
        self._device = DeviceUnderTest(transport, where, timeout)
        try:
            self._device.wait()
            self._sizes = _sizes(self._stats())
        except BaseException:
            transport.kill()
            transport.close()
            raise

    def sizes(self) -> Sizes:
        return self._sizes

    def infer(self, data: bytes) -> Inference:
        self._device.load(data)
        answer = self._device.infer()
        stats = self._stats()
        self._check(stats)
        per_tick = self._board.instructions_per_tick
        return Inference(
            answer.output,
            answer.results,
            None,
            instructions=round(stats.ticks * per_tick / stats.inferences),
            stack_bytes=stats.stack_bytes,
        )

    def calibration(self) -> tuple[int, float]:
        """The loop of known length: its instructions, and how many were counted at the last inference."""
        stats = self._stats()
        ticks = stats.calibration_ticks
        return stats.calibration_instructions, float(ticks * self._board.instructions_per_tick)

    def close(self) -> None:
        self._device.close(leave=True)

    def _stats(self) -> Stats:
        stats = self._device.stats()
        if stats is None:
            raise RuntimeUnavailableError("the firmware has no 'stats'", where=f"QEMU {self._board.machine}")
        return stats

    def _check(self, stats: Stats) -> None:
        right = stats.calibration_instructions / self._board.instructions_per_tick
        if abs(stats.calibration_ticks - right) > _CALIBRATION_TICKS or not stats.inferences:
            raise BenchError(
                f"the count of instructions is off: a loop of {stats.calibration_instructions:,} took "
                f"{stats.calibration_ticks:,} ticks instead of {float(right):,.0f}",
                where=f"QEMU {self._board.machine}",
                fix="QEMU 7.2 is known to be exact; this version seems not to count with -icount shift=0.",
            )


class SerialSession:
    """A real board, with this package's firmware or any other that keeps to MLPerf Tiny's line protocol.

    Args:
        port: For example "/dev/ttyACM0".
        baud: Bits a second.
        timeout: Seconds that one command may take.
        identity: Of the sources, to be compared with what the firmware tells; None for no comparison.

    Raises:
        MissingDependencyError: If pyserial is not installed.
        RuntimeUnavailableError: If the board does not answer.
        ArtifactError: If it runs another model.
    """

    def __init__(self, port: str, baud: int, timeout: float, identity: str | None) -> None:
        self._where = port
        transport = SerialTransport(port, baud)
        self._device = DeviceUnderTest(transport, port, timeout)
        try:
            self.name = self._device.greet()
            stats = self._device.stats()
            if stats and identity and stats.identity not in ("unknown", identity):
                raise ArtifactError(
                    f"the board runs the model '{self._device.model()}' of other sources "
                    f"({stats.identity}, these are {identity})",
                    where=port,
                    fix="Compile the board's project with this artifact and flash it.",
                )
        except BaseException:
            transport.close()
            raise
        self._sizes = _sizes(stats) if stats else None

    def sizes(self) -> Sizes | None:
        return self._sizes

    def infer(self, data: bytes) -> Inference:
        self._device.load(data)
        answer = self._device.infer()
        stats = self._device.stats()
        nanoseconds = answer.microseconds * 1000
        if stats is None or not stats.inferences:
            return Inference(answer.output, answer.results, nanoseconds)
        cycles = round(stats.ticks / stats.inferences) if stats.counter == "cycles" else None
        return Inference(
            answer.output, answer.results, nanoseconds, cycles=cycles, stack_bytes=stats.stack_bytes
        )

    def close(self) -> None:
        self._device.close(leave=False)


def _sizes(stats: Stats) -> Sizes:
    return Sizes(stats.input_bytes, stats.output_bytes, stats.arena_bytes)
