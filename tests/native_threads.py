"""Runs generated C of the native target with several threads, under sanitizers and on emulated processors."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csr_deploy.exporters.mcu.compiler import compile_model, optimise
from csr_deploy.exporters.mcu.exporter import project_of
from csr_deploy.exporters.mcu.ir import Model
from csr_deploy.exporters.native.exporter import OPTIONS, write_sources
from csr_deploy.runtimes.native.sources import ENTRY, KERNEL_NAMES

COUNTS = (1, 2, 3, 4, 7)
"""Threads that are tried."""
_WARNINGS = ("-std=gnu99", "-Wall", "-Wextra", "-Wconversion", "-Werror")

_MAIN = """
#include "native.h"

#include <stdio.h>
#include <stdlib.h>

int main(int count, char **arguments)
{
    unsigned char *memory = malloc(MODEL_ARENA_BYTES + MODEL_ARENA_ALIGNMENT);
    unsigned char *arena = memory + (MODEL_ARENA_ALIGNMENT - (uintptr_t)memory % MODEL_ARENA_ALIGNMENT);
    model_t model;
    int i;
    if (model_init(&model, arena, MODEL_ARENA_BYTES) != MODEL_OK) {
        return 2;
    }
    for (i = 1; i < count; i++) {
        if (model_set_threads(&model, atoi(arguments[i])) != MODEL_OK) {
            return 3;
        }
        rewind(stdin);
        while (fread(model_input(&model), 1, MODEL_INPUT_BYTES, stdin) == MODEL_INPUT_BYTES) {
            if (model_run(&model) != MODEL_OK) {
                return 4;
            }
            fwrite(model_output(&model), 1, MODEL_OUTPUT_BYTES, stdout);
        }
    }
    model_set_threads(&model, 1);
    free(memory);
    return 0;
}
"""


class ThreadedProgram:
    """Compiles networks to programs that run every input with every number of threads.

    Args:
        folder: For files.
        compiler: Its command.
        flags: Its flags.
        runner: Command before the program's.
    """

    def __init__(
        self, folder: Path, compiler: str = "gcc", flags: tuple[str, ...] = (), runner: tuple[str, ...] = ()
    ) -> None:
        for tool in (compiler, *runner[:1]):
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool} to compile and run generated C")
        self.folder, self.command, self.runner = folder, [compiler, *_WARNINGS, *flags], runner

    def run(self, graph: Model, inputs: NDArray[Any]) -> dict[int, NDArray[Any]]:
        """Outputs [N, bytes] for inputs [N, …] by number of threads.

        Args:
            graph: After the passes of `OPTIONS`.
            inputs: As many as there are.
        """
        place = self.folder / "net"
        shutil.rmtree(place, ignore_errors=True)
        sources = write_sources(project_of(compile_model(graph, OPTIONS), "net", (), OPTIONS), place)
        (place / "src" / "main.c").write_text(_MAIN)
        command = [*self.command, "-pthread", "-include", KERNEL_NAMES]
        for name in (*sources.kernels, *sources.others, "main.c"):
            role = "-DCSR_VARIANT=base" if name in sources.kernels else "-DCSR_CALLS"
            role = "-DCSR_TABLES" if name == ENTRY else role
            self._run([*command, role, "-c", name, "-o", f"{name}.o"], place / "src")
        objects = [f"{name}.o" for name in (*sources.kernels, *sources.others, "main.c")]
        self._run([*command, *objects, "-o", "program"], place / "src")
        (place / "inputs").write_bytes(np.ascontiguousarray(inputs).tobytes())
        with (place / "inputs").open("rb") as file:
            done = subprocess.run(
                [*self.runner, str(place / "src" / "program"), *map(str, COUNTS)],
                stdin=file, capture_output=True, check=False, timeout=600,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        values = np.frombuffer(done.stdout, np.int8).reshape(len(COUNTS), len(inputs), -1)
        return dict(zip(COUNTS, values, strict=True))

    def _run(self, command: list[str], folder: Path) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def optimised(model: Model) -> Model:
    """A graph after the passes of the native target."""
    return optimise(model, OPTIONS)
