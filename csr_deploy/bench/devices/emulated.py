"""An emulated Raspberry Pi as a device: golden outputs, instructions and memory; nothing is timed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from csr_deploy import __version__
from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.bench.accuracy import measure_accuracy, with_agreement
from csr_deploy.bench.devices.base import DeviceError, DeviceOptions
from csr_deploy.bench.devices.names import PI_EMULATED, DeviceName
from csr_deploy.bench.emulated_pi import BOARDS, Board, Count, Job, Root, count, find_root
from csr_deploy.bench.emulated_pi.emulator import RuntimeName
from csr_deploy.bench.emulated_pi.subjects import (
    board_model,
    encoded_batches,
    package_version,
    recorded_runtime,
)
from csr_deploy.bench.environment import read_state
from csr_deploy.bench.measure import compare
from csr_deploy.bench.plain import read_plain
from csr_deploy.bench.results import (
    Accuracy,
    BenchResult,
    Drift,
    Environment,
    Failure,
    Golden,
    Instructions,
    Measurement,
    Memory,
    Sizes,
)
from csr_deploy.bench.worker import deflated_bytes
from csr_deploy.data import ImageSet, open_dataset, sample
from csr_deploy.errors import CsrError, OptionError
from csr_deploy.runtimes import Runtime
from csr_deploy.runtimes.golden import verify_golden

if TYPE_CHECKING:
    from typing_extensions import Self

    from csr_deploy.bench.groups import Group
    from csr_deploy.bench.measure import Progress
    from csr_deploy.bench.plan import BenchOptions, BenchPlan, BenchSubject

_PACKAGES = ("numpy", "ai-edge-litert", "onnxruntime")


class EmulatedPi:
    """A Raspberry Pi under user emulation.

    Args:
        name: Of kind "pi-emulated".
        options: Where it is kept, and how often to count.
    """

    def __init__(self, name: DeviceName, options: DeviceOptions) -> None:
        assert name.board is not None
        self.name = name.text
        self._board = BOARDS[name.board]
        self._options = options

    def __enter__(self) -> Self:
        root = find_root(self._options.cache)
        if root is None:
            raise DeviceError(
                "is not prepared, or for other versions than are installed here",
                stage="setup",
                where=self.name,
                fix=f"Run: csr-device setup {PI_EMULATED}",
            )
        self._root = root
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to give back."""

    def run(self, group: Group, on_progress: Progress) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="csr-emulated-") as folder:
            work = _Work(group.plan, self._board, self._root, Path(folder))
            for subject in group.plan.subjects:
                work.prepare(subject)
            work.count(self._options, on_progress)
            result = work.result()
        values: dict[str, Any] = json.loads(json.dumps(result.to_json()))
        return values


@dataclass
class _Subject:
    """A subject on its way.

    Attributes:
        label: In the plan.
        artifact: What it is.
        jobs: Those that count and, where images are classified on the board, that which does it.
        images: These images.
    """

    label: str
    artifact: Artifact
    jobs: tuple[Job, ...]
    images: ImageSet | None


class _Work:
    """A plan on a board.

    Args:
        plan: What and how.
        board: Where.
        root: Prepared.
        folder: For files.
    """

    def __init__(self, plan: BenchPlan, board: Board, root: Root, folder: Path) -> None:
        self._plan = plan
        self._board = board
        self._root = root
        self._folder = folder
        self._subjects: list[_Subject] = []
        self._measured: dict[str, Measurement] = {}
        self._failures: dict[str, Failure] = {}
        self._before = read_state()

    @property
    def _classifies(self) -> bool:
        """Whether the board is to classify images: with a limit only, as it takes seconds for a few."""
        return self._plan.options.data is not None and self._plan.options.limit is not None

    def prepare(self, subject: BenchSubject) -> None:
        """Makes the jobs of a subject; one that cannot run becomes a failure."""
        options = self._plan.options
        try:
            if subject.kind != "artifact":
                raise OptionError(
                    "is a checkpoint, and there is no torch on the board", fix="Export it first."
                )
            artifact = read_artifact(subject.path)
            model, runtime = board_model(artifact)
            if options.runtime not in (None, runtime) or options.kernels not in (None, "optimized"):
                raise OptionError(
                    f"runs on an emulated board with {runtime}'s optimized kernels only",
                    fix="Leave --runtime and --kernels out.",
                )
            number = len(self._subjects)
            golden = encoded_batches(artifact, artifact.golden().images)
            jobs = [self._job(f"{number}", model, runtime, golden)]
            images = None
            if self._classifies:
                assert options.data is not None and options.limit is not None
                dataset = open_dataset(options.data, "test")
                images = sample(dataset, artifact.preprocessing, options.limit, options.seed)
                encoded = encoded_batches(artifact, images.images)
                jobs.append(self._job(f"{number}-images", model, runtime, encoded))
            self._subjects.append(_Subject(subject.label, artifact, tuple(jobs), images))
        except CsrError as error:
            self._fail(subject.label, "start", error)

    def _job(self, name: str, model: Path, runtime: RuntimeName, inputs: NDArray[Any]) -> Job:
        path = self._folder / f"{name}.npy"
        np.save(path, inputs, allow_pickle=False)
        return Job(name, model, runtime, self._plan.options.threads, path)

    def count(self, options: DeviceOptions, on_progress: Progress) -> None:
        """Runs all jobs in one process of the emulator, and takes the results as they come."""
        # Jobs that count come first: images of one subject would move the counts of the next.
        parts = 2 if self._classifies else 1
        order = [(s, part) for part in range(parts) for s in self._subjects]
        done = 0

        def take(counted: Count) -> None:
            nonlocal done
            subject, part = order[done]
            done += 1
            stage = "accuracy" if part else "count"
            try:
                self._take(subject, part, counted, options.count_runs)
            except CsrError as error:
                self._fail(subject.label, "accuracy" if part else "check", error)
            on_progress(stage, subject.label, done, len(order))

        if order:
            on_progress("count", order[0][0].label, 0, len(order))
            jobs = [s.jobs[part] for s, part in order]
            count(jobs, self._board.key, root=options.cache, runs=options.count_runs, on_done=take)

    def _take(self, subject: _Subject, part: int, counted: Count, runs: int) -> None:
        """Turns what the board said into a measurement, once its golden outputs are right."""
        if counted.error is not None or counted.outputs is None:
            raise DeviceError(
                f"it does not run on the emulated {self._board.name}: {counted.error}",
                stage="measure",
                where=subject.label,
            )
        version = package_version(subject.jobs[0].runtime, self._root)
        runtime = recorded_runtime(subject.artifact, subject.jobs[0].runtime, counted.outputs, version)
        if part == 0:
            golden = Golden(**asdict(verify_golden(runtime)))
            self._measured[subject.label] = self._measurement(subject, counted, golden, version, runs)
        elif subject.label in self._measured:
            accuracy = self._accuracy(subject, runtime)
            self._measured[subject.label] = replace(self._measured[subject.label], accuracy=accuracy)

    def _accuracy(self, subject: _Subject, runtime: Runtime) -> Accuracy:
        options = self._plan.options
        assert options.data is not None and options.limit is not None
        return measure_accuracy(
            runtime,
            subject.artifact.preprocessing,
            subject.artifact.labels,
            options.data,
            options.limit,
            options.seed,
            lambda done, total: None,
        )

    def _measurement(
        self, subject: _Subject, counted: Count, golden: Golden, version: str, runs: int
    ) -> Measurement:
        artifact = subject.artifact
        memory = None
        if counted.private_bytes is not None:
            memory = Memory(counted.private_bytes, counted.mapped_bytes, None, None, 1, "pi-emulated")
        parity = dict(artifact.parity)
        drift = _drift(parity.pop("drift", None))
        checkpoint = artifact.source.get("checkpoint_sha256")
        return Measurement(
            subject=subject.label,
            network=artifact.name,
            target=artifact.target,
            file=artifact.model_file.name,
            sha256=artifact.sha256,
            runtime=subject.jobs[0].runtime,
            runtime_version=version,
            kernels="optimized",
            threads=self._plan.options.threads,
            batch=artifact.input.shape[0],
            sizes=_sizes(artifact, subject.jobs[0].model),
            golden=golden,
            memory=memory,
            parity=parity,
            settings={
                "count_runs": runs,
                "emulator": f"QEMU {self._root.emulator_version()}",
                **({} if counted.kernels is None else {"architecture": counted.kernels}),
            },
            instructions=Instructions(
                self._board.key,
                counted.instructions,
                counted.busiest_thread,
                counted.first,
                counted.load,
            ),
            drift=drift,
            checkpoint_sha256=checkpoint if isinstance(checkpoint, str) else None,
        )

    def _fail(self, label: str, stage: str, error: CsrError) -> None:
        self._failures[label] = Failure(label, stage, error.what, error.where, error.fix, _public_name(error))

    def result(self) -> BenchResult:
        """Everything."""
        plan = self._plan
        order = [s.label for s in plan.subjects]
        measurements = with_agreement(self._measured[label] for label in order if label in self._measured)
        return BenchResult(
            plan.options.quick,
            asdict(plan.options),
            self._environment(),
            self._before,
            read_state(),
            plan.baseline,
            measurements,
            compare(plan, measurements),
            _notes(plan.options, self._board),
            failures=tuple(self._failures[label] for label in order if label in self._failures),
        )

    def _environment(self) -> Environment:
        versions = {"csr-deploy": __version__}
        versions |= {name: self._root.versions[name] for name in _PACKAGES if name in self._root.versions}
        return Environment(
            machine="aarch64",
            cpu=f"{self._board.cpu} (emulated)",
            cpus=self._board.cores,
            kernel=f"QEMU {self._root.emulator_version()}, user emulation",
            python=self._root.python,
            memory_bytes=int(psutil.virtual_memory().total),
            board=f"{self._board.name} (emulated)",
            versions=versions,
        )


def _sizes(artifact: Artifact, file: Path) -> Sizes:
    return Sizes(
        file_bytes=file.stat().st_size,
        parameters=_whole(artifact.model.get("parameters")),
        macs=_whole(artifact.model.get("macs")),
        weight_bytes=_whole(artifact.ledger.get("stored_bytes")),
        arena_bytes=_whole(artifact.model.get("arena_bytes")),
        compressed_bytes=deflated_bytes(file),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _drift(values: Mapping[str, Any] | None) -> Drift | None:
    """What the export recorded, see `csr_deploy.drift.Drift.to_json`."""
    if not values:
        return None
    layers = [{"layer": name, **steps} for name, steps in values["layers"].items()]
    return read_plain(Drift, {"images": values["images"], "layers": layers}, "the artifact's drift")


def _notes(options: BenchOptions, board: Board) -> tuple[str, ...]:
    notes = [
        f"Emulated: the kernels for arm64 ran as on a {board.name}. Latency: not measured. Instructions are "
        "counted, private and mapped memory is that of the guest; load and memory of the machine are those "
        "of the host of the emulation.",
    ]
    if options.threads > 1:
        notes.append(
            "With several threads counts do not repeat: threads that wait for each other execute what they "
            "like."
        )
    if options.data is not None:
        notes.append(
            f"The emulated board classified {options.limit} test images."
            if options.limit is not None
            else "No accuracy: an emulated board is slow. --limit N lets it classify N test images."
        )
    return tuple(notes)


def _public_name(error: CsrError) -> str:
    """The class in `csr_deploy.errors` that it is or comes from."""
    return next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == CsrError.__module__)
