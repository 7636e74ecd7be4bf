"""Plain values, as JSON has them, back to frozen dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from csr_deploy.errors import BenchError

_T = TypeVar("_T")


def read_plain(kind: type[_T], values: Any, where: str) -> _T:
    """Makes a dataclass from what `dataclasses.asdict` and JSON made of it.

    Fields that are not known are left out, so that a record of a later csr-deploy of the same schema version
    can be read.

    Args:
        kind: The dataclass.
        values: Plain values.
        where: Their place, for messages.

    Raises:
        BenchError: If a value is missing or of the wrong kind; the message names its path.
    """
    made: _T = _object(kind, values, where)
    return made


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _object(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise _wrong(where, "an object", values)
    hints = _hints(kind)
    given = {}
    for each in dataclasses.fields(kind):
        if each.name in values:
            given[each.name] = _value(hints[each.name], values[each.name], f"{where}.{each.name}")
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise BenchError(f"lacks {each.name}", where=where, fix=_FIX)
    return kind(**given)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _value(inner, value, where)
    if origin is tuple:
        return _tuple(arguments[0], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise _wrong(where, " or ".join(map(repr, arguments)), value)
        return value
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, "an object", value)
        return {str(k): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return _object(hint, value, where)
    return _scalar(hint, value, where)


def _tuple(inner: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    # Samples come by the hundred thousand.
    if inner is int and all(type(v) is int for v in value):
        return tuple(value)
    return tuple(_value(inner, v, f"{where}[{i}]") for i, v in enumerate(value))


_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    # JSON has one kind of number, and true is no number there.
    fits = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
        bool: isinstance(value, bool),
    }
    if not fits[hint]:
        raise _wrong(where, _NAMES[hint], value)
    return value


_FIX = "The record is damaged, or was not written by csr-bench."


def _wrong(where: str, wanted: str, value: Any) -> BenchError:
    shown = repr(value)
    return BenchError(
        f"must be {wanted}, is {shown if len(shown) < 60 else shown[:57] + '…'}", where=where, fix=_FIX
    )
