"""Counts the instructions that models take on an emulated Raspberry Pi, with the real kernels for arm64."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from csr_deploy.bench.emulated_pi.boards import Board, find_board
from csr_deploy.bench.emulated_pi.guest import MOMENTS, Moment
from csr_deploy.bench.emulated_pi.root import Root, prepare_root
from csr_deploy.errors import BenchError, OptionError

RuntimeName = Literal["litert", "native", "ort"]
_GUEST = Path(__file__).with_name("guest.py")
# The largest networks here take minutes to load; a guest that says nothing for so long hangs.
_MOST_SILENT_SECONDS = 1800.0
_MESSAGE_LINES = 4


@dataclass(frozen=True)
class Job:
    """One model to count.

    Attributes:
        name: How the result is called.
        model: The file; for "native" the library for AArch64.
        runtime: What runs it.
        threads: The runtime's threads.
        inputs: An .npy file, [n, …] as the model takes them; all are run for their outputs, the first one is
            counted. None for noise.
    """

    name: str
    model: Path
    runtime: RuntimeName
    threads: int = 1
    inputs: Path | None = None

    def __post_init__(self) -> None:
        if self.runtime not in get_args(RuntimeName):
            raise OptionError(
                f"no runtime '{self.runtime}' on an emulated Pi", fix="Use 'litert', 'ort' or 'native'."
            )
        if self.threads < 1:
            raise OptionError(f"threads is {self.threads}", fix="Give at least 1.")


@dataclass(frozen=True)
class Count:
    """What a model takes on a board. With an error all counts are 0 and the rest is None.

    Attributes:
        name: Of the job.
        instructions: Retired instructions of an inference in the steady state, all threads together: the
            median of several. One inference is the call in Python with the input copied in and the output
            copied out.
        busiest_thread: Those of the thread that executed most.
        first: Instructions of the first inference.
        load: Instructions of loading.
        outputs: [n, …] of the first output, for all inputs.
        private_bytes: What loading and the first inference added to the process's own memory.
        mapped_bytes: What they added to the resident pages of files.
        kernels: Architecture of the kernels that a native library chose there; None for other runtimes.
        error: Why it could not be counted.
    """

    name: str
    instructions: int
    busiest_thread: int = 0
    first: int = 0
    load: int = 0
    outputs: NDArray[Any] | None = None
    private_bytes: int | None = None
    mapped_bytes: int | None = None
    kernels: str | None = None
    error: str | None = None


def count(
    jobs: Sequence[Job],
    board: str,
    *,
    root: Path | None = None,
    runs: int = 5,
    on_done: Callable[[Count], None] | None = None,
) -> list[Count]:
    """Counts models on a board, all in one process of the emulator.

    Each model runs in a fork of it: one that cannot be loaded, or crashes, becomes a result with an error,
    and the others go on.

    Args:
        jobs: The models.
        board: A key of `BOARDS`.
        root: The cache with the emulator, see `cache_folder`; it is filled if need be.
        runs: Inferences to take the median of.
        on_done: Called with each result as it comes.

    Returns:
        A result for each job, in their order.

    Raises:
        OptionError: If there is no such board, or a number is out of range.
        RuntimeUnavailableError: If the emulator is not there and cannot be made.
        BenchError: If the emulator does not start.
    """
    if runs < 1:
        raise OptionError(f"runs is {runs}", fix="Give at least 1.")
    emulated = find_board(board)
    if not jobs:
        return []
    prepared = prepare_root(root)
    results: list[Count] = []
    with tempfile.TemporaryDirectory() as folder:
        for result in _Guest(prepared, emulated, Path(folder), jobs, runs).results():
            results.append(result)
            if on_done is not None:
                on_done(result)
    return results


class _Guest:
    """One process on the board.

    Args:
        root: The prepared root.
        board: The board.
        folder: For its files.
        jobs: What it is to do.
        runs: See `count`.
    """

    def __init__(self, root: Root, board: Board, folder: Path, jobs: Sequence[Job], runs: int) -> None:
        self._folder = folder
        self._jobs = jobs
        self._runs = runs
        self._marks = folder / "marks"
        for number, job in enumerate(jobs):
            inputs = folder / f"{number}-inputs.npy"
            if job.inputs is not None:
                # By a name of its own: that of a temporary file would make each process a little different.
                inputs.symlink_to(job.inputs.absolute())
            values = {
                "model": str(job.model.absolute()),
                "runtime": job.runtime,
                "threads": job.threads,
                "inputs": None if job.inputs is None else inputs.name,
                "runs": runs,
            }
            (folder / f"{number}.json").write_text(json.dumps(values), encoding="utf-8")
        # Nothing here may differ from one process to the next: it would move the guest's stack and heap.
        self._command = root.command(board, [str(_GUEST), f"{len(jobs):06}"], self._marks)
        self._environment = root.environment()

    def results(self) -> Iterator[Count]:
        """Starts the process and gives each job's result as it comes.

        Raises:
            BenchError: If it ends before its last job, or says nothing for too long.
        """
        with (
            (self._folder / "messages").open("w+b") as messages,
            subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            try:
                for number in range(len(self._jobs)):
                    yield self._result(number, self._read(process))
            finally:
                # The group: the job at work is a child of it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _read(self, process: subprocess.Popen[str]) -> Mapping[str, Any]:
        assert process.stdout is not None
        watchdog = threading.Timer(_MOST_SILENT_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            line = process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise BenchError(f"the emulated board's process ended by itself: {self._reason(process.wait())}")
        said: Mapping[str, Any] = json.loads(line)
        return said

    def _reason(self, status: int) -> str:
        said = (self._folder / "messages").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "; ".join([f"exit status {status}", *said[-_MESSAGE_LINES:]])

    def _result(self, number: int, said: Mapping[str, Any]) -> Count:
        job = self._jobs[number]
        if "failed" in said:
            return Count(job.name, 0, error=str(said["reason"]))
        marks: dict[int, list[list[int]]] = {}
        for line in self._marks.read_text(encoding="ascii").splitlines():
            moment, *counts = map(int, line.split())
            if moment // MOMENTS == number:
                marks.setdefault(moment % MOMENTS, []).append(counts)
        # A thread that was not there yet has no count.
        threads = max(len(counts) for several in marks.values() for counts in several)
        counted = {
            Moment(moment): np.array([counts + [0] * (threads - len(counts)) for counts in several], np.int64)
            for moment, several in marks.items()
        }

        def between(first: Moment, second: Moment) -> int:
            return int((counted[second][0] - counted[first][-1]).sum() - mark.sum())

        mark = np.median(np.diff(counted[Moment.NOTHING], axis=0), axis=0).astype(np.int64)
        each = np.diff(counted[Moment.STEADY], axis=0) - mark
        return Count(
            job.name,
            int(np.median(each.sum(1))),
            int(np.median(each.max(1))),
            between(Moment.BEFORE_FIRST, Moment.FIRST_DONE),
            between(Moment.BEFORE_LOAD, Moment.LOADED),
            np.load(self._folder / f"{number}.npy", allow_pickle=False),
            int(said["private_bytes"]),
            int(said["mapped_bytes"]),
            said.get("kernels"),
        )
