"""Runs a plan: a process for every subject and purpose, one of them working at a time."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import csr_deploy
from csr_deploy import errors
from csr_deploy.bench.accuracy import with_agreement
from csr_deploy.bench.metrics import median_of_windows, ratio_interval, summarise
from csr_deploy.bench.plain import read_plain
from csr_deploy.bench.plan import BenchOptions, BenchPlan, BenchSubject, runtime_of
from csr_deploy.bench.results import (
    Accuracy,
    BenchResult,
    Comparison,
    Drift,
    Environment,
    Failure,
    Golden,
    GpuTime,
    Latency,
    MachineState,
    Measurement,
    Memory,
    Microcontroller,
    OpTime,
    Sizes,
)
from csr_deploy.bench.telemetry import Monitor, TelemetryReading, check_available, open_source
from csr_deploy.runtimes import find_runtime

if TYPE_CHECKING:
    from typing_extensions import Self

# Accuracy does not depend on the batch; a checkpoint is faster with many images at once.
_CHECKPOINT_BATCH = 64
_CONFIDENCE = 0.95
# A runtime works or spins in the thread that calls it, so that its process has one processor all the time.
_LEAST_CPU_SHARE = 0.75
_BUSY_SHARE = 0.25
_TAIL_LINES = 15
_EXIT_SECONDS = 10.0
# Without the working directory, whose files may have names of modules.
_START = "import sys; sys.path = [p for p in sys.path if p]; from csr_deploy.bench.worker import main; main()"


class Progress(Protocol):
    """Told what is going on."""

    def __call__(self, stage: str, subject: str, done: int, total: int) -> None:
        """`done` of `total` parts of a stage are finished for a subject."""


_alive: set[WorkerProcess] = set()
_alive_lock = threading.Lock()


def kill_workers() -> None:
    """Ends every worker of this process; whoever waits for an answer gets an error. Safe in any thread."""
    with _alive_lock:
        for worker in _alive:
            worker.kill()


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
        with _alive_lock:
            _alive.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        try:
            self._process.communicate(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.communicate()
        with _alive_lock:
            _alive.discard(self)
        self._messages.close()
        self._temporary.cleanup()

    def kill(self) -> None:
        """Ends it and what it started, such as a compiler, at once."""
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
    another process, and so are the times of operators. In an emulator nothing is timed, and away from this
    machine neither its telemetry nor its memory says anything.

    A subject that fails becomes a failure of the result, with what was measured of it before; the others go
    on.

    Args:
        plan: What and how.
        on_progress: Told what is going on, never during a timed window.

    Raises:
        CsrError: If nothing can be measured at all, as where the telemetry asked for is not there; nothing is
            left running.
    """
    options = plan.options
    telemetry = options.telemetry if options.place.is_host else "none"
    if options.is_timed:
        check_available(telemetry)
    runs = _Runs(plan, on_progress)
    with WorkerProcess("this machine") as machine:
        environment = Environment(**machine.ask("machine", "reading the environment"))
        before = MachineState(**machine.ask("state", "reading the machine's state"))
        checked = runs.check()
        latency: dict[str, Latency] = {}
        memory: dict[str, Memory] = {}
        profiles: dict[str, tuple[OpTime, ...] | None] = {}
        watched: TelemetryReading | None = None
        if options.is_timed:
            source = open_source(telemetry, interval_s=options.telemetry_interval)
            with Monitor(source, options.telemetry_interval) as monitor:
                latency = runs.measure_latency(checked, monitor)
            watched = monitor.reading() if options.place.is_host else None
            if options.place.is_host:
                memory = runs.measure_memory()
                profiles = runs.profile() if options.profile else {}
        after = MachineState(**machine.ask("state", "reading the machine's state"))
    energy = watched.energy if watched else {}
    measurements = with_agreement(
        Measurement(
            **checked[label],
            latency=latency.get(label),
            memory=memory.get(label),
            energy=energy.get(label),
            profile=profiles.get(label),
        )
        for label in checked
    )
    disturbed = _disturbed(options, latency)
    telemetry_void = watched.telemetry.void if watched else ()
    void = (*telemetry_void, *(() if options.quick else disturbed))
    return BenchResult(
        options.quick,
        asdict(options),
        environment,
        before,
        after,
        plan.baseline,
        measurements,
        compare(plan, measurements),
        (
            *_notes(plan, measurements, environment, before),
            *_void_notes(void),
            *(f"Quick, so not void: {reason}." for reason in disturbed if options.quick),
            *_telemetry_notes(watched),
        ),
        watched.telemetry if watched else None,
        void,
        tuple(runs.failures),
    )


class _Runs:
    """The passes of a plan. A subject that fails in one is left out of the later ones.

    Args:
        plan: What and how.
        on_progress: Told what is going on.
    """

    def __init__(self, plan: BenchPlan, on_progress: Progress) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self.failures: list[Failure] = []

    @property
    def _going(self) -> list[BenchSubject]:
        failed = {f.subject for f in self.failures}
        return [s for s in self._plan.subjects if s.label not in failed]

    @contextmanager
    def _stage(self, subject: str) -> Iterator[Callable[[str], None]]:
        """Turns an error of a subject into a failure.

        Yields:
            To be called with the name of each stage as it begins.
        """
        at = ["start"]
        try:
            yield lambda stage: at.append(stage)
        except errors.CsrError as error:
            self.failures.append(
                Failure(subject, at[-1], error.what, error.where, error.fix, type(error).__name__)
            )

    def check(self) -> dict[str, dict[str, Any]]:
        """Fields of a `Measurement` that need no clock, by label."""
        checked: dict[str, dict[str, Any]] = {}
        for subject in self._plan.subjects:
            self._check(subject, checked)
        return checked

    def _check(self, subject: BenchSubject, checked: dict[str, dict[str, Any]]) -> None:
        plan, label, options = self._plan, subject.label, self._plan.options
        self._on_progress("check", label, 0, 1)
        with self._stage(label) as stage, WorkerProcess(label) as worker:
            identity = _start(plan, subject, worker, _CHECKPOINT_BATCH)
            stage("build")
            worker.ask(
                "build",
                "building what its runtime needs on this machine",
                lambda done, total: self._on_progress("build", label, done, total),
            )
            stage("check")
            found = worker.ask("check", "loading the model and checking its golden vectors")
            self._on_progress("check", label, 1, 1)
            if subject.kind == "checkpoint":
                identity["batch"] = options.batch or 1
            sizes = Sizes(**found["sizes"])
            fields = checked[label] = {
                **identity,
                "subject": label,
                "sizes": sizes,
                "golden": found["golden"] and Golden(**found["golden"]),
                "parity": found["parity"],
                "drift": _drift(found["drift"]),
                "settings": found["settings"],
                "microcontroller": None
                if options.place.is_host
                else _microcontroller(found["settings"], sizes),
            }
            if options.data is not None:
                stage("accuracy")
                values = worker.ask(
                    "accuracy",
                    "classifying the test images",
                    lambda done, total: self._on_progress("accuracy", label, done, total),
                    data=options.data,
                    limit=min((n for n in (options.limit, options.device_images) if n), default=None),
                    seed=options.seed,
                    here=not options.place.is_host and options.device_images is None,
                )
                fields["accuracy"] = read_plain(Accuracy, values, f"the accuracy of {label}")

    def measure_latency(
        self, checked: Mapping[str, Mapping[str, Any]], monitor: Monitor
    ) -> dict[str, Latency]:
        """Times of inferences by label, the subjects in turns."""
        options = self._plan.options
        runs, seconds = math.ceil(options.images / options.windows), options.seconds / options.windows
        timed: dict[str, _Timed] = {}
        with ExitStack() as stack:
            workers: dict[str, WorkerProcess] = {}
            for subject in self._going:
                label = subject.label
                self._on_progress("load", label, 0, 1)
                with self._stage(label) as stage:
                    worker = stack.enter_context(WorkerProcess(label))
                    if _start(self._plan, subject, worker)["sha256"] != checked[label]["sha256"]:
                        raise errors.BenchError("the file was changed during the benchmark", where=label)
                    stage("load")
                    loaded = worker.ask("load", "loading the model and running it once")
                    stage("latency")
                    warmup = 1 + worker.ask(
                        "warm_up", "warming up", runs=options.warmup_runs, seconds=options.warmup_seconds
                    )
                    workers[label], timed[label] = worker, _Timed(loaded, warmup)
                self._on_progress("load", label, 1, 1)
            for turn in range(options.windows):
                for label in [s.label for s in self._going if s.label in workers]:
                    with self._stage(label) as stage:
                        stage("latency")
                        with monitor.window(label) as times:
                            samples = workers[label].ask(
                                "window",
                                "being timed",
                                runs=runs,
                                seconds=seconds,
                                settle=options.settle_runs,
                            )
                            times.extend(samples["wall"])
                        timed[label].add(samples)
                        self._on_progress("latency", label, turn + 1, options.windows)
        is_host = options.place.is_host
        return {
            s.label: timed[s.label].latency(checked[s.label]["batch"], is_host)
            for s in self._going
            if s.label in timed
        }

    def measure_memory(self) -> dict[str, Memory]:
        """Memory by label, each in a process of its own."""
        found: dict[str, Memory] = {}
        for subject in self._going:
            label = subject.label
            self._on_progress("memory", label, 0, 1)
            with self._stage(label) as stage, WorkerProcess(label) as worker:
                stage("memory")
                _start(self._plan, subject, worker)
                runs = self._plan.options.memory_runs
                found[label] = Memory(**worker.ask("memory", "measuring its memory", runs=runs))
            self._on_progress("memory", label, 1, 1)
        return found

    def profile(self) -> dict[str, tuple[OpTime, ...] | None]:
        """Times of operators by label, where the runtime has a profiler."""
        found: dict[str, tuple[OpTime, ...] | None] = {}
        for subject in self._going:
            label = subject.label
            if not find_runtime(runtime_of(subject, self._plan.options)).has_profiler:
                continue
            self._on_progress("profile", label, 0, 1)
            with self._stage(label) as stage, WorkerProcess(label) as worker:
                stage("profile")
                _start(self._plan, subject, worker)
                runs = self._plan.options.profile_runs
                times = worker.ask("profile", "timing its operators", runs=runs)
                found[label] = None if times is None else tuple(OpTime(**each) for each in times)
            self._on_progress("profile", label, 1, 1)
        return found


class _Timed:
    """Samples of one subject.

    Args:
        loaded: `load_ns` and `first_ns`.
        warmup_runs: See `Latency`.
    """

    def __init__(self, loaded: Mapping[str, int], warmup_runs: int) -> None:
        self._loaded = loaded
        self._warmup_runs = warmup_runs
        self._windows: list[tuple[int, ...]] = []
        self._gpu: list[tuple[int, ...]] = []
        self._busy: list[float] = []

    def add(self, samples: Mapping[str, Any]) -> None:
        """Takes a window, as `worker.Session.window` answers it."""
        self._windows.append(tuple(samples["wall"]))
        self._gpu.append(tuple(samples["gpu"]))
        self._busy.append(samples["cpu"] / max(samples["elapsed"], 1))

    def latency(self, batch: int, is_host: bool) -> Latency:
        """The record of all windows."""
        images = batch * sum(map(len, self._windows))
        return Latency(
            **self._loaded,
            warmup_runs=self._warmup_runs,
            **asdict(summarise(self._windows)),
            windows_ns=tuple(self._windows),
            gpu=_gpu_time(self._gpu),
            images_per_second=images / (sum(map(sum, self._windows)) / 1e9),
            cpu_per_wall=median(self._busy) if is_host else None,
        )


def _start(
    plan: BenchPlan, subject: BenchSubject, worker: WorkerProcess, batch: int | None = None
) -> dict[str, Any]:
    options = plan.options
    started: dict[str, Any] = worker.ask(
        "start",
        "reading the model and importing its runtime",
        path=str(subject.path),
        kind=subject.kind,
        runtime=options.runtime,
        threads=options.threads,
        kernels=options.kernels,
        batch=batch or options.batch or 1,
        cuda_graph=options.cuda_graph,
        copies=options.copies,
        wait=options.wait,
        device=options.device,
    )
    return started


def _drift(values: Mapping[str, Any] | None) -> Drift | None:
    """What the export recorded, see `csr_deploy.drift.Drift.to_json`."""
    if not values:
        return None
    layers = [{"layer": name, **steps} for name, steps in values["layers"].items()]
    return read_plain(Drift, {"images": values["images"], "layers": layers}, "the artifact's drift")


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


def _gpu_time(windows: Sequence[tuple[int, ...]]) -> GpuTime | None:
    return GpuTime(**asdict(summarise(windows)), windows_ns=tuple(windows)) if all(windows) else None


def compare(plan: BenchPlan, measurements: Sequence[Measurement]) -> tuple[Comparison, ...]:
    """Every subject over the baseline: latencies where both have them, and counted instructions."""
    base = next((m for m in measurements if m.subject == plan.baseline), None)
    if base is None:
        return ()
    others = [m for m in measurements if m is not base]
    latencies = [_latency_ratio(m, base, plan.options.seed) for m in others]
    counts = [_instructions_ratio(m, base) for m in others]
    return tuple(c for c in (*latencies, *counts) if c is not None)


def _latency_ratio(subject: Measurement, base: Measurement, seed: int) -> Comparison | None:
    if subject.latency is None or base.latency is None:
        return None
    over, under = subject.latency.windows_ns, base.latency.windows_ns
    low, high = ratio_interval(over, under, confidence=_CONFIDENCE, seed=seed)
    ratio = median_of_windows(over) / median_of_windows(under)
    return Comparison(subject.subject, base.subject, ratio, low, high, _CONFIDENCE)


def _instructions_ratio(subject: Measurement, base: Measurement) -> Comparison | None:
    over, under = subject.counted_instructions, base.counted_instructions
    if not over or not under:
        return None
    return Comparison(
        subject.subject, base.subject, over / under, over / under, over / under, 1.0, "instructions"
    )


def _disturbed(options: BenchOptions, latency: Mapping[str, Latency]) -> tuple[str, ...]:
    """Who had to share its processor while it was timed."""
    if not options.place.is_host:
        return ()
    return tuple(
        f"other programs took the processor from {label} for "
        f"{1 - each.cpu_per_wall:.0%} of the time in half of its windows or more"
        for label, each in latency.items()
        if each.gpu is None and each.cpu_per_wall is not None and each.cpu_per_wall < _LEAST_CPU_SHARE
    )


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


def _void_notes(void: Sequence[str]) -> tuple[str, ...]:
    if not void:
        return ()
    return (f"VOID, latencies and energies are not those of these networks: {'; '.join(void)}.",)


def _telemetry_notes(watched: TelemetryReading | None) -> tuple[str, ...]:
    return tuple(f"Telemetry: {note}." for note in watched.telemetry.notes) if watched else ()
