"""Packed weights, and lines that equal TFLite's sums and gains."""

from __future__ import annotations

import numpy as np
import pytest

from csr_deploy.errors import OptionError
from csr_deploy.exporters.mcu.arithmetic import multiply, quantize_multiplier
from csr_deploy.exporters.mcu.ir import Tensor
from csr_deploy.exporters.mcu.linear import BYTES, find_lines, find_sum
from csr_deploy.exporters.mcu.ops.elementwise import add_values
from csr_deploy.exporters.mcu.options import McuOptions
from csr_deploy.exporters.mcu.packing import (
    CLAMP,
    GENERAL,
    PLAIN,
    SIGNED,
    pack,
    padded,
    scale_mode,
    with_constant_channels,
)


def _tensor(scale: float, zero: int) -> Tensor:
    return Tensor("x", (1,), "int8", np.array([scale], np.float32), np.array([zero]))


def test_every_weight_is_at_its_place() -> None:
    weights = np.random.default_rng(0).integers(-127, 128, (11, 2, 3, 22)).astype(np.int8)
    data = pack(weights).data
    assert data.size == 2 * 8 * 2 * 3 * 24
    at = 0
    for block in range(2):
        for y in range(2):
            for first in (0, 4):
                groups = min(4, 6 - first)
                for x in range(3):
                    for group in range(first, first + groups):
                        for f in range(8 * block, 8 * block + 8):
                            for c in range(4 * group, 4 * group + 4):
                                inside = f < 11 and c < 22
                                assert data[at] == (weights[f, y, x, c] if inside else 0)
                                at += 1


def test_three_products_are_added_in_int16_only_where_they_fit() -> None:
    weights = np.zeros((8, 1, 3, 20), np.int8)
    weights[3, 0, :, 5] = 85
    weights[3, 0, :, 17] = 86
    # Five groups of channels in two chunks: the one with 3 · 86 > 255 may not.
    assert pack(weights).three.tolist() == [0b1111, 0b0000]


def test_rows_of_tables_are_whole_blocks() -> None:
    assert padded(np.ones((2, 9))).tolist() == [[1] * 9 + [0] * 7] * 2


@pytest.mark.parametrize(
    ("shifts", "zero", "low", "high", "mode"),
    [
        ([-3, 0], -128, -128, 127, PLAIN), ([-3], -100, -100, 127, CLAMP), ([-3], 5, -128, 127, SIGNED),
        ([-3, 0], 5, -128, 127, GENERAL), ([-3, 1], -128, -128, 127, GENERAL), ([-3], 5, -100, 90, GENERAL),
    ],
)  # fmt: skip
def test_what_scaling_may_leave_out(shifts: list[int], zero: int, low: int, high: int, mode: int) -> None:
    assert scale_mode(np.array(shifts), zero, low, high) == mode


def test_channels_without_weights_keep_their_results() -> None:
    weights = np.ones((3, 2), np.int8)
    weights[1] = 0
    bias, multiplier, shift = (
        np.array([7, -77, 9]),
        np.array([1 << 30, 1234567890, 1 << 30]),
        np.array([-2, 3, -4]),
    )
    made = with_constant_channels(bias, multiplier, shift, weights)
    assert made[2].tolist() == [-2, -1, -4]
    assert np.array_equal(multiply(made[0], made[1], made[2]), multiply(bias, multiplier, shift))


@pytest.mark.parametrize("seed", range(6))
def test_a_sum_is_a_line_for_all_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b, out = (
        _tensor(float(random.uniform(0.02, 0.05)), int(random.integers(-128, 128))) for _ in range(3)
    )
    low = out.zero_point if seed % 2 else -128
    wanted = add_values(a, b, out, BYTES[:, None], BYTES[None]).clip(low, 127)
    line = find_sum(wanted, (float(a.scale / out.scale), float(b.scale / out.scale)), low, 127)
    assert line is not None
    got = BYTES[:, None] * line.factor_a + BYTES[None] * line.factor_b + line.bias
    assert np.abs(got).max() < 1 << 31
    assert np.array_equal((got >> (16 + line.right)).clip(low, 127), wanted)


@pytest.mark.parametrize("seed", range(6))
def test_gains_are_lines_for_all_inputs(seed: int) -> None:
    random = np.random.default_rng(seed)
    gain, bias = random.integers(-127, 128, 12), random.integers(-20000, 20000, 12)
    factors = [quantize_multiplier(r) for r in random.uniform(0.002, 0.03, 12)]
    multiplier, shift = (np.array(column) for column in zip(*factors, strict=True))
    wanted = (multiply(BYTES[:, None] * gain + bias, multiplier, shift) - 128).clip(-128, 127)
    ratios = gain * multiplier * np.exp2(shift - 31.0)
    lines = find_lines(wanted, ratios, -128, 127)
    assert lines is not None
    got = BYTES[:, None] * lines.factor.astype(np.int64) + lines.bias
    assert np.abs(got).max() < 1 << 31
    assert np.array_equal((got >> (16 + lines.right)).clip(-128, 127), wanted)
    assert not lines.narrow or not (lines.factor & 127).any()


def test_what_is_no_line_is_not_found() -> None:
    steps = (BYTES[:, None] + BYTES[None]) // 2 * 2
    assert find_sum(steps.clip(-128, 127), (1.0, 1.0), -128, 127) is None


def test_unknown_processors_are_refused() -> None:
    with pytest.raises(OptionError, match="unknown cpu 'z80'"):
        McuOptions(cpu="z80")  # type: ignore[arg-type]
