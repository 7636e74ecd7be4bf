"""Integer lines that equal a chain of TFLite's rounded operations for every input.

TFLite's ADD, and a depth-wise convolution of one tap, scale and round in several steps. Their inputs are
bytes: a plain floor((a·A + b·B + C) / 2^s) can be compared with them for all inputs, and where constants are
found that give the same integers everywhere, a kernel may compute just that.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BYTES = np.arange(-128, 128, dtype=np.int64)
"""All inputs."""
_LOW_BITS = 16
_RIGHTS = (6, 5, 4)
"""Bits that are shifted out of the upper half of an int32, the most exact first."""
_NEAR = (0, 1, -1, 2, -2, 3, -3)
_NARROW_BITS = 7
_LARGEST = 1 << 31


@dataclass(frozen=True)
class Sum:
    """clamp(floor((a·factor_a + b·factor_b + bias) / 2^(16 + right)))."""

    factor_a: int
    factor_b: int
    bias: int
    right: int


@dataclass(frozen=True)
class Lines:
    """clamp(floor((x·factor + bias) / 2^(16 + right))) of every channel.

    Attributes:
        factor: int32 [C].
        bias: int32 [C].
        right: Of all channels.
        narrow: Whether all factors are an int16 times 128.
    """

    factor: Array
    bias: Array
    right: int
    narrow: bool


def find_sum(wanted: Array, ratios: tuple[float, float], low: int, high: int) -> Sum | None:
    """Constants of a sum.

    Args:
        wanted: Integers [256, 256] of all pairs (a, b), clamped.
        ratios: What a step of a, and of b, is in steps of the result.
        low: Of the clamp.
        high: Of the clamp.

    Returns:
        None if no line is exact.
    """
    for right in _RIGHTS:
        unit = float(1 << (_LOW_BITS + right))
        centre_a, centre_b = (round(r * unit) for r in ratios)
        for near_a, near_b in itertools.product(_NEAR, repeat=2):
            factor_a, factor_b = centre_a + near_a, centre_b + near_b
            line = BYTES[:, None] * factor_a + BYTES[None] * factor_b
            bias = _bias(line, wanted, right, low, high)
            if bias is not None:
                return Sum(factor_a, factor_b, bias, right)
    return None


def find_lines(wanted: Array, ratios: Array, low: int, high: int) -> Lines | None:
    """Constants of a gain and a bias a channel.

    Args:
        wanted: Integers [256, C] of all inputs, clamped.
        ratios: [C], what a step of the input is in steps of the result.
        low: Of the clamp.
        high: Of the clamp.

    Returns:
        None if no line is exact in some channel.
    """
    for bits, right in itertools.product((_NARROW_BITS, 0), _RIGHTS):
        found = [_line(wanted[:, c], float(r), right, bits, low, high) for c, r in enumerate(ratios)]
        rows = [row for row in found if row is not None]
        if len(rows) == len(found):
            factor, bias = (np.array(column, np.int64) for column in zip(*rows, strict=True))
            return Lines(factor.astype(np.int32), bias.astype(np.int32), right, bits == _NARROW_BITS)
    return None


def _line(wanted: Array, ratio: float, right: int, bits: int, low: int, high: int) -> tuple[int, int] | None:
    """Factor, a multiple of 2^bits, and bias of one channel."""
    centre = round(ratio * (1 << (_LOW_BITS + right - bits)))
    for near in _NEAR:
        narrow = centre + near
        if bits and not -(1 << 15) <= narrow < 1 << 15:
            continue
        factor = narrow << bits
        bias = _bias(BYTES * factor, wanted, right, low, high)
        if bias is not None:
            return factor, bias
    return None


def _bias(line: Array, wanted: Array, right: int, low: int, high: int) -> int | None:
    """A bias with which a line gives the wanted integers everywhere, or None."""
    unit = 1 << (_LOW_BITS + right)
    # Where the clamp holds a result, one side of it is free.
    least = np.where(wanted > low, wanted * unit - line, -_LARGEST).max()
    most = np.where(wanted < high, (wanted + 1) * unit - 1 - line, _LARGEST).min()
    if least > most:
        return None
    # A side that nothing bounds is far away: the other one is as good as any.
    bias = int(most if least == -_LARGEST else least if most == _LARGEST else least + (most - least) // 2)
    ends = line.min() + bias, line.max() + bias
    return bias if min(*ends, bias) >= -_LARGEST and max(*ends, bias) < _LARGEST else None
