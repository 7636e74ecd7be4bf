"""ADD, SUB and MUL of int8 tensors, with broadcasting."""

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
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind, clipped, need_int8, refuse

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
    low, high = activation_range(op.attrs, out, op.label)
    return Op(op.kind, op.inputs, op.outputs, {"low": low, "high": high}, op.index)


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


def _lower_add(low: Lowering, op: Op) -> None:
    a, b = low.model.of(op.inputs)
    out = low.model.tensors[op.output]
    # The kernels repeat their second operand only.
    swapped = low.broadcasts_first(op)
    if swapped:
        a, b = b, a
    struct = low.struct(
        "csr_add_quant", *add_fields(a, b, out, op.attrs["low"], op.attrs["high"]), hint="add"
    )
    kernel = {("ADD", False): "csr_add_s8", ("ADD", True): "csr_add_s8", ("SUB", False): "csr_sub_s8"}.get(
        (op.kind, swapped), "csr_sub_from_s8"
    )
    low.elementwise(op, kernel, struct, swapped=swapped)


ADD = SUB = Kind(_normalise, _reference_add, _lower_add)


def _mul_factor(a: Tensor, b: Tensor, out: Tensor) -> tuple[int, int]:
    return quantize_multiplier(float(a.scale) * float(b.scale) / float(out.scale))


def _reference_mul(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    a, b = model.of(op.inputs)
    out = model.tensors[op.output]
    product = (inputs[0].astype(np.int64) - a.zero_point) * (inputs[1].astype(np.int64) - b.zero_point)
    values = multiply(product, *_mul_factor(a, b, out)) + out.zero_point
    return clipped(values, op)


def _lower_mul(low: Lowering, op: Op) -> None:
    a, b = low.model.of(op.inputs)
    out = low.model.tensors[op.output]
    multiplier, shift = _mul_factor(a, b, out)
    if shift > 14:
        raise refuse(op, f"has scales whose product is 2^{shift} times that of its output", out.name)
    swapped = low.broadcasts_first(op)
    zeros = (b.zero_point, a.zero_point) if swapped else (a.zero_point, b.zero_point)
    struct = low.struct(
        "csr_mul_quant",
        multiplier,
        shift,
        *zeros,
        out.zero_point,
        op.attrs["low"],
        op.attrs["high"],
        hint="mul",
    )
    low.elementwise(op, "csr_mul_s8", struct, swapped=swapped)


MUL = Kind(_normalise, _reference_mul, _lower_mul)
