"""Runs a native artifact: its shared library for this machine, or one compiled here at the first load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact
from csr_deploy.errors import ArtifactError, OptionError, RuntimeUnavailableError
from csr_deploy.runtimes.base import Runtime, RuntimeOptions, Subject
from csr_deploy.runtimes.native.build import find_compiler
from csr_deploy.runtimes.native.cache import compiled_library
from csr_deploy.runtimes.native.library import MOST_THREADS, NativeInstance, NativeLibrary
from csr_deploy.runtimes.native.platforms import Platform, this_platform
from csr_deploy.runtimes.native.sources import NativeSources, find_sources

TARGET = "native"
LIBRARIES = "lib"
"""Folder of an artifact with a folder for each platform."""


def carried_library(artifact: Artifact, key: str) -> Path | None:
    """The library that an artifact carries for a platform, by the key of `Platform`; None if it has none."""
    for record in artifact.files:
        folder, _, name = record.name.rpartition("/")
        if folder == f"{LIBRARIES}/{key}" and name.endswith(".so"):
            return artifact.path / record.name
    return None


class NativeRuntime(Runtime):
    """Loads the library of a native artifact into this process.

    An artifact that carries none for this machine is compiled once and kept, which needs a C compiler.
    """

    name = "native"
    suffixes = (".c",)

    def __init__(self, subject: Subject, options: RuntimeOptions | None = None) -> None:
        super().__init__(subject, options)
        self._file: Path | None = None
        self._library: NativeLibrary | None = None
        self._instance: NativeInstance | None = None

    def _check_options(self) -> None:
        super()._check_options()
        if not isinstance(self.subject, Artifact) or self.subject.target != TARGET:
            raise OptionError(
                "the native runtime runs artifacts of the target native",
                where=self.subject.name,
                fix="Leave the runtime out to use the one made for it.",
            )
        if self.options.threads > MOST_THREADS:
            raise OptionError(f"threads is {self.options.threads}", fix=f"Give at most {MOST_THREADS}.")

    @property
    def _artifact(self) -> Artifact:
        assert isinstance(self.subject, Artifact)
        return self.subject

    def _package(self) -> str:
        return "csr-deploy"

    def _import(self) -> None:
        """Nothing: what it needs is in the artifact, or a program that is looked for when it is needed."""

    def build(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        super().build(on_progress)
        if self._file is None:
            self._file = self._carried_or_compiled()

    def _carried_or_compiled(self) -> Path:
        machine = this_platform()
        carried = carried_library(self._artifact, machine.key)
        if carried is not None:
            return carried
        sources = find_sources(self._artifact)
        compiler = find_compiler(machine)
        if compiler is None:
            raise RuntimeUnavailableError(
                f"the artifact has no library for {machine.key}, and there is no C compiler here to make one",
                where=str(self._artifact.path),
                fix=_advice(machine),
            )

        def say() -> None:
            print(f"csr-deploy: compiling {self._artifact.name} for {machine.key}, once", file=sys.stderr)

        return compiled_library(sources, compiler, say)

    def _open(self) -> None:
        assert self._file is not None
        if self._library is not None:
            self._library.close()
        sources = find_sources(self._artifact)
        self._library = NativeLibrary(self._file, sources.prefix)
        try:
            self._check_library(self._library, sources)
            self._instance = self._library.instance(self.options.threads)
            for spec, view in (
                (self.subject.input, self._instance.input),
                (self.subject.output, self._instance.output),
            ):
                self._check_tensor(spec, view.shape, view.dtype)
        except BaseException:
            self._close()
            raise

    def _check_library(self, library: NativeLibrary, sources: NativeSources) -> None:
        if library.identity != sources.identity:
            raise ArtifactError(
                f"was built from other sources ({library.identity[:12]}, the artifact's are "
                f"{sources.identity[:12]})",
                where=str(library.path),
                fix="Export the artifact again.",
            )

    @property
    def stored_file(self) -> Path:
        return self._file or super().stored_file

    @property
    def arena(self) -> int | None:
        self._demand_open()
        return self._library.arena_bytes if self._library else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What kernels run, and where the library comes from."""
        if self._library is None or self._file is None:
            return {}
        is_carried = self._artifact.path in self._file.parents
        return {
            "architecture": self._library.kernels,
            "library": self._file.relative_to(self._artifact.path).as_posix()
            if is_carried
            else "compiled here",
            "compiler": str(self._library.description["compiler"]),
        }

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        instance = self._instance
        assert instance is not None
        np.copyto(instance.input, inputs)
        instance.run()
        return instance.output.copy()

    def _close(self) -> None:
        self._instance = None
        if self._library is not None:
            self._library.close()
            self._library = None


def _advice(machine: Platform) -> str:
    if machine.packages:
        return (
            "Run here: sudo apt-get install gcc libc6-dev\n"
            f"Or export again on a machine with a compiler for {machine.key} (Debian: {machine.packages})."
        )
    return "Run here: sudo apt-get install gcc libc6-dev"
