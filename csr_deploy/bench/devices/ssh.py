"""A device over SSH, through OpenSSH's own client: keys, agent, configuration and known hosts are the user's.

One process, the master, logs in; every further command goes through its connection. Nothing here asks a
question (`BatchMode=yes`), and host keys are never skipped: `StrictHostKeyChecking` stays what the user's
configuration says.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from csr_deploy.bench.devices.base import DeviceError, DeviceOptions
from csr_deploy.bench.devices.names import DeviceName
from csr_deploy.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_VARIABLE = "CSR_SSH_CONFIG"

_CONNECT_SECONDS = 15
_LOGIN_SECONDS = 60.0
_END_SECONDS = 5.0
_POLL_SECONDS = 0.02
_CONNECTION_FAILED = 255
_MESSAGE_LINES = 6
# A socket's path has to fit into 108 bytes, and ssh adds some for a temporary name.
_SOCKET_BYTES = 85
_MISSED = 3


class ConnectionLostError(Exception):
    """The connection broke; the device may be there again soon."""


class Ssh:
    """A connection, used as a context manager.

    Args:
        name: Of kind "ssh".
        options: How to reach it.
    """

    def __init__(self, name: DeviceName, options: DeviceOptions) -> None:
        self._name = name
        self._options = options
        self._master: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if shutil.which("ssh") is None:
            raise RuntimeUnavailableError(
                "OpenSSH's client is not installed here",
                where=self._name.text,
                fix="Install it: apt-get install openssh-client",
            )
        self._folder = Path(tempfile.mkdtemp(prefix="csr-ssh-"))
        try:
            self.connect()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self.disconnect()
        shutil.rmtree(self._folder, ignore_errors=True)

    def connect(self) -> None:
        """Logs in; the connection before is given up.

        Raises:
            DeviceError: If the host cannot be reached, is not the one it was, or does not let the user in.
        """
        self.disconnect()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115
        # Its command ends when this process does, however that ends, and the connection with it.
        self._master = subprocess.Popen(
            [*self._ssh("yes"), "exec cat > /dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            start_new_session=True,
        )
        end = time.monotonic() + _LOGIN_SECONDS
        while not self._socket.exists():
            if self._master.poll() is not None:
                raise self._explained(self._said())
            if time.monotonic() > end:
                said = self._said()
                self.disconnect()
                raise self._explained(f"it did not log in within {_LOGIN_SECONDS:g} s\n{said}")
            time.sleep(_POLL_SECONDS)

    def disconnect(self) -> None:
        """Gives the connection up; commands that still run through it end."""
        master, self._master = self._master, None
        if master is not None:
            with contextlib.suppress(OSError):
                assert master.stdin is not None
                master.stdin.close()
            master.terminate()
            try:
                master.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                master.kill()
                master.wait()
        with contextlib.suppress(OSError):
            self._socket.unlink()
        if self._messages is not None:
            self._messages.close()
            self._messages = None

    def start(self, command: Sequence[str], messages: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts a program on the device.

        Args:
            command: The program and its arguments; a leading `~/` is the home there.
            messages: Where its standard error goes.
        """
        return subprocess.Popen(
            [*self._ssh("no"), "exec " + " ".join(map(quote, command))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=True,
        )

    def run(self, command: Sequence[str], given: bytes = b"", seconds: float = 60.0) -> tuple[int, str, str]:
        """Runs a program on the device to its end.

        Args:
            command: See `start`.
            given: Its standard input.
            seconds: How long it may take.

        Returns:
            (exit status, standard output, standard error).

        Raises:
            ConnectionLostError: If the connection broke.
            DeviceError: If it takes too long.
        """
        with tempfile.TemporaryFile() as messages:
            process = self.start(command, messages)
            try:
                out, _ = process.communicate(given, timeout=seconds)
            except subprocess.TimeoutExpired as error:
                process.kill()
                process.communicate()
                raise DeviceError(
                    f"'{' '.join(command)}' took more than {seconds:g} s on the device",
                    stage="setup",
                    where=self._name.text,
                ) from error
            messages.seek(0)
            said = messages.read().decode(errors="replace")
        if process.returncode == _CONNECTION_FAILED:
            raise ConnectionLostError(said.strip())
        return process.returncode, out.decode(errors="replace"), said

    @property
    def _socket(self) -> Path:
        folder = self._folder
        if len(os.fsencode(folder)) > _SOCKET_BYTES:
            raise RuntimeUnavailableError(
                "the path of temporary files is too long for a socket of ssh",
                where=str(folder),
                fix="Set TMPDIR to a shorter one.",
            )
        return folder / "control"

    def _ssh(self, master: str) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": _CONNECT_SECONDS,
            "ServerAliveInterval": self._options.alive_s,
            "ServerAliveCountMax": _MISSED,
            "ControlMaster": master,
            "ControlPath": self._socket,
            "ControlPersist": "no",
            # What a user's configuration may say for sessions in a terminal.
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "ClearAllForwardings": "yes",
            "ForwardX11": "no",
        }
        configuration = self._options.ssh_config or os.environ.get(CONFIG_VARIABLE)
        return [
            "ssh",
            *(("-F", str(configuration)) if configuration else ()),
            *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
            *(("-p", str(self._name.port)) if self._name.port is not None else ()),
            "--",
            self._name.destination,
        ]

    def _said(self) -> str:
        if self._messages is None:
            return ""
        self._messages.seek(0)
        text = self._messages.read().decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-_MESSAGE_LINES:])

    def _explained(self, said: str) -> DeviceError:
        by_hand = " ".join(
            filter(
                None,
                (
                    "ssh",
                    f"-p {self._name.port}" if self._name.port is not None else "",
                    self._name.destination,
                ),
            )
        )
        text = said.lower()
        may_repeat = False
        if "identification has changed" in text or ("host key for" in text and "has changed" in text):
            what = "its host key is not the one that is known"
            fix = (
                "Somebody may be in between, or the device was set up anew. Find out which; in the second "
                "case remove the old key: ssh-keygen -R and the host's name."
            )
        elif "host key verification failed" in text or "host key is known" in text:
            what = "its host key is not known"
            fix = f"Connect once by hand and compare its fingerprint with the device's: {by_hand}"
        elif "permission denied" in text or "too many authentication failures" in text:
            what = "it lets nobody in with the keys that ssh offers"
            fix = f"Put a key there (ssh-copy-id), load yours into the agent (ssh-add), then try: {by_hand}"
        else:
            what = "it cannot be reached"
            fix = f"Check its name, its network and that it is on; then try: {by_hand}"
            may_repeat = True
        return DeviceError(
            f"{what}. ssh says:\n  " + "\n  ".join(said.strip().splitlines()),
            stage="connect",
            where=self._name.text,
            fix=fix,
            may_repeat=may_repeat,
        )


def quote(word: str) -> str:
    """A word for the device's shell; a leading `~/` stays its home."""
    return "~/" + shlex.quote(word[2:]) if word.startswith("~/") else shlex.quote(word)
