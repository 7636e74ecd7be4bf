"""The C of a native artifact: which file is which, and its identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from csr_deploy.artifact import Artifact
from csr_deploy.errors import ArtifactError

FOLDER = "src"
ENTRY = "native.c"
"""What the library has beyond the model: its description and the choice of kernels."""
ENTRY_HEADER = "native.h"
POOL = "native_pool"
"""Name of the header and the source file of an instance's threads."""
KERNEL_NAMES = "native_kernels.h"
"""Included before everything else, so that each variant's kernels have names of their own."""
_IDENTITY_DIGITS = 32


@dataclass(frozen=True)
class NativeSources:
    """The sources of one model.

    Attributes:
        folder: In which they lie, all of them.
        prefix: Of the generated names.
        kernels: Files that are compiled once a variant, sorted.
        others: Files that are compiled once, sorted.
        identity: Of the model and its kernels; the library carries it.
    """

    folder: Path
    prefix: str
    kernels: tuple[str, ...]
    others: tuple[str, ...]
    identity: str

    @property
    def library(self) -> str:
        """Name of the library's file."""
        return f"lib{self.prefix}.so"


def identify(hashes: Iterable[tuple[str, str]]) -> str:
    """Identity of sources.

    Args:
        hashes: Name without folder, and SHA-256, of every source and header; `ENTRY`, which carries the
            identity, is left out.
    """
    lines = sorted(f"{name} {sha256}\n" for name, sha256 in hashes if name != ENTRY)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:_IDENTITY_DIGITS]


def find_sources(artifact: Artifact) -> NativeSources:
    """The sources of an artifact, of which only what the manifest lists counts.

    Raises:
        ArtifactError: If it has no such sources.
    """
    listed = {}
    for record in artifact.files:
        folder, _, name = record.name.rpartition("/")
        if folder == FOLDER and name.endswith((".c", ".h")):
            listed[name] = record.sha256
    prefix = artifact.model_file.stem
    compiled = sorted(name for name in listed if name.endswith(".c"))
    if f"{prefix}.c" not in compiled or ENTRY not in compiled:
        raise ArtifactError(
            "has no sources of a native library",
            where=str(artifact.path),
            fix="Make it with csr-export --target native.",
        )
    kernels = tuple(name for name in compiled if is_kernel(name))
    others = tuple(name for name in compiled if not is_kernel(name))
    return NativeSources(artifact.path / FOLDER, prefix, kernels, others, identify(listed.items()))


def is_kernel(name: str) -> bool:
    """Whether a source file holds hand-written kernels."""
    return name.startswith("csr_")
