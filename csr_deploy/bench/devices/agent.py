"""The program on the device, `python -m csr_deploy.bench.devices.agent`.

    agent serve FOLDER      answers a host over standard input and output, see `blobs`
    agent work FOLDER JOB   measures; started by `serve`, and not ended with it

A host goes away whenever it likes: what was started goes on and is found again.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from csr_deploy import __version__
from csr_deploy.bench.devices.blobs import (
    HELLO,
    BlobError,
    BlobStore,
    answer_files,
    free_bytes,
    serve,
    unwritable,
)
from csr_deploy.bench.devices.identity import code_sha256
from csr_deploy.bench.devices.jobs import Job
from csr_deploy.bench.devices.lock import DeviceLock

# Seldom enough not to disturb what is timed on a small board.
_WATCH_PAUSE_S = 0.5
_MODULE = "csr_deploy.bench.devices.agent"
_START_SECONDS = 60.0


class Agent:
    """Answers one host.

    Args:
        folder: Where everything of csr-deploy is on this device.
        replies: Where events go between a request and its answer.
    """

    def __init__(self, folder: Path, replies: IO[bytes]) -> None:
        self._folder = folder
        self._replies = replies
        self._store = BlobStore(folder)
        self._lock = DeviceLock(folder)

    def answer(self, request: Mapping[str, Any], stream: IO[bytes]) -> Any:
        """Answers a request.

        Raises:
            BlobError: If it cannot be done.
        """
        do = request["do"]
        if do == "lock":
            return self._lock.take(request["client"], request["who"])
        if do == "state":
            return self._job(request).state()
        if do == "start":
            return self._start(request)
        if do == "watch":
            return self._watch(self._job(request), request["offset"], stream)
        if do == "fetch":
            return json.loads(self._job(request).result.read_text(encoding="utf-8"))
        if do == "forget":
            return self._job(request).forget()
        if do == "clean":
            return self._clean()
        return answer_files(self._store, request, stream)

    def _clean(self) -> int:
        """Ends what runs and removes all that hosts sent; gives the bytes that are free now."""
        for folder in (self._folder / "jobs").glob("*"):
            Job(self._folder, folder.name).forget()
        for name in ("jobs", "trees", "blobs", "wheels"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        return free_bytes(self._folder)

    def _job(self, request: Mapping[str, Any]) -> Job:
        key = str(request["job"])
        if not key.isalnum():
            raise BlobError("unwritable", f"'{key}' is no name of a job")
        return Job(self._folder, key)

    def _start(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._lock.handle is None:
            raise BlobError("unwritable", "the device is not locked")
        job = self._job(request)
        try:
            job.make(request["values"])
            with (job.folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-m", _MODULE, "work", str(self._folder), job.key],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    pass_fds=[self._lock.handle],
                    start_new_session=True,
                )
        except OSError as error:
            raise unwritable(error) from error
        end = time.monotonic() + _START_SECONDS
        while (state := job.state())["state"] == "starting" and time.monotonic() < end:
            if process.poll() is not None:
                raise BlobError(
                    "unwritable", f"the measurement does not start on the device:\n  {job.said()}"
                )
            time.sleep(0.02)
        return state

    def _watch(self, job: Job, offset: int, stream: IO[bytes]) -> dict[str, Any]:
        """Sends events as they come until the job ends.

        An event is `{"progress": [stage, subject, done, total], "offset": n}`.

        Raises:
            EOFError: If the host went away.
        """
        while True:
            state = job.state()
            offset = self._send_events(job, offset)
            if state["state"] not in ("running", "starting"):
                return state
            # A sleep that ends when the host speaks or is gone.
            if select.select([stream], [], [], _WATCH_PAUSE_S)[0]:
                if not stream.peek(1):  # type: ignore[attr-defined]
                    raise EOFError
                return {"state": "interrupted"}

    def _send_events(self, job: Job, offset: int) -> int:
        try:
            with job.progress.open("rb") as file:
                file.seek(offset)
                text = file.read()
        except OSError:
            return offset
        for line in text.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            self._replies.write(json.dumps({"progress": json.loads(line), "offset": offset}).encode() + b"\n")
        self._replies.flush()
        return offset


def main() -> None:
    """Entry point."""
    do, folder = sys.argv[1], Path(sys.argv[2]).expanduser()
    if do == "work":
        return Job(folder, sys.argv[3]).work()
    # Whatever a library prints must not come between the answers.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    hello = {"version": __version__, "code": code_sha256(), "python": sys.version.split()[0]}
    replies.write(HELLO.encode() + json.dumps(hello).encode() + b"\n")
    replies.flush()
    agent = Agent(folder, replies)
    try:
        serve(sys.stdin.buffer, replies, agent.answer)
    except BrokenPipeError:
        # The host is gone.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return None


if __name__ == "__main__":
    main()
