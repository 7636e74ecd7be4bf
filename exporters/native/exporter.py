"""The `native` target: a shared library for Linux boards, from a checkpoint or any int8 .tflite file."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact
from csr_deploy.exporters.mcu.emit import KERNELS
from csr_deploy.exporters.mcu.exporter import (
    CProject,
    CTarget,
    border_types,
    exporter_of,
    identifier,
    source_files,
    write_files,
)
from csr_deploy.exporters.mcu.options import McuOptions
from csr_deploy.exporters.mcu.project import example
from csr_deploy.exporters.native.entry import (
    entry_header,
    entry_source,
    kernel_functions,
    kernel_names,
)
from csr_deploy.exporters.native.project import cmake, makefile
from csr_deploy.exporters.native.team import TEAM, team_kernels
from csr_deploy.runtimes import open_runtime
from csr_deploy.runtimes.native.build import Compiler, build_library, find_compiler
from csr_deploy.runtimes.native.platforms import AARCH64, Platform, this_platform
from csr_deploy.runtimes.native.runtime import LIBRARIES, TARGET
from csr_deploy.runtimes.native.sources import (
    ENTRY,
    ENTRY_HEADER,
    FOLDER,
    KERNEL_NAMES,
    POOL,
    NativeSources,
    identify,
    is_kernel,
)

_FOLDER = Path(__file__).resolve().parents[2] / "runtimes" / "native" / "c"
_FILES = (KERNELS / "csr_team.h", _FOLDER / f"{POOL}.h", _FOLDER / f"{POOL}.c")
"""Hand-written C that every model has beside its kernels."""
OPTIONS = McuOptions(cpu="aarch64", fuse_requantize=True)
"""Where none are given."""


def platforms() -> tuple[Platform, ...]:
    """What libraries are built for, where there is a compiler: boards, and this machine."""
    here = this_platform()
    return (AARCH64,) if here == AARCH64 else (AARCH64, here)


def write_project(project: CProject, folder: Path) -> Mapping[str, Any]:
    """Writes sources, project files and libraries.

    Returns:
        Figures for the manifest: the `libraries` by platform with their compiler and bytes, and under
        `not_built` the platforms that no compiler was found for.

    Raises:
        RuntimeUnavailableError: If a compiler fails.
    """
    return _build(write_sources(project, folder), folder)


def write_sources(project: CProject, folder: Path) -> NativeSources:
    """Writes sources and project files."""
    prefix = project.options.prefix
    files = source_files(project, TEAM)
    files |= {path.name: path.read_text(encoding="utf-8") for path in _FILES}
    called = team_kernels(project.program)
    files[KERNEL_NAMES] = kernel_names(kernel_functions(files), called, prefix)
    files[ENTRY_HEADER] = entry_header(prefix)
    identity = identify((name, hashlib.sha256(text.encode()).hexdigest()) for name, text in files.items())
    files[ENTRY] = entry_source(project, identity, called)
    compiled = sorted(name for name in files if name.endswith(".c"))
    write_files(folder, {f"{FOLDER}/{name}": text for name, text in files.items()})
    write_files(
        folder,
        {
            "Makefile": makefile(compiled, project.name, prefix),
            "CMakeLists.txt": cmake(compiled, identifier(project.name), prefix),
            "examples/classify/main.c": example(prefix, border_types(project)),
        },
    )
    kernels = tuple(name for name in compiled if is_kernel(name))
    others = tuple(name for name in compiled if not is_kernel(name))
    return NativeSources(folder / FOLDER, prefix, kernels, others, identity)


def _build(sources: NativeSources, folder: Path) -> dict[str, Any]:
    libraries: dict[str, Any] = {}
    missing = []
    for platform in platforms():
        compiler = find_compiler(platform)
        if compiler is None:
            missing.append(platform.key)
            continue
        libraries[platform.key] = {
            "compiler": compiler.version,
            "bytes": _library(sources, compiler, folder / LIBRARIES / platform.key),
        }
    return {"libraries": libraries, **({"not_built": missing} if missing else {})}


def _library(sources: NativeSources, compiler: Compiler, place: Path) -> int:
    """Builds one library into a folder; gives its bytes."""
    with tempfile.TemporaryDirectory() as work:
        content = build_library(sources, compiler, Path(work)).read_bytes()
    place.mkdir(parents=True)
    (place / sources.library).write_bytes(content)
    return len(content)


def _run(artifact: Artifact, project: CProject, images: NDArray[np.uint8]) -> tuple[NDArray[Any], str]:
    with open_runtime("native", artifact) as runtime:
        return runtime.logits(images), f"{runtime.name} {runtime.version}"


NATIVE = CTarget(TARGET, OPTIONS, write_project, _run)
EXPORTER = exporter_of(NATIVE)
