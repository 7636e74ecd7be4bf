"""The line protocol of MLPerf Tiny, host side: how a board is given an input and asked for its output.

A command ends with "%", every line of the answer with a line feed, and the line "m-ready" ends the answer.
Lines that begin with "m-" are answers, with "e-" errors. From MLPerf Tiny: `name`, `timestamp`, `profile`,
`db load N`, `db HH…`, `db print`, `infer N [W]`, `results`. The firmware of this package also answers
`stats`, gives the exact bytes of the output, and takes data lines of any length, where others keep 80
characters.
"""

from __future__ import annotations

import os
import re
import resource
import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from csr_deploy.errors import MissingDependencyError, RuntimeUnavailableError

_READY = "m-ready"
_VALUE = re.compile(r"m-(?P<name>[a-z-]+)-\[(?P<value>.*)\]")
_LAP = re.compile(r"m-lap-us-(?P<value>\d+)")
# "db " and the data fit the 80 characters that MLPerf Tiny's firmware keeps of a command.
_BYTES_PER_LINE_ELSEWHERE = 32
_GREETING_SECONDS = 3.0
_GREETINGS = 3
_QUIET_SECONDS = 0.1
_EXIT_SECONDS = 5.0


class Transport(Protocol):
    """Carries characters to a device and lines back."""

    def write(self, data: bytes, deadline: float) -> None:
        """Sends all of it before `deadline`, a value of `time.monotonic`.

        Raises:
            DeviceTimeoutError: If the device does not take it in time.
            RuntimeUnavailableError: If the device is gone.
        """

    def read_line(self, deadline: float) -> str:
        """The next line, without its end; raises like `write`."""

    def discard(self) -> None:
        """Throws away what has come and was not read."""

    def close(self) -> None:
        """Ends the connection; more than once does no harm."""


class DeviceTimeoutError(RuntimeUnavailableError):
    """A device that did not answer in time."""


class DeviceRefusalError(RuntimeUnavailableError):
    """A device that answered a command with an error."""


@dataclass(frozen=True)
class Stats:
    """What the firmware of this package tells of itself and of its last `infer`.

    Attributes:
        counter: "qemu" where a tick is a fixed number of instructions, "cycles" where it is a processor's
            cycle.
        identity: Of the sources that the model was compiled from, or "unknown".
        input_bytes: Size of the input.
        output_bytes: Size of the output.
        arena_bytes: Size of the arena.
        stack_bytes: Deepest stack of `model_run` so far.
        ticks: Of the inferences after those to warm up, together.
        inferences: How many they were.
        calibration_ticks: Of the loop of known length that ran before them.
        calibration_instructions: Its length.
    """

    counter: str
    identity: str
    input_bytes: int
    output_bytes: int
    arena_bytes: int
    stack_bytes: int
    ticks: int
    inferences: int
    calibration_ticks: int
    calibration_instructions: int


@dataclass(frozen=True)
class Answer:
    """What `infer` answered.

    Attributes:
        output: The exact bytes, None from a firmware that only gives numbers.
        results: The output as numbers.
        microseconds: Of all inferences after those to warm up, by the device's clock.
    """

    output: bytes | None
    results: tuple[float, ...]
    microseconds: int


class DeviceUnderTest:
    """A board behind a transport.

    Args:
        transport: How to reach it.
        where: What messages call it.
        timeout: Seconds that the device may take for one command.
    """

    def __init__(self, transport: Transport, where: str, timeout: float) -> None:
        self._transport = transport
        self._where = where
        self._timeout = timeout
        self._bytes_per_line: int | None = None
        self._stats: bool | None = None

    def wait(self) -> None:
        """Waits for a device that was started just now.

        Raises:
            RuntimeUnavailableError: If it does not come up.
        """
        self._answer("start", time.monotonic() + self._timeout)

    def greet(self) -> str:
        """Finds out that a device listens which has long been running, or is being reset by the connection.

        Returns:
            Its name.

        Raises:
            RuntimeUnavailableError: If it does not answer.
        """
        for _ in range(_GREETINGS):
            self._transport.discard()
            deadline = time.monotonic() + min(_GREETING_SECONDS, self._timeout)
            try:
                # Ends a command of which somebody else left half.
                self._transport.write(b"%name%", deadline)
                while True:
                    if found := _VALUE.fullmatch(self._transport.read_line(deadline)):
                        time.sleep(_QUIET_SECONDS)
                        self._transport.discard()
                        return found["value"]
            except DeviceTimeoutError:
                continue
        raise RuntimeUnavailableError(
            "the device does not answer",
            where=self._where,
            fix="Check the port, the baud rate, that no other program has it open, and that the board runs a "
            "firmware with MLPerf Tiny's line protocol.",
        )

    def command(self, text: str) -> list[str]:
        """Sends one command, without its "%".

        Returns:
            The lines of the answer before "m-ready".

        Raises:
            RuntimeUnavailableError: If the device reports an error, is gone or takes too long.
        """
        deadline = time.monotonic() + self._timeout
        self._transport.write(f"{text}%".encode(), deadline)
        return self._answer(text, deadline)

    def model(self) -> str:
        """Name of the model that the device runs."""
        return self._value(self.command("profile"), "model")

    def stats(self) -> Stats | None:
        """What the device tells of itself, None from a firmware without `stats`."""
        if self._stats is False:
            return None
        try:
            values = self._values(self.command("stats"))
        except DeviceRefusalError:
            self._stats = False
            return None
        self._stats = True
        try:
            return Stats(
                values["counter"],
                values["identity"],
                *(
                    int(values[name])
                    for name in (
                        "input-bytes",
                        "output-bytes",
                        "arena-bytes",
                        "stack-bytes",
                        "ticks",
                        "inferences",
                        "calibration-ticks",
                        "calibration-instructions",
                    )
                ),
            )
        except (KeyError, ValueError) as error:
            raise self._damaged("stats", values) from error

    def load(self, data: bytes) -> None:
        """Hands over one input.

        Raises:
            RuntimeUnavailableError: If the device does not take it.
        """
        if self._bytes_per_line is None:
            own = self.stats() is not None
            self._bytes_per_line = len(data) if own else _BYTES_PER_LINE_ELSEWHERE
        self.command(f"db load {len(data)}")
        lines: list[str] = []
        for start in range(0, len(data), self._bytes_per_line):
            lines += self.command(f"db {data[start : start + self._bytes_per_line].hex()}")
        if "m-load-done" not in lines:
            raise self._damaged("db", lines)

    def infer(self, runs: int = 1, warm_up: int = 0) -> Answer:
        """Runs the model on the input that was loaded last.

        Raises:
            RuntimeUnavailableError: If that fails.
        """
        lines = self.command(f"infer {runs} {warm_up}")
        values = self._values(lines)
        laps = [int(found["value"]) for line in lines if (found := _LAP.fullmatch(line))]
        try:
            output = bytes.fromhex(values["output"]) if "output" in values else None
            results = tuple(float(v) for v in values["results"].split(",") if v.strip())
            start, end = laps
        except (KeyError, ValueError) as error:
            raise self._damaged("infer", lines) from error
        return Answer(output, results, end - start)

    def close(self, *, leave: bool) -> None:
        """Ends the connection; `leave` asks a device that was started for it to stop."""
        try:
            if leave:
                self._transport.write(b"exit%", time.monotonic() + _EXIT_SECONDS)
        except RuntimeUnavailableError:
            # It is gone already, or hangs; closing the transport ends it.
            pass
        finally:
            self._transport.close()

    def _answer(self, command: str, deadline: float) -> list[str]:
        lines: list[str] = []
        name = command if len(command) < 40 else f"{command[:32]}…"
        try:
            while (line := self._transport.read_line(deadline)) != _READY:
                if line:
                    lines.append(line)
        except DeviceTimeoutError as error:
            raise DeviceTimeoutError(
                f"no answer to '{name}' within {self._timeout:g} s", where=self._where
            ) from error
        except RuntimeUnavailableError as error:
            told = [line for line in lines if line.startswith("e-")]
            raise RuntimeUnavailableError(
                f"it stopped at '{name}': {'; '.join((*told, error.what))}", where=self._where
            ) from error
        for line in lines:
            if line.startswith("e-"):
                raise DeviceRefusalError(f"'{name}' failed: {line[2:].strip('[]')}", where=self._where)
        return lines

    def _values(self, lines: Sequence[str]) -> dict[str, str]:
        return {f["name"]: f["value"] for line in lines if (f := _VALUE.fullmatch(line))}

    def _value(self, lines: Sequence[str], name: str) -> str:
        try:
            return self._values(lines)[name]
        except KeyError as error:
            raise self._damaged(name, lines) from error

    def _damaged(self, command: str, answer: object) -> RuntimeUnavailableError:
        return RuntimeUnavailableError(f"strange answer to '{command}': {answer}", where=self._where)


class ProcessTransport:
    """The standard streams of a process, which ends with the connection.

    Args:
        command: What to run.
        where: What messages call it.
    """

    def __init__(self, command: Sequence[str], where: str) -> None:
        self._where = where
        # A file, because nobody reads a pipe while the process runs.
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            # A session of its own: Ctrl-C in the terminal is for us, and we end it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise RuntimeUnavailableError(f"cannot run {command[0]}: {error}", where=where) from error
        if hasattr(resource, "prlimit"):
            # An emulator whose processor locks up aborts; that is told, and leaves no core file.
            resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._input.fileno(), False)
        self._received = bytearray()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._input, selectors.EVENT_WRITE, deadline)
            try:
                rest = rest[os.write(self._input.fileno(), rest) :]
            except BrokenPipeError as error:
                raise self._ended() from error

    def read_line(self, deadline: float) -> str:
        while (end := self._received.find(b"\n")) < 0:
            self._wait(self._output, selectors.EVENT_READ, deadline)
            read = os.read(self._output.fileno(), 65536)
            if not read:
                raise self._ended()
            self._received += read
        line = self._received[:end].decode("ascii", "replace").strip()
        del self._received[: end + 1]
        return line

    def discard(self) -> None:
        self._received.clear()

    def close(self) -> None:
        self._input.close()
        try:
            self._process.wait(_EXIT_SECONDS if self._process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._errors.close()

    def kill(self) -> None:
        """Ends the process at once, for one that hangs."""
        self._process.kill()

    def _wait(self, stream: IO[bytes], event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(stream, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                # It neither reads nor answers; asking it to leave would only take longer.
                self.kill()
                raise DeviceTimeoutError("no answer in time", where=self._where)

    def _ended(self) -> RuntimeUnavailableError:
        self._process.kill()
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return RuntimeUnavailableError(
            f"the process ended with status {status}" + (f" ({' / '.join(said[:3])})" if said else ""),
            where=self._where,
        )


class SerialTransport:
    """A serial port.

    Args:
        port: For example "/dev/ttyACM0".
        baud: Bits a second.

    Raises:
        MissingDependencyError: If pyserial is not installed.
        RuntimeUnavailableError: If the port cannot be opened.
    """

    def __init__(self, port: str, baud: int) -> None:
        try:
            import termios

            import serial
        except ImportError as error:
            raise MissingDependencyError("pyserial", "mcu", "Driving a board over a serial port") from error
        self._where = port
        self._errors = (serial.SerialException, termios.error, OSError)
        self._write_timeout: type[Exception] = serial.SerialTimeoutException
        try:
            self._serial = serial.Serial(port, baud, timeout=0, write_timeout=0)
        except (*self._errors, ValueError) as error:
            raise RuntimeUnavailableError(
                f"cannot be opened: {error}",
                where=port,
                fix="Check the name (ls /dev/ttyACM* /dev/ttyUSB*), and that you may use it: on Debian the "
                "group 'dialout' may.",
            ) from error
        self._received = bytearray()

    def write(self, data: bytes, deadline: float) -> None:
        self._serial.write_timeout = max(0.01, deadline - time.monotonic())
        try:
            self._serial.write(data)
        except self._write_timeout as error:
            raise DeviceTimeoutError("it takes no more data", where=self._where) from error
        except self._errors as error:
            raise self._gone(error) from error

    def read_line(self, deadline: float) -> str:
        while (end := self._received.find(b"\n")) < 0:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceTimeoutError("no answer in time", where=self._where)
            self._serial.timeout = left
            try:
                self._received += self._serial.read(max(1, self._serial.in_waiting))
            except self._errors as error:
                raise self._gone(error) from error
        line = self._received[:end].decode("ascii", "replace").strip()
        del self._received[: end + 1]
        return line

    def discard(self) -> None:
        self._received.clear()
        try:
            self._serial.reset_input_buffer()
        except self._errors as error:
            raise self._gone(error) from error

    def close(self) -> None:
        self._serial.close()

    def _gone(self, error: Exception) -> RuntimeUnavailableError:
        return RuntimeUnavailableError(f"the port is gone: {error}", where=self._where)
