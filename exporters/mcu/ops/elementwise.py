"""ADD, SUB, MUL, MINIMUM, MAXIMUM and PRELU of int8 tensors, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import (
    activation_range,
    doubling_high,
    multiply,
    quantize_multiplier,
    round_shift,
)
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor
from csr_deploy.exporters.mcu.linear import BYTES, find_sum
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind, clipped, factor, need_int8, refuse

_LEFT_SHIFT = 20


@dataclass(frozen=True)
class AddQuant:
    """Integer factors of ADD and SUB: (Q31 multiplier, shift to the right) of both inputs and the output."""

    a: tuple[int, int]
    b: tuple[int, int]
    out: tuple[int, int]


def add_quant(a: Tensor, b: Tensor, out: Tensor) -> AddQuant:
    """As TFLite prepares ADD: both inputs are brought to twice the larger scale."""
    twice = 2 * max(float(a.scale), float(b.scale))
    factors = [
        quantize_multiplier(float(a.scale) / twice),
        quantize_multiplier(float(b.scale) / twice),
        quantize_multiplier(twice / ((1 << _LEFT_SHIFT) * float(out.scale))),
    ]
    (ma, sa), (mb, sb), (mo, so) = factors
    return AddQuant((ma, -sa), (mb, -sb), (mo, -so))


def add_values(a: Tensor, b: Tensor, out: Tensor, x: Array, y: Array, *, subtract: bool = False) -> Array:
    """The sum or difference before clamping, int64."""
    q = add_quant(a, b, out)
    left = round_shift(doubling_high((x.astype(np.int64) - a.zero_point) << _LEFT_SHIFT, q.a[0]), q.a[1])
    right = round_shift(doubling_high((y.astype(np.int64) - b.zero_point) << _LEFT_SHIFT, q.b[0]), q.b[1])
    total = left - right if subtract else left + right
    return round_shift(doubling_high(total, q.out[0]), q.out[1]) + out.zero_point


def _normalise(op: Op, model: Model) -> Op:
    a, b = model.of(op.inputs)
    out = model.tensors[op.output]
    need_int8(op, model, a.name, b.name, out.name)
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        shape = ()
    if shape != out.shape:
        raise refuse(op, f"cannot combine {list(a.shape)} and {list(b.shape)} into {list(out.shape)}")
    if op.kind in ("MINIMUM", "MAXIMUM", "PRELU"):
        return Op(op.kind, op.inputs, op.outputs, {}, op.index)
    low, high = activation_range(op.attrs, out, op.label)
    return Op(op.kind, op.inputs, op.outputs, {"low": low, "high": high}, op.index)


def _normalise_add(op: Op, model: Model) -> Op:
    made = _normalise(op, model)
    a, b = model.of(op.inputs)
    out = model.tensors[op.output]
    if add_quant(a, b, out).out[1] < 0:
        ratio = max(a.scale, b.scale) / out.scale
        raise refuse(
            op, f"has an input scale {ratio:.3g} times that of its output", out.name, "Quantise it again."
        )
    return made


def _reference_add(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    a, b = model.of(op.inputs)
    out = model.tensors[op.output]
    values = add_values(a, b, out, inputs[0], inputs[1], subtract=op.kind == "SUB")
    return clipped(values, op)


def add_fields(a: Tensor, b: Tensor, out: Tensor, low: int, high: int) -> list[int]:
    """Fields of a `csr_add_quant`."""
    q = add_quant(a, b, out)
    return [
        q.a[0], q.b[0], q.out[0], q.a[1], q.b[1], q.out[1],
        a.zero_point, b.zero_point, out.zero_point, low, high,
    ]  # fmt: skip


def _lower_packed(low: Lowering, op: Op) -> bool:
    """A sum as one line, where one is exact; gives whether it is."""
    a, b = low.model.of(op.inputs)
    out = low.model.tensors[op.output]
    subtract = op.kind == "SUB"
    wanted = clipped(add_values(a, b, out, BYTES[:, None], BYTES[None], subtract=subtract), op)
    sign = -1 if subtract else 1
    ratios = float(a.scale) / float(out.scale), sign * float(b.scale) / float(out.scale)
    line = find_sum(wanted.astype(np.int64), ratios, op.attrs["low"], op.attrs["high"])
    if line is None:
        return False
    swapped = low.repeats_first(op)
    factors = (line.factor_b, line.factor_a) if swapped else (line.factor_a, line.factor_b)
    struct = low.struct(
        "csr_packed_sum", *factors, line.bias, line.right, op.attrs["low"], op.attrs["high"], hint="sum"
    )
    low.elementwise(op, "csr_packed_sum_s8", f"&{struct}", swapped=swapped)
    return True


def _lower_add(low: Lowering, op: Op) -> None:
    if low.packed and _lower_packed(low, op):
        return
    a, b = low.model.of(op.inputs)
    out = low.model.tensors[op.output]
    # The kernels repeat single values of their second operand only.
    swapped = low.repeats_first(op)
    if swapped:
        a, b = b, a
    fields = add_fields(a, b, out, op.attrs["low"], op.attrs["high"])
    if swapped and op.kind == "SUB":
        # b − a as −(a − b): a product is the same whichever factor has the sign, rounding and all.
        fields[2] = -fields[2]
    struct = low.struct("csr_add_quant", *fields, hint="add")
    low.elementwise(op, f"csr_{op.kind.lower()}_s8", f"&{struct}", swapped=swapped)


ADD = SUB = Kind(_normalise_add, _reference_add, _lower_add)


def _mul_factor(a: Tensor, b: Tensor, out: Tensor) -> tuple[int, int]:
    return quantize_multiplier(float(a.scale) * float(b.scale) / float(out.scale))


def _need_narrow(op: Op, out: Tensor, shift: int) -> None:
    """Products of two differences of bytes take 17 bits, and a kernel has 31."""
    if shift > 14:
        raise refuse(
            op,
            f"has scales whose product is 2^{shift} times that of its output",
            out.name,
            "Quantise it again.",
        )


def _normalise_mul(op: Op, model: Model) -> Op:
    made = _normalise(op, model)
    a, b = model.of(op.inputs)
    out = model.tensors[op.output]
    _need_narrow(op, out, _mul_factor(a, b, out)[1])
    return made


def _reference_mul(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    a, b = model.of(op.inputs)
    out = model.tensors[op.output]
    product = (inputs[0].astype(np.int64) - a.zero_point) * (inputs[1].astype(np.int64) - b.zero_point)
    values = multiply(product, *_mul_factor(a, b, out)) + out.zero_point
    return clipped(values, op)


def _lower_mul(low: Lowering, op: Op) -> None:
    a, b = low.model.of(op.inputs)
    out = low.model.tensors[op.output]
    swapped = low.repeats_first(op)
    zeros = (b.zero_point, a.zero_point) if swapped else (a.zero_point, b.zero_point)
    struct = low.struct(
        "csr_mul_quant",
        *_mul_factor(a, b, out),
        *zeros,
        out.zero_point,
        op.attrs["low"],
        op.attrs["high"],
        hint="mul",
    )
    low.elementwise(op, "csr_mul_s8", f"&{struct}", swapped=swapped)


MUL = Kind(_normalise_mul, _reference_mul, _lower_mul)


def _normalise_pick(op: Op, model: Model) -> Op:
    made = _normalise(op, model)
    out = model.tensors[op.output]
    for tensor in model.of(op.inputs):
        if not tensor.same_quantization(out):
            raise refuse(
                op,
                f"has an input of another scale than its output '{out.name}'",
                tensor.name,
                "Quantise the model so that all have one scale: TFLite Micro's kernel compares integers.",
            )
    return made


def _reference_pick(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    picked: Array = (np.minimum if op.kind == "MINIMUM" else np.maximum)(inputs[0], inputs[1])
    return picked


def _lower_pick(low: Lowering, op: Op) -> None:
    low.elementwise(op, f"csr_{op.kind.lower()}_s8", swapped=low.repeats_first(op))


MINIMUM = MAXIMUM = Kind(_normalise_pick, _reference_pick, _lower_pick)


def _prelu_factors(op: Op, model: Model) -> tuple[tuple[int, int], tuple[int, int]]:
    """Multiplier and shift to the left of positive and of negative values."""
    x, slope = model.of(op.inputs)
    out = model.tensors[op.output]
    return factor(op, float(x.scale) / float(out.scale)), _mul_factor(x, slope, out)


def _normalise_prelu(op: Op, model: Model) -> Op:
    made = _normalise(op, model)
    out = model.tensors[op.output]
    if model.tensors[op.inputs[0]].shape != out.shape:
        raise refuse(op, f"repeats its input into {list(out.shape)}", op.inputs[0])
    _need_narrow(op, out, _prelu_factors(op, model)[1][1])
    return made


def _reference_prelu(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    x, slope = model.of(op.inputs)
    positive, negative = _prelu_factors(op, model)
    values = inputs[0].astype(np.int64) - x.zero_point
    below = multiply(values * (inputs[1].astype(np.int64) - slope.zero_point), *negative)
    scaled = np.where(values >= 0, multiply(values, *positive), below) + model.tensors[op.output].zero_point
    clamped: Array = np.clip(scaled, -128, 127).astype(np.int8)
    return clamped


def _lower_prelu(low: Lowering, op: Op) -> None:
    x, slope = low.model.of(op.inputs)
    positive, negative = _prelu_factors(op, low.model)
    points = (x.zero_point, slope.zero_point, low.model.tensors[op.output].zero_point)
    factors = (positive[0], negative[0], positive[1], negative[1])
    struct = low.struct("csr_prelu_quant", *factors, *points, hint="prelu")
    low.elementwise(op, "csr_prelu_s8", f"&{struct}")


PRELU = Kind(_normalise_prelu, _reference_prelu, _lower_prelu)
