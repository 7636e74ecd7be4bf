"""Compiles generated C for this machine, with sanitizers, or for AArch64, and runs it as a process."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csr_deploy.exporters.mcu.compiler import Program
from csr_deploy.exporters.mcu.emit import KERNELS, model_header, model_source

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror")
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_MAIN = """
#include "model.h"
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    model_t model;
    /* A block of its own of just that size, so that the sanitizer sees every byte beside it. */
    void *arena = aligned_alloc(MODEL_ARENA_ALIGNMENT, MODEL_ARENA_BYTES);
    if (!arena || model_init(&model, arena, MODEL_ARENA_BYTES) != MODEL_OK) {
        return 1;
    }
    while (fread(model_input(&model), 1, MODEL_INPUT_BYTES, stdin) == MODEL_INPUT_BYTES) {
        if (model_run(&model) != MODEL_OK) {
            return 2;
        }
        fwrite(model_output(&model), 1, MODEL_OUTPUT_BYTES, stdout);
    }
    free(arena);
    return 0;
}
"""


_GUARDED_MAIN = """
#include "model.h"
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void)
{
    model_t model;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (MODEL_ARENA_BYTES + page - 1) / page * page;
    /* The arena ends where memory does: nothing behind it may be read or written. */
    unsigned char *memory =
        mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *arena = memory + size - MODEL_ARENA_BYTES;
    if (memory == MAP_FAILED || mprotect(memory + size, page, PROT_NONE) ||
        model_init(&model, arena, MODEL_ARENA_BYTES) != MODEL_OK) {
        return 1;
    }
    while (fread(model_input(&model), 1, MODEL_INPUT_BYTES, stdin) == MODEL_INPUT_BYTES) {
        if (model_run(&model) != MODEL_OK) {
            return 2;
        }
        fwrite(model_output(&model), 1, MODEL_OUTPUT_BYTES, stdout);
    }
    return 0;
}
"""


class HostCompiler:
    """Compiles the kernels once, then one model after the other.

    Args:
        folder: For everything that is made.
        compiler: For this machine, or a cross compiler.
        flags: Of the compiler.
        runner: Emulator and its options, where the machine is another one; the arena then ends at a page that
            cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        compiler: str = "gcc",
        flags: tuple[str, ...] = SANITIZERS,
        runner: tuple[str, ...] = (),
    ) -> None:
        for tool in (compiler, *runner[:1]):
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool} to compile and run generated C")
        self.runner = runner
        self.folder, self.command = folder, [compiler, *WARNINGS, *flags, f"-I{KERNELS}"]
        self.library = folder / "libkernels.a"
        objects = []
        for source in sorted(KERNELS.glob("*.c")):
            objects.append(folder / f"{source.stem}.o")
            self._run([*self.command, "-c", str(source), "-o", str(objects[-1])])
        archiver = "ar" if not runner else compiler.removesuffix("gcc") + "ar"
        self._run([archiver, "rcs", str(self.library), *map(str, objects)])
        (folder / "main.c").write_text(_GUARDED_MAIN if runner else _MAIN)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def run(self, program: Program, inputs: NDArray[Any]) -> NDArray[Any]:
        """Outputs [N, bytes] for inputs [N, …]."""
        (self.folder / "model.c").write_text(model_source(program, "model"))
        (self.folder / "model.h").write_text(model_header(program, "model", "test", ()))
        binary = self.folder / "model"
        sources = [str(self.folder / name) for name in ("main.c", "model.c")]
        # aligned_alloc is C11's, mmap POSIX's.
        command = [*self.command, "-std=gnu11", *sources, str(self.library), "-o", str(binary)]
        self._run(command)
        content = np.ascontiguousarray(inputs).tobytes()
        done = subprocess.run([*self.runner, str(binary)], input=content, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return np.frombuffer(done.stdout, np.int8).reshape(len(inputs), -1)
