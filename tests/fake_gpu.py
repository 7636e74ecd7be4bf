"""An in-memory stand-in for CUDA's driver and TensorRT: no GPU, no arithmetic of theirs.

It only serves to see which calls are made in which order, and that everything is given back after an error
at any of them. That engines compute the right thing is tested on a GPU (marker `gpu`).
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from csr_deploy.types import TensorSpec


class Status(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


def flags(**values: int) -> Any:
    return enum.IntFlag("flags", values)


class FakeDriver:
    """Looks like the module `cuda.bindings.driver`; "GPU" memory is memory.

    Attributes:
        calls: Name of every call, in order.
        live: Handle → what it is, of what was taken and not given back, in order.
        fail: Calls that fail, and how.
        version: Of the driver.
        missing: Functions that the driver does not have.
    """

    CUctx_flags = flags(CU_CTX_SCHED_SPIN=1, CU_CTX_SCHED_BLOCKING_SYNC=4, CU_CTX_SCHED_MASK=7)
    CUstream_flags = flags(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = flags(CU_EVENT_DEFAULT=0, CU_EVENT_BLOCKING_SYNC=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.live: dict[int, str] = {}
        self.fail: dict[str, Status] = {}
        self.version = 12060
        self.missing: set[str] = set()
        self.context_flags = 0x10
        self.event_flags: set[int] = set()
        self.captured: list[Callable[[], None]] | None = None
        self._memory: dict[int, Any] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._handles = 0

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.missing:
                raise RuntimeError(f"function {name} is not found")
            if name in self.fail:
                if name == "cuStreamEndCapture":
                    self.captured = None
                return (self.fail[name], None)
            result = getattr(self, f"_{name}")(*arguments)
            values = result if isinstance(result, tuple) else () if result is None else (result,)
            return (Status.CUDA_SUCCESS, *values)

        if not name.startswith("cu"):
            raise AttributeError(name)
        return call

    def _take(self, what: str) -> int:
        self._handles += 1
        self.live[self._handles] = what
        return self._handles

    def _give_back(self, handle: int) -> None:
        del self.live[handle]
        self._graphs.pop(handle, None)

    def _do(self, work: Callable[[], None]) -> None:
        """Now, or when the graph is launched that is being captured."""
        work() if self.captured is None else self.captured.append(work)

    def _take_memory(self, size: int) -> int:
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        self._memory[address] = memory
        self.live[address] = "memory"
        return address

    def _nothing(self, *arguments: Any) -> None:
        pass

    _cuInit = _cuCtxSetCurrent = _cuEventRecord = _cuEventSynchronize = _cuStreamSynchronize = _nothing
    _cuMemAlloc = _take_memory
    _cuMemFree = _cuMemFreeHost = _cuStreamDestroy = _cuEventDestroy = _give_back
    _cuGraphDestroy = _cuGraphExecDestroy = _give_back

    def _cuGetErrorString(self, status: Status) -> bytes:
        return status.name.lower().encode()

    def _cuDriverGetVersion(self) -> int:
        return self.version

    def _cuDeviceGet(self, ordinal: int) -> int:
        return ordinal

    def _cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Fake GPU".ljust(length, b"\0")

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return 1

    def _cuDevicePrimaryCtxGetState(self, device: int) -> tuple[int, int]:
        return self.context_flags, 1

    def _cuDevicePrimaryCtxSetFlags(self, device: int, value: int) -> None:
        self.context_flags = value

    def _cuMemGetInfo(self) -> tuple[int, int]:
        return 2**30 - sum(len(m) for a, m in self._memory.items() if a in self.live), 2**30

    def _cuStreamCreate(self, kind: int) -> int:
        return self._take("stream")

    def _cuEventCreate(self, kind: int) -> int:
        self.event_flags.add(kind)
        return self._take("event")

    def _cuEventElapsedTime(self, start: int, end: int) -> float:
        return 0.25

    def _cuMemHostAlloc(self, size: int, kind: int) -> int:
        return self._take_memory(size)

    def _cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self._do(lambda: ctypes.memmove(target, source, size) and None)

    _cuMemcpyDtoHAsync = _cuMemcpyHtoDAsync

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        self.captured = []

    def _cuStreamEndCapture(self, stream: int) -> int:
        graph = self._take("graph")
        self._graphs[graph], self.captured = self.captured or [], None
        return graph

    def _cuGraphInstantiate(self, graph: int, kind: int) -> int:
        executable = self._take("executable graph")
        self._graphs[executable] = self._graphs[graph]
        return executable

    def _cuGraphLaunch(self, executable: int, stream: int) -> None:
        for work in self._graphs[executable]:
            work()


class FakeTensorRt:
    """Looks like the module `tensorrt`. An engine gives sums: output n is that of the inputs 0, n, 2n, …

    Attributes:
        fail: Names of calls that fail.
        shapes: Tensor → shape in the engine.
        dtypes: Tensor → type in the engine.
        contexts: Execution contexts that are alive.
    """

    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])

    def __init__(self, driver: FakeDriver, source: TensorSpec, result: TensorSpec) -> None:
        self.driver = driver
        self.specs = (source, result)
        self.shapes = {spec.name: spec.shape for spec in self.specs}
        self.dtypes = dict.fromkeys(self.shapes, "FLOAT")
        self.fail: set[str] = set()
        self.contexts = 0
        self.log: Any = None

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        self.log = logger
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self._made("deserialize", FakeEngine))

    def failing(self, name: str) -> bool:
        if name in self.fail:
            self.log.log(self.ILogger.Severity.ERROR, f"{name}: no memory left")
        return name in self.fail

    def _made(self, name: str, make: Callable[[FakeTensorRt], Any]) -> Any:
        return None if self.failing(name) else make(self)


class FakeEngine:
    def __init__(self, library: FakeTensorRt) -> None:
        self.library = library
        self.num_io_tensors = len(library.shapes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.library.shapes)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.library.shapes[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.library.dtypes[name])

    def create_execution_context(self) -> Any:
        return self.library._made("create", FakeContext)


class FakeContext:
    def __init__(self, library: FakeTensorRt) -> None:
        self.library = library
        self.addresses: dict[str, int] = {}
        library.contexts += 1

    def __del__(self) -> None:
        self.library.contexts -= 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return not self.library.failing("set_input_shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.library.shapes[name]
        return (self.batch, *shape[1:]) if shape[0] == -1 else shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return not self.library.failing("set_tensor_address")

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.library.driver.calls.append("execute")
        self.library.driver._do(self._execute)
        return not self.library.failing("execute")

    def _execute(self) -> None:
        source, result = (
            np.frombuffer(
                (ctypes.c_byte * (4 * int(np.prod(spec.shape)))).from_address(self.addresses[spec.name]),
                np.float32,
            )
            for spec in self.library.specs
        )
        for index in range(len(result)):
            result[index] = source[index :: len(result)].sum()
