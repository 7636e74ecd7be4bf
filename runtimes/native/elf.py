"""Looks at a shared library before it is loaded: a truncated one would crash the process that loads it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from csr_deploy.errors import ArtifactError, RuntimeUnavailableError
from csr_deploy.runtimes.native.platforms import PLATFORMS, Platform

_MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_MACHINE_END = 20
_AGAIN = "Copy or export the artifact again."
_CLASS_64, _LITTLE_ENDIAN, _SHARED = 2, 1, 3
_NAMES = {3: "x86 (32 bit)", 40: "ARM (32 bit)", 243: "RISC-V", **{p.elf_machine: p.key for p in PLATFORMS}}


def check_library(path: Path, platform: Platform) -> None:
    """Demands a whole shared library for a platform; says nothing of platforms that are not known by number.

    Args:
        path: The file.
        platform: Where it is to be loaded.

    Raises:
        ArtifactError: If it cannot be read, is no shared library, or lacks bytes.
        RuntimeUnavailableError: If it is for another processor.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
            if not header.startswith(_MAGIC):
                raise ArtifactError("is no shared library", where=str(path), fix=_AGAIN)
            if platform.elf_machine is None:
                return
            _check_machine(path, header, platform)
            if size < _HEADER.size or size < _needed(header, file):
                raise ArtifactError(f"is truncated: it has {size:,} bytes", where=str(path), fix=_AGAIN)
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if _HEADER.unpack(header)[1] != _SHARED:
        raise ArtifactError("is no shared library", where=str(path), fix=_AGAIN)


def _check_machine(path: Path, header: bytes, platform: Platform) -> None:
    if len(header) < _MACHINE_END:
        return
    machine = struct.unpack_from("<H", header, _MACHINE_END - 2)[0]
    if (machine, header[4], header[5]) != (platform.elf_machine, _CLASS_64, _LITTLE_ENDIAN):
        raise RuntimeUnavailableError(
            f"is for {_NAMES.get(machine, f'the ELF machine {machine}')}, this process is {platform.key}",
            where=str(path),
            fix="Take the library of this machine, or export for it.",
        )


def _needed(header: bytes, file: BinaryIO) -> int:
    """Bytes that the file must have for all its segments and tables."""
    (_, _, _, _, _, segments, sections, _, _, segment_size, count, section_size, section_count, _) = (
        _HEADER.unpack(header)
    )
    file.seek(segments)
    table = file.read(count * segment_size)
    ends = [segments + count * segment_size, sections + section_count * section_size]
    for start in range(0, len(table) - _SEGMENT.size + 1, max(segment_size, _SEGMENT.size)):
        _, _, offset, _, _, stored, _, _ = _SEGMENT.unpack_from(table, start)
        ends.append(offset + stored)
    return int(max(ends))
