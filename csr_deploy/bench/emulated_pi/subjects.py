"""Counts artifacts and model files on emulated boards; an artifact's golden outputs are compared first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy import __version__
from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.bench.emulated_pi.boards import find_board
from csr_deploy.bench.emulated_pi.emulator import Count, Job, RuntimeName, count
from csr_deploy.bench.emulated_pi.root import Root, prepare_root
from csr_deploy.errors import OptionError, ParityError, RuntimeUnavailableError
from csr_deploy.runtimes.base import Runtime
from csr_deploy.runtimes.golden import GoldenReport, verify_golden
from csr_deploy.runtimes.litert import LitertRuntime
from csr_deploy.runtimes.native.platforms import AARCH64
from csr_deploy.runtimes.native.runtime import TARGET as NATIVE
from csr_deploy.runtimes.native.runtime import NativeRuntime, carried_library
from csr_deploy.runtimes.ort import OrtRuntime

_RUNTIMES: Mapping[str, RuntimeName] = {".tflite": "litert", ".onnx": "ort", ".so": "native"}


@dataclass(frozen=True)
class Row:
    """One model on one board.

    Attributes:
        subject: The model's name: that of its artifact's folder, or of its file.
        board: Key of the board.
        runtime: What ran it.
        threads: The runtime's threads.
        count: What it took; with an error if the golden outputs differ.
        golden: How the outputs compare with the golden ones; None for a bare model file.
    """

    subject: str
    board: str
    runtime: str
    threads: int
    count: Count
    golden: GoldenReport | None


class _Recorded(Runtime):
    """A runtime whose outputs were computed on the board; it gives them one after another.

    Args:
        artifact: What ran.
        outputs: [images, classes] of all images that it will be asked for, in their order.
        package: Name and version of what computed them.
    """

    def __init__(self, artifact: Artifact, outputs: NDArray[Any], package: str) -> None:
        super().__init__(artifact)
        self._recorded = outputs
        self._given = 0
        self._version = package

    def logits(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        start, self._given = self._given, self._given + len(images)
        return self._recorded[start : self._given]

    @property
    def version(self) -> str:
        return self._version


class _RecordedLitert(_Recorded, LitertRuntime):
    """Of LiteRT."""


class _RecordedOrt(_Recorded, OrtRuntime):
    """Of ONNX Runtime."""


class _RecordedNative(_Recorded, NativeRuntime):
    """Of a native library."""


_RECORDED: Mapping[RuntimeName, type[_Recorded]] = {
    "litert": _RecordedLitert,
    "native": _RecordedNative,
    "ort": _RecordedOrt,
}
_PACKAGES: Mapping[RuntimeName, str] = {"litert": "ai-edge-litert", "ort": "onnxruntime"}


def recorded_runtime(
    artifact: Artifact, runtime: RuntimeName, outputs: NDArray[Any], version: str
) -> Runtime:
    """A runtime that gives outputs which were computed on a board, to be checked as those of any other.

    Args:
        artifact: What ran.
        runtime: What ran it.
        outputs: [images, classes], in the order in which the images will be asked for.
        version: Name and version of what computed them.
    """
    return _RECORDED[runtime](artifact, outputs, version)


def package_version(runtime: RuntimeName, root: Root) -> str:
    """Name and version of a runtime's package on the board."""
    if runtime == "native":
        return f"csr-deploy {__version__}"
    package = _PACKAGES[runtime]
    return f"{package} {root.versions.get(package, 'of unknown version')}"


def count_subjects(
    paths: Sequence[Path],
    boards: Sequence[str],
    *,
    threads: int = 1,
    runs: int = 5,
    root: Path | None = None,
    on_done: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Counts models on boards.

    Args:
        paths: Artifact directories, .tflite and .onnx files, native libraries for AArch64.
        boards: Keys of `BOARDS`.
        threads: The runtimes' threads.
        runs: See `count`.
        root: See `count`.
        on_done: Called with each row as it comes.

    Returns:
        All models on the first board, then on the second one, ….

    Raises:
        OptionError: If a path is no model of these kinds, or an option is out of range.
        ArtifactError: If an artifact is damaged.
        RuntimeUnavailableError: If the emulator cannot be made.
        BenchError: If it does not work.
    """
    for board in boards:
        find_board(board)
    with tempfile.TemporaryDirectory() as folder:
        artifacts: list[Artifact | None] = []
        jobs: list[Job] = []
        for number, path in enumerate(paths):
            artifact = read_artifact(path) if path.is_dir() else None
            artifacts.append(artifact)
            model, runtime = board_model(path if artifact is None else artifact)
            inputs = None
            if artifact is not None:
                inputs = Path(folder) / f"{number}.npy"
                np.save(inputs, encoded_batches(artifact, artifact.golden().images), allow_pickle=False)
            jobs.append(Job(path.name, model, runtime, threads, inputs))
        prepared = prepare_root(root)
        rows: list[Row] = []
        for board in boards:
            done = len(rows)

            def add(result: Count, board: str = board, done: int = done) -> None:
                job, artifact = jobs[len(rows) - done], artifacts[len(rows) - done]
                golden = None
                if artifact is not None and result.outputs is not None:
                    version = f"{package_version(job.runtime, prepared)} on {board}"
                    recorded = recorded_runtime(artifact, job.runtime, result.outputs, version)
                    try:
                        golden = verify_golden(recorded)
                    except ParityError as error:
                        result = Count(job.name, 0, error=str(error))
                rows.append(Row(job.name, board, job.runtime, threads, result, golden))
                if on_done is not None:
                    on_done(rows[-1])

            count(jobs, board, root=root, runs=runs, on_done=add)
    return rows


def board_model(subject: Artifact | Path) -> tuple[Path, RuntimeName]:
    """The file that a board loads, and what runs it.

    Args:
        subject: An artifact, or a file.

    Raises:
        OptionError: If nothing there runs it.
        RuntimeUnavailableError: If a native artifact has no library for the board, which cannot compile one.
    """
    if isinstance(subject, Artifact) and subject.target == NATIVE:
        library = carried_library(subject, AARCH64.key)
        if library is None:
            raise RuntimeUnavailableError(
                f"the artifact has no library for {AARCH64.key}, and an emulated Pi cannot compile one",
                where=str(subject.path),
                fix=f"Run: apt-get install {AARCH64.packages}, and export it again.",
            )
        return library, "native"
    model = subject.model_file if isinstance(subject, Artifact) else subject
    return model, runtime_of(model)


def runtime_of(model: Path) -> RuntimeName:
    """What runs a model file on a board: a .tflite or .onnx file, or a native library for AArch64.

    Raises:
        OptionError: If nothing does.
    """
    if model.suffix not in _RUNTIMES or not model.is_file():
        raise OptionError(
            "is neither an artifact nor a .tflite, .onnx or .so file",
            where=str(model),
            fix="An emulated Pi runs artifacts of the targets onnx…, tflite… and native, and their files.",
        )
    return _RUNTIMES[model.suffix]


def encoded_batches(artifact: Artifact, images: NDArray[np.uint8]) -> NDArray[Any]:
    """Images as the model takes them, in whole batches: the last image fills the last one.

    Args:
        artifact: The model.
        images: [N, H, W, C].
    """
    encoded = artifact.encode(images)
    batch = artifact.input.shape[0]
    whole = -(-len(encoded) // batch) * batch
    return np.concatenate([encoded, np.repeat(encoded[-1:], whole - len(encoded), axis=0)])
