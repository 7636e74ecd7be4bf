"""Libraries that were compiled on this machine, kept by what they were compiled from, with and how."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from csr_deploy.atomic import atomic_directory
from csr_deploy.errors import ExportError, RuntimeUnavailableError
from csr_deploy.runtimes.native.build import LINK_FLAGS, Compiler, build_library, compile_commands
from csr_deploy.runtimes.native.sources import ENTRY, NativeSources

VARIABLE = "CSR_NATIVE_CACHE"
_KEY_DIGITS = 32


def cache_folder() -> Path:
    """Where they are kept: $CSR_NATIVE_CACHE, or csr-deploy/native in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(VARIABLE):
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "csr-deploy" / "native"


def compiled_library(
    sources: NativeSources, compiler: Compiler, on_compile: Callable[[], None] | None = None
) -> Path:
    """The library of these sources, compiled if this machine has not done so before.

    Processes that want the same one wait for the first; it appears whole or not at all. A cache that cannot
    be written is an error: compiling at every load would be slow without saying why.

    Args:
        sources: The model.
        compiler: Of this machine.
        on_compile: Called before it is compiled.

    Raises:
        RuntimeUnavailableError: If the compiler fails or the cache cannot be written.
    """
    place = cache_folder() / _key(sources, compiler)
    library = place / sources.library
    if library.is_file():
        return library
    try:
        with _alone(place.parent):
            if not library.is_file():
                if on_compile is not None:
                    on_compile()
                with tempfile.TemporaryDirectory() as work:
                    content = build_library(sources, compiler, Path(work)).read_bytes()
                with atomic_directory(place, replace=True) as folder:
                    (folder / sources.library).write_bytes(content)
    except (OSError, ExportError) as error:
        what = error.what if isinstance(error, ExportError) else f"cannot be written: {error.strerror}"
        raise RuntimeUnavailableError(
            f"the compiled library {what}",
            where=str(place.parent),
            fix=f"Free space, or name another folder with ${VARIABLE}.",
        ) from error
    return library


def _key(sources: NativeSources, compiler: Compiler) -> str:
    platform = compiler.platform
    values = [
        sources.identity,
        hashlib.sha256((sources.folder / ENTRY).read_bytes()).hexdigest(),
        platform.key,
        compiler.version,
        compile_commands(sources, platform),
        LINK_FLAGS,
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:_KEY_DIGITS]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time compile; the folder itself is locked, so that no lock file stays."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
