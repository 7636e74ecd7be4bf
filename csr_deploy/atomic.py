"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from csr_deploy.errors import ExportError


@contextmanager
def undisturbed() -> Iterator[None]:
    """Holds Ctrl-C, which the main thread gets, back until the block ends: for files that belong together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught and callable(before):
        before(*caught[0])


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` that takes its place when the block ends without an error.

    Raises:
        ExportError: If the file cannot be written; `path` is then as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise ExportError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            fix="Free space or choose another place.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, replace: bool) -> Iterator[Path]:
    """Gives a temporary directory beside `path` that takes its place when the block ends without an error.

    Args:
        path: The directory to make.
        replace: Whether an existing one may be replaced.

    Raises:
        ExportError: If it exists and may not be replaced, or cannot be written.
    """
    if path.exists() and not replace:
        raise ExportError(
            "already exists", where=str(path), fix="Give --force to replace it, or another --out."
        )
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
    except OSError as error:
        raise ExportError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            fix="Free space or choose another place.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
