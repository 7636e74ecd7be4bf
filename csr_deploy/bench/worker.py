"""The process that measures one subject, on the device.

It reads one request a line from standard input, `{"do": name, "with": {…}}`, and answers each on standard
output with any number of lines `{"progress": [done, total]}` and then `{"value": …}` or, for an error that
the user can act on, `{"error": {"kind", "what", "where", "fix"}}`. Any other error ends the process with its
traceback on standard error. It ends when its input does. What native libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.bench.accuracy import measure_accuracy
from csr_deploy.bench.environment import read_environment, read_state
from csr_deploy.bench.metrics import peak_rss, read_memory, release_free_memory
from csr_deploy.errors import CsrError, ParityError
from csr_deploy.runtimes import Runtime, RuntimeOptions, open_runtime
from csr_deploy.runtimes.golden import GoldenReport, verify_golden
from csr_deploy.runtimes.mcu.devices import HOST

if TYPE_CHECKING:
    from csr_deploy.runtimes.torch import CheckpointSubject

_TIMED_PICTURES = 16


class Session:
    """One worker's state; its public methods are the requests it answers.

    Args:
        emit: Called with images done and images in all while a request is worked on.
    """

    def __init__(self, emit: Callable[[int, int], None]) -> None:
        self._emit = emit
        self._subject: Artifact | CheckpointSubject
        self._runtime: Runtime
        self._golden: GoldenReport | None = None
        self._opened = ExitStack()

    def close(self) -> None:
        """Ends what was opened, such as an emulator."""
        self._opened.close()

    def machine(self) -> dict[str, Any]:
        """The environment."""
        return asdict(read_environment())

    def state(self) -> dict[str, Any]:
        """The machine's state now."""
        return asdict(read_state())

    def start(
        self,
        path: str,
        kind: str,
        runtime: str | None,
        threads: int,
        kernels: str | None,
        batch: int,
        cuda_graph: bool | None = None,
        copies: bool | None = None,
        wait: str | None = None,
        device: str | None = None,
    ) -> dict[str, Any]:
        """Reads the subject; answers what identifies it and what will run it.

        Args:
            path: Artifact directory or checkpoint file.
            kind: "artifact" or "checkpoint".
            runtime: See `open_runtime`.
            threads: See `RuntimeOptions`.
            kernels: Likewise.
            batch: Batch size of a checkpoint; an artifact has its own.
            cuda_graph: See `RuntimeOptions`.
            copies: Likewise.
            wait: Likewise.
            device: Likewise.
        """
        if kind == "artifact":
            artifact = read_artifact(path)
            self._subject, sha256, target = artifact, artifact.sha256, artifact.target
            checkpoint = _text(artifact.source, "checkpoint_sha256")
        else:
            from csr_deploy.runtimes.torch import read_checkpoint_subject

            self._subject = read_checkpoint_subject(Path(path), batch)
            from csr_deploy.checkpoint import file_sha256

            sha256, target = file_sha256(Path(path)), "checkpoint"
            checkpoint = sha256
        options = RuntimeOptions(threads, kernels, cuda_graph, copies, wait, device)
        self._runtime = open_runtime(runtime, self._subject, options)
        self._runtime.prepare()
        return {
            "network": self._subject.name,
            "target": target,
            "file": self._subject.model_file.name,
            "sha256": sha256,
            "runtime": self._runtime.name,
            "runtime_version": self._runtime.version,
            "kernels": self._runtime.kernels,
            "threads": threads,
            "batch": self._subject.input.shape[0],
            "checkpoint_sha256": checkpoint,
        }

    def build(self) -> None:
        """Makes what the runtime makes once for a machine, such as an engine."""
        self._runtime.build(self._emit)

    def check(self) -> dict[str, Any]:
        """Loads the model; answers its sizes, the golden check, what the export found and how it runs."""
        self._opened.enter_context(self._runtime)
        stored = self._runtime.stored_file
        figures: Mapping[str, int | None]
        if isinstance(self._subject, Artifact):
            self._golden = verify_golden(self._runtime)
            figures = _artifact_figures(self._subject)
            golden, parity = asdict(self._golden), dict(self._subject.parity)
        else:
            golden, parity = None, {}
            figures = _checkpoint_figures(self._subject)
        # The text of a model in C is not what a device stores, its constants are.
        is_text = stored.suffix == ".c"
        sizes = {
            "file_bytes": stored.stat().st_size,
            "arena_bytes": self._runtime.arena,
            "compressed_bytes": None if is_text else deflated_bytes(stored),
            **figures,
            "constant_bytes": figures.get("constant_bytes") if is_text else None,
        }
        return {
            "sizes": sizes,
            "golden": golden,
            "drift": parity.pop("drift", None),
            "parity": parity,
            "settings": dict(self._runtime.settings),
        }

    def accuracy(self, data: str, limit: int | None, seed: int, here: bool = False) -> dict[str, Any]:
        """Classifies a test set; after `check`.

        Args:
            data: See `measure_accuracy`.
            limit: Likewise.
            seed: Likewise.
            here: On this machine, where the runtime is open on another device.

        Raises:
            ParityError: If this machine does not compute what the device does.
        """
        preprocessing, labels = self._subject.preprocessing, self._subject.labels
        runtime = self._runtime
        if here:
            options = replace(runtime.options, device=HOST)
            runtime = self._opened.enter_context(open_runtime(runtime.name, self._subject, options))
            self._check_same(runtime)
        device = runtime.settings.get("device")
        return asdict(measure_accuracy(runtime, preprocessing, labels, data, limit, seed, self._emit, device))

    def _check_same(self, here: Runtime) -> None:
        """Demands that the golden outputs are the same bytes here and on the device."""
        if self._golden is None or not (self._golden.exact and verify_golden(here).exact):
            raise ParityError(
                f"its golden outputs are not the same here and on {self._runtime.options.device}, so the "
                "accuracy cannot be measured here",
                where=self._subject.name,
                fix="Let the device classify some of the images: --device-images 100.",
            )

    def load(self) -> dict[str, int]:
        """Loads the model and runs it once, each timed."""
        self._inputs = cycle(_timed_inputs(self._subject))
        self._opened.enter_context(self._runtime)
        first = self._runtime.run(next(self._inputs)).nanoseconds
        return {
            "load_ns": self._runtime.load_nanoseconds,
            "first_ns": first,
        }

    def warm_up(self, runs: int, seconds: float) -> int:
        """Runs untimed, at least that often and that long; answers how often."""
        return len(self._timed(runs, seconds)["wall"])

    def window(self, runs: int, seconds: float, settle: int) -> dict[str, Any]:
        """Times inferences, at least that many and that long, after a few that bring the caches back.

        Returns:
            Nanoseconds: under "wall" of each whole inference, under "gpu" of the GPU where the runtime tells,
            under "cpu" and "elapsed" the processor time of this process and the time of the window.
        """
        self._timed(settle, 0.0)
        # A collection is Python's cost, not the model's, and comes at random.
        gc.collect()
        gc.disable()
        try:
            cpu, start = time.process_time_ns(), time.perf_counter_ns()
            samples = self._timed(runs, seconds)
            elapsed = time.perf_counter_ns() - start
            return {**samples, "cpu": time.process_time_ns() - cpu, "elapsed": elapsed}
        finally:
            gc.enable()

    def profile(self, runs: int) -> list[dict[str, Any]] | None:
        """Times every operator by the runtime's own profiler; None where it has none."""
        pictures = _timed_inputs(self._subject)
        inputs = [pictures[i % len(pictures)] for i in range(runs)]
        with self._runtime as runtime:
            times = runtime.profile(inputs)
        if times is None:
            return None
        total = sum(t.nanoseconds for t in times) or 1.0
        return [
            {"op": t.op, "name": t.name, "ns": t.nanoseconds, "share": t.nanoseconds / total} for t in times
        ]

    def memory(self, runs: int) -> dict[str, Any]:
        """Loads the model and runs it a few times; answers what that added to the process."""
        inputs = cycle(_timed_inputs(self._subject))
        release_free_memory()
        before = read_memory()
        self._opened.enter_context(self._runtime)
        for _ in range(runs):
            self._runtime.run(next(inputs))
        after = read_memory()
        known = before.mapped_bytes is not None and after.mapped_bytes is not None
        return {
            "private_bytes": after.private_bytes - before.private_bytes,
            "mapped_bytes": after.mapped_bytes - before.mapped_bytes if known else None,  # type: ignore[operator]
            "peak_rss_bytes": peak_rss(),
            "baseline_private_bytes": before.private_bytes,
            "inferences": runs,
            "source": after.source,
            "device_bytes": self._runtime.device_bytes,
        }

    def _timed(self, runs: int, seconds: float) -> dict[str, list[int]]:
        wall: list[int] = []
        gpu: list[int] = []
        end = time.perf_counter() + seconds
        while len(wall) < runs or time.perf_counter() < end:
            run = self._runtime.run(next(self._inputs))
            wall.append(run.nanoseconds)
            if run.gpu_nanoseconds is not None:
                gpu.append(run.gpu_nanoseconds)
        return {"wall": wall, "gpu": gpu}


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None


def deflated_bytes(path: Path) -> int:
    """Size of a file after deflate, which is what sending it takes."""
    packer, size = zlib.compressobj(9), 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            size += len(packer.compress(block))
    return size + len(packer.flush())


def _whole(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) else None


def _artifact_figures(artifact: Artifact) -> dict[str, int | None]:
    constants, tables = _whole(artifact.model, "constant_bytes"), _whole(artifact.model, "table_bytes")
    weights = _whole(artifact.ledger, "stored_bytes")
    return {
        "parameters": _whole(artifact.model, "parameters"),
        "macs": _whole(artifact.model, "macs"),
        "weight_bytes": weights if constants is None else constants - (tables or 0),
        "constant_bytes": constants,
    }


def _checkpoint_figures(subject: CheckpointSubject) -> dict[str, int]:
    from csr_deploy.analysis import count_macs
    from csr_deploy.checkpoint import load_checkpoint
    from csr_deploy.models import count_parameters

    model = load_checkpoint(subject.model_file).build()
    return {
        "parameters": count_parameters(model),
        "macs": count_macs(model, (1, *subject.input.shape[1:])),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }


def _timed_inputs(subject: Artifact | CheckpointSubject) -> list[NDArray[Any]]:
    """Golden pictures of an artifact, noise for a checkpoint: encoded, in batches."""
    shape = subject.preprocessing
    if isinstance(subject, Artifact):
        pictures = subject.golden().images[:_TIMED_PICTURES]
    else:
        size = (_TIMED_PICTURES, shape.height, shape.width, shape.channels)
        pictures = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    batch = subject.input.shape[0]
    count = max(len(pictures), batch) // batch
    chosen = np.resize(np.arange(len(pictures)), count * batch)
    return [subject.encode(pictures[part]) for part in np.split(chosen, count)]


def _answer(session: Session, line: str) -> dict[str, Any]:
    request = json.loads(line)
    try:
        return {"value": getattr(session, request["do"])(**request["with"])}
    except CsrError as error:
        kind = type(error).__name__
        return {"error": {"kind": kind, "what": error.what, "where": error.where, "fix": error.fix}}


def main() -> None:
    """Answers requests until the input ends, then removes its folder for temporary files, if it has one."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(reply: Mapping[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    session = Session(lambda done, total: send({"progress": [done, total]}))
    try:
        with closing(session):
            for line in sys.stdin:
                send(_answer(session, line))
    finally:
        # Whoever made it may have been killed.
        for folder in sys.argv[1:]:
            shutil.rmtree(folder, ignore_errors=True)
