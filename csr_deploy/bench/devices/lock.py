"""One at a time: the device's lock, held by the session of a host and by the measurement it started.

It is a `flock`, so the kernel gives it back whatever ends its holders. A file beside it says who they are.
The measurement inherits it from the session: where the host goes away the device stays locked until the
figures are taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from pathlib import Path
from typing import IO, Any

from csr_deploy.bench.devices.processes import ProcessName, is_alive, name_process

_TRIES = 20
_PAUSE_S = 0.1


class DeviceLock:
    """The lock.

    Args:
        folder: Where everything of csr-deploy is on the device.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._holder = folder / "holder.json"
        self._file: IO[bytes] | None = None

    @property
    def handle(self) -> int | None:
        """The file's number while it is held here; a child that inherits it holds the lock too."""
        return None if self._file is None else self._file.fileno()

    def take(self, client: str, who: str) -> dict[str, Any]:
        """Tries to take it.

        A session of the same client, as it stays behind when a connection breaks, is ended.

        Args:
            client: Of one run on one host.
            who: The same, for people.

        Returns:
            `{"state": "held"}`; `{"state": "running", "job", "who", "mine"}` where no session but a
            measurement holds it, that of this client or one whose host went away; or
            `{"state": "busy", "who", "since"}`.
        """
        holder: dict[str, Any] = {}
        for _ in range(_TRIES):
            if self._flock():
                since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
                holder = {
                    "client": client,
                    "who": who,
                    "since": since,
                    "session": name_process(),
                    "job": None,
                }
                self._write(holder)
                return {"state": "held"}
            holder = self.read()
            session: ProcessName | None = holder.get("session")
            mine = holder.get("client") == client
            has_session = session is not None and is_alive(session)
            if mine and has_session and session is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(session["pid"], signal.SIGKILL)
            elif has_session:
                break
            job = holder.get("job")
            if job is not None and is_alive(job["process"]):
                return {"state": "running", "job": job["id"], "who": holder["who"], "mine": mine}
            # Whoever held it is on the way out, or on the way in and has not written its name yet.
            time.sleep(_PAUSE_S)
        return {"state": "busy", "who": holder.get("who", "somebody"), "since": holder.get("since", "?")}

    def note_job(self, job: str) -> None:
        """Writes down that this process is a measurement that holds the lock."""
        self._write({**self.read(), "job": {"id": job, "process": name_process()}})

    def read(self) -> dict[str, Any]:
        """Who holds it, or held it last; empty where that is not known."""
        try:
            values: dict[str, Any] = json.loads(self._holder.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values

    def _flock(self) -> bool:
        if self._file is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def _write(self, holder: dict[str, Any]) -> None:
        temporary = self._holder.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_text(json.dumps(holder), encoding="utf-8")
            temporary.replace(self._holder)
        except OSError:
            # A full disk: the lock itself holds, only its holder has no name.
            with contextlib.suppress(OSError):
                temporary.unlink()
