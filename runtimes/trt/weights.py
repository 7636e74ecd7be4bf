"""How often a plan holds the weights of its ONNX model, read from the bytes of both.

The package onnx is not needed: of the protobuf only the initializers are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from csr_deploy.errors import ExportError

_LEAST_BYTES = 64
# Field numbers of ONNX's ModelProto, GraphProto and TensorProto.
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _RAW_DATA = 1, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Initializer:
    """A constant of an ONNX model: its shape and its bytes, row-major."""

    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class WeightCopies:
    """What searching a plan for the weights of its model found.

    Attributes:
        searched: Initializers of at least 64 bytes, each content counted once.
        once: Those that the plan holds once, as stored in the model or with channels last.
        several: Those that it holds more than once.
    """

    searched: int
    once: int
    several: int

    @property
    def absent(self) -> int:
        """Those that the plan does not hold in any order that was searched: they were packed or folded."""
        return self.searched - self.once - self.several


def read_initializers(onnx: bytes) -> list[Initializer]:
    """The initializers of an ONNX model that hold their data as raw bytes, in order.

    Raises:
        ExportError: If it is no ONNX model.
    """
    try:
        graph = b"".join(v for f, v in _fields(onnx) if f == _GRAPH and isinstance(v, bytes))
        return [
            _initializer(value)
            for number, value in _fields(graph)
            if number == _INITIALIZER and isinstance(value, bytes)
        ]
    except (IndexError, ValueError) as error:
        raise ExportError(f"the model is no ONNX file: {error}", fix="Export it again.") from error


def count_copies(onnx: bytes, plan: bytes) -> WeightCopies:
    """Searches a plan for each weight of its model, as stored and with channels last ([O, I, H, W] → OHWI).

    Weights that hold one value only are left out: such runs are in any file.
    """
    unique: dict[bytes, Initializer] = {}
    for initializer in read_initializers(onnx):
        content = initializer.content
        if len(content) >= _LEAST_BYTES and len(set(content)) > 4:
            unique.setdefault(content, initializer)
    counts = [max(plan.count(form) for form in _forms(i)) for i in unique.values()]
    return WeightCopies(len(counts), sum(c == 1 for c in counts), sum(c > 1 for c in counts))


def _forms(initializer: Initializer) -> set[bytes]:
    shape, content = initializer.shape, initializer.content
    forms = {content}
    elements = math.prod(shape)
    if len(shape) == 4 and elements and len(content) % elements == 0:
        items = np.frombuffer(content, np.dtype((np.void, len(content) // elements))).reshape(shape)
        forms.add(np.ascontiguousarray(items.transpose(0, 2, 3, 1)).tobytes())
    return forms


def _initializer(message: bytes) -> Initializer:
    dims: list[int] = []
    content = b""
    for number, value in _fields(message):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == _RAW_DATA and isinstance(value, bytes):
            content = value
    return Initializer(tuple(dims), content)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("it is cut off")
        yield number, message[at : at + size]
        at += size


def _varints(packed: bytes) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
