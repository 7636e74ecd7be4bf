"""How a convolution kernel uses scratch memory, and what that costs.

On processors with the DSP extension a convolution multiplies int16 columns (windows of a tile of output
pixels) with int16 filters; both are expanded from int8 into scratch memory. With all filters resident they
are expanded once; otherwise a pair at a time, for every tile again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_TILES = (2, 4, 8, 16)
_GROUP_BYTES = 16
"""Two columns or two filters, four int16 values each."""


@dataclass(frozen=True)
class ConvMode:
    """One way to run a convolution.

    Attributes:
        tile: Output pixels whose columns are held at a time.
        resident: All filters are expanded at once.
        scratch: Bytes.
        cost: Estimated instructions of a Cortex-M4 beyond those of the multiplications.
    """

    tile: int
    resident: bool
    scratch: int
    cost: float


def group_count(kernel: tuple[int, int], channels: int) -> int:
    """Groups of four values in one column; every tap's channels are filled up to a multiple of four."""
    return math.prod(kernel) * -(-channels // 4)


def bank_bytes(groups: int, filters: int) -> int:
    """Bytes of expanded filters."""
    return groups * _GROUP_BYTES * -(-filters // 2)


def column_bytes(groups: int, values: int, tile: int) -> int:
    """Bytes of a tile's columns, on whichever processor needs most (Helium: four columns of int8)."""
    return max(groups * _GROUP_BYTES * tile // 2, 4 * -(-values // 16) * 16 + 16)


def conv_modes(groups: int, values: int, filters: int, pixels: int) -> list[ConvMode]:
    """All ways to run a convolution.

    Args:
        groups: See `group_count`.
        values: Of one window.
        filters: Output channels.
        pixels: Of the output.
    """
    modes = []
    for tile in _TILES:
        if tile > 2 and tile >= 2 * pixels:
            continue
        for resident in (False, True):
            expansions = 1 if resident else -(-pixels // tile)
            scratch = bank_bytes(groups, filters if resident else 2) + column_bytes(groups, values, tile)
            cost = expansions * filters * groups * 5.5 + 20 * filters * -(-pixels // tile)
            modes.append(ConvMode(tile, resident, scratch, cost))
    return modes


def cell_modes(
    input_groups: int,
    input_values: int,
    state_groups: int,
    state_values: int,
    filters: int,
    pixels: int,
    steps: int,
    term_bytes: int,
) -> list[ConvMode]:
    """All ways to run a recurrence of `steps` steps, see `conv_modes`."""
    modes = []
    for tile in _TILES:
        if tile > 2 and tile >= 2 * pixels:
            continue
        for resident in (False, True):
            kept = filters if resident else 2
            terms = 2 * (-(-tile * filters * term_bytes // 4) * 4)
            scratch = (
                bank_bytes(input_groups, kept)
                + bank_bytes(state_groups, kept)
                + terms
                + max(
                    column_bytes(input_groups, input_values, tile),
                    column_bytes(state_groups, state_values, tile),
                )
            )
            expansions = 1 if resident else -(-pixels // tile) * steps
            groups = input_groups + state_groups
            cost = expansions * filters * groups * 5.5 + 40 * filters * steps * -(-pixels // tile)
            modes.append(ConvMode(tile, resident, scratch, cost))
    return modes
