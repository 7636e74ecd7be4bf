"""A compiled network in this process: a shared library, and any number of instances of its model.

    library = NativeLibrary(Path("lib/aarch64/libmodel.so"))
    network = library.instance(threads=4)
    network.input[...] = picture
    network.run()
    print(network.output)

`input` and `output` are views of the instance's arena: nothing is copied.
"""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ArtifactError, OptionError, RuntimeUnavailableError
from csr_deploy.runtimes.native.elf import check_library
from csr_deploy.runtimes.native.platforms import this_platform

INTERFACE = 2
"""Of `native.c`; rises when a function or a key of the description changes its meaning."""
KERNELS_VARIABLE = "CSR_NATIVE_KERNELS"
"""Of the environment, read at loading: the name of the variant whose kernels a library takes."""
MOST_THREADS = 64
"""Of an instance."""
_ERRORS = {
    1: "a null pointer",
    2: "the arena is not aligned",
    3: "the arena is too small",
    4: f"threads are 1 to {MOST_THREADS}",
    5: "a thread or its memory is not to be had",
}
# Of a cache line: an arena that shares none with anything else.
_LEAST_ALIGNMENT = 64


class NativeLibrary:
    """A loaded library.

    Args:
        path: The file.
        prefix: Of its functions; None to take it from the file's name, lib<prefix>.so.

    Raises:
        ArtifactError: If it is truncated, or no library of the native target or of another version of it.
        RuntimeUnavailableError: If it is for another processor or cannot be loaded, or if the environment
            names kernels that it does not have or that this processor cannot run.
    """

    def __init__(self, path: Path, prefix: str | None = None) -> None:
        self.path = path.absolute()
        self._prefix = prefix or path.stem.removeprefix("lib")
        self._instances: weakref.WeakSet[NativeInstance] = weakref.WeakSet()
        check_library(self.path, this_platform())
        try:
            self._library: ctypes.CDLL | None = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise RuntimeUnavailableError(
                f"cannot be loaded: {error}",
                where=str(self.path),
                fix="It needs a file system that is not mounted noexec, and glibc 2.17 or later, or musl.",
            ) from error
        try:
            self._functions = self._find()
            self.description: Mapping[str, Any] = json.loads(self._functions["describe"]())
            interface = self.description["interface"]
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            self.close()
            raise ArtifactError(
                f"is no library of the native target: {error}",
                where=str(self.path),
                fix="Make it with csr-export --target native.",
            ) from error
        if interface != INTERFACE:
            self.close()
            raise ArtifactError(
                f"has interface {interface!r}; this csr-deploy knows {INTERFACE}",
                where=str(self.path),
                fix="Export it again, or install the csr-deploy that made it.",
            )
        self._check_kernels()

    def _check_kernels(self) -> None:
        wanted = os.environ.get(KERNELS_VARIABLE)
        if wanted is None:
            return
        known = {variant.name: variant.architecture for variant in this_platform().variants}
        if self.kernels != known.get(wanted):
            took = self.kernels
            self.close()
            raise RuntimeUnavailableError(
                f"has no kernels named {wanted!r} that this processor can run; it took {took}",
                where=str(self.path),
                fix=f"Unset ${KERNELS_VARIABLE}, or give it one of: {', '.join(known)}.",
            )

    def _find(self) -> dict[str, Any]:
        types: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "describe": (ctypes.c_char_p, ()),
            "kernels": (ctypes.c_char_p, ()),
            "handle_bytes": (ctypes.c_size_t, ()),
            "init": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)),
            "run": (ctypes.c_int, (ctypes.c_void_p,)),
            "input": (ctypes.c_void_p, (ctypes.c_void_p,)),
            "output": (ctypes.c_void_p, (ctypes.c_void_p,)),
            "set_threads": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
        }
        functions = {}
        for name, (result, arguments) in types.items():
            function = getattr(self._library, f"{self._prefix}_{name}")
            function.restype, function.argtypes = result, arguments
            functions[name] = function
        return functions

    @property
    def identity(self) -> str:
        """Of the sources it was built from."""
        return str(self.description["identity"])

    @property
    def kernels(self) -> str:
        """Architecture of the kernels that were chosen for this processor, as "armv8.2-a+dotprod"."""
        return str(self.function("kernels")().decode())

    @property
    def arena_bytes(self) -> int:
        """Of each instance."""
        return int(self.description["arena_bytes"])

    def function(self, name: str) -> Any:
        """A function of the library, by its name without the prefix.

        Raises:
            RuntimeUnavailableError: If the library is closed.
        """
        if self._library is None:
            raise RuntimeUnavailableError("the library is closed", where=str(self.path))
        return self._functions[name]

    def instance(self, threads: int = 1) -> NativeInstance:
        """A model with an arena and threads of its own; instances may run at the same time.

        Args:
            threads: That share an inference, the one that calls `run` among them.

        Raises:
            OptionError: If that is no number of threads.
            RuntimeUnavailableError: If the model or one of its threads does not start.
        """
        made = NativeInstance(self, threads)
        self._instances.add(made)
        return made

    def close(self) -> None:
        """Unloads it and ends its instances' threads; more than once does no harm."""
        if self._library is not None:
            for instance in list(self._instances):
                instance.close()
            unload = ctypes.CDLL(None).dlclose
            unload.argtypes = (ctypes.c_void_p,)
            unload(self._library._handle)
            self._library = None


class NativeInstance:
    """One model with its arena and threads, which end with it.

    Attributes:
        input: View of the input in the arena, of the model's shape and type. A run writes over it.
        output: View of the output in the arena, read-only; it holds until the next run or write to the input.

    Args:
        library: What computes.
        threads: See `NativeLibrary.instance`.
    """

    def __init__(self, library: NativeLibrary, threads: int = 1) -> None:
        if not 1 <= threads <= MOST_THREADS:
            raise OptionError(
                f"threads is {threads}", where=str(library.path), fix=f"Give 1 to {MOST_THREADS}."
            )
        self._library = library
        size = library.arena_bytes
        alignment = max(int(library.description["arena_alignment"]), _LEAST_ALIGNMENT)
        memory = np.zeros(size + alignment, np.uint8)
        start = -memory.ctypes.data % alignment
        self._arena = memory[start : start + size]
        self._handle = ctypes.create_string_buffer(library.function("handle_bytes")())
        self._run = library.function("run")
        self._check("init", library.function("init")(self._handle, self._arena.ctypes.data, size))
        self._set_threads = library.function("set_threads")
        if threads > 1:
            self._check("set_threads", self._set_threads(self._handle, threads))
        # A program that ends takes its threads with it, also those that are in the middle of a run.
        self._end = weakref.finalize(self, self._set_threads, self._handle, 1)
        self._end.atexit = False
        self.input = self._view("input")
        self.output = self._view("output")
        self.output.flags.writeable = False

    def _view(self, name: str) -> NDArray[Any]:
        spec = self._library.description[name]
        dtype = np.dtype(spec["dtype"])
        shape = tuple(int(n) for n in spec["shape"])
        offset = self._library.function(name)(self._handle) - self._arena.ctypes.data
        size = int(np.prod(shape)) * dtype.itemsize
        if not 0 <= offset <= len(self._arena) - size:
            raise ArtifactError(f"its {name} is not in its arena", where=str(self._library.path))
        view: NDArray[Any] = self._arena[offset : offset + size].view(dtype).reshape(shape)
        return view

    def run(self) -> None:
        """Computes the output of what `input` holds. Other threads of Python go on meanwhile.

        A process that was forked from the one that made the instance computes with one thread.

        Raises:
            RuntimeUnavailableError: If the library or the instance is closed, or the model fails.
        """
        if not self._end.alive:
            raise RuntimeUnavailableError(
                "the library is closed" if self._library._library is None else "the instance is closed",
                where=str(self._library.path),
            )
        status = self._run(self._handle)
        if status:
            self._check("run", status)

    def close(self) -> None:
        """Ends its threads, not while it runs; more than once does no harm. It cannot run any more."""
        self._end()

    def _check(self, step: str, status: int) -> None:
        if status:
            raise RuntimeUnavailableError(
                f"{step} gave the error {status} ({_ERRORS.get(status, 'unknown')})",
                where=str(self._library.path),
            )
