"""One conversation with a program on the device: requests and answers in JSON, files in between."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

from csr_deploy.bench.devices.base import DeviceError, Stage
from csr_deploy.bench.devices.blobs import HELLO
from csr_deploy.bench.devices.ssh import ConnectionLostError, Ssh

if TYPE_CHECKING:
    from typing_extensions import Self

_BLOCK = 1 << 18
_END_SECONDS = 5.0
_PATIENCE_S = 0.5
_CONNECTION_FAILED = 255
_MESSAGE_LINES = 8
# What a shell answers.
_NOT_FOUND = (126, 127)

Files = Mapping[str, Path]
"""SHA-256 → a file of that content here."""


class _Lines:
    """Lines of a pipe. Waiting can be interrupted: an exception of another thread comes up in between.

    Args:
        pipe: Unbuffered or never read from before.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._handle = pipe.fileno()
        self._parts: list[bytes] = []
        self._rest = b""

    def next(self) -> bytes:
        """The next line with its end; what is left where there is no end, empty at the end of the pipe."""
        while True:
            line, end, self._rest = self._rest.partition(b"\n")
            self._parts.append(line + end)
            if end:
                break
            while not select.select([self._handle], [], [], _PATIENCE_S)[0]:
                pass
            block = os.read(self._handle, _BLOCK)
            if not block:
                break
            self._rest = block
        whole, self._parts = b"".join(self._parts), []
        return whole


class Session:
    """Leaving the block ends the program on the device; what it started there goes on.

    Args:
        ssh: Connected.
        command: The program, see `Ssh.start`; it answers as `csr_deploy.bench.devices.blobs.serve` does.
        where: The device, for messages.
        given: The beginning of its standard input.
    """

    def __init__(self, ssh: Ssh, command: Sequence[str], where: str, given: bytes = b"") -> None:
        self._ssh = ssh
        self._command = command
        self._where = where
        self._given = given
        self.hello: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        self._messages = tempfile.TemporaryFile()
        self._process = self._ssh.start(self._command, self._messages)
        self._lines = _Lines(self._stdout)
        try:
            self._write(self._given)
            self.hello = self._greeting()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
        self._messages.close()

    @property
    def _stdin(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdin)

    @property
    def _stdout(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdout)

    def _greeting(self) -> Mapping[str, Any]:
        # A login shell may print what it likes before the program starts.
        while line := self._lines.next():
            if line.startswith(HELLO.encode()):
                values: Mapping[str, Any] = json.loads(line[len(HELLO) :])
                return values
        raise self._ended()

    def ask(
        self,
        do: str,
        stage: Stage,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        **arguments: Any,
    ) -> Any:
        """Sends a request and waits for the answer.

        Args:
            do: What to do.
            stage: Where an error belongs to.
            on_event: Called with what comes before the answer.
            **arguments: Of the request.

        Raises:
            DeviceError: What the device found.
            ConnectionLostError: If the connection broke.
        """
        self._write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return self._answer(stage, on_event)

    def say(self, do: str, **arguments: Any) -> None:
        """Sends a request whose answer nobody waits for; a broken connection is no error."""
        with contextlib.suppress(ConnectionLostError):
            self._write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def send(
        self,
        files: Files,
        label: Callable[[str], str] = str,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> int:
        """Sends files that the device lacks; gives how many bytes went over the line.

        Args:
            files: What it needs.
            label: SHA-256 → a name for people.
            on_progress: Called with such a name, bytes done and bytes in all.

        Raises:
            DeviceError: If the device has no space, a file here has changed, or other bytes arrived.
            ConnectionLostError: If the connection broke.
        """
        sizes = {sha256: path.stat().st_size for sha256, path in files.items()}
        found = self.ask("need", "transfer", files=sizes)
        missing, free = found["missing"], found["free_bytes"]
        total, done = sum(sizes[sha256] for sha256 in missing), 0
        if total > free:
            raise self.full(f"{total / 1e6:.1f} MB are to be sent, {free / 1e6:.1f} MB are free")
        for sha256 in missing:
            name = label(sha256)
            request = {"do": "put", "sha256": sha256, "size": sizes[sha256]}
            self._write(json.dumps(request).encode() + b"\n")
            left = sizes[sha256]
            with files[sha256].open("rb") as file:
                while left:
                    block = file.read(min(left, _BLOCK))
                    if not block:
                        raise DeviceError(
                            "the file was changed while it was sent",
                            stage="transfer",
                            where=str(files[sha256]),
                            fix="Run it again.",
                        )
                    self._write(block)
                    left -= len(block)
                    done += len(block)
                    if on_progress:
                        on_progress(name, done, total)
            self._answer("transfer", None, name)
        return total

    def full(self, what: str) -> DeviceError:
        """The error of a full disk."""
        return DeviceError(
            f"the device's disk is full: {what}",
            stage="transfer",
            where=self._where,
            fix="Free space there (csr-device clean removes what csr-bench sent), or name another folder "
            "behind the address: ssh://user@host/folder.",
        )

    def _answer(
        self, stage: Stage, on_event: Callable[[Mapping[str, Any]], None] | None, name: str | None = None
    ) -> Any:
        while line := self._lines.next():
            if not line.endswith(b"\n"):
                break
            reply = json.loads(line)
            if "value" in reply:
                return reply["value"]
            if "error" in reply:
                raise self._failed(reply["error"], stage, name)
            if on_event:
                on_event(reply)
        raise self._ended()

    def _failed(self, error: Mapping[str, str], stage: Stage, name: str | None) -> DeviceError:
        if error["kind"] == "full":
            return self.full(error["what"])
        changed = error["kind"] == "changed"
        return DeviceError(
            error["what"],
            stage="transfer" if changed else stage,
            where=f"{self._where}: {name}" if name else self._where,
            fix="Run it again; the file may also have been changed here meanwhile." if changed else None,
            may_repeat=changed,
        )

    def _write(self, content: bytes) -> None:
        try:
            self._stdin.write(content)
            self._stdin.flush()
        except OSError:
            raise self._ended() from None

    def _ended(self) -> Exception:
        """What it means that the program ended or cannot be reached."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._messages.seek(0)
        said = self._messages.read().decode(errors="replace").strip()
        # A signal: that of the server which went away, or of this side, which had waited long enough.
        if status in (_CONNECTION_FAILED, 0) or status < 0 or status > 128:
            return ConnectionLostError(said)
        tail = "\n  ".join(said.splitlines()[-_MESSAGE_LINES:])
        what = f"the program on the device ended with status {status}"
        if status in _NOT_FOUND:
            what = f"it is not prepared: {self._command[0]} is not there"
        return DeviceError(
            f"{what}\n  {tail}",
            stage="setup",
            where=self._where,
            fix=f"Prepare the device: csr-device setup {self._where}",
        )
