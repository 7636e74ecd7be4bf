"""What every runtime is: a context manager that loads one model file and runs it.

The life cycle stands here; a runtime only fills in `_import`, `_open`, `_run` and `_close`.
"""

from __future__ import annotations

import abc
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ArtifactError, OptionError, RuntimeUnavailableError
from csr_deploy.types import Run, TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Self


class Subject(Protocol):
    """What a runtime runs: an `Artifact`, or for torch a `CheckpointSubject`."""

    @property
    def name(self) -> str:
        """Name of the network."""

    @property
    def input(self) -> TensorSpec:
        """Input tensor, batch first."""

    @property
    def output(self) -> TensorSpec:
        """Output tensor, batch first."""

    @property
    def model_file(self) -> Path:
        """The file a runtime loads."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Pictures at the network's size, [N, H, W, C] uint8, to the model's input."""


# Options that only one runtime has: how a message calls their lack, and which it is.
_SPECIAL = {
    "cuda_graph": ("no CUDA graphs", "trt"),
    "copies": ("no copies that could be left out", "trt"),
    "wait": ("no choice of how to wait", "trt"),
    "device": ("no choice of a device", "mcu"),
}
_WAITS = ("spin", "block")


@dataclass(frozen=True)
class OpTime:
    """Time of one operator in one inference.

    Attributes:
        op: Its kind, e.g. "Conv".
        name: Of the node as the runtime has it, fused ones included.
        nanoseconds: Mean over the profiled inferences.
    """

    op: str
    name: str
    nanoseconds: float


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime runs. None leaves an option to the runtime; given, it is refused where it means nothing.

    Attributes:
        threads: Worker threads of the runtime.
        kernels: "optimized" or "reference" (plain kernels, the oracle of integer arithmetic); runtimes
            that have only one kind refuse the other.
        cuda_graph: Whether the GPU gets an inference as one CUDA graph instead of kernel after kernel.
        copies: Whether the copies to the GPU and back are inside the timed region.
        wait: How the CPU waits for the GPU: "spin" without leaving the processor, "block" sleeping.
        device: What a microcontroller's code runs on: "host", "qemu:cortex-m4" (m3, m7, m55) or
            "serial:PORT[@BAUD]".
    """

    threads: int = 1
    kernels: str | None = None
    cuda_graph: bool | None = None
    copies: bool | None = None
    wait: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise OptionError(f"threads is {self.threads}", fix="Give at least 1.")
        if self.kernels not in (None, "optimized", "reference"):
            raise OptionError(f"unknown kernels '{self.kernels}'", fix="Use 'optimized' or 'reference'.")
        if self.wait not in (None, *_WAITS):
            raise OptionError(f"unknown way to wait '{self.wait}'", fix="Use 'spin' or 'block'.")


class Runtime(abc.ABC):
    """Runs one subject.

    Args:
        subject: What to run.
        options: How.

    Raises:
        OptionError: If the runtime cannot run such a file, or not with these options.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    available_kernels: ClassVar[tuple[str, ...]] = ("optimized",)
    """The first is what the runtime does by itself."""
    threaded: ClassVar[bool] = True
    has_profiler: ClassVar[bool] = False
    """Whether `profile` gives times."""
    special_options: ClassVar[frozenset[str]] = frozenset()
    """Fields of `RuntimeOptions` that it has beyond those which every runtime has."""

    def __init__(self, subject: Subject, options: RuntimeOptions | None = None) -> None:
        self.subject = subject
        self.options = options or RuntimeOptions()
        self.kernels = self.options.kernels or self.available_kernels[0]
        self.load_nanoseconds = 0
        self._is_imported = False
        self._is_open = False
        self._check_options()

    def _accepts(self) -> bool:
        return self.subject.model_file.suffix in self.suffixes

    def _check_options(self) -> None:
        if not self._accepts():
            raise OptionError(
                f"the {self.name} runtime runs {' and '.join(self.suffixes)} files, "
                f"this is {self.subject.model_file.name}",
                where=self.subject.name,
                fix="Leave the runtime out to use the one made for it.",
            )
        if self.kernels not in self.available_kernels:
            raise OptionError(
                f"the {self.name} runtime has no {self.kernels} kernels, "
                f"only {self.available_kernels[0]} ones",
                where=self.subject.name,
                fix="Leave the kernels out. The litert runtime has both kinds.",
            )
        if self.options.threads > 1 and not self.threaded:
            raise OptionError(
                f"the {self.name} runtime has one thread, {self.options.threads} were asked for",
                fix="Leave the threads at 1.",
            )
        for name, (lack, owner) in _SPECIAL.items():
            if getattr(self.options, name) is not None and name not in self.special_options:
                raise OptionError(
                    f"the {self.name} runtime has {lack}",
                    where=self.subject.name,
                    fix=f"Leave the option out. The {owner} runtime has it.",
                )

    def prepare(self) -> None:
        """Imports the runtime's package, so that neither time nor memory of it counts as the model's.

        Raises:
            MissingDependencyError: If it is not installed.
        """
        if self._is_imported:
            return
        self._import()
        self._is_imported = True

    def build(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Prepares, and makes what is made once for a machine and kept; most need nothing of the kind.

        Entering does it too, before the clock of loading starts.

        Args:
            on_progress: Called with steps done and steps in all; left out, standard error gets one line.

        Raises:
            CsrError: If it cannot be made.
        """
        self.prepare()

    def __enter__(self) -> Self:
        self.build()
        start = time.perf_counter_ns()
        self._open()
        self.load_nanoseconds = time.perf_counter_ns() - start
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        self._close()

    def run(self, inputs: NDArray[Any]) -> Run:
        """Runs one batch, as the subject's input spec says.

        Args:
            inputs: Exactly the spec's shape and dtype.

        Raises:
            OptionError: If shape or dtype differ.
            RuntimeUnavailableError: If the runtime is not open.
        """
        self._demand_open()
        spec = self.subject.input
        if inputs.shape != spec.shape or inputs.dtype != np.dtype(spec.dtype):
            raise OptionError(
                f"the input is {inputs.dtype}{list(inputs.shape)}, "
                f"the model takes {spec.dtype}{list(spec.shape)}",
                where=self.subject.name,
            )
        return self._timed(inputs)

    def _timed(self, inputs: NDArray[Any]) -> Run:
        """Runs one checked batch by the clock; for runtimes that time more than the whole."""
        start = time.perf_counter_ns()
        output = self._run(inputs)
        return Run(output, time.perf_counter_ns() - start)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Raw outputs for any number of pictures at the network's size, [N, H, W, C] uint8.

        Returns:
            [N, classes], in the type of the subject's output; `subject.output.decode` gives real values.
        """
        spec = self.subject.output
        if not len(images):
            return np.empty((0, *spec.shape[1:]), spec.dtype)
        batch = self.subject.input.shape[0]
        outputs = []
        for start in range(0, len(images), batch):
            encoded = self.subject.encode(images[start : start + batch])
            short = batch - len(encoded)
            if short:
                encoded = np.concatenate([encoded, np.repeat(encoded[-1:], short, axis=0)])
            outputs.append(self.run(encoded).output[: batch - short])
        return np.concatenate(outputs)

    def profile(self, inputs: Sequence[NDArray[Any]]) -> list[OpTime] | None:
        """Times every operator by the runtime's own profiler, in inferences that are slower for it.

        Args:
            inputs: Batches, as `run` takes them; an inference each.

        Returns:
            One entry for each operator; None where the runtime has no profiler.
        """
        return None

    @property
    def version(self) -> str:
        """Name and version of the package that runs the model, e.g. "onnxruntime 1.20.1"."""
        package = self._package()
        return f"{package} {importlib.metadata.version(package)}"

    @property
    def arena(self) -> int | None:
        """Bytes of the one arena the model needs, where the runtime works in one."""
        return None

    @property
    def stored_file(self) -> Path:
        """The file that a device keeps to run it: the model file, unless the runtime loads another one."""
        return self.subject.model_file

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else a reader must know of how it runs, plain values; once open."""
        return {}

    @property
    def device_bytes(self) -> int | None:
        """Memory of an accelerator that the open model takes, where there is one."""
        return None

    def _demand_open(self) -> None:
        if not self._is_open:
            raise RuntimeUnavailableError(
                f"the {self.name} runtime is not open", fix="Use it in a with block."
            )

    def _check_tensor(self, spec: TensorSpec, shape: Sequence[Any], dtype: object) -> None:
        """Compares a tensor of the loaded file with its record.

        Raises:
            ArtifactError: If they differ.
        """
        # A batch size that is left open has a name, or -1, in place of a number.
        if shape and (isinstance(shape[0], str) or shape[0] == -1):
            shape = (spec.shape[0], *shape[1:])
        if tuple(shape) != spec.shape or str(dtype) != spec.dtype:
            raise ArtifactError(
                f"'{spec.name}' is {dtype}{list(shape)} in the model file "
                f"and {spec.dtype}{list(spec.shape)} in the record",
                where=str(self.subject.model_file),
                fix="Export it again.",
            )

    def _refused(self, reason: str) -> RuntimeUnavailableError:
        return RuntimeUnavailableError(
            f"the {self.name} runtime cannot load it: {reason.strip()}",
            where=str(self.subject.model_file),
            fix=f"It was tried with {self.version}; export the model again or try another version.",
        )

    @abc.abstractmethod
    def _package(self) -> str:
        """Distribution of the runtime, of those that may serve the installed one."""

    @abc.abstractmethod
    def _import(self) -> None:
        """Imports what `_open` needs; raises `MissingDependencyError`."""

    @abc.abstractmethod
    def _open(self) -> None:
        """Loads the model; raises `RuntimeUnavailableError` or `ArtifactError`."""

    @abc.abstractmethod
    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Runs one checked batch and returns a fresh array."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Frees what `_open` took."""
