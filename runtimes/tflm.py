"""TFLite Micro's own interpreter on this machine: bit-exact with a microcontroller's reference kernels."""

from __future__ import annotations

import math
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import MissingDependencyError, RuntimeUnavailableError
from csr_deploy.runtimes.base import Runtime

_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
_IDENTIFIER = b"TFL3"
_WIDEST_ELEMENT = 8
_BOOKKEEPING_PER_RECORD = 1024


class TflmRuntime(Runtime):
    """Runs .tflite files in TFLite Micro, with all its operators registered."""

    name = "tflm"
    suffixes = (".tflite",)
    available_kernels = ("reference",)
    threaded = False

    def _package(self) -> str:
        return "tflite-micro"

    def _import(self) -> None:
        try:
            from tflite_micro import runtime
        except ImportError as error:
            raise MissingDependencyError(
                "tflite-micro", "mcu", "Running a model in TFLite Micro", cause=error
            ) from error
        self._module: ModuleType = runtime

    def _open(self) -> None:
        content = self.subject.model_file.read_bytes()
        # TFLite Micro itself reads whatever it is given.
        if content[4:8] != _IDENTIFIER:
            raise self._refused("it is not a TFLite flatbuffer")
        with _printed() as text:
            try:
                bound = _arena_bound(self._module.convert_bytearray_to_object(content), len(content))
                interpreter = self._module.Interpreter.from_bytes(content, arena_size=bound)
            except (ValueError, RuntimeError, struct.error) as error:
                raise self._refused(f"{error}: {text()}") from error
        for spec, tensor in (
            (self.subject.input, interpreter.get_input_details(0)),
            (self.subject.output, interpreter.get_output_details(0)),
        ):
            self._check_tensor(spec, [int(n) for n in tensor["shape"]], np.dtype(tensor["dtype"]))
        self._interpreter = interpreter

    @property
    def arena(self) -> int | None:
        """Bytes of the arena in use, after TFLite Micro's own record.

        It holds activations (head) and the interpreter's structures (tail). The tail is that of a 64-bit
        machine and has the recording allocator in it; on a 32-bit microcontroller it is smaller.
        """
        self._demand_open()
        self._interpreter.invoke()
        with _printed() as text:
            self._interpreter.print_allocations()
            found = _TOTAL.search(text())
        if found is None:
            raise RuntimeUnavailableError(f"{self.version} does not tell the arena it used")
        return int(found.group(1))

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self._interpreter.set_input(inputs, 0)
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_output(0))

    def _close(self) -> None:
        self._interpreter = None


def _arena_bound(model: Any, size: int) -> int:
    """An arena that is always large enough, in bytes.

    Too small an arena ends the process with a segmentation fault, so there is no probing. What is not used is
    never touched, and takes no memory.
    """
    elements = records = 0
    for graph in model.subgraphs:
        records += len(graph.tensors) + len(graph.operators)
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or not len(data):
                elements += math.prod(int(n) for n in tensor.shape) if tensor.shape is not None else 1
    return elements * _WIDEST_ELEMENT + records * _BOOKKEEPING_PER_RECORD + 2 * size


@contextmanager
def _printed() -> Iterator[Callable[[], str]]:
    """Gives a function that returns what C++ printed to standard error in the block, past sys.stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def text() -> str:
            file.seek(0)
            return file.read().decode(errors="replace").strip()

        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
