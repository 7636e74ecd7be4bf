"""Compiles a model into a shared library. The same sources and compiler give the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from csr_deploy.errors import RuntimeUnavailableError
from csr_deploy.runtimes.native.platforms import Platform, Variant, this_platform
from csr_deploy.runtimes.native.sources import ENTRY, KERNEL_NAMES, NativeSources

# For every board that a library may be copied to, not only for this machine's libc; see native_pool.c.
_COPIED = "-DCSR_OLD_GLIBC"
COMPILE_FLAGS = ("-std=c99", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")
LINK_FLAGS = ("-shared", "-pthread", "-s", "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,--as-needed")
_INCLUDE = ("-include", KERNEL_NAMES)
_HOST_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_SECONDS = 600
_MOST_JOBS = 4
_MESSAGE_LINES = 6


@dataclass(frozen=True)
class Compiler:
    """A C compiler for a platform.

    Attributes:
        command: Its program.
        version: Its first line about itself.
        platform: What it compiles for, with the variants that it knows.
    """

    command: str
    version: str
    platform: Platform


def find_compiler(platform: Platform) -> Compiler | None:
    """A compiler for a platform on this machine; None if there is none."""
    names = _HOST_COMPILERS if platform == this_platform() else platform.compilers
    for name in names:
        if found := shutil.which(name):
            said = _call([found, "--version"], Path.cwd(), "tell its version").splitlines()
            variants = tuple(v for v in platform.variants if _knows(found, v))
            return Compiler(name, said[0] if said else name, replace(platform, variants=variants))
    return None


@cache
def _knows(command: str, variant: Variant) -> bool:
    """Whether a compiler, and the assembler that it calls, have a variant's instructions."""
    if not variant.probe:
        return True
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "probe.c"
        source.write_text(probe_source(variant), encoding="utf-8")
        try:
            _call([command, "-w", *variant.flags, "-c", source.name, "-o", "probe.o"], Path(work), "probe")
        except RuntimeUnavailableError:
            return False
    return True


def probe_source(variant: Variant) -> str:
    """C that compiles where a variant's instructions are known."""
    return f'__asm__("{variant.probe}");\n'


def compile_commands(sources: NativeSources, platform: Platform) -> list[tuple[str, list[str]]]:
    """What has to be compiled: object file, and the compiler's arguments in the folder of the sources."""
    base, *more = platform.variants
    jobs = []
    for name in sources.others:
        role = ["-DCSR_TABLES", *variant_macros(more)] if name == ENTRY else ["-DCSR_CALLS", _COPIED]
        jobs.append((f"{Path(name).stem}.o", [*COMPILE_FLAGS, *base.flags, *role, *_INCLUDE, "-c", name]))
    for variant in platform.variants:
        own = [*variant.flags, f"-DCSR_VARIANT={variant.name}"]
        for name in sources.kernels:
            target = f"{Path(name).stem}-{variant.name}.o"
            jobs.append((target, [*COMPILE_FLAGS, *own, *_INCLUDE, "-c", name]))
    return jobs


def variant_macros(variants: Iterable[Variant]) -> list[str]:
    """What tells `native.c` that there are more kernels than those which every processor can run."""
    return [f"-DCSR_WITH_{variant.name.upper()}" for variant in variants]


def build_library(sources: NativeSources, compiler: Compiler, folder: Path) -> Path:
    """Compiles and links.

    Args:
        sources: The model.
        compiler: With what, and for what.
        folder: Where the library goes, and what lies on the way.

    Returns:
        The library.

    Raises:
        RuntimeUnavailableError: If the compiler fails.
    """
    folder = folder.resolve()
    jobs = compile_commands(sources, compiler.platform)

    def compile_one(job: tuple[str, list[str]]) -> None:
        target, arguments = job
        command = [compiler.command, "-w", *arguments, "-o", str(folder / target)]
        _call(command, sources.folder, f"compile {arguments[-1]}")

    with ThreadPoolExecutor(min(_MOST_JOBS, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_one, jobs))
    objects = [target for target, _ in jobs]
    soname = f"-Wl,-soname,{sources.library}"
    _call([compiler.command, *LINK_FLAGS, soname, "-o", sources.library, *objects], folder, "link")
    for name in objects:
        (folder / name).unlink()
    return folder / sources.library


def _call(command: Sequence[str], folder: Path, step: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, timeout=_COMPILE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailableError(
            f"did not {step} within {_COMPILE_SECONDS} s", where=command[0]
        ) from error
    except OSError as error:
        raise RuntimeUnavailableError(
            f"cannot be started: {error.strerror or error}", where=command[0]
        ) from error
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        text = "\n".join((told or done.stderr.splitlines())[:_MESSAGE_LINES])
        raise RuntimeUnavailableError(
            f"could not {step}:\n{text}",
            where=command[0],
            fix="Export on a machine with a compiler for this one: the artifact then carries the library.",
        )
    return done.stdout
