"""The program on the emulated board: loads each model, runs it, and marks the moments to count between.

It is started by its file, as `python guest.py N`, in a folder with the jobs `0.json` … of N jobs, objects
`{"model", "runtime", "threads", "inputs", "runs"}`; outputs go beside them as `0.npy` …. On standard output
goes one JSON object a line and job: `{"done": i, …}` or `{"failed": i, "reason": …}`. What native libraries
print goes to standard error.

Each job runs in children that are forked when everything is imported: it begins in the same state whatever
came before it, so that its counts repeat, and may crash without harm to the others. One child is counted,
another one looks at the memory, which would move the heap of the first.

A mark is a system call that does nothing, see counter.c. Its id is the job's number times 16 and the moment,
a member of `Moment`.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOMENTS = 16
# counter.c has the same.
_MAGIC = 0x43535250
_GETPRIORITY = 141
# Python specialises the code around the inference in the first eight.
_WARM_UP_RUNS = 9
_EMPTY_MARKS = 9
_WARM_UP_READINGS = 4
_ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}
_ERRORS_ONLY = 3
_CACHE_LINE = 64
_MODULES = ("ai_edge_litert.interpreter", "onnxruntime")


class Moment(enum.IntEnum):
    """When a mark is made."""

    BEFORE_LOAD = 0
    LOADED = 1
    BEFORE_FIRST = 2
    FIRST_DONE = 3
    NOTHING = 4
    """Several in a row: what a mark itself takes."""
    STEADY = 5
    """Before the first and after every counted inference."""


_Run = Callable[[NDArray[Any]], NDArray[Any]]


class _Model:
    """A loaded model.

    Attributes:
        shape: Of the input, batch first.
        dtype: Of the input.
        run: Runs one batch and gives the first output.
        kernels: What it says of the kernels that it chose for this processor; None if it says nothing.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, run: _Run, kernels: str | None = None) -> None:
        self.shape = shape
        self.dtype = dtype
        self.run = run
        self.kernels = kernels


def _open_litert(path: str, threads: int) -> _Model:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        interpreter.set_tensor(source["index"], inputs)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result["index"]))

    return _Model(tuple(int(n) for n in source["shape"]), np.dtype(source["dtype"]).name, run)


def _open_ort(path: str, threads: int) -> _Model:
    import onnxruntime

    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    # A thread that waits for work would execute any number of instructions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    names = [result.name]

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(session.run(names, {source.name: inputs})[0])

    # A batch size left open has a name.
    shape = tuple(n if isinstance(n, int) and n > 0 else 1 for n in source.shape)
    return _Model(shape, _ORT_DTYPES[source.type], run)


def _open_native(path: str, threads: int) -> _Model:
    """A library of the native target, as `csr_deploy.runtimes.native.library` opens it."""
    library, prefix = ctypes.CDLL(path), Path(path).stem.removeprefix("lib")
    text, pointer, size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = getattr(library, f"{prefix}_{name}")
        found.restype, found.argtypes = result, arguments
        return found

    about = json.loads(function("describe", text)())
    arena = np.zeros(about["arena_bytes"] + _CACHE_LINE, np.uint8)
    arena = arena[-arena.ctypes.data % _CACHE_LINE :][: about["arena_bytes"]]
    handle = ctypes.create_string_buffer(function("handle_bytes", size)())
    status = function("init", ctypes.c_int, pointer, pointer, size)(handle, arena.ctypes.data, len(arena))
    if status:
        raise RuntimeError(f"init gave the error {status}")
    if threads > 1:
        status = function("set_threads", ctypes.c_int, pointer, ctypes.c_int)(handle, threads)
        if status:
            raise RuntimeError(f"set_threads gave the error {status}")

    def view(name: str) -> NDArray[Any]:
        shape, dtype = about[name]["shape"], np.dtype(about[name]["dtype"])
        start = function(name, pointer, pointer)(handle) - arena.ctypes.data
        values = arena[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype)
        return np.reshape(values, shape)

    source, result, infer = view("input"), view("output"), function("run", ctypes.c_int, pointer)

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        np.copyto(source, inputs)
        if status := infer(handle):
            raise RuntimeError(f"run gave the error {status}")
        return result.copy()

    kernels = function("kernels", text)().decode()
    return _Model(tuple(about["input"]["shape"]), about["input"]["dtype"], run, kernels)


_OPENERS: Mapping[str, Callable[[str, int], _Model]] = {
    "litert": _open_litert,
    "native": _open_native,
    "ort": _open_ort,
}


def _noise(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Uniform noise, of unit variance for floats; without numpy.random, which takes long to import here."""
    mixed = np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (mixed >> np.uint64(40)).reshape(shape)
    if np.dtype(dtype).kind == "f":
        return np.asarray((words / 2**23 - 1) * 3**0.5, dtype)
    return np.asarray((words >> np.uint64(16)).astype(np.uint8).view(dtype))


def _inputs(path: str | None, model: _Model) -> list[NDArray[Any]]:
    """Batches of the model's shape: those of the file, or noise.

    Raises:
        ValueError: If the file does not fit the model.
    """
    values = _noise(model.shape, model.dtype) if path is None else np.load(path, allow_pickle=False)
    batch = model.shape[0]
    fits = values.ndim == len(model.shape) and values.shape[1:] == model.shape[1:]
    if not fits or not len(values) or len(values) % batch or values.dtype != np.dtype(model.dtype):
        raise ValueError(
            f"the inputs are {values.dtype}{list(values.shape)}, "
            f"the model takes {model.dtype}{list(model.shape)}"
        )
    return [np.ascontiguousarray(values[i : i + batch]) for i in range(0, len(values), batch)]


def _memory() -> tuple[int, int]:
    """Bytes of this process's own pages, and of pages of mapped files, without those of the emulator.

    QEMU shows the guest's mappings in /proc/self/maps and its own as well in /proc/self/smaps, both at the
    same addresses where guest and machine have 64 bits.
    """
    guest = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        start, _, end = line.split(" ", 1)[0].partition("-")
        guest.append((int(start, 16), int(end, 16)))
    private = mapped = 0
    inside = False
    resident = 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, rest = line.partition(":")
        if "-" in key and " " in key:
            start, _, end = line.split(" ", 1)[0].partition("-")
            low, high = int(start, 16), int(end, 16)
            inside = any(low < e and s < high for s, e in guest)
        elif inside and key == "Rss":
            resident = int(rest.split()[0])
        elif inside and key == "Anonymous":
            anonymous = int(rest.split()[0])
            private += anonymous
            mapped += resident - anonymous
        elif inside and key == "Swap":
            private += int(rest.split()[0])
    return private * 1024, mapped * 1024


def _count(number: int, mark: Callable[[int], object]) -> dict[str, Any]:
    """Runs one model between marks, and writes its outputs."""
    job = json.loads(Path(f"{number}.json").read_text(encoding="utf-8"))
    here = number * MOMENTS
    runs = int(job["runs"])
    mark(here + Moment.BEFORE_LOAD)
    model = _OPENERS[job["runtime"]](str(job["model"]), int(job["threads"]))
    mark(here + Moment.LOADED)
    batches = _inputs(job["inputs"], model)
    run, inputs = model.run, batches[0]
    mark(here + Moment.BEFORE_FIRST)
    outputs = [run(inputs)]
    mark(here + Moment.FIRST_DONE)
    outputs += [run(batch) for batch in batches[1:]]
    np.save(f"{number}.npy", np.concatenate(outputs), allow_pickle=False)
    for _ in range(_WARM_UP_RUNS - len(batches)):
        run(inputs)
    nothing, steady = int(here + Moment.NOTHING), int(here + Moment.STEADY)
    for _ in range(_EMPTY_MARKS):
        mark(nothing)
    mark(steady)
    for _ in range(runs):
        run(inputs)
        mark(steady)
    return {"kernels": model.kernels}


def _measure_memory(number: int) -> dict[str, Any]:
    """Loads one model and runs it once; gives what that added."""
    job = json.loads(Path(f"{number}.json").read_text(encoding="utf-8"))
    if job["inputs"] is not None:
        # NumPy's reader imports and allocates at its first use, which is not the model's memory.
        np.load(job["inputs"], allow_pickle=False)
    # The first readings take memory themselves: long texts of which the heap keeps some pages.
    for _ in range(_WARM_UP_READINGS):
        _memory()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _memory()
    model = _OPENERS[job["runtime"]](str(job["model"]), int(job["threads"]))
    model.run(_inputs(job["inputs"], model)[0])
    after = _memory()
    return {"private_bytes": after[0] - before[0], "mapped_bytes": after[1] - before[1]}


def _in_child(number: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs `work` in a fork; gives its result, or `{"failed", "reason"}`."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = work()
        except Exception as error:
            # Each runtime raises classes of its own. Whatever it is, it is this job's result.
            result = {"failed": number, "reason": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w", encoding="utf-8") as file:
            json.dump(result, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return {"failed": number, "reason": f"the process died with {how}"}
    values: dict[str, Any] = json.loads(text)
    return values


def main() -> None:
    """Works through the jobs."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(line: Mapping[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    count = int(sys.argv[1])
    syscall = ctypes.CDLL(None).syscall
    syscall.argtypes = [ctypes.c_long] * 3

    def mark(moment: int) -> None:
        syscall(_GETPRIORITY, _MAGIC, moment)

    # A collection would come at random.
    gc.disable()
    # All of them, whatever the jobs need: the state that a job begins in must not depend on the others.
    for module in _MODULES:
        importlib.import_module(module)
    for number in range(count):
        result = _in_child(number, functools.partial(_count, number, mark))
        if "failed" not in result:
            result |= _in_child(number, functools.partial(_measure_memory, number))
        send(result if "failed" in result else {"done": number, **result})


if __name__ == "__main__":
    main()
