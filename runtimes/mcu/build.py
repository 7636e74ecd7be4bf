"""Compiles a model: into a shared library for this machine, or with the firmware for a board.

What is compiled is any folder with C sources and a `model.h` as the mcu target writes it, so that somebody
else's code behind the same header is measured with the same flags.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_deploy.artifact import Artifact
from csr_deploy.errors import ArtifactError, RuntimeUnavailableError
from csr_deploy.runtimes.mcu.devices import BOARD_FILES, Board

MODEL_HEADER = "model.h"
_HOST_COMPILERS = ("cc", "gcc", "clang")
_ARM = "arm-none-eabi-"
_QEMU = "qemu-system-arm"
_COMPILE_SECONDS = 600
_MOST_JOBS = 4
_MESSAGE_LINES = 6
# Of the firmware, which is kept out of the figures. It calls nothing of libc, also not through loops that the
# compiler recognises, so that library code in the image is the model's.
_FIRMWARE_FLAGS = (
    "-Os",
    "-std=c99",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-fno-tree-loop-distribute-patterns",
    "-fno-tree-vectorize",
)
_SECTION_FLAGS = ("-ffunction-sections", "-fdata-sections")
_SIGNS_OF_NO_LIBC = ("nosys.specs", "cannot find -lc", "stdint.h: No such file", "string.h: No such file")
_OVERFLOW = re.compile(r"region `(?P<region>\w+)' overflowed by (?P<bytes>\d+) bytes")


@dataclass(frozen=True)
class Sources:
    """C of a model.

    Attributes:
        files: What is compiled; one of the folders they lie in holds `model.h`.
        include_dirs: More folders with headers.
        defines: Macros, "NAME" or "NAME=VALUE".
    """

    files: tuple[Path, ...]
    include_dirs: tuple[Path, ...] = ()
    defines: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Include paths and macros, as the compiler takes them."""
        folders = dict.fromkeys((*(f.parent for f in self.files), *self.include_dirs))
        return (*(f"-I{folder.resolve()}" for folder in folders), *(f"-D{d}" for d in self.defines))

    @property
    def identity(self) -> str:
        """Of the first file's folder: 16 digits of the SHA-256 of its sources and headers, in order of name.

        In a shell: `cat *.c *.h | sha256sum`, sorted together in the C locale.
        """
        digest = hashlib.sha256()
        folder = self.files[0].parent
        for file in sorted((*folder.glob("*.c"), *folder.glob("*.h")), key=lambda f: os.fsencode(f.name)):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def find_sources(
    model: Artifact | Path,
    *,
    extra: Iterable[Path] = (),
    include_dirs: Iterable[Path] = (),
    defines: Iterable[str] = (),
) -> Sources:
    """The sources of an artifact, or those in a folder or its `src`.

    Of an artifact it takes what the manifest lists, whose hashes were checked, and nothing else there.

    Raises:
        ArtifactError: If it has no C files or no `model.h`.
    """
    if isinstance(model, Artifact):
        folder = model.model_file.parent
        files = [f for r in model.files if (f := model.path / r.name).suffix == ".c" and f.parent == folder]
    else:
        folder = model / "src" if (model / "src" / MODEL_HEADER).is_file() else model
        files = sorted(folder.glob("*.c"))
    named = folder / f"{model.model_file.stem}.h" if isinstance(model, Artifact) else None
    if named is not None and named.name != MODEL_HEADER and named.is_file():
        raise ArtifactError(
            f"was generated with the prefix '{named.stem}'; the harness knows '{Path(MODEL_HEADER).stem}'",
            where=str(model.path) if isinstance(model, Artifact) else str(folder),
            fix="To measure it, export it once more without --prefix.",
        )
    if not (folder / MODEL_HEADER).is_file():
        raise ArtifactError(
            f"has no {MODEL_HEADER}", where=str(folder), fix="Make it with csr-export --target mcu."
        )
    if not files:
        raise ArtifactError("has no C sources", where=str(folder), fix="Export it again.")
    return Sources((*files, *extra), (folder, *include_dirs), tuple(defines))


@dataclass(frozen=True)
class CompileOptions:
    """How the model is compiled; the firmware around it always is in the same way.

    Attributes:
        opt: Level of optimisation.
        standard: Language, as after -std=.
        flags: More flags.
    """

    opt: str = "-O2"
    standard: str = "c99"
    flags: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """All of them, as the compiler takes them."""
        return (self.opt, f"-std={self.standard}", *self.flags)


@dataclass(frozen=True)
class Built:
    """What came out.

    Attributes:
        file: Shared library or ELF file.
        compiler: Its first line about itself.
        flags: What the model was compiled with, include paths and macros left out.
        flash: See `read_flash`; empty for a library.
    """

    file: Path
    compiler: str
    flags: tuple[str, ...]
    flash: Mapping[str, Any]


def build_library(sources: Sources, folder: Path, options: CompileOptions | None = None) -> Built:
    """Compiles a model for this machine.

    Args:
        sources: The model.
        folder: Where the library and what lies on the way go.
        options: How.

    Raises:
        RuntimeUnavailableError: If there is no compiler, or it refuses the sources.
    """
    compiler = _find_host_compiler()
    flags = (options or CompileOptions()).all
    own = (BOARD_FILES / "host" / "host.c",)
    shared = (*flags, "-fPIC", "-w")
    objects = _compile(compiler, sources, shared, folder, own, (*_FIRMWARE_FLAGS, "-fPIC"))
    library = folder / "model.so"
    _run_tool([compiler, "-shared", "-o", str(library), *map(str, objects)], "link")
    return Built(library, _version(compiler), flags, {})


def build_firmware(
    sources: Sources,
    board: Board,
    folder: Path,
    options: CompileOptions | None = None,
    *,
    firmware_defines: Sequence[str] = (),
) -> Built:
    """Compiles a model and the firmware around it for a board.

    Args:
        sources: The model.
        board: For which processor and memories.
        folder: Where the ELF file and what lies on the way go.
        options: How the model is compiled; the firmware around it is the same for all.
        firmware_defines: Macros of the firmware.

    Raises:
        RuntimeUnavailableError: If a tool is missing, the compiler refuses the sources, or the model does not
            fit.
    """
    compiler = _find_arm_tool("gcc")
    size_tool = _find_arm_tool("size")
    flags = (*board.flags, *(options or CompileOptions()).all, *_SECTION_FLAGS)
    common = BOARD_FILES / "cortex_m"
    own = (
        BOARD_FILES / "firmware" / "main.c",
        *sorted(common.glob("*.c")),
        BOARD_FILES / board.folder / "board.c",
    )
    own_flags = (
        *board.flags,
        *_FIRMWARE_FLAGS,
        *_SECTION_FLAGS,
        f"-I{BOARD_FILES / 'firmware'}",
        f"-I{common}",
        f'-DCSR_IDENTITY="{sources.identity}"',
        *(f"-D{d}" for d in firmware_defines),
    )
    objects = _compile(compiler, sources, (*flags, "-w"), folder, own, own_flags, board)
    elf, link_map = folder / "firmware.elf", folder / "firmware.map"
    _run_tool(
        [
            compiler, *board.flags, "-nostartfiles", "--specs=nosys.specs", "-o", str(elf),
            *map(str, objects), f"-L{common}", f"-T{BOARD_FILES / board.folder / board.linker_script}",
            "-Wl,--gc-sections", f"-Wl,-Map={link_map}",
        ],
        "link", board,
    )  # fmt: skip
    sizes = _run_tool([size_tool, "-A", "-d", str(elf)], "measure")
    flash = read_flash(sizes, link_map.read_text(encoding="utf-8", errors="replace"), _names(sources, own))
    return Built(elf, _version(compiler), flags, flash)


def find_qemu() -> str:
    """QEMU for Arm.

    Raises:
        RuntimeUnavailableError: If it is not installed.
    """
    return _find_tool(_QEMU, "Emulating a board", _QEMU)


def _names(sources: Sources, own: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """Object file → group and source file."""
    model = {_object_name("model", i, f): ("model", f.name) for i, f in enumerate(sources.files)}
    firmware = {_object_name("firmware", i, f): ("firmware", f.name) for i, f in enumerate(own)}
    return {**model, **firmware}


def _object_name(group: str, index: int, source: Path) -> str:
    return f"{group}-{index:03}-{source.stem}.o"


def _compile(
    compiler: str,
    sources: Sources,
    flags: Sequence[str],
    folder: Path,
    own: Sequence[Path],
    own_flags: Sequence[str],
    board: Board | None = None,
) -> list[Path]:
    """Compiles each file by itself, so that the link map tells what is whose; gives the objects in order."""
    model = [(_object_name("model", i, f), f, flags) for i, f in enumerate(sources.files)]
    firmware = [(_object_name("firmware", i, f), f, own_flags) for i, f in enumerate(own)]

    def compile_one(job: tuple[str, Path, Sequence[str]]) -> Path:
        name, source, job_flags = job
        result = folder / name
        _run_tool(
            [compiler, *job_flags, *sources.flags, "-c", str(source.resolve()), "-o", str(result)],
            f"compile {source.name}",
            board,
        )
        return result

    with ThreadPoolExecutor(min(_MOST_JOBS, os.cpu_count() or 1)) as pool:
        return list(pool.map(compile_one, (*model, *firmware)))


def _find_host_compiler() -> str:
    for name in _HOST_COMPILERS:
        if found := shutil.which(name):
            return found
    raise RuntimeUnavailableError(
        "Running a model's C on this machine needs a C compiler, which is not installed",
        fix="Run: sudo apt-get install gcc",
    )


def _find_arm_tool(name: str) -> str:
    package = "gcc-arm-none-eabi" if name == "gcc" else "binutils-arm-none-eabi"
    return _find_tool(_ARM + name, "Compiling for a microcontroller", package)


def _find_tool(name: str, purpose: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RuntimeUnavailableError(
            f"{purpose} needs {name}, which is not installed",
            fix=f"Run: sudo apt-get install {package} (the name in Debian and Ubuntu)",
        )
    return found


def _version(compiler: str) -> str:
    return _run_tool([compiler, "--version"], "tell its version").splitlines()[0]


def _run_tool(command: Sequence[str], step: str, board: Board | None = None) -> str:
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_COMPILE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailableError(
            f"did not {step} within {_COMPILE_SECONDS} s", where=command[0]
        ) from error
    if run.returncode == 0:
        return run.stdout
    if board and (found := _OVERFLOW.search(run.stderr)):
        what = "memory" if found["region"] == "RAM" else "flash"
        raise RuntimeUnavailableError(
            f"the model does not fit: {int(found['bytes']):,} bytes too many for its {what}",
            where=f"{board.summary} ({board.machine})",
            fix="Use a smaller model, or one of the larger boards.",
        )
    lacks_libc = board is not None and any(sign in run.stderr for sign in _SIGNS_OF_NO_LIBC)
    fix = "Run: sudo apt-get install libnewlib-arm-none-eabi" if lacks_libc else None
    told = [line for line in run.stderr.splitlines() if "error" in line or "undefined reference" in line]
    text = "\n".join((told or run.stderr.splitlines())[:_MESSAGE_LINES])
    raise RuntimeUnavailableError(f"could not {step}:\n{text}", where=command[0], fix=fix)


# --- how much of the flash is whose ---

_KINDS = {
    ".text": "code",
    ".rodata": "constants",
    ".ARM.extab": "constants",
    ".ARM.exidx": "constants",
    ".data": "data",
    ".bss": "zeroed",
}
_IN_FLASH = ("code", "constants", "data")
_GROUPS = ("model", "libraries", "firmware", "padding")
_CONTRIBUTION = re.compile(r" (?P<section>\S+)\s+0x[0-9a-f]+\s+0x(?P<size>[0-9a-f]+)(?: (?P<object>.+))?")
_OUTPUT_SECTION = re.compile(r"(?P<section>\.\S+)")


def read_flash(sizes: str, link_map: str, names: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Flash and RAM of a firmware, and whose they are.

    Library code counts as the model's, as the firmware uses none.

    Args:
        sizes: What `size -A -d` says.
        link_map: What GNU ld wrote.
        names: Object file → group ("model" or "firmware") and source file.

    Returns:
        Bytes: `sections` as in the ELF file; `flash_bytes` and `ram_bytes` (without stack) of all; for each
        of model, libraries, firmware and padding its `code`, `constants`, `data` (initialised, also in flash)
        and `zeroed`; `model_flash_bytes` with libraries; `files` of the model, by name.
    """
    sections = {
        words[0]: int(words[1])
        for line in sizes.splitlines()
        if len(words := line.split()) == 3 and words[0].startswith(".") and words[1].isdigit()
    }
    groups = {group: dict.fromkeys((*_IN_FLASH, "zeroed"), 0) for group in _GROUPS}
    files: dict[str, dict[str, int]] = {}
    for kind, owner, size in _contributions(link_map):
        group, file = _group(owner, names)
        groups[group][kind] += size
        if group == "model":
            files.setdefault(file, dict.fromkeys((*_IN_FLASH, "zeroed"), 0))[kind] += size

    def in_flash(group: str) -> int:
        return sum(groups[group][kind] for kind in _IN_FLASH)

    flash = sum(size for name, size in sections.items() if _KINDS.get(name) in _IN_FLASH)
    return {
        "sections": sections,
        "flash_bytes": flash,
        "ram_bytes": sections.get(".data", 0) + sections.get(".bss", 0),
        **groups,
        "model_flash_bytes": in_flash("model") + in_flash("libraries"),
        "files": files,
    }


def _contributions(link_map: str) -> Iterable[tuple[str, str, int]]:
    """Kind of section, object file and bytes of everything that was linked."""
    _, _, text = link_map.partition("Linker script and memory map")
    # A long name has the line for itself.
    text = re.sub(r"^( \S+)\n {5,}(?=0x)", r"\1 ", text, flags=re.MULTILINE)
    kind = None
    for line in text.splitlines():
        if found := _OUTPUT_SECTION.match(line):
            kind = _KINDS.get(found["section"])
        elif kind and (found := _CONTRIBUTION.fullmatch(line.rstrip())) and int(found["size"], 16):
            yield kind, found["object"] or "", int(found["size"], 16)


def _group(owner: str, names: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    if not owner:
        return "padding", ""
    archive = re.fullmatch(r".*\.a\((?P<member>.+)\)", owner)
    return names.get(Path(owner).name, ("libraries", archive["member"] if archive else Path(owner).name))
