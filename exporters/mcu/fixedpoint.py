"""Exponential, logistic function and tanh in gemmlowp's fixed point, as TFLite Micro has them. NumPy only.

A number of m integer bits is an int32 that stands for integer / 2^(31 − m). Arrays are int64 here.

Source: gemmlowp, fixedpoint.h: a Taylor series around −1/8 and a product of powers of e for the exponential,
three steps of Newton and Raphson for the division.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.exporters.mcu.arithmetic import doubling_high, round_shift

Array = NDArray[Any]

ONE = (1 << 31) - 1
"""The largest number without integer bits; stands for 1."""

_EXP_MINUS_EIGHTH = 1895147668
_THIRD = 715827883
_POWERS = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242}
"""k → exp(−2^k)."""
_48_OVER_17 = 1515870810
_MINUS_32_OVER_17 = -1010580540


def _shift_left(x: Array, bits: int) -> Array:
    """Multiplies by 2^bits, saturated as gemmlowp saturates."""
    most = (1 << (31 - bits)) - 1
    return np.where(x > most, ONE, np.where(x < -most, -(1 << 31), x << bits))


def _exp_near_zero(a: Array) -> Array:
    """exp(a) for a in [−1/4, 0)."""
    x = a + (1 << 28)
    x2 = doubling_high(x, x)
    x3 = doubling_high(x2, x)
    x4 = doubling_high(x2, x2)
    tail = round_shift(doubling_high(round_shift(x4, 2) + x3, _THIRD) + x2, 1)
    return _EXP_MINUS_EIGHTH + doubling_high(x + tail, _EXP_MINUS_EIGHTH)


def exp_negative(a: Array, integer_bits: int) -> Array:
    """exp(a) for a ≤ 0.

    Args:
        a: With that many integer bits, at most 5.
        integer_bits: Of a.

    Returns:
        Without integer bits.
    """
    fraction = 31 - integer_bits
    quarter = 1 << (fraction - 2)
    near = (a & (quarter - 1)) - quarter
    result = _exp_near_zero(_shift_left(near, integer_bits))
    rest = near - a
    for power, factor in _POWERS.items():
        if power < integer_bits:
            result = np.where(rest & (1 << (fraction + power)), doubling_high(result, factor), result)
    return np.where(a == 0, ONE, result)


def _half_reciprocal(a: Array) -> Array:
    """2 / (1 + a) for a in [0, 1], with two integer bits."""
    half = (a + ONE + 1) // 2
    x = _48_OVER_17 + doubling_high(half, _MINUS_32_OVER_17)
    for _ in range(3):
        error = (1 << 29) - doubling_high(half, x)
        x = x + _shift_left(doubling_high(x, error), 2)
    return x


def reciprocal(a: Array) -> Array:
    """1 / (1 + a) for a in [0, 1]; both without integer bits."""
    return _shift_left(_half_reciprocal(a), 1)


def logistic(a: Array, integer_bits: int) -> Array:
    """1 / (1 + exp(−a)); `a` has that many integer bits, at most 5, the result none."""
    positive = reciprocal(exp_negative(-np.abs(a), integer_bits))
    return np.where(a == 0, 1 << 30, np.where(a > 0, positive, ONE - positive))


def tanh(a: Array, integer_bits: int) -> Array:
    """`a` has that many integer bits, at most 4, the result none."""
    # As a number with one integer bit more, the same integer is twice as large.
    twice = exp_negative(-np.abs(a), integer_bits + 1)
    size = _shift_left(_half_reciprocal(twice) - (1 << 29), 2)
    return np.where(a == 0, 0, np.where(a < 0, -size, size))
