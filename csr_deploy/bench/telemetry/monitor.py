"""Watches the machine while something is timed in other processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from csr_deploy.bench.telemetry.energy import energy_per_inference
from csr_deploy.bench.telemetry.record import (
    Energy,
    PowerMode,
    Telemetry,
    TelemetrySample,
    TimedWindow,
)
from csr_deploy.bench.telemetry.source import TelemetrySource
from csr_deploy.bench.telemetry.throttling import throttle_reasons

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_SAMPLES = 240
_T = TypeVar("_T")


@dataclass(frozen=True)
class TelemetryReading:
    """What was seen, for `csr_deploy.bench.results`."""

    telemetry: Telemetry
    energy: dict[str, Energy]


class Monitor:
    """Takes samples in a thread of this process from entering the block to leaving it.

    What is timed runs in processes of its own, so that the thread takes no lock from it; its cost is a few
    reads every interval, measured and recorded. The first sample is taken before the block begins and the
    last one after it has ended.

    Args:
        source: None for no telemetry; closed on leaving.
        interval_s: Pause between samples in seconds; longer where the source asks for it.
    """

    def __init__(self, source: TelemetrySource | None, interval_s: float = 0.5) -> None:
        self._source = source
        self._interval_s = max(interval_s, source.least_interval_s) if source else interval_s
        self._samples: list[TelemetrySample] = []
        self._windows: list[TimedWindow] = []
        self._times: dict[str, list[int]] = {}
        self._modes: list[PowerMode | None] = []
        self._cost_ns = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._broke = False

    def __enter__(self) -> Self:
        self._start_ns = time.monotonic_ns()
        if self._source is not None:
            with ExitStack() as undo:
                undo.callback(self._source.close)
                self._modes.append(self._source.power_mode())
                self._take(self._source)
                self._thread.start()
                undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._source is None:
            return
        try:
            self._broke = not self._thread.is_alive()
            self._stop.set()
            self._thread.join()
            if kind is None:
                self._take(self._source)
                self._modes.append(self._source.power_mode())
        finally:
            self._source.close()

    @contextmanager
    def window(self, subject: str) -> Iterator[list[int]]:
        """Marks when a subject is timed.

        Args:
            subject: Label.

        Yields:
            A list to which the times of the inferences are to be added, in ns.
        """
        times: list[int] = []
        start = self._now()
        yield times
        self._windows.append(TimedWindow(subject, start, self._now()))
        self._times.setdefault(subject, []).extend(times)

    def reading(self) -> TelemetryReading | None:
        """Everything that was seen; after the block. None without a source."""
        source = self._source
        if source is None:
            return None
        notes = list(source.notes)
        if self._broke:
            notes.append("telemetry broke off; its error stands in the messages of csr-bench")
        telemetry = Telemetry(
            source=source.name,
            interval_s=self._interval_s,
            power_mode=self._modes[0],
            tells_throttling=source.tells_throttling,
            void=(*throttle_reasons(self._samples), *_changed_mode(self._modes)),
            sampled=len(self._samples),
            samples=tuple(thin(self._samples, MOST_SAMPLES)),
            windows=tuple(self._windows),
            sample_cost_ms=round(self._cost_ns / max(len(self._samples), 1) / 1e6, 3),
            malformed=source.malformed,
            notes=tuple(notes),
        )
        energies = {
            subject: energy_per_inference(
                self._samples, [w for w in self._windows if w.subject == subject], times
            )
            for subject, times in self._times.items()
        }
        return TelemetryReading(telemetry, {s: e for s, e in energies.items() if e is not None})

    def _run(self) -> None:
        assert self._source is not None
        while not self._stop.wait(self._interval_s):
            self._take(self._source)

    def _take(self, source: TelemetrySource) -> None:
        before = time.thread_time_ns()
        sample = source.sample()
        self._samples.append(replace(sample, time_ns=max(sample.time_ns - self._start_ns, 0)))
        self._cost_ns += time.thread_time_ns() - before

    def _now(self) -> int:
        return time.monotonic_ns() - self._start_ns


def thin(values: Sequence[_T], most: int) -> list[_T]:
    """At most that many of the values, evenly spaced, the first and the last included."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _changed_mode(modes: Sequence[PowerMode | None]) -> tuple[str, ...]:
    first, last = modes[0], modes[-1]
    if first is None or last is None:
        return ()
    # What could not be read at one end has not changed.
    pairs = zip(astuple(first), astuple(last), strict=True)
    if not any(a is not None and b is not None and a != b for a, b in pairs):
        return ()
    return (f"the power mode changed from {describe_mode(first)} to {describe_mode(last)}",)


def describe_mode(mode: PowerMode) -> str:
    """A power mode in words."""
    name = mode.name or "unnamed"
    number = "" if mode.mode_id is None else f" ({mode.mode_id})"
    clocks = {True: ", jetson_clocks on", False: ", jetson_clocks off", None: ""}[mode.jetson_clocks]
    return f"{name}{number}{clocks}"
