"""Measurements that are kept and not repeated, and how long each kind of work took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csr_deploy.atomic import atomic_write
from csr_deploy.errors import OptionError

_VERSION = 1


class Kept:
    """A file of measurements, each under a key that names what was measured by its content.

    Args:
        path: The file; written anew after every measurement, whole or not at all.

    Raises:
        OptionError: If it is there and is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._measured: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}
        self._read()

    def _read(self) -> None:
        """Takes what is in the file, over what is known."""
        if not self._path.exists():
            return
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            if values["version"] != _VERSION:
                raise ValueError(f"version {values['version']}")
            self._measured.update(values["measured"])
            self._seconds.update(values["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"holds no measurements of this tool: {error!r}",
                where=str(self._path),
                fix="Delete it, or give another --out.",
            ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._measured

    def get(self, key: str) -> Any:
        """A measurement, or None."""
        return self._measured.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps a measurement, beside those that another run has added meanwhile."""
        self._read()
        self._measured[key] = value
        self._write()

    def took(self, work: str, seconds: float) -> None:
        """Remembers how long a piece of work took, for the next plan."""
        self._read()
        self._seconds[work] = round(seconds, 2)
        self._write()

    def seconds(self, work: str) -> float | None:
        """How long it took the last time."""
        return self._seconds.get(work)

    def _write(self) -> None:
        values = {"version": _VERSION, "measured": self._measured, "seconds": self._seconds}
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
