"""A real PostgreSQL server on loopback, with data of its own, for searches whose workers share no disk."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NAME = "csr"


def _programs() -> Path | None:
    """Debian keeps the server's programs out of PATH, a folder for each version."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "pg_ctl").exists() and (f / "initdb").exists()), None)


class Server:
    """A cluster: `url` is what csr-search takes as --storage."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._user: str | None = None
        if os.geteuid() == 0:
            # PostgreSQL does not run as root.
            self._user = "postgres" if _exists("postgres") else "nobody"
            shutil.chown(folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", _NAME, "--no-sync")
        self.start()
        self.url = f"postgresql://{_NAME}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        settings = f"-h 127.0.0.1 -p {self.port} -k {self._folder} -F"
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-o", settings, "-l", self._log, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-m", "immediate", "stop")

    @property
    def _log(self) -> str:
        return str(self._folder / "log")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        # Output goes nowhere: the server would inherit a pipe and keep it open.
        subprocess.run(
            command, user=self._user, cwd=self._folder, check=True, stdout=subprocess.DEVNULL, timeout=120
        )


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@contextmanager
def running_server() -> Iterator[Server]:
    """A fresh server, gone afterwards. Skips where PostgreSQL or its driver is missing."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    # Not below pytest's folder, which another user cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="csr-postgres-"))
    try:
        server = Server(programs, folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
