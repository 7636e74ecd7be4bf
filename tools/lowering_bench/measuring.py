"""Instructions on emulated boards, and time and memory here."""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csr_deploy.artifact import read_artifact
from csr_deploy.bench.emulated_pi import Count, Job, count, prepare_root
from csr_deploy.bench.emulated_pi.subjects import (
    board_model,
    encoded_batches,
    package_version,
    recorded_runtime,
)
from csr_deploy.bench.measure import run_plan
from csr_deploy.bench.metrics import median_of_windows, ratio_interval
from csr_deploy.bench.plan import BenchOptions, make_plan
from csr_deploy.bench.results import BenchResult
from csr_deploy.errors import BenchError, CsrError, ParityError
from csr_deploy.runtimes.golden import verify_golden
from lowering_bench.kept import Kept
from lowering_bench.subjects import BOARDS, STOCK, Model

Say = Callable[[str], None]
Failures = dict[str, str]
"""Key of a measurement → why there is none."""

_LEAST_INFERENCES = 500
_WINDOWS = 10


@dataclass(frozen=True)
class Counting:
    """One model to count on one board."""

    model: Model
    board: str
    threads: int

    @property
    def key(self) -> str:
        """Of the measurement; changes with the file and with what runs it."""
        return f"count:{self.board}:{self.threads}:{_runs(self.model)}:{self.model.digest}"

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.model.variant.name}, on a {BOARDS[self.board]}, {_threads(self.threads)}"


@dataclass(frozen=True)
class Timing:
    """Models that are timed in turns, the first one as the baseline.

    Attributes:
        models: Of one runtime and one kind of numbers.
        threads: Of the runtime.
        seconds: Timed, of each model.
    """

    models: tuple[Model, ...]
    threads: int
    seconds: float

    @property
    def key(self) -> str:
        """See `Counting.key`."""
        digests = ",".join(m.digest for m in self.models)
        return f"time:{self.threads}:{self.seconds:g}:{_runs(self.models[0])}:{digests}"

    @property
    def name(self) -> str:
        """For messages."""
        variant = self.models[-1].variant
        return f"{variant.network} {variant.format.label}, timed here, {_threads(self.threads)}"


def _runs(model: Model) -> str:
    package = model.variant.format.package
    return f"{package} {importlib.metadata.version(package)}"


def _threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def is_done(what: Counting | Timing, kept: Kept) -> bool:
    """Whether a measurement is kept and good: one that was disturbed, or failed in part, is repeated."""
    value = kept.get(what.key)
    return value is not None and not (value.get("void") or value.get("failures"))


# --- counting ---


def count_all(countings: Sequence[Counting], kept: Kept, say: Say) -> Failures:
    """Counts what is not kept; a model that fails does not end it."""
    todo = [c for c in countings if not is_done(c, kept)]
    counter = _Counter(kept, say, len(todo))
    for board, threads in dict.fromkeys((c.board, c.threads) for c in todo):
        left = [c for c in todo if (c.board, c.threads) == (board, threads)]
        while left:
            try:
                counter.count(left)
            except BenchError as error:
                # The emulator itself ended, at the model that was at work.
                counter.fail(left.pop(0), error)
            except CsrError as error:
                # There is no emulator, and there will be none for the others.
                for each in left:
                    counter.fail(each, error)
                left.clear()
    return counter.failures


class _Counter:
    """Counts models and keeps what comes.

    Args:
        kept: Where to.
        say: Told what was counted.
        total: How many there are.
    """

    def __init__(self, kept: Kept, say: Say, total: int) -> None:
        self._kept, self._say, self._total = kept, say, total
        self._done = 0
        self.failures: Failures = {}

    def count(self, left: list[Counting]) -> None:
        """Counts models on one board with one number of threads; takes those out of `left` that are done.

        Raises:
            CsrError: If the emulator cannot be made.
            BenchError: If it ends before its last job.
        """
        board, start = left[0].board, [time.perf_counter()]
        with tempfile.TemporaryDirectory() as folder:
            jobs = [_job(each, Path(folder) / f"{n}.npy") for n, each in enumerate(left)]

            def done(result: Count) -> None:
                counting = left.pop(0)
                now = time.perf_counter()
                self._kept.took(counting.model.variant.work("count"), now - start[0])
                start[0] = now
                try:
                    self._keep(counting, result)
                except ParityError as error:
                    self.fail(counting, error)

            count(jobs, board, on_done=done)

    def _keep(self, counting: Counting, result: Count) -> None:
        if result.error is not None:
            raise ParityError(result.error)
        golden = _golden_error(counting, result)
        if golden and counting.model.variant.way != STOCK:
            raise ParityError(golden)
        value = {
            "instructions": result.instructions,
            "busiest_thread": result.busiest_thread,
            "private_bytes": result.private_bytes,
            "mapped_bytes": result.mapped_bytes,
            "golden": golden,
        }
        self._kept.put(counting.key, value)
        self._tell(f"{counting.name}: {result.instructions / 1e6:.2f} M instructions")

    def fail(self, counting: Counting, error: CsrError) -> None:
        """Notes a failure."""
        self.failures[counting.key] = brief(error)
        self._tell(f"{counting.name}: FAILED, {brief(error)}")

    def _tell(self, text: str) -> None:
        self._done += 1
        self._say(f"[{self._done}/{self._total}] {text}")


def _job(counting: Counting, inputs: Path) -> Job:
    """The golden images as inputs, so that what the board computes can be compared."""
    model = counting.model
    artifact = read_artifact(model.path)
    np.save(inputs, encoded_batches(artifact, artifact.golden().images), allow_pickle=False)
    file, runtime = board_model(artifact)
    return Job(counting.name, file, runtime, counting.threads, inputs)


def _golden_error(counting: Counting, result: Count) -> str:
    """Why the board's outputs are not the golden ones; empty if they are."""
    assert result.outputs is not None
    artifact = read_artifact(counting.model.path)
    runtime = board_model(artifact)[1]
    version = f"{package_version(runtime, prepare_root())} on {counting.board}"
    try:
        verify_golden(recorded_runtime(artifact, runtime, result.outputs, version))
    except ParityError as error:
        return brief(error)
    return ""


# --- timing ---


def time_all(timings: Sequence[Timing], kept: Kept, say: Say) -> Failures:
    """Times what is not kept or was disturbed; what fails does not end it."""
    failures: Failures = {}
    todo = [t for t in timings if not is_done(t, kept)]
    for number, timing in enumerate(todo, 1):
        start = time.perf_counter()
        try:
            value = _time(timing)
        except CsrError as error:
            failures[timing.key] = brief(error)
            say(f"[{number}/{len(todo)}] {timing.name}: FAILED, {brief(error)}")
            continue
        kept.took(timing.models[-1].variant.work("time"), time.perf_counter() - start)
        kept.put(timing.key, value)
        void = f"VOID: {value['void'][0]}" if value["void"] else "done"
        say(f"[{number}/{len(todo)}] {timing.name}: {void}")
    return failures


def _time(timing: Timing) -> dict[str, Any]:
    options = BenchOptions(
        runtime=timing.models[0].variant.format.runtime,
        threads=timing.threads,
        images=_LEAST_INFERENCES,
        seconds=timing.seconds,
        windows=_WINDOWS,
        profile=False,
    )
    plan = make_plan([m.path for m in timing.models], options)
    labels = [s.label for s in plan.subjects]
    return timed_values(timing, labels, run_plan(plan, lambda *_: None))


def timed_values(timing: Timing, labels: Sequence[str], result: BenchResult) -> dict[str, Any]:
    """What is kept of a result.

    Args:
        timing: What was asked for.
        labels: Of its models in the result.
        result: Of csr-bench.

    Returns:
        `void`, reasons; `failures`, digest of a model → why; `models`, digest → figures, nanoseconds and
        bytes, with the ratio to the first model and its 95 % interval.
    """
    measured = {m.subject: m for m in result.measurements}
    failed = {f.subject: f"{f.stage}: {f.reason}" for f in result.failures}
    base = measured.get(labels[0])
    models: dict[str, Any] = {}
    for model, label in zip(timing.models, labels, strict=True):
        found = measured.get(label)
        if found is None or found.latency is None or found.memory is None:
            continue
        over = found.latency.windows_ns
        models[model.digest] = {"ns": median_of_windows(over), "memory": asdict(found.memory)}
        if base is not None and base.latency is not None:
            under = base.latency.windows_ns
            low, high = ratio_interval(over, under, confidence=0.95, seed=0)
            ratio = median_of_windows(over) / median_of_windows(under)
            models[model.digest] |= {"ratio": ratio, "low": low, "high": high}
    failures = {m.digest: failed[n] for m, n in zip(timing.models, labels, strict=True) if n in failed}
    return {"void": list(result.void), "failures": failures, "models": models}


def brief(error: CsrError) -> str:
    """The first lines of an error's message, in one."""
    return " ".join(str(error).splitlines()[:2])
