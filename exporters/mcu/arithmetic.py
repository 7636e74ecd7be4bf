"""TFLite's integer arithmetic in NumPy: what the C kernels are checked against.

Source: gemmlowp's fixed point with double rounding, as TFLite's reference integer kernels use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.mcu.ir import Tensor

Array = NDArray[Any]


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Splits a factor into a Q31 multiplier in [2^30, 2^31) and a shift: multiplier · 2^(shift − 31)."""
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    return multiplier, shift


def doubling_high(x: Array, multiplier: Array | int) -> Array:
    """round(x · multiplier / 2^31), halves up."""
    return (x.astype(np.int64) * multiplier + (1 << 30)) >> 31


def round_shift(x: Array, right: Array | int) -> Array:
    """Divides x by 2^right, halves away from zero."""
    right = np.asarray(right, np.int64)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 0)
    return (x + half - ((x < 0) & (right > 0))) >> right


def multiply(x: Array, multiplier: Array | int, shift: Array | int) -> Array:
    """MultiplyByQuantizedMultiplier; `shift` > 0 is to the left."""
    shift = np.asarray(shift, np.int64)
    return round_shift(
        doubling_high(x.astype(np.int64) << np.maximum(shift, 0), multiplier), np.maximum(-shift, 0)
    )


_ACTIVATIONS = {0: None, 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}


def activation_range(options: Mapping[str, Any], out: Tensor, where: str) -> tuple[int, int]:
    """The integers between which a fused activation keeps an int8 output.

    Raises:
        ExportError: If TFLite's activation code is not one of NONE, RELU, RELU_N1_TO_1 and RELU6.
    """
    code = int(options.get("fusedActivationFunction", 0) or 0)
    if code not in _ACTIVATIONS:
        raise ExportError(f"has the fused activation {code}", where=where, fix="Use NONE, RELU or RELU6.")
    bounds = _ACTIVATIONS[code]
    low, high = -128, 127
    if bounds is None:
        return low, high

    def integer(real: float) -> int:
        scaled = np.float32(real) / out.scale
        return out.zero_point + int(math.floor(abs(float(scaled)) + 0.5)) * (1 if real >= 0 else -1)

    if bounds[0] is not None:
        low = max(low, integer(bounds[0]))
    if bounds[1] is not None:
        high = min(high, integer(bounds[1]))
    return low, high
