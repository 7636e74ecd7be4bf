"""Weights as the kernels for Linux boards read them: eight filters at a time; see `csr_tile.h`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.exporters.mcu.arithmetic import multiply

Array = NDArray[Any]

BLOCK = 8
"""Filters."""
GROUP = 4
"""Channels."""
CHUNK = 4
"""Groups."""
SLACK = 16
"""Bytes behind a picture that kernels may read."""
_MOST_WEIGHT = 255
"""Sum of absolute weights whose products with int8 values fit an int16."""


@dataclass(frozen=True)
class Packed:
    """Weights of a convolution.

    Attributes:
        data: int8 [blocks · height · chunks · width · groups · 8 · 4], see `csr_tile.h`.
        three: uint8 [blocks · height · chunks]: bit g, whether products of three taps of a row fit an int16
            in every lane of group g.
    """

    data: Array
    three: Array


def pack(weights: Array) -> Packed:
    """Packs weights [O, kh, kw, C]; filters and channels are filled up with zeros."""
    filters, height, width, channels = weights.shape
    blocks, groups = -(-filters // BLOCK), -(-channels // GROUP)
    full = np.zeros((blocks * BLOCK, height, width, groups * GROUP), np.int8)
    full[:filters, :, :, :channels] = weights
    split = full.reshape(blocks, BLOCK, height, width, groups, GROUP)
    # [block, height, group, width, filter, channel]
    ordered = split.transpose(0, 2, 4, 3, 1, 5)
    parts = [
        ordered[:, :, first : first + CHUNK].swapaxes(2, 3).reshape(blocks, height, -1)
        for first in range(0, groups, CHUNK)
    ]
    data = np.concatenate(parts, axis=2)
    sums = np.abs(split[:, :, :, :3].astype(np.int32)).sum(axis=3).max(axis=(1, 4))
    fits = np.pad(sums <= _MOST_WEIGHT, [(0, 0), (0, 0), (0, -groups % CHUNK)])
    three = np.packbits(fits.reshape(-1, CHUNK), axis=1, bitorder="little")
    return Packed(data.reshape(-1), three.reshape(-1))


def padded(values: Array, fill: int = 0) -> Array:
    """Rows [..., O] filled up to whole blocks, int32."""
    missing = -values.shape[-1] % BLOCK
    widths = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    return np.pad(values.astype(np.int32), widths, constant_values=fill)


_MOST_CONSTANT = 1 << 10
"""Beyond it a result is clamped, whatever the zero point."""


def with_constant_channels(
    bias: Array, multiplier: Array, shift: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """The same results with a shift to the right in channels that training left without weights.

    Their scales are arbitrary, and one shift to the left in them would cost all channels.

    Args:
        bias: [O], with the input's zero point folded in.
        multiplier: [O], Q31.
        shift: [O], > 0 to the left.
        weights: [O, …].
    """
    dead = ~weights.reshape(len(weights), -1).any(axis=1)
    constant = multiply(bias, multiplier.astype(np.int64), shift)
    # Four times the result, times 1/2, times 1/2.
    return (
        np.where(dead, 4 * constant.clip(-_MOST_CONSTANT, _MOST_CONSTANT), bias),
        np.where(dead, 1 << 30, multiplier),
        np.where(dead, -1, shift),
    )


PLAIN, CLAMP, SIGNED, GENERAL = range(4)


def scale_mode(shift: Array, zero: int, low: int, high: int) -> int:
    """What a kernel may leave out when it scales sums: `CSR_PLAIN` and its neighbours in `csr_tile.h`."""
    whole = (low, high) == (-128, 127)
    if shift.max(initial=0) > 0:
        return GENERAL
    if low >= zero:
        return PLAIN if whole else CLAMP
    return SIGNED if whole and shift.max(initial=-1) < 0 else GENERAL
