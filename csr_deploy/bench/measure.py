"""Runs a plan: a process for every subject and purpose, one of them working at a time."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import csr_deploy
from csr_deploy import errors
from csr_deploy.bench.metrics import median_of_windows, ratio_interval, summarise
from csr_deploy.bench.plan import BenchOptions, BenchPlan, BenchSubject
from csr_deploy.bench.results import (
    Accuracy,
    BenchResult,
    Comparison,
    Environment,
    Golden,
    GpuTime,
    Latency,
    MachineState,
    Measurement,
    Memory,
    Microcontroller,
    Sizes,
)
from csr_deploy.bench.telemetry import Monitor, TelemetryReading, check_available, open_source

if TYPE_CHECKING:
    from typing_extensions import Self

# Accuracy does not depend on the batch; a checkpoint is faster with many images at once.
_CHECKPOINT_BATCH = 64
_CONFIDENCE = 0.95
_BUSY_SHARE = 0.25
_TAIL_LINES = 15
_EXIT_SECONDS = 10.0
# Without the working directory, whose files may have names of modules.
_START = "import sys; sys.path = [p for p in sys.path if p]; from csr_deploy.bench.worker import main; main()"


class Progress(Protocol):
    """Told what is going on."""

    def __call__(self, stage: str, subject: str, done: int, total: int) -> None:
        """`done` of `total` parts of a stage are finished for a subject."""


class WorkerProcess:
    """A `csr_deploy.bench.worker` and the way to ask it.

    Leaving the block ends the process: by itself, or at once where an error or Ctrl-C is the reason.

    Args:
        label: The subject, for messages.
    """

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> Self:
        # Its own, so that one that is killed leaves nothing behind.
        self._temporary = tempfile.TemporaryDirectory(prefix="csr-bench-", ignore_cleanup_errors=True)
        self._messages = tempfile.TemporaryFile()
        # A session of its own: Ctrl-C reaches this process only, which then ends the worker.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, self._temporary.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=_worker_environment(self._temporary.name),
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()
        try:
            self._process.communicate(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.communicate()
        self._messages.close()
        self._temporary.cleanup()

    def _kill(self) -> None:
        """Ends it and what it started, such as a compiler."""
        # Not waited for, it keeps its number, and the group with it.
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(
        self, do: str, stage: str, on_progress: Callable[[int, int], None] | None = None, **arguments: Any
    ) -> Any:
        """Sends a request and waits for the answer.

        Args:
            do: Name of a method of `csr_deploy.bench.worker.Session`.
            stage: What it does, for messages.
            on_progress: Called with parts done and parts in all.
            **arguments: Of the method.

        Raises:
            CsrError: What the worker found.
            BenchError: If the worker died.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, "with": arguments}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died(stage) from None
        while line := process.stdout.readline():
            if not line.endswith("\n"):
                break
            reply = json.loads(line)
            if "error" in reply:
                raise self._failed(reply["error"])
            if "value" in reply:
                return reply["value"]
            if on_progress:
                on_progress(*reply["progress"])
        raise self._died(stage)

    def _failed(self, error: Mapping[str, Any]) -> errors.CsrError:
        kind = getattr(errors, error["kind"], errors.CsrError)
        if kind is errors.MissingDependencyError:
            kind = errors.RuntimeUnavailableError
        failed: errors.CsrError = kind(error["what"], where=error["where"] or self._label, fix=error["fix"])
        return failed

    def _died(self, stage: str) -> errors.BenchError:
        status = self._process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            how = f"was killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
        else:
            how = f"ended with status {status}"
        self._messages.seek(0)
        tail = self._messages.read().decode(errors="replace").rstrip().splitlines()[-_TAIL_LINES:]
        said = "Its last output:\n  " + "\n  ".join(tail) if tail else "It left no output."
        return errors.BenchError(f"the process {how} while {stage}", where=self._label, fix=said)


def _worker_environment(temporary: str) -> dict[str, str]:
    """The caller's environment, the same csr_deploy, and no threads but the runtime's own."""
    root = str(Path(csr_deploy.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "TMPDIR": temporary,
    }


def run_plan(plan: BenchPlan, on_progress: Progress) -> BenchResult:
    """Measures every subject of a plan.

    Each is checked first (golden vectors, accuracy); only then anything is timed. Latencies are taken in
    turns: all subjects are loaded, each in its own process, and one after another measures a window while the
    others wait; telemetry is taken meanwhile, and throttling makes the result void. Memory is read in yet
    another process. In an emulator nothing is timed, and away from this machine neither its telemetry nor its
    memory says anything.

    Args:
        plan: What and how.
        on_progress: Told what is going on, never during a timed window.

    Raises:
        CsrError: If a subject cannot be run; nothing is left running.
    """
    options = plan.options
    telemetry = options.telemetry if options.place.is_host else "none"
    if options.is_timed:
        check_available(telemetry)
    with WorkerProcess("this machine") as machine:
        environment = Environment(**machine.ask("machine", "reading the environment"))
        before = MachineState(**machine.ask("state", "reading the machine's state"))
        checked = {s.label: _check(plan, s, on_progress) for s in plan.subjects}
        latency: dict[str, Latency] = {}
        memory: dict[str, Memory] = {}
        watched: TelemetryReading | None = None
        if options.is_timed:
            source = open_source(telemetry, interval_s=options.telemetry_interval)
            with Monitor(source, options.telemetry_interval) as monitor:
                latency = _measure_latency(plan, checked, on_progress, monitor)
            watched = monitor.reading() if options.place.is_host else None
            if options.place.is_host:
                memory = {s.label: _measure_memory(plan, s, on_progress) for s in plan.subjects}
        after = MachineState(**machine.ask("state", "reading the machine's state"))
    energy = watched.energy if watched else {}
    measurements = tuple(
        Measurement(
            **checked[s.label],
            latency=latency.get(s.label),
            memory=memory.get(s.label),
            energy=energy.get(s.label),
        )
        for s in plan.subjects
    )
    return BenchResult(
        options.quick,
        asdict(options),
        environment,
        before,
        after,
        plan.baseline,
        measurements,
        _compare(plan, latency),
        (*_notes(plan, measurements, environment, before), *_telemetry_notes(watched)),
        watched.telemetry if watched else None,
        watched.telemetry.void if watched else (),
    )


def _start(plan: BenchPlan, subject: BenchSubject, worker: WorkerProcess, batch: int = 1) -> dict[str, Any]:
    options = plan.options
    started: dict[str, Any] = worker.ask(
        "start",
        "reading the model and importing its runtime",
        path=str(subject.path),
        kind=subject.kind,
        runtime=options.runtime,
        threads=options.threads,
        kernels=options.kernels,
        batch=batch,
        cuda_graph=options.cuda_graph,
        copies=options.copies,
        wait=options.wait,
        device=options.device,
    )
    return started


def _check(plan: BenchPlan, subject: BenchSubject, on_progress: Progress) -> dict[str, Any]:
    """Fields of a `Measurement` that need no clock."""
    options = plan.options
    on_progress("check", subject.label, 0, 1)
    with WorkerProcess(subject.label) as worker:
        identity = _start(plan, subject, worker, _CHECKPOINT_BATCH)
        worker.ask(
            "build",
            "building what its runtime needs on this machine",
            lambda done, total: on_progress("build", subject.label, done, total),
        )
        checked = worker.ask("check", "loading the model and checking its golden vectors")
        on_progress("check", subject.label, 1, 1)
        accuracy = None
        if options.data is not None:
            accuracy = Accuracy(
                **worker.ask(
                    "accuracy",
                    "classifying the test images",
                    lambda done, total: on_progress("accuracy", subject.label, done, total),
                    data=options.data,
                    limit=min((n for n in (options.limit, options.device_images) if n), default=None),
                    seed=options.seed,
                    here=not options.place.is_host and options.device_images is None,
                )
            )
    if subject.kind == "checkpoint":
        identity["batch"] = 1
    sizes = Sizes(**checked["sizes"])
    return {
        **identity,
        "subject": subject.label,
        "sizes": sizes,
        "golden": checked["golden"] and Golden(**checked["golden"]),
        "parity": checked["parity"],
        "settings": checked["settings"],
        "accuracy": accuracy,
        "microcontroller": None if options.place.is_host else _microcontroller(checked["settings"], sizes),
    }


def _microcontroller(settings: Mapping[str, Any], sizes: Sizes) -> Microcontroller:
    """What the mcu runtime told of its device after the golden inputs."""
    instructions, stack, arena = settings.get("instructions"), settings.get("stack_bytes"), sizes.arena_bytes
    return Microcontroller(
        device=settings["device"],
        board=settings.get("board"),
        instructions=instructions,
        instructions_per_mac=instructions / sizes.macs if instructions and sizes.macs else None,
        cycles=settings.get("cycles"),
        stack_bytes=stack,
        ram_bytes=None if stack is None or arena is None else arena + stack,
        flash_bytes=settings.get("flash", {}).get("model_flash_bytes"),
        compiler=settings.get("compiler"),
        flags=settings.get("flags"),
    )


def _measure_latency(
    plan: BenchPlan, checked: Mapping[str, Mapping[str, Any]], on_progress: Progress, monitor: Monitor
) -> dict[str, Latency]:
    options = plan.options
    runs, seconds = math.ceil(options.images / options.windows), options.seconds / options.windows
    loaded: dict[str, Mapping[str, int]] = {}
    warmup: dict[str, int] = {}
    windows: dict[str, list[tuple[int, ...]]] = {s.label: [] for s in plan.subjects}
    gpu: dict[str, list[tuple[int, ...]]] = {s.label: [] for s in plan.subjects}
    with ExitStack() as stack:
        workers = {s.label: stack.enter_context(WorkerProcess(s.label)) for s in plan.subjects}
        for subject in plan.subjects:
            label, worker = subject.label, workers[subject.label]
            on_progress("load", label, 0, 1)
            if _start(plan, subject, worker)["sha256"] != checked[label]["sha256"]:
                raise errors.BenchError("the file was changed during the benchmark", where=label)
            loaded[label] = worker.ask("load", "loading the model and running it once")
            warmup[label] = 1 + worker.ask(
                "warm_up", "warming up", runs=options.warmup_runs, seconds=options.warmup_seconds
            )
            on_progress("load", label, 1, 1)
        for turn in range(options.windows):
            for label, worker in workers.items():
                with monitor.window(label) as times:
                    samples = worker.ask(
                        "window", "being timed", runs=runs, seconds=seconds, settle=options.settle_runs
                    )
                    times.extend(samples["wall"])
                windows[label].append(tuple(samples["wall"]))
                gpu[label].append(tuple(samples["gpu"]))
                on_progress("latency", label, turn + 1, options.windows)
    return {
        label: Latency(
            **loaded[label],
            warmup_runs=warmup[label],
            **asdict(summarise(windows[label])),
            windows_ns=tuple(windows[label]),
            gpu=_gpu_time(gpu[label]),
        )
        for label in windows
    }


def _gpu_time(windows: Sequence[tuple[int, ...]]) -> GpuTime | None:
    return GpuTime(**asdict(summarise(windows)), windows_ns=tuple(windows)) if all(windows) else None


def _measure_memory(plan: BenchPlan, subject: BenchSubject, on_progress: Progress) -> Memory:
    on_progress("memory", subject.label, 0, 1)
    with WorkerProcess(subject.label) as worker:
        _start(plan, subject, worker)
        memory = Memory(**worker.ask("memory", "measuring its memory", runs=plan.options.memory_runs))
    on_progress("memory", subject.label, 1, 1)
    return memory


def _compare(plan: BenchPlan, latency: Mapping[str, Latency]) -> tuple[Comparison, ...]:
    if not latency:
        return ()
    under = latency[plan.baseline].windows_ns
    comparisons = []
    for subject in plan.subjects:
        if subject.label == plan.baseline:
            continue
        over = latency[subject.label].windows_ns
        low, high = ratio_interval(over, under, confidence=_CONFIDENCE, seed=plan.options.seed)
        ratio = median_of_windows(over) / median_of_windows(under)
        comparisons.append(Comparison(subject.label, plan.baseline, ratio, low, high, _CONFIDENCE))
    return tuple(comparisons)


def _notes(
    plan: BenchPlan, measurements: Sequence[Measurement], environment: Environment, before: MachineState
) -> tuple[str, ...]:
    notes = []
    if plan.options.quick:
        notes.append("Shortened by --quick: figures for a first look, not for a comparison.")
    if any(m.runtime == "tflm" for m in measurements):
        notes.append(
            "TFLite Micro ran its plain C kernels on this machine: its outputs are those of a "
            "microcontroller, its times say nothing about one, and its arena is slightly larger than there."
        )
    if any(m.runtime == "mcu" for m in measurements):
        notes += _mcu_notes(plan.options, measurements)
    for measurement in measurements:
        if measurement.settings.get("copies") is False:
            notes.append(f"Copies to the GPU and back are not in the latency of {measurement.subject}.")
    if plan.options.is_timed and plan.options.place.is_host:
        if len({m.batch for m in measurements}) > 1:
            notes.append(
                "The subjects have different batch sizes, and each latency is that of a whole batch."
            )
        if before.load_average > _BUSY_SHARE * environment.cpus:
            notes.append(
                f"The machine was busy before (load average {before.load_average:g} on {environment.cpus} "
                "CPUs): times may be too long and uneven."
            )
        if before.governor not in (None, "performance"):
            notes.append(
                f"The frequency governor is '{before.governor}': 'performance' gives steadier times."
            )
    return tuple(notes)


def _mcu_notes(options: BenchOptions, measurements: Sequence[Measurement]) -> list[str]:
    place, notes = options.place, []
    if place.is_host:
        return [
            "The C of mcu artifacts ran on this machine: its outputs, arena and constants are those of a "
            "microcontroller, its times and its process's memory say nothing about one. "
            "--device qemu:cortex-m4 counts instructions."
        ]
    if place.board is not None:
        notes.append(
            f"Emulated in QEMU: {place.board.summary} ({place.board.machine}). Instructions of model_run are "
            f"counted to within {float(place.board.instructions_per_tick):g}, median over the golden inputs; "
            "they are no time. Flash: the model and what it needs of the C library, without the firmware."
        )
    if options.device_images is not None:
        notes.append(f"The test images were classified by {place.text}.")
    elif options.data is not None:
        notes.append(
            "The test images were classified by the same C on this machine, whose golden outputs are the "
            f"same bytes as on {place.text}. --device-images N lets {place.text} classify N of them."
        )
    devices = [m.microcontroller for m in measurements if m.microcontroller]
    compiled = {f"Compiled by {d.compiler} with {d.flags}." for d in devices if d.compiler}
    return [*notes, *sorted(compiled)]


def _telemetry_notes(watched: TelemetryReading | None) -> tuple[str, ...]:
    if watched is None:
        return ()
    void = watched.telemetry.void
    verdict = [f"VOID, latencies and energies are not those of these networks: {'; '.join(void)}."]
    return (*(verdict if void else ()), *(f"Telemetry: {note}." for note in watched.telemetry.notes))
