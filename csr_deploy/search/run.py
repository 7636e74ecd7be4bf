"""Runs a search: the workers of this machine, and what they print."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO

from optuna.trial import FrozenTrial

from csr_deploy.search.claims import NETWORK, WORKER
from csr_deploy.search.settings import SearchSettings
from csr_deploy.search.worker import SearchError, Study, Worker

_POLL_SECONDS = 0.5
_STOP_SECONDS = 20.0
_TAIL_LINES = 15
# Without the working directory, whose files may have names of modules.
_START = (
    "import sys; sys.path = [p for p in sys.path if p]; from csr_deploy.search.worker import main; main()"
)


class Reporter:
    """Tells of each trial once, whichever worker did it.

    Args:
        study: The study.
        tell: Called with each trial that was finished since.
    """

    def __init__(self, study: Study, tell: Callable[[FrozenTrial], None]) -> None:
        self._study, self._tell = study, tell
        self._told = {t.number for t in study.finished()}

    def update(self) -> None:
        """Looks for finished trials."""
        for trial in self._study.finished():
            if trial.number not in self._told:
                self._told.add(trial.number)
                self._tell(trial)


class WorkerProcess:
    """A worker in a process of its own.

    Args:
        settings: Of the search.
        number: Which worker, from 1.
    """

    def __init__(self, settings: SearchSettings, number: int) -> None:
        self.number = number
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        # A session of its own: Ctrl-C reaches the first process only, which then ends its workers in order.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=_environment(settings),
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        task = {"settings": settings.to_json(), "worker": number, "parent": os.getpid()}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def killed(self) -> bool:
        """Whether it was ended by a signal, that is, not by itself."""
        return self._process.returncode is not None and self._process.returncode < 0

    def why(self) -> str:
        """How it ended."""
        code = self._process.returncode
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def error(self) -> SearchError | None:
        """What went wrong in it; None if nothing did, or it was killed."""
        if self._process.returncode in (0, 130) or self.killed():
            return None
        assert self._process.stdout is not None
        said = self._process.stdout.read().strip()
        if said:
            values = json.loads(said.splitlines()[-1])
            return SearchError(values["what"], where=values["where"], fix=values["fix"])
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        return SearchError("\n".join([f"worker {self.number} failed:", *lines]))

    def stop(self) -> None:
        """Asks it to end after its step."""
        if not self.ended():
            self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Waits for its end, for a while."""
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Its trial is then lost, and queued again at the next start.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._messages.close()


def _environment(settings: SearchSettings) -> dict[str, str]:
    environment = dict(os.environ)
    if settings.threads:
        # Before torch is imported there: its pools are made once.
        environment["OMP_NUM_THREADS"] = str(settings.threads)
    return environment


def run_search(
    settings: SearchSettings,
    workers: int,
    study: Study,
    *,
    on_trial: Callable[[FrozenTrial], None],
    on_loss: Callable[[str], None],
) -> None:
    """Works until the study has its trials.

    Args:
        settings: Of the search.
        workers: Processes on this machine; 1 for this one.
        study: The study, as this process sees it.
        on_trial: Called with each trial that is finished meanwhile, wherever.
        on_loss: Told of each worker that was killed.

    Raises:
        CsrError: If the search cannot go on; the trials so far are kept.
        KeyboardInterrupt: If it was interrupted; likewise.
    """
    study.queue_backbone()
    reporter = Reporter(study, on_trial)
    if workers == 1:
        Worker(study, on_trial=reporter.update).run()
        reporter.update()
        return
    running: list[WorkerProcess] = []
    try:
        running += [WorkerProcess(settings, number) for number in range(1, workers + 1)]
        _watch(study, reporter, running, on_loss)
    finally:
        for worker in running:
            worker.stop()
        for worker in running:
            worker.close()
    reporter.update()


def _watch(
    study: Study, reporter: Reporter, running: list[WorkerProcess], on_loss: Callable[[str], None]
) -> None:
    left = list(running)
    while left:
        time.sleep(_POLL_SECONDS)
        reporter.update()
        for worker in [w for w in left if w.ended()]:
            left.remove(worker)
            if error := worker.error():
                raise error
            if worker.killed():
                # This process knows for sure, so nobody has to wait for the silence.
                _release(study, worker)
                on_loss(f"worker {worker.number} ({worker.why()}); its network is queued again")
    if len({t.user_attrs[NETWORK] for t in study.finished()}) < study.settings.trials and all(
        w.killed() for w in running
    ):
        raise SearchError(
            "all workers were killed before the search was done",
            fix="Run the same command to continue. If they ran out of memory, start fewer workers.",
        )


def _release(study: Study, worker: WorkerProcess) -> None:
    me = f"{platform.node()}:{worker.pid}"
    for trial in study.claims.trials():
        if not trial.state.is_finished() and trial.user_attrs.get(WORKER) == me:
            study.claims.fail(trial.number)
    study.claims.requeue()
