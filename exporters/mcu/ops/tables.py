"""Unary int8 operations as tables of 256 values, computed here with TFLite Micro's arithmetic.

LiteRT's reference kernels give the same, except: RELU6 of tensors with different scales, which TFLite Micro
does not rescale (refused here); LOGISTIC and TANH, some halves of which LiteRT rounds otherwise, and which
TFLite Micro saturates too early for input scales from 4 on; LEAKY_RELU, whose factors are float32 in LiteRT
and float64 in TFLite Micro; RELU_N1_TO_1 and GELU, which only LiteRT has; ELU, which only TFLite Micro has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from csr_deploy.exporters.mcu import fixedpoint
from csr_deploy.exporters.mcu.arithmetic import (
    activation_range,
    multiply,
    quantize_multiplier,
    round_shift,
)
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind, factor, need_int8, refuse

Values = Callable[[Op, Tensor, Tensor, Array], Array]
"""(operation, input, output, integers of the input as int64) → integers of the output, not clamped."""


def table(values: Values, op: Op, x: Tensor, out: Tensor) -> Array:
    """Output bytes [256] as int8, by the input's byte as an unsigned number."""
    integers = np.arange(256, dtype=np.uint8).view(x.dtype).astype(np.int64)
    limits = np.iinfo(out.dtype)
    made = np.clip(values(op, x, out, integers), limits.min, limits.max)
    return made.astype(out.dtype).view(np.int8)


def _round(x: np.float32 | float) -> int:
    """Halves away from zero."""
    return int(math.copysign(math.floor(abs(float(x)) + 0.5), x))


def requantised(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    """The same reals with the output's scale and zero point."""
    ratio = factor(op, float(x.scale) / float(out.scale))
    return multiply(q - x.zero_point, *ratio) + out.zero_point


def _relu(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    code = {"RELU": 1, "RELU_N1_TO_1": 2}[op.kind]
    low, high = activation_range({"fusedActivationFunction": code}, out, op.label)
    return np.clip(requantised(op, x, out, q), low, high)


def _relu6(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    if not x.same_quantization(out):
        raise refuse(
            op,
            "has tensors of different scales, which TFLite Micro's kernel ignores",
            out.name,
            "Fuse it into the operation before, or give both one scale and zero point.",
        )
    return np.clip(q, x.zero_point, x.zero_point + _round(np.float32(6) / x.scale))


def _saturated(op: Op, x: Tensor, q: Array, function: Callable[[Array, int], Array]) -> tuple[Array, Array]:
    """A function without integer bits at the reals of q, and which of them it is −1, 0 or 1 for: its sign."""
    bits = 4
    fraction, shift = math.frexp(float(x.scale) * (1 << (31 - bits)))
    if shift < 0:
        raise refuse(op, f"has an input scale of {x.scale:.3g}", x.name, "Quantise it again.")
    radius = math.floor(((1 << bits) - 1) * (1 << (31 - bits)) / (1 << shift))
    centred = q - x.zero_point
    side = np.where(centred <= -radius, -1, np.where(centred >= radius, 1, 0))
    inside = np.where(side == 0, centred, 0)
    scaled = multiply(inside, _round(fraction * (1 << 31)), min(shift, 31))
    return function(scaled, bits), side


def _demand(op: Op, out: Tensor, scale: float, zero_point: int) -> None:
    if out.scale != np.float32(scale) or out.zero_point != zero_point:
        raise refuse(
            op,
            f"has an output of scale {out.scale:.6g} and zero point {out.zero_point}; TFLite fixes "
            f"{scale:.6g} and {zero_point}",
            out.name,
            "Quantise the model with TFLite's converter.",
        )


def _logistic(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    _demand(op, out, 1 / 256, -128)
    values, side = _saturated(op, x, q, fixedpoint.logistic)
    return np.where(side == 0, round_shift(values, 23) - 128, side * 128)


def _tanh(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    _demand(op, out, 1 / 128, 0)
    values, side = _saturated(op, x, q, fixedpoint.tanh)
    return np.where(side == 0, round_shift(values, 24), side * 128)


def _int16_factor(real: np.float32) -> tuple[int, int]:
    """A factor as (Q15 multiplier, shift to the left)."""
    multiplier, shift = quantize_multiplier(float(real))
    return min((multiplier + (1 << 15)) >> 16, (1 << 15) - 1), shift


def _int16(x: Array) -> Array:
    return np.clip(x, -(1 << 15), (1 << 15) - 1)


def _high16(x: Array, multiplier: int) -> Array:
    """Product over 2^15, halves up."""
    return (x * multiplier + (1 << 14)) >> 15


def _hard_swish(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    # Scales are float32 as in TFLite's preparation, values int16 with seven bits below the input's integers.
    fine = np.float32(1 / 128) * x.scale
    out_multiplier, out_shift = _int16_factor(fine / out.scale)
    slope_multiplier, slope_shift = _int16_factor(fine / (np.float32(3) / np.float32(32768)))
    if not -15 <= out_shift <= 0 or not -15 <= slope_shift <= 15:
        raise refuse(
            op,
            f"has scales {x.scale:.3g} and {out.scale:.3g}, beyond its 16-bit arithmetic",
            out.name,
            "Quantise it again.",
        )
    values = (q - x.zero_point) << 7
    # x + 3 over 6, between 0 and 1.
    slope = values
    if slope_shift > 0:
        slope = _int16(slope << (slope_shift - 1))
    slope = _high16(slope, slope_multiplier)
    slope = _int16(slope << 1) if slope_shift > 0 else round_shift(slope, -slope_shift)
    slope = (slope + (1 << 15)) >> 1
    product = slope * _high16(values, out_multiplier)
    # Towards zero, which takes back the bias of the two rounded products.
    truncated = np.sign(product) * (np.abs(product) >> 15)
    wide = round_shift(truncated, -out_shift) + out.zero_point
    return ((wide + (1 << 15)) & 0xFFFF) - (1 << 15)


def _leaky_relu(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    ratio = factor(op, float(x.scale) / float(out.scale))
    real = float(x.scale) * float(np.float32(op.attrs["alpha"])) / float(out.scale)
    centred = q - x.zero_point
    # A negative slope is taken off after rounding.
    negative = multiply(centred, *factor(op, abs(real))) * (-1 if real < 0 else 1)
    return np.where(centred >= 0, multiply(centred, *ratio), negative) + out.zero_point


def _elu(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    reals = x.scale * (q - x.zero_point).astype(np.float32)
    # In float64 and rounded once: as near as C libraries come with float32.
    curve = np.exp(np.minimum(reals, 0).astype(np.float64)).astype(np.float32) - np.float32(1)
    scaled = (np.where(reals < 0, curve, reals) * (np.float32(1) / out.scale)).astype(np.float64)
    rounded: Array = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64)
    return rounded + out.zero_point


def _gelu(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    reals = x.scale * (q - x.zero_point).astype(np.float32)
    # As _elu: each step of TFLite's float32 formula rounded once from float64.
    if op.attrs["approximate"]:
        cubed = reals * reals * reals
        inner = np.float32(math.sqrt(2 / math.pi)) * (reals + np.float32(0.044715) * cubed)
        curve = np.float32(1) + np.tanh(inner.astype(np.float64)).astype(np.float32)
    else:
        inner = reals * np.float32(-math.sqrt(0.5))
        curve = np.array([math.erfc(float(v)) for v in inner]).astype(np.float32)
    scaled = (np.float32(0.5) * reals * curve * (np.float32(1) / out.scale)).astype(np.float64)
    rounded: Array = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64)
    return rounded + out.zero_point


def _abs(op: Op, x: Tensor, out: Tensor, q: Array) -> Array:
    size: Array = np.abs(q - x.zero_point)
    if x.scale != out.scale:
        size = multiply(size, *factor(op, float(x.scale) / float(out.scale)))
    return size + out.zero_point


def check_shapes(op: Op, model: Model) -> tuple[Tensor, Tensor]:
    """Input and output of one shape.

    Raises:
        ExportError: If they have two.
    """
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    if x.shape != out.shape:
        raise refuse(op, f"turns {list(x.shape)} into {list(out.shape)}", out.name)
    return x, out


def lower_table(low: Lowering, op: Op, content: Array) -> None:
    """The call of a table."""
    low.unary(op, "csr_table_s8", low.array("int8_t", content, "table", "table"))


def look_up(content: Array, x: Array, out: Tensor) -> Array:
    """What a table gives for bytes of either sign."""
    return content[np.ascontiguousarray(x).view(np.uint8)].view(out.dtype)


def _kind(values: Values) -> Kind:
    def content(op: Op, model: Model) -> Array:
        return table(values, op, model.tensors[op.inputs[0]], model.tensors[op.output])

    def normalise(op: Op, model: Model) -> Op:
        need_int8(op, model, op.inputs[0], op.output)
        check_shapes(op, model)
        attrs: dict[str, Any] = {}
        if op.kind == "LEAKY_RELU":
            attrs["alpha"] = float(op.attrs.get("alpha", 0.0) or 0.0)
        elif op.kind == "GELU":
            attrs["approximate"] = bool(op.attrs.get("approximate", False))
        made = Op(op.kind, op.inputs, op.outputs, attrs, op.index)
        # Raises what there is to raise.
        content(made, model)
        return made

    def reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
        return look_up(content(op, model), inputs[0], model.tensors[op.output])

    def lower(low: Lowering, op: Op) -> None:
        lower_table(low, op, content(op, low.model))

    return Kind(normalise, reference, lower)


RELU = RELU_N1_TO_1 = _kind(_relu)
RELU6 = _kind(_relu6)
LOGISTIC = _kind(_logistic)
TANH = _kind(_tanh)
HARD_SWISH = _kind(_hard_swish)
LEAKY_RELU = _kind(_leaky_relu)
ELU = _kind(_elu)
GELU = _kind(_gelu)
ABS = _kind(_abs)
