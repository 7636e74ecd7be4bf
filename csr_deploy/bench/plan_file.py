"""A plan in a TOML file, see docs/benchmarks.md for its keys."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csr_deploy.data.builtin import BUILTIN
from csr_deploy.errors import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class _Key:
    """What a key of the file takes.

    Attributes:
        kind: Type of the value, or of the entries of a list.
        is_list: Whether it is a list; one value alone is understood too.
        is_path: Whether a relative path is one from the file's folder.
        least: Smallest number.
        words: In a message, what is wanted.
    """

    kind: type
    words: str
    is_list: bool = False
    is_path: bool = False
    least: float | None = None


_TEXT, _WHOLE, _NUMBER, _YES = "a string", "a whole number", "a number", "true or false"

KEYS: Mapping[str, _Key] = {
    "models": _Key(str, _TEXT, is_list=True, is_path=True),
    "targets": _Key(str, _TEXT, is_list=True),
    "runtimes": _Key(str, _TEXT, is_list=True),
    "threads": _Key(int, _WHOLE, is_list=True, least=1),
    "batch": _Key(int, _WHOLE, is_list=True, least=1),
    "devices": _Key(str, _TEXT, is_list=True),
    "baseline": _Key(str, _TEXT),
    "together": _Key(bool, _YES),
    "data": _Key(str, _TEXT, is_path=True),
    "limit": _Key(int, _WHOLE, least=1),
    "quick": _Key(bool, _YES),
    "kernels": _Key(str, _TEXT),
    "cuda_graph": _Key(bool, _YES),
    "copies": _Key(bool, _YES),
    "wait": _Key(str, _TEXT),
    "device_images": _Key(int, _WHOLE, least=1),
    "latency": _Key(bool, _YES),
    "profile": _Key(bool, _YES),
    "images": _Key(int, _WHOLE, least=1),
    "seconds": _Key(float, _NUMBER, least=0),
    "windows": _Key(int, _WHOLE, least=1),
    "warmup_runs": _Key(int, _WHOLE, least=0),
    "warmup_seconds": _Key(float, _NUMBER, least=0),
    "telemetry": _Key(str, _TEXT),
    "seed": _Key(int, _WHOLE, least=0),
    "results": _Key(str, _TEXT, is_path=True),
    "repeats": _Key(int, _WHOLE, least=0),
    "cool_down": _Key(float, _NUMBER, least=0),
    "fail_if": _Key(str, _TEXT, is_list=True),
}
"""Every key and what it takes; flags of the same name are stronger."""


@dataclass(frozen=True)
class PlanFile:
    """What a plan file says.

    Attributes:
        path: The file.
        values: Checked values by key; lists are tuples, paths lead from the working directory.
    """

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)


def read_plan_file(path: Path) -> PlanFile:
    """Reads a plan.

    Raises:
        OptionError: If there is no such file, it is no TOML, or a key is unknown or takes something else.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"cannot be read: {error.strerror or error}", where=str(path), fix="Name a plan in TOML."
        ) from error
    except UnicodeDecodeError as error:
        raise OptionError("is no text in UTF-8", where=str(path), fix="Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"is no TOML: {error}", where=str(path), fix="Correct that line.") from error
    for key in values:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=2)
            guess = f"Did you mean {' or '.join(close)}?" if close else f"Keys: {', '.join(KEYS)}."
            raise OptionError(f"unknown key '{key}'", where=str(path), fix=guess)
    return PlanFile(path, {key: _read(path, key, value) for key, value in values.items()})


def _read(path: Path, key: str, value: Any) -> Any:
    wanted = KEYS[key]

    def one(entry: Any) -> Any:
        if not _fits(wanted.kind, entry):
            what = f"a list of which every entry is {wanted.words}" if wanted.is_list else wanted.words
            raise OptionError(f"{key} must be {what}, {entry!r} was given", where=str(path), fix=_fix(key))
        if wanted.least is not None and not entry >= wanted.least:
            raise OptionError(f"{key} is {entry!r}", where=str(path), fix=f"Give at least {wanted.least:g}.")
        return _from_folder(path.parent, entry) if wanted.is_path else entry

    if not wanted.is_list:
        return one(value)
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise OptionError(f"{key} is empty", where=str(path), fix="Give an entry, or leave the key out.")
    return tuple(one(entry) for entry in entries)


def _fits(kind: type, value: Any) -> bool:
    # In Python true is a number.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


_EXAMPLES: Mapping[type, Callable[[str], str]] = {
    str: lambda key: f'{key} = "…"',
    int: lambda key: f"{key} = 1",
    float: lambda key: f"{key} = 1.5",
    bool: lambda key: f"{key} = true",
}


def _fix(key: str) -> str:
    wanted = KEYS[key]
    example = _EXAMPLES[wanted.kind](key)
    if wanted.is_list:
        name, value = example.split(" = ")
        example = f"{name} = [{value}]"
    return f"Write for example: {example}"


def _from_folder(folder: Path, text: str) -> str:
    if text in BUILTIN and not (folder / text).exists():
        return text
    return str(folder / text)
