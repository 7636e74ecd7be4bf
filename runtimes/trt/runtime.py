"""TensorRT on an NVIDIA GPU, or TensorRT for RTX; never on the CPU."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact
from csr_deploy.errors import ArtifactError, OptionError, RuntimeUnavailableError
from csr_deploy.runtimes.base import Runtime
from csr_deploy.runtimes.trt.cuda import Wait, open_device
from csr_deploy.runtimes.trt.engines import build_engine_for, find_engine, identify, read_engine
from csr_deploy.runtimes.trt.library import load_tensorrt
from csr_deploy.types import Run, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

_TARGETS = "tensorrt-"
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8"}
_DYNAMIC = -1


class TrtRuntime(Runtime):
    """Runs the artifacts of the tensorrt targets, through the engine that was built for this GPU.

    The calls and their order are the same with TensorRT 10, TensorRT 11 and TensorRT for RTX. A run copies
    the input to page-locked memory and to the GPU, executes, copies back, and waits for an event, all in a
    stream of its own. With `copies` off, the clock starts when the input is on the GPU and stops when the
    execution has ended. With `cuda_graph` on, the execution is one launch of a graph that was captured at
    loading; the copies stay outside of it.
    """

    name = "trt"
    suffixes = (".onnx",)
    threaded = False
    special_options = frozenset({"cuda_graph", "copies", "wait"})

    def _check_options(self) -> None:
        super()._check_options()
        subject = self.subject
        if not isinstance(subject, Artifact) or not subject.target.startswith(_TARGETS):
            raise OptionError(
                "the trt runtime runs artifacts of the tensorrt targets only",
                where=subject.name,
                fix="Export with --target tensorrt-fp16 or tensorrt-int8, or leave the runtime out.",
            )
        self._artifact = subject
        self._cuda_graph = bool(self.options.cuda_graph)
        self._copies = self.options.copies is not False
        self._wait = cast("Wait", self.options.wait or "spin")

    def _package(self) -> str:
        return self._library.flavour

    @property
    def version(self) -> str:
        """Name and version of the library, e.g. "tensorrt 10.3.0"."""
        return self._library.name

    def _import(self) -> None:
        self._library = load_tensorrt()
        # The CUDA context is no more the model's than the package is: neither its time nor its memory.
        self._device = open_device()

    def build(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Finds the engine of this GPU in the artifact, or builds it and puts it there.

        Raises:
            CsrError: If it cannot be built or written.
        """
        super().build(on_progress)
        identity = identify(self._artifact, self._library)
        # With other build options too: somebody chose them.
        record = find_engine(self._artifact, identity, any_options=True)
        if record is None:
            if on_progress is None:
                print(
                    f"Building the engine of {self._artifact.name}-{self._artifact.target} for "
                    f"{self._device.name} with {self.version}. This can take minutes; it is done once.",
                    file=sys.stderr,
                )
            self._artifact = build_engine_for(
                self._artifact,
                self._library,
                identity,
                on_progress=None if on_progress is None else _one_at_a_time(on_progress),
            )
            self.subject = self._artifact
            record = find_engine(self._artifact, identity)
            if record is None:
                raise ArtifactError("does not hold the engine that was built", where=str(self._artifact.path))
        self._record = record

    def _open(self) -> None:
        plan = read_engine(self._artifact, self._record)
        device = self._device
        device.activate()
        device.set_wait(self._wait)
        self._free_before = device.free_bytes()
        with ExitStack() as stack:
            self._heard = stack.enter_context(self._library.messages())
            # Last of all, when nothing that it works with is there any more.
            stack.callback(self._forget_context)
            self._context = self._make_context(plan)
            self._stream = stack.enter_context(device.stream())
            self._start, self._end, self._done = (
                stack.enter_context(device.event(self._wait)) for _ in range(3)
            )
            source, result = self.subject.input, self.subject.output
            self._input = stack.enter_context(device.pinned(source.shape, source.dtype))
            self._output = stack.enter_context(device.pinned(result.shape, result.dtype))
            self._input_memory = stack.enter_context(device.memory(self._input.nbytes))
            self._output_memory = stack.enter_context(device.memory(self._output.nbytes))
            self._bind(source, self._input_memory)
            self._bind(result, self._output_memory)
            self._graph = self._capture(stack) if self._cuda_graph else None
            self._resources = stack.pop_all()

    def _make_context(self, plan: bytes) -> trt.IExecutionContext:
        """The engine ready to execute; it checks that the tensors are those of the artifact."""
        library = self._library
        runtime: trt.Runtime = self._of_library("start", library.module.Runtime, library.logger)
        engine: trt.ICudaEngine = self._of_library("load the engine", runtime.deserialize_cuda_engine, plan)
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        source, result = self.subject.input, self.subject.output
        if names != {source.name, result.name}:
            raise ArtifactError(
                f"its engine has the tensors {', '.join(sorted(names))}, "
                f"the record {source.name} and {result.name}",
                where=str(self._artifact.path),
                fix="Export it again.",
            )
        context: trt.IExecutionContext = self._of_library(
            "make room for its tensors", engine.create_execution_context
        )
        shape = _sizes(engine.get_tensor_shape(source.name))
        if shape[:1] == (_DYNAMIC,):
            shape = source.shape[:1] + shape[1:]
        self._check_tensor(source, shape, _dtype(engine, source))
        if not context.set_input_shape(source.name, source.shape):
            raise self._failed(f"take a batch of {source.shape[0]}")
        self._check_tensor(result, _sizes(context.get_tensor_shape(result.name)), _dtype(engine, result))
        return context

    def _bind(self, spec: TensorSpec, memory: Any) -> None:
        if not self._context.set_tensor_address(spec.name, int(memory)):
            raise self._failed(f"use the memory of '{spec.name}'")

    def _capture(self, stack: ExitStack) -> Any:
        """The execution as a graph."""
        # The first execution also prepares what a capture may not do: it loads kernels and takes memory.
        self._enqueue()
        self._device.synchronize(self._stream)
        return stack.enter_context(self._device.graph(self._stream, self._enqueue))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failed("execute")

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return self._timed(inputs).output

    def _timed(self, inputs: NDArray[Any]) -> Run:
        device, stream = self._device, self._stream
        device.activate()
        began = time.perf_counter_ns()
        np.copyto(self._input, inputs)
        device.upload(self._input, self._input_memory, stream)
        if not self._copies:
            device.synchronize(stream)
            began = time.perf_counter_ns()
        device.record(self._start, stream)
        if self._graph is None:
            self._enqueue()
        else:
            device.launch(self._graph, stream)
        device.record(self._end, stream)
        if not self._copies:
            device.wait(self._end)
            nanoseconds = time.perf_counter_ns() - began
        device.download(self._output_memory, self._output, stream)
        device.record(self._done, stream)
        device.wait(self._done)
        output = self._output.copy()
        if self._copies:
            nanoseconds = time.perf_counter_ns() - began
        return Run(output, nanoseconds, device.nanoseconds(self._start, self._end))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The semantics in force, the GPU, and the engine: its file name and SHA-256."""
        self._demand_open()
        return {
            "copies": self._copies,
            "cuda_graph": self._cuda_graph,
            "wait": self._wait,
            "gpu": self._device.name,
            "cuda_driver": self._device.driver_version,
            "engine": self._record.file.name,
            "engine_sha256": self._record.file.sha256,
        }

    @property
    def device_bytes(self) -> int | None:
        """By how much loading and running made the GPU's free memory smaller."""
        self._demand_open()
        return self._free_before - self._device.free_bytes()

    def _close(self) -> None:
        try:
            self._device.activate()
        finally:
            self._resources.close()

    def _forget_context(self) -> None:
        # The engine and the library's runtime go with it: the context is all that holds them.
        self._context = cast("trt.IExecutionContext", None)

    def _of_library(self, purpose: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """Calls something of TensorRT that gives None, or raises, where it fails."""
        self._heard.clear()
        try:
            made = make(*arguments)
        except (TypeError, RuntimeError) as error:
            raise self._failed(purpose, str(error)) from error
        if made is None:
            raise self._failed(purpose)
        return made

    def _failed(self, purpose: str, *reasons: str) -> RuntimeUnavailableError:
        errors = (message.text.strip() for message in self._heard if message.is_error)
        said = " ".join([*errors, *reasons]) or "it gives no reason"
        if "driver version is insufficient" in said:
            fix = (
                f"The driver here is that of CUDA {self._device.driver_version}: update it (on a Jetson, "
                "with JetPack), or install a TensorRT that was made for it."
            )
        elif "memory" in said.lower():
            fix = (
                "If the GPU's memory is used up: end other programs, or export with a smaller batch. On a "
                "Jetson it is the main memory."
            )
        else:
            fix = (
                f"Build the engine again with {self.version} on this machine: csr-export --build, or take "
                "the artifact without its engine."
            )
        return RuntimeUnavailableError(
            f"{self.version} cannot {purpose}: {said}", where=str(self._artifact.path), fix=fix
        )


def _dtype(engine: trt.ICudaEngine, spec: TensorSpec) -> str:
    name: str = engine.get_tensor_dtype(spec.name).name
    return _DTYPES.get(name, name)


def _sizes(shape: trt.Dims) -> tuple[int, ...]:
    # By index: a `Dims` says that it has a length and items, not that it can be iterated over.
    return tuple(int(shape[axis]) for axis in range(len(shape)))


def _one_at_a_time(report: Callable[[int, int], None]) -> Callable[[str, int, int], None]:
    """What the builder tells of its phases, from any of its threads, for one caller."""
    lock = threading.Lock()

    def told(phase: str, done: int, total: int) -> None:
        with lock:
            report(done, total)

    return told
