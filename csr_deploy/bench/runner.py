"""Runs the groups of a plan on their devices: what is missing, with repetitions of what is void.

Devices that do not share a processor work at the same time, each in a thread of its own. All that the runner
itself does meanwhile is to wait and to append results.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, Protocol

from csr_deploy import __version__
from csr_deploy.bench.accuracy import is_float, is_float_target, with_agreement
from csr_deploy.bench.devices.base import BenchDevice
from csr_deploy.bench.devices.names import parse_device_name
from csr_deploy.bench.expand import ExpandedPlan
from csr_deploy.bench.groups import Group
from csr_deploy.bench.measure import kill_workers
from csr_deploy.bench.plan import runtime_of
from csr_deploy.bench.results import BenchResult, Measurement
from csr_deploy.bench.store import (
    Attempt,
    FailureRecord,
    GroupRecord,
    Plan,
    PlannedGroup,
    PlannedSubject,
    Record,
    RunRecord,
    check_result,
)
from csr_deploy.errors import CsrError, OptionError

THIS_MACHINE = "this machine"
_LOOPBACK = {"localhost", "127.0.0.1", "::1", "[::1]"}
_RUN_ID_BYTES = 8
_JOIN_SECONDS = 0.2
_STOP_SECONDS = 30.0


class Sink(Protocol):
    """Where records go: a `Store`, or nothing."""

    def append(self, record: Record) -> None:
        """Keeps a record."""


class Listener(Protocol):
    """Told what is going on, from any thread."""

    def progress(self, device: str, stage: str, subject: str, done: int, total: int) -> None:
        """`done` of `total` parts of a stage are finished for a subject."""

    def say(self, text: str) -> None:
        """Something that the user should know, though the run goes on."""

    def finished(self, outcome: Outcome) -> None:
        """A group is done, for now or for good."""


@dataclass(frozen=True)
class RunOptions:
    """How a run deals with what goes wrong.

    Attributes:
        repeats: How often a void group is measured again, at most.
        cool_down: Seconds to wait before that.
    """

    repeats: int = 2
    cool_down: float = 60.0

    def __post_init__(self) -> None:
        if self.repeats < 0 or not self.cool_down >= 0:
            raise OptionError(
                f"{self.repeats} repeats after {self.cool_down:g} s", fix="Give 0 or more of each."
            )


@dataclass(frozen=True)
class Outcome:
    """What became of a group.

    Attributes:
        group: The group.
        attempts: How often it was tried, over all runs.
        status: See `Attempt.status`.
        is_new: Whether this run tried it.
        failure: Where the group as a whole failed.
        read: Gives the result; None where the group as a whole failed.
    """

    group: Group
    attempts: int
    status: str
    is_new: bool
    failure: FailureRecord | None = None
    read: Callable[[], BenchResult | None] = field(default=lambda: None, repr=False)


def run_record(plan: ExpandedPlan, command: Sequence[str]) -> RunRecord:
    """The record of a start, with a new id."""
    return RunRecord(
        secrets.token_hex(_RUN_ID_BYTES),
        wall_clock(),
        tuple(command),
        __version__,
        Plan(tuple(_planned(g) for g in plan.groups), plan.left_out),
    )


def _planned(group: Group) -> PlannedGroup:
    values = group.to_json()
    subjects = tuple(PlannedSubject(**s) for s in values["subjects"])
    return PlannedGroup(values["id"], values["device"], values["baseline"], subjects, values["options"])


def wall_clock() -> str:
    """The time of day, as a label: what is measured comes from monotonic clocks only."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def lane_of(device: str) -> str:
    """What a device shares with others: its own name, or this machine, which one group has at a time."""
    parsed = parse_device_name(device)
    if parsed.kind == "ssh" and parsed.host not in _LOOPBACK:
        return device
    return THIS_MACHINE


class Runner:
    """Runs a plan.

    Args:
        plan: All groups.
        previous: Last attempts of earlier runs by group; those that passed are not repeated.
        run: Id of this run.
        sink: Takes every record as it comes.
        open_device: Opens a device by its name.
        listener: Told what is going on.
        options: How to deal with what goes wrong.
    """

    def __init__(
        self,
        plan: ExpandedPlan,
        previous: Mapping[str, Attempt],
        run: str,
        sink: Sink,
        open_device: Callable[[str], BenchDevice],
        listener: Listener,
        options: RunOptions,
    ) -> None:
        self._plan = plan
        self._previous = previous
        self._run = run
        self._sink = sink
        self._open_device = open_device
        self._listener = listener
        self._options = options
        self._stop = threading.Event()
        self._known = _Known()
        self._outcomes: dict[str, Outcome] = {}
        self._broken: list[BaseException] = []

    def missing(self) -> list[Group]:
        """Groups that no earlier run measured well."""
        return [g for g in self._plan.groups if not self._has_passed(g)]

    def _has_passed(self, group: Group) -> bool:
        attempt = self._previous.get(group.id)
        return attempt is not None and attempt.status == "passed"

    def run(self) -> list[Outcome]:
        """Measures what is missing.

        Returns:
            One outcome a group, in the plan's order.

        Raises:
            BenchError: If a result cannot be written.
        """
        todo = self.missing()
        self._remember_previous(todo)
        lanes: dict[str, list[Group]] = {}
        for group in todo:
            lanes.setdefault(lane_of(group.device), []).append(group)
        if len(lanes) == 1:
            self._run_lane(*lanes.values())
        elif lanes:
            self._run_lanes(lanes)
        return [self._outcomes.get(g.id) or self._resumed(g) for g in self._plan.groups]

    def _resumed(self, group: Group) -> Outcome:
        attempt = self._previous[group.id]
        return Outcome(group, attempt.number, attempt.status, False, attempt.failure, attempt.result)

    def _remember_previous(self, todo: Sequence[Group]) -> None:
        """Takes from earlier results what those to come refer to: accuracies and classes of images.

        No more than that is parsed: samples of a thousand cells take long.
        """
        todo = [g for g in todo if g.plan.options.data]
        done = [g for g in self._plan.groups if g.plan.options.data and self._is_measured(g)]
        wanted = {_key(g, s.label) for g in todo for s in g.plan.subjects}
        needed = {g.id: g for g in done if any(_key(g, s.label) in wanted for s in g.plan.subjects)}
        floats: dict[str, list[Group]] = {}
        for group in done:
            for subject in group.plan.subjects:
                if is_float_target(subject.target):
                    floats.setdefault(subject.network, []).append(group)
        for device, network in {(g.device, s.network) for g in todo for s in g.plan.subjects}:
            found = floats.get(network, [])
            for group in [g for g in found if g.device == device][:1] or found[:1]:
                needed[group.id] = group
        for group in needed.values():
            result = self._previous[group.id].result()
            if result is not None:
                self._known.add(group, result)

    def _is_measured(self, group: Group) -> bool:
        attempt = self._previous.get(group.id)
        return attempt is not None and attempt.status in ("passed", "void")

    def _run_lanes(self, lanes: Mapping[str, Sequence[Group]]) -> None:
        threads = [
            threading.Thread(target=self._guarded, args=(groups,), name=f"csr-bench {name}", daemon=True)
            for name, groups in lanes.items()
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(_JOIN_SECONDS)
                if self._broken:
                    break
        finally:
            # By Ctrl-C, or because a result cannot be written: nothing may be left running.
            self._end(threads)
        if self._broken:
            raise self._broken[0]

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        alive = [thread for thread in threads if thread.is_alive()]
        if not alive:
            return
        self._stop.set()
        for thread in alive:
            _raise_in(thread, KeyboardInterrupt)
        kill_workers()
        end = time.monotonic() + _STOP_SECONDS
        for thread in alive:
            thread.join(max(end - time.monotonic(), 0))

    def _guarded(self, groups: Sequence[Group]) -> None:
        try:
            self._run_lane(groups)
        except KeyboardInterrupt:
            pass
        # Raised again in the main thread.
        except BaseException as error:
            self._broken.append(error)

    def _run_lane(self, groups: Sequence[Group]) -> None:
        devices: dict[str, list[Group]] = {}
        for group in groups:
            devices.setdefault(group.device, []).append(group)
        for device, mine in devices.items():
            self._run_device(device, mine)

    def _run_device(self, name: str, groups: Sequence[Group]) -> None:
        """All groups of a device. Where its connection broke it is opened again for the next one."""
        left = list(groups)
        while left and not self._stop.is_set():
            with ExitStack() as stack:
                try:
                    device = stack.enter_context(self._open_device(name))
                except CsrError as error:
                    # What holds for the first one holds for all.
                    for group in left:
                        self._fail(group, error, "connect")
                    return
                while left and not self._stop.is_set():
                    if not self._run_group(device, left.pop(0)):
                        break

    def _run_group(self, device: BenchDevice, group: Group) -> bool:
        """Measures a group, again if it is void; answers whether the device can go on."""
        for repeat in range(self._options.repeats + 1):
            started, clock = wall_clock(), time.monotonic()
            try:
                values = self._measure(device, group)
            except CsrError as error:
                stage = self._fail(group, error, "measure")
                return stage not in ("connect", "lock", "setup")
            void = tuple(values["void"])
            record = GroupRecord(
                self._run,
                group.id,
                group.device,
                self._next_attempt(group),
                started,
                wall_clock(),
                round(time.monotonic() - clock, 3),
                void,
                tuple(dict.fromkeys(f["subject"] for f in values["failures"])),
                values,
            )
            self._keep(group, record)
            last = repeat == self._options.repeats
            if not void or last or self._stop.is_set():
                return True
            self._listener.say(
                f"{group.title} is void ({'; '.join(void)}); measured again after "
                f"{self._options.cool_down:g} s ({repeat + 1} of {self._options.repeats} repetitions)"
            )
            self._stop.wait(self._options.cool_down)
        return True

    def _measure(self, device: BenchDevice, group: Group) -> dict[str, Any]:
        """A group's result as plain values, accuracies that are known not measured again."""
        on_progress = partial(self._listener.progress, group.device)
        reused = self._known.accuracies(group)
        if reused is not None:
            options = replace(group.plan.options, data=None, device_images=None)
            values = device.run(replace(group, plan=replace(group.plan, options=options)), on_progress)
            check_result(values, group.device)
            if _fill_in(values, group, reused):
                return self._completed(group, values)
            self._listener.say(
                f"{group.title}: another version runs it than before, accuracy is measured again"
            )
        values = device.run(group, on_progress)
        check_result(values, group.device)
        return self._completed(group, values)

    def _completed(self, group: Group, values: dict[str, Any]) -> dict[str, Any]:
        """Adds the agreement with float networks of other groups."""
        result = BenchResult.from_json(values, f"the result of {group.device}")
        references = self._known.references(group.device)
        for plain, measurement in zip(
            values["measurements"], with_agreement(result.measurements, references), strict=True
        ):
            plain["accuracy"] = measurement.accuracy and asdict(measurement.accuracy)
        return values

    def _next_attempt(self, group: Group) -> int:
        outcome, previous = self._outcomes.get(group.id), self._previous.get(group.id)
        return 1 + (outcome.attempts if outcome else previous.number if previous else 0)

    def _keep(self, group: Group, record: GroupRecord) -> None:
        self._sink.append(record)
        status = "void" if record.void else "incomplete" if record.failed else "passed"
        result = BenchResult.from_json(record.result, f"the result of {group.device}")
        self._known.add(group, result)
        outcome = Outcome(group, record.attempt, status, True, read=lambda: result)
        self._outcomes[group.id] = outcome
        self._listener.finished(outcome)

    def _fail(self, group: Group, error: CsrError, stage: str) -> str:
        """Records that a group as a whole could not run; answers the stage."""
        stage = str(getattr(error, "stage", stage))
        record = FailureRecord(
            self._run,
            group.id,
            group.device,
            self._next_attempt(group),
            wall_clock(),
            stage,
            error.what,
            error.where,
            error.fix,
            type(error).__name__,
        )
        self._sink.append(record)
        outcome = Outcome(group, record.attempt, "failed", True, record)
        self._outcomes[group.id] = outcome
        self._listener.finished(outcome)
        return stage


def _raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Makes an exception come up in a thread as soon as it runs Python again, so that its blocks are left."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))


_AccuracyKey = tuple[Any, ...]


@dataclass(frozen=True)
class _Source:
    """Where an accuracy was measured."""

    group: str
    measurement: Measurement


class _Known:
    """Accuracies of this plan so far, for all threads. Samples are let go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[_AccuracyKey, _Source] = {}
        self._floats: list[tuple[str, Measurement]] = []

    def add(self, group: Group, result: BenchResult) -> None:
        """Takes in the accuracies of a group."""
        subjects = {s.label: s for s in group.plan.subjects}
        for measurement in result.measurements:
            if measurement.accuracy is None or measurement.subject not in subjects:
                continue
            slim = replace(measurement, latency=None, profile=None)
            key = _key(group, measurement.subject)
            # Of one that was itself taken over, the first stays the source.
            with self._lock:
                if measurement.accuracy.reused_from is None:
                    self._sources.setdefault(key, _Source(group.id, slim))
                if is_float(measurement):
                    self._floats.append((group.device, slim))

    def accuracies(self, group: Group) -> Mapping[str, _Source] | None:
        """The accuracy of every subject of a group, by label; None unless all are known."""
        options = group.plan.options
        if options.data is None or not options.latency:
            return None
        with self._lock:
            found = {s.label: self._sources.get(_key(group, s.label)) for s in group.plan.subjects}
        known = {label: source for label, source in found.items() if source is not None}
        return known if len(known) == len(found) else None

    def references(self, device: str) -> Iterable[Measurement]:
        """Float networks, those of the same device first."""
        with self._lock:
            return [m for _, m in sorted(self._floats, key=lambda each: each[0] != device)]


def _key(group: Group, label: str) -> _AccuracyKey:
    subject = next(s for s in group.plan.subjects if s.label == label)
    options = group.plan.options
    return (
        group.device,
        options.device,
        subject.content,
        runtime_of(subject, options),
        options.kernels,
        options.data,
        options.limit,
        options.device_images,
        options.seed,
    )


def _fill_in(values: dict[str, Any], group: Group, reused: Mapping[str, _Source]) -> bool:
    """Puts known accuracies into a result; answers whether the same versions of everything ran."""
    for measurement in values["measurements"]:
        source = reused[measurement["subject"]].measurement
        same = (source.sha256, source.runtime_version, source.kernels)
        if (measurement["sha256"], measurement["runtime_version"], measurement["kernels"]) != same:
            return False
    taken = []
    for measurement in values["measurements"]:
        known = reused[measurement["subject"]]
        accuracy = known.measurement.accuracy
        assert accuracy is not None
        measurement["accuracy"] = asdict(replace(accuracy, reused_from=known.group))
        taken.append(measurement["subject"])
    options = group.plan.options
    values["options"] = {**values["options"], "data": options.data, "device_images": options.device_images}
    if taken:
        values["notes"] = [
            *values["notes"],
            f"The accuracy of {', '.join(taken)} is that of the same file, runtime, images and device in "
            "another group of this plan; the golden outputs were checked here.",
        ]
    return True
