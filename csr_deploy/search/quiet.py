"""Measuring in quiet: while one worker takes times, the trainings of the others on this machine pause."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csr_deploy.errors import OptionError


class Quiet:
    """A lock that trainings share and a measurement has to itself.

    Two files: who trains holds the second one shared, and lets go of it between two steps; who measures takes
    the first one, which stops trainings from coming back, then waits for the second. The kernel frees the
    locks of a process that dies.

    Args:
        enabled: Without it nothing waits for anything: where no objective is a time.
        folder: For the files; None for a folder of this user on this machine.

    Raises:
        OptionError: If the files cannot be made.
    """

    def __init__(self, *, enabled: bool, folder: Path | None = None) -> None:
        self._enabled = enabled
        self._training = False
        if not enabled:
            return
        folder = folder or Path(tempfile.gettempdir()) / f"csr-search-{os.getuid()}"
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._gate, self._floor = (os.open(folder / name, flags, 0o600) for name in ("gate", "floor"))
        except OSError as error:
            raise OptionError(
                f"cannot be used to keep trainings quiet while times are taken: {error.strerror or error}",
                where=str(folder),
                fix="Remove it, or set TMPDIR to a folder of your own.",
            ) from error

    @contextmanager
    def training(self) -> Iterator[None]:
        """A training is under way in this block."""
        self._enter()
        self._training = True
        try:
            yield
        finally:
            self._training = False
            self._leave()

    def pause(self) -> None:
        """Between two steps of a training: lets a measurement go first, if one waits."""
        if self._training:
            self._leave()
            self._enter()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Nobody else on this machine trains or measures in this block."""
        if not self._enabled:
            yield
            return
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._floor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._floor, fcntl.LOCK_UN)
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _enter(self) -> None:
        if self._enabled:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            fcntl.flock(self._floor, fcntl.LOCK_SH)
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _leave(self) -> None:
        if self._enabled:
            fcntl.flock(self._floor, fcntl.LOCK_UN)
