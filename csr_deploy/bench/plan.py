"""What is to be measured and how."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from csr_deploy.artifact import MANIFEST, Artifact, read_artifact
from csr_deploy.bench.telemetry.sources import check_choice
from csr_deploy.errors import CheckpointError, OptionError
from csr_deploy.runtimes import RuntimeOptions, find_runtime
from csr_deploy.runtimes.mcu.devices import HOST, Device, parse_device
from csr_deploy.targets import find_target


@dataclass(frozen=True)
class BenchSubject:
    """One thing to measure.

    Attributes:
        label: Its name in tables, unique in a plan.
        path: Artifact directory or checkpoint file.
        kind: Which of them.
        network: Name of the network; of a checkpoint, which is not opened for a plan, its label.
        target: Target of the artifact, or "checkpoint".
        file: Name of the model file.
        content: SHA-256 over the names and hashes of the artifact's files, or of the checkpoint.
    """

    label: str
    path: Path
    kind: Literal["artifact", "checkpoint"]
    network: str = ""
    target: str = ""
    file: str = ""
    content: str = ""


@dataclass(frozen=True)
class BenchOptions:
    """How everything in a plan is measured.

    Attributes:
        runtime: Key of `csr_deploy.runtimes.RUNTIMES`; None for each subject's own.
        threads: Threads of the runtime.
        kernels: "optimized", "reference", or None for what the runtime does by itself.
        cuda_graph: See `RuntimeOptions`.
        copies: Likewise.
        wait: Likewise.
        device: Likewise.
        batch: Images an inference. None for that of each artifact, and 1 for a checkpoint.
        device_images: Most test images that the device itself classifies, where it is not this machine; None
            for none: the same C classifies them here.
        data: Image set for the accuracy: a path or the name of a built-in one; None for no accuracy.
        limit: Most images of it, a seeded draw; None for all.
        latency: Whether to measure latency and memory.
        images: Inferences timed, at least, over all windows.
        seconds: Seconds of inferences timed, at least, over all windows.
        windows: Parts the measurement is divided into, in turns with the other subjects.
        warmup_runs: Untimed inferences before the first window, at least.
        warmup_seconds: Seconds of them, at least.
        settle_runs: Untimed inferences at the start of every window, after another subject's turn.
        memory_runs: Inferences before the memory is read.
        profile: Whether to measure the time of every operator too, where the runtime has a profiler.
        profile_runs: Inferences of that pass.
        telemetry: Key of `csr_deploy.bench.telemetry.CHOICES`: what tells clocks, power and throttling.
        telemetry_interval: Seconds between two samples of it, at least.
        quick: Whether this is a shortened measurement.
        seed: Of the draws.
    """

    runtime: str | None = None
    threads: int = 1
    kernels: str | None = None
    cuda_graph: bool | None = None
    copies: bool | None = None
    wait: str | None = None
    device: str | None = None
    batch: int | None = None
    device_images: int | None = None
    data: str | None = None
    limit: int | None = None
    latency: bool = True
    images: int = 200
    seconds: float = 10.0
    windows: int = 5
    warmup_runs: int = 10
    warmup_seconds: float = 1.0
    settle_runs: int = 3
    memory_runs: int = 5
    profile: bool = True
    profile_runs: int = 50
    telemetry: str = "auto"
    telemetry_interval: float = 0.5
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        RuntimeOptions(self.threads, self.kernels, self.cuda_graph, self.copies, self.wait, self.device)
        if self.runtime is not None:
            find_runtime(self.runtime)
        for name in ("images", "windows", "limit", "batch", "device_images", "profile_runs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}", fix="Give at least 1.")
        check_choice(self.telemetry)
        if not self.telemetry_interval >= 0.1:
            raise OptionError(
                f"telemetry_interval is {self.telemetry_interval:g}",
                fix="Give at least 0.1 s, so that it does not disturb what is measured.",
            )
        if self.seconds < 0:
            raise OptionError(f"seconds is {self.seconds:g}", fix="Give 0 or more.")
        is_host = self.place.is_host
        if self.device_images is not None and (is_host or self.data is None):
            lack = "a device that is not this machine" if is_host else "images"
            raise OptionError(
                f"the device is to classify {self.device_images} images, but there is no sign of {lack}",
                fix=f"Give {'--device' if is_host else '--data'} too.",
            )
        if not self.latency and self.data is None and is_host:
            raise OptionError(
                "without latency and without data there is nothing to measure", fix="Give --data."
            )

    @property
    def place(self) -> Device:
        """Where the subjects run.

        Raises:
            OptionError: If there is no such device.
        """
        return parse_device(self.device or HOST)

    @property
    def is_timed(self) -> bool:
        """Whether latencies are taken: asked for, and not in an emulator, whose time means nothing."""
        return self.latency and self.place.board is None


QUICK = BenchOptions(
    limit=500, images=30, seconds=0.3, windows=3, warmup_runs=3, warmup_seconds=0.1, profile_runs=10,
    quick=True,
)  # fmt: skip
"""Options of a quick look: few inferences and few test images."""


@dataclass(frozen=True)
class BenchPlan:
    """Subjects, the one that the others are compared with, and options."""

    subjects: tuple[BenchSubject, ...]
    baseline: str
    options: BenchOptions


@dataclass(frozen=True)
class FoundSubject:
    """What a path leads to.

    Attributes:
        label: Not unique yet.
        kind: See `BenchSubject`.
        file: Name of the model file.
        runtime: The one made for it.
        target: See `BenchSubject`.
        content: Likewise.
        network: Likewise; empty for a checkpoint.
        batch: Batch of an artifact; None for a checkpoint, which takes any.
        has_labels: Whether its classes have names; those of a checkpoint always have.
    """

    label: str
    kind: Literal["artifact", "checkpoint"]
    file: str
    runtime: str
    target: str
    content: str
    network: str = ""
    batch: int | None = None
    has_labels: bool = True


def find_subject(path: Path) -> FoundSubject:
    """Reads what a plan must know of an artifact or a checkpoint.

    Raises:
        ArtifactError: If a directory is no artifact or was changed.
        CheckpointError: If a file does not exist, or a folder holds a checkpoint.
        OptionError: If the path is a file of an artifact.
    """
    if path.is_dir():
        if not (path / MANIFEST).is_file() and (path / "model.pt").is_file():
            raise CheckpointError(
                "is a folder, not a checkpoint",
                where=str(path),
                fix=f"Name the checkpoint: {path / 'model.pt'}",
            )
        artifact = read_artifact(path)
        return FoundSubject(
            f"{artifact.name}-{artifact.target}",
            "artifact",
            artifact.files[0].name,
            find_target(artifact.target).runtime,
            artifact.target,
            _content(artifact),
            artifact.name,
            artifact.input.shape[0],
            bool(artifact.labels),
        )
    if not path.is_file():
        raise CheckpointError(
            "does not exist",
            where=str(path),
            fix="Name an artifact of csr-export or a checkpoint of csr-train.",
        )
    if path.name == MANIFEST or (path.parent / MANIFEST).is_file():
        raise OptionError(
            "is a file of an artifact", where=str(path), fix=f"Name the artifact itself: {path.parent}"
        )
    # The usual file name, model.pt, says nothing; its folder does.
    label = path.parent.resolve().name if path.stem == "model" else path.stem
    return FoundSubject(label, "checkpoint", path.name, "torch", "checkpoint", _file_sha256(path))


def _content(artifact: Artifact) -> str:
    """Identity of an artifact without its engines, which a benchmark itself may add."""
    records = json.dumps([[f.name, f.size, f.sha256] for f in artifact.files])
    return hashlib.sha256(records.encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    return digest.hexdigest()


def make_plan(
    paths: Sequence[Path],
    options: BenchOptions,
    baseline: str | None = None,
    find: Callable[[Path], FoundSubject] = find_subject,
) -> BenchPlan:
    """Checks the paths and names the subjects.

    Args:
        paths: Artifact directories and checkpoint files; the first is the baseline by default.
        options: How to measure.
        baseline: Label or path of another baseline.
        find: Reads a subject; a plan of many groups reads each once.

    Raises:
        ArtifactError: If a directory is no artifact or was changed.
        CheckpointError: If a file does not exist.
        OptionError: If there is nothing to measure, the baseline is none of the subjects, or an option does
            not fit one of them.
    """
    if not paths:
        raise OptionError("there is nothing to measure", fix="Name artifacts or checkpoints.")
    found = [find(path) for path in paths]
    # Before the first of them is measured for minutes.
    for each in found:
        if options.runtime is not None:
            _check_suffix(options.runtime, each.label, each.file)
        if options.device is not None:
            _check_device(options.device, options.runtime or each.runtime, each.label)
        if options.batch is not None and each.batch not in (None, options.batch):
            raise OptionError(
                f"takes {each.batch} image{'s' if each.batch != 1 else ''} an inference, "
                f"a batch of {options.batch} was asked for",
                where=each.label,
                fix=f"An artifact has the batch of its export: csr-export --batch {options.batch}, "
                "or leave --batch out.",
            )
        if options.data is not None and not each.has_labels:
            raise OptionError(
                "has no class names, so there is no accuracy to measure",
                where=each.label,
                fix="Export it from its checkpoint, which has them, or leave --data out.",
            )
    if options.place.port is not None and len(found) > 1:
        raise OptionError(
            f"a board runs the one model that it was flashed with, {len(found)} subjects were given",
            where=options.place.text,
            fix="Flash and measure them one after another.",
        )
    counts = Counter(each.label for each in found)
    seen: Counter[str] = Counter()
    subjects = []
    for path, each in zip(paths, found, strict=True):
        seen[each.label] += 1
        unique = f"{each.label}#{seen[each.label]}" if counts[each.label] > 1 else each.label
        subjects.append(
            BenchSubject(
                unique, path, each.kind, each.network or unique, each.target, each.file, each.content
            )
        )
    if baseline is None:
        return BenchPlan(tuple(subjects), subjects[0].label, options)
    named = [s for s in subjects if baseline in (s.label, str(s.path))] or [
        s for s in subjects if Path(baseline) == s.path
    ]
    if not named:
        raise OptionError(
            f"the baseline '{baseline}' is none of the subjects",
            fix=f"Use one of: {', '.join(s.label for s in subjects)}.",
        )
    return BenchPlan(tuple(subjects), named[0].label, options)


def runtime_of(subject: BenchSubject, options: BenchOptions) -> str:
    """The runtime that runs a subject, a key of `csr_deploy.runtimes.RUNTIMES`."""
    if options.runtime is not None:
        return options.runtime
    return "torch" if subject.kind == "checkpoint" else find_target(subject.target).runtime


def _check_suffix(runtime: str, label: str, file: str) -> None:
    suffixes = find_runtime(runtime).suffixes
    if Path(file).suffix not in suffixes:
        raise OptionError(
            f"the {runtime} runtime runs {' and '.join(suffixes)} files, this is {file}",
            where=label,
            fix="Leave the runtime out to use the one made for it, or measure it in a run of its own.",
        )


def _check_device(device: str, runtime: str, label: str) -> None:
    if "device" not in find_runtime(runtime).special_options:
        raise OptionError(
            f"the {runtime} runtime has no choice of a device, {device} was given",
            where=label,
            fix="Leave --device out, or measure this subject in a run of its own: "
            "only artifacts of the mcu target run on other devices.",
        )
