"""Files and programs of the machine, read with care: what is missing or refused is None."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

_BLOCK = 1 << 16
_NUMBER = re.compile(r"(\d+)")
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NAMED = 3


class Problems:
    """Counts what could not be understood and remembers the first few places."""

    def __init__(self) -> None:
        self.malformed = 0
        self._places: list[str] = []
        self._notes: list[str] = []

    def count(self, place: str) -> None:
        """One more reading at `place` that makes no sense."""
        self.malformed += 1
        if place not in self._places and len(self._places) < _NAMED:
            self._places.append(place)

    def note(self, text: str) -> None:
        """Something a reader should know; said once."""
        if text not in self._notes:
            self._notes.append(text)

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything that was noted."""
        if not self.malformed:
            return tuple(self._notes)
        readings = "1 reading" if self.malformed == 1 else f"{self.malformed} readings"
        counted = f"{readings} could not be understood, among them {', '.join(self._places)}"
        return (*self._notes, counted)


class Machine:
    """A file tree with /sys, /proc and /etc in it, and the programs on a search path.

    Args:
        root: Of the tree.
        search_path: Where programs are looked for, like $PATH, which it is by default.
    """

    def __init__(self, root: Path = Path("/"), search_path: str | None = None) -> None:
        self._root = str(root)
        self._search_path = search_path
        self.problems = Problems()

    def text(self, path: str) -> str | None:
        """A file's text without white space at its ends; None where it cannot be read.

        Args:
            path: From the root, without a slash in front.
        """
        # Not through Python's text files: a sensor of a unit that is switched off answers EAGAIN, which they
        # turn into a TypeError. And this is the cheaper way.
        try:
            handle = os.open(os.path.join(self._root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            return None
        try:
            blocks = []
            while block := os.read(handle, _BLOCK):
                blocks.append(block)
        except OSError:
            return None
        finally:
            os.close(handle)
        return b"".join(blocks).decode(errors="replace").strip("\0\r\n\t ")

    def integer(self, path: str) -> int | None:
        """The whole number in a file; None where there is none, and counted where there is other text."""
        text = self.text(path)
        if text is None:
            return None
        if _INTEGER.fullmatch(text):
            return int(text)
        self.problems.count(path)
        return None

    def entries(self, folder: str, prefix: str = "") -> list[str]:
        """Paths of a folder's entries, numbers in their names by value; empty where it is missing."""
        try:
            names = os.listdir(os.path.join(self._root, folder))
        except OSError:
            return []
        found = [name for name in names if name.startswith(prefix)]
        return [f"{folder}/{name}" for name in sorted(found, key=_natural)]

    def has_program(self, name: str) -> bool:
        """Whether a program is on the search path."""
        return self.program(name) is not None

    def program(self, name: str) -> str | None:
        """Where a program is."""
        return shutil.which(name, path=self._search_path)

    def output(self, name: str, *arguments: str, seconds: float = 2.0) -> str | None:
        """What a program prints; None where it is missing, fails, or takes longer than `seconds`."""
        program = self.program(name)
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                check=False,
                # Ctrl-C ends the benchmark, which then ends what it has started.
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _natural(name: str) -> list[tuple[int, str]]:
    parts = _NUMBER.split(name)
    return [(int(p), "") if p.isdecimal() and len(p) < 19 else (-1, p) for p in parts]
