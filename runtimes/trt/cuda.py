"""The few calls of CUDA that running an engine takes, through NVIDIA's cuda-bindings.

They go to the driver, which comes with the device, and not to a CUDA runtime library: the one inside
cuda-bindings is built for servers and must match the driver, whereas the driver's interface is the same for
every later driver. TensorRT's own runtime library works in the same context.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import MissingDependencyError, RuntimeUnavailableError

Wait = Literal["spin", "block"]
_ORDINAL = 0
_OLDEST_DRIVER = 12000
_NAME_BYTES = 256
_CONTAINER = "In a container, start it with --runtime nvidia (Jetson) or --gpus all."
_CAPTURE = "This engine cannot run as a CUDA graph: leave --cuda-graph out."
_FIXES = {
    "CUDA_ERROR_NO_DEVICE": f"Does CUDA_VISIBLE_DEVICES hide it? {_CONTAINER}",
    "CUDA_ERROR_STUB_LIBRARY": "Take the CUDA toolkit's folder 'stubs' out of LD_LIBRARY_PATH.",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "Restart the machine: an older driver than the installed one runs.",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "Take CUDA's folder 'compat' out of LD_LIBRARY_PATH.",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "Another program has the GPU for itself: end it.",
    "CUDA_ERROR_OUT_OF_MEMORY": "End other programs that use the GPU, or use a smaller batch. On a Jetson it "
    "shares the main memory with everything else.",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": _CAPTURE,
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": _CAPTURE,
}
_ELSE = "Start again with no other program on the GPU; if it stays, restart the machine."


class Device:
    """The first GPU that this process sees, and its primary context, which stays until the process ends.

    What is taken from it is taken in `with` blocks, or on an `ExitStack`, and given back in reverse order.
    Giving back never raises: after a failure of the GPU every call repeats that failure.

    Args:
        driver: The module `cuda.bindings.driver`.

    Raises:
        RuntimeUnavailableError: If there is no driver, no GPU, or the driver is too old.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        try:
            status = driver.cuInit(0)
        except RuntimeError as error:
            raise RuntimeUnavailableError(
                f"there is no CUDA driver on this machine ({error})",
                fix=f"An NVIDIA GPU and its driver are needed; a Jetson has both with JetPack. {_CONTAINER}",
            ) from error
        self._checked("cuInit", status)
        version: int = self.call("cuDriverGetVersion")
        self.driver_version = f"{version // 1000}.{version % 1000 // 10}"
        if version < _OLDEST_DRIVER:
            raise RuntimeUnavailableError(
                f"the CUDA driver is too old: it is that of CUDA {self.driver_version}, 12.0 is the oldest",
                fix="Install a newer driver; on a Jetson, JetPack 6 or later.",
            )
        self._device = self.call("cuDeviceGet", _ORDINAL)
        name: bytes = self.call("cuDeviceGetName", _NAME_BYTES, self._device)
        self.name = name.split(b"\0", 1)[0].decode(errors="replace").strip()
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the driver.

        Returns:
            None, its one result, or a tuple of its results.

        Raises:
            RuntimeUnavailableError: If it fails, with CUDA's name for that.
        """
        try:
            result = getattr(self._driver, name)(*arguments)
        except RuntimeError as error:
            raise RuntimeUnavailableError(
                f"the CUDA driver has no {name} ({error})",
                fix="The driver is older than the package cuda-bindings expects: update it, or run "
                "pip install 'cuda-bindings<13'.",
            ) from error
        return self._checked(name, result)

    def _checked(self, name: str, result: Sequence[Any]) -> Any:
        status, *values = result
        if status:
            _, text = self._driver.cuGetErrorString(status)
            meaning = text.decode(errors="replace") if text else "no description"
            raise RuntimeUnavailableError(
                f"CUDA: {name} failed with {status.name}: {meaning}", fix=_FIXES.get(status.name, _ELSE)
            )
        return values[0] if len(values) == 1 else tuple(values) or None

    def _release(self, name: str, handle: Any) -> None:
        getattr(self._driver, name)(handle)

    def activate(self) -> None:
        """Makes the context that of the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def set_wait(self, wait: Wait) -> None:
        """How the CPU waits for the GPU: "spin" without leaving the processor, "block" sleeping.

        It holds for the whole process. Left alone, CUDA chooses by the number of processors and, on a Jetson,
        by the power mode.
        """
        flags = self._driver.CUctx_flags
        chosen = flags.CU_CTX_SCHED_SPIN if wait == "spin" else flags.CU_CTX_SCHED_BLOCKING_SYNC
        present, _ = self.call("cuDevicePrimaryCtxGetState", self._device)
        others = int(present) & ~int(flags.CU_CTX_SCHED_MASK)
        self.call("cuDevicePrimaryCtxSetFlags", self._device, others | int(chosen))

    def free_bytes(self) -> int:
        """Free memory of the GPU; on a Jetson, that of the whole machine."""
        free, _ = self.call("cuMemGetInfo")
        return int(free)

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """A stream that does not wait for the default one."""
        stream = self.call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        try:
            yield stream
        finally:
            self._release("cuStreamDestroy", stream)

    @contextmanager
    def event(self, wait: Wait) -> Iterator[Any]:
        """A point in time of a stream, to be waited for as said."""
        flags = self._driver.CUevent_flags
        kind = flags.CU_EVENT_BLOCKING_SYNC if wait == "block" else flags.CU_EVENT_DEFAULT
        event = self.call("cuEventCreate", int(kind))
        try:
            yield event
        finally:
            self._release("cuEventDestroy", event)

    @contextmanager
    def pinned(self, shape: Sequence[int], dtype: str) -> Iterator[NDArray[Any]]:
        """A page-locked array of the CPU; it may not be used after the block."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = self.call("cuMemHostAlloc", size, 0)
        try:
            memory = (ctypes.c_byte * size).from_address(int(address))
            yield np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        finally:
            self._release("cuMemFreeHost", address)

    @contextmanager
    def memory(self, size: int) -> Iterator[Any]:
        """Memory of the GPU; `int` gives its address."""
        pointer = self.call("cuMemAlloc", size)
        try:
            yield pointer
        finally:
            self._release("cuMemFree", pointer)

    @contextmanager
    def graph(self, stream: Any, enqueue: Callable[[], None]) -> Iterator[Any]:
        """What a function puts into a stream, as a graph that is launched with one call.

        Raises:
            RuntimeUnavailableError: If it cannot be captured.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", stream, mode)
        try:
            enqueue()
        finally:
            # Also after an error: a stream that is being captured can do nothing else.
            ended = self._driver.cuStreamEndCapture(stream)
        graph = self._checked("cuStreamEndCapture", ended)
        try:
            executable = self.call("cuGraphInstantiate", graph, 0)
        finally:
            self._release("cuGraphDestroy", graph)
        try:
            yield executable
        finally:
            self._release("cuGraphExecDestroy", executable)

    def launch(self, graph: Any, stream: Any) -> None:
        """Puts a graph into a stream."""
        self.call("cuGraphLaunch", graph, stream)

    def upload(self, source: NDArray[Any], target: Any, stream: Any) -> None:
        """Copies a page-locked array to the GPU; returns before it is done."""
        self.call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, stream)

    def download(self, source: Any, target: NDArray[Any], stream: Any) -> None:
        """Copies from the GPU to a page-locked array; returns before it is done."""
        self.call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, stream)

    def record(self, event: Any, stream: Any) -> None:
        """Puts an event into a stream."""
        self.call("cuEventRecord", event, stream)

    def wait(self, event: Any) -> None:
        """Waits for an event; an error of the work before it is raised here."""
        self.call("cuEventSynchronize", event)

    def synchronize(self, stream: Any) -> None:
        """Waits for all work in a stream."""
        self.call("cuStreamSynchronize", stream)

    def nanoseconds(self, start: Any, end: Any) -> int:
        """GPU time between two events that have passed, to about half a microsecond."""
        milliseconds: float = self.call("cuEventElapsedTime", start, end)
        return round(milliseconds * 1e6)


@cache
def open_device() -> Device:
    """The first GPU that this process sees; the environment variable CUDA_VISIBLE_DEVICES chooses another.

    Raises:
        MissingDependencyError: If cuda-bindings is not installed.
        RuntimeUnavailableError: If there is no driver, no GPU, or the driver is too old.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependencyError("cuda-bindings", "jetson", "Running on an NVIDIA GPU") from error
    return Device(driver)
