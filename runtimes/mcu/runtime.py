"""Runs an mcu artifact: compiled for this machine, on a board in QEMU, or on a real board."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact
from csr_deploy.errors import ArtifactError, RuntimeUnavailableError
from csr_deploy.runtimes.base import Runtime, RuntimeOptions, Subject
from csr_deploy.runtimes.mcu.build import Built, CompileOptions, Sources, find_sources
from csr_deploy.runtimes.mcu.devices import HOST, parse_device
from csr_deploy.runtimes.mcu.measurement import DEFAULT_TIMEOUT, build, open_session
from csr_deploy.runtimes.mcu.session import Inference, Session
from csr_deploy.types import Run

# Firmware that gives numbers instead of bytes gives them with three decimals.
_SMALLEST_SCALE = 2e-3


class McuRuntime(Runtime):
    """Runs the C of the mcu target.

    Where it runs is the option `device`: "host" (the default) is this machine, "qemu:cortex-m4" and its like
    a board in QEMU, "serial:/dev/ttyACM0@115200" a real one that has been flashed with the model.
    """

    name = "mcu"
    suffixes = (".c",)
    threaded = False
    special_options = frozenset({"device"})

    def __init__(self, subject: Subject, options: RuntimeOptions | None = None) -> None:
        super().__init__(subject, options)
        self._device = parse_device(self.options.device or HOST)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._built: Built | None = None
        self._session: Session | None = None
        self._instructions: list[int] = []
        self._cycles: list[int] = []
        self._stack_bytes: int | None = None

    def _package(self) -> str:
        return "csr-deploy"

    def _import(self) -> None:
        """Nothing: what it needs are programs, which are looked for when they are needed."""

    def build(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        super().build(on_progress)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="csr-mcu-")
            try:
                self._built = build(self._device, self._sources(), Path(self._folder.name), CompileOptions())
            except BaseException:
                self._close()
                raise

    def _open(self) -> None:
        if self._session is not None:
            self._session.close()
        try:
            self._session = open_session(self._device, self._built, self._sources(), DEFAULT_TIMEOUT)
            self._check_sizes()
        except BaseException:
            self._close()
            raise

    @property
    def arena(self) -> int | None:
        self._demand_open()
        sizes = self._session.sizes() if self._session else None
        return sizes.arena_bytes if sizes else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Where and how it runs; `timed` is false where a time would not be that of the device."""
        values: dict[str, Any] = {"device": self._device.text, "timed": self._device.board is None}
        if self._device.board is not None:
            values["board"] = self._device.board.machine
        if self._built is not None:
            values |= {"compiler": self._built.compiler, "flags": " ".join(self._built.flags)}
            if self._built.flash:
                values["flash"] = dict(self._built.flash)
        if self._instructions:
            values["instructions"] = round(statistics.median(self._instructions))
        if self._cycles:
            values["cycles"] = round(statistics.median(self._cycles))
        if self._stack_bytes is not None:
            values["stack_bytes"] = self._stack_bytes
        return values

    def _timed(self, inputs: NDArray[Any]) -> Run:
        start = time.perf_counter_ns()
        inference = self._infer(inputs)
        output = self._decode(inference)
        elapsed = time.perf_counter_ns() - start
        # A real board's own clock: the way over the wire is not the model's.
        if self._device.port is not None and inference.nanoseconds is not None:
            elapsed = inference.nanoseconds
        return Run(output, elapsed)

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return self._decode(self._infer(inputs))

    def _infer(self, inputs: NDArray[Any]) -> Inference:
        assert self._session is not None
        inference = self._session.infer(np.ascontiguousarray(inputs).tobytes())
        if inference.instructions is not None:
            self._instructions.append(inference.instructions)
        if inference.cycles is not None:
            self._cycles.append(inference.cycles)
        self._stack_bytes = inference.stack_bytes
        return inference

    def _decode(self, inference: Inference) -> NDArray[Any]:
        spec = self.subject.output
        if inference.output is not None:
            return np.frombuffer(inference.output, spec.dtype).reshape(spec.shape).copy()
        numbers = np.asarray(inference.results, np.float32)
        if numbers.size != np.prod(spec.shape):
            raise ArtifactError(
                f"the board gives {numbers.size} outputs, the model has {np.prod(spec.shape)}",
                where=self._device.text,
            )
        if spec.quantization is None:
            return numbers.reshape(spec.shape).astype(spec.dtype)
        if spec.quantization.scale < _SMALLEST_SCALE:
            raise RuntimeUnavailableError(
                "the board gives rounded numbers, too coarse for the scale of this model's output",
                where=self._device.text,
                fix="Use the firmware of this package, which gives the exact bytes.",
            )
        return spec.quantization.quantize(numbers, spec.dtype).reshape(spec.shape)

    def _close(self) -> None:
        try:
            if self._session is not None:
                self._session.close()
        finally:
            self._session = None
            self._built = None
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _sources(self) -> Sources:
        subject = self.subject
        return find_sources(subject if isinstance(subject, Artifact) else subject.model_file.parent)

    def _check_sizes(self) -> None:
        sizes = self._session.sizes() if self._session else None
        if sizes is None:
            return
        for spec, size in (
            (self.subject.input, sizes.input_bytes),
            (self.subject.output, sizes.output_bytes),
        ):
            right = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
            if right != size:
                raise ArtifactError(
                    f"'{spec.name}' has {size:,} bytes in the compiled model and {right:,} in the record",
                    where=str(self.subject.model_file),
                    fix="Export it again.",
                )
