"""SOFTMAX over the last axis.

Source: TFLite's reference kernel: exponentials of the distances from the largest value without integer bits,
summed with twelve, and gemmlowp's reciprocal of the sum. The exponentials are a table here. TFLite ends the
process where the exponentials sum up to 512 or more; here all values are 0 (−128) then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import doubling_high, quantize_multiplier, round_shift
from csr_deploy.exporters.mcu.fixedpoint import exp_negative, reciprocal
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor
from csr_deploy.exporters.mcu.layout import View, collapsed
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind, need_int8, refuse

_INTEGER_BITS = 5
_SUM_BITS = 12
_MOST_CLASSES = (1 << _SUM_BITS) - 1


def _exponentials(x: Tensor, beta: float) -> Array:
    """exp(−beta · scale · d) by distance d, as far as it counts; int64 without integer bits.

    What is too small to change the sum is also too small to give an output above 0.
    """
    fraction = 31 - _INTEGER_BITS
    multiplier, shift = quantize_multiplier(min(beta * float(x.scale) * (1 << fraction), (1 << 31) - 1.0))
    farthest = int(((1 << _INTEGER_BITS) - 1) * (1 << fraction) // (1 << shift))
    distances = np.arange(min(farthest, 255) + 1, dtype=np.int64)
    values = exp_negative(doubling_high(-distances << shift, multiplier), _INTEGER_BITS)
    counting = np.flatnonzero(round_shift(values, _SUM_BITS))
    return values[: counting[-1] + 1]


def _normalise(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    need_int8(op, model, x.name, out.name)
    if x.shape != out.shape or not x.shape:
        raise refuse(op, f"turns {list(x.shape)} into {list(out.shape)}", out.name)
    if out.scale != np.float32(1 / 256) or out.zero_point != -128:
        raise refuse(
            op,
            f"has an output of scale {out.scale:.6g} and zero point {out.zero_point}; "
            "TFLite fixes 1/256 and -128",
            out.name,
            "Quantise the model with TFLite's converter.",
        )
    if x.shape[-1] > _MOST_CLASSES:
        raise refuse(op, f"has {x.shape[-1]:,} classes, more than {_MOST_CLASSES:,}", x.name)
    beta = float(np.float32(op.attrs.get("beta", 1.0) or 0.0))
    if beta * float(x.scale) * (1 << (31 - _INTEGER_BITS)) <= 1:
        raise refuse(op, f"has beta {beta:.3g} and scale {x.scale:.3g}", x.name, "Use a larger one.")
    return Op(op.kind, op.inputs, op.outputs, {"beta": beta}, op.index)


def _reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    known = _exponentials(model.tensors[op.inputs[0]], op.attrs["beta"])
    table = np.zeros(256, np.int64)
    table[: len(known)] = known
    x = inputs[0].astype(np.int64)
    values = table[x.max(axis=-1, keepdims=True) - x]
    total = round_shift(values, _SUM_BITS).sum(axis=-1, keepdims=True)
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    scale = reciprocal((total << headroom) - (1 << 31))
    shares = round_shift(doubling_high(values, scale), _SUM_BITS - headroom + 31 - 8)
    out: Array = np.clip(shares - 128, -128, 127).astype(np.int8)
    return out


def _without_last(view: View) -> View:
    return replace(view, shape=view.shape[:-1], strides=view.strides[:-1])


def _lower(low: Lowering, op: Op) -> None:
    x, out = low.view(op.inputs[0]), low.view(op.output)
    classes = x.shape[-1]
    if classes > 1 and (x.strides[-1] != 1 or out.strides[-1] != 1):
        raise refuse(op, "has values that lie apart", op.output)
    known = _exponentials(low.model.tensors[op.inputs[0]], op.attrs["beta"])
    table = low.array("int32_t", known, "table", "exponential")
    sizes, (steps, out_steps) = collapsed([_without_last(x), _without_last(out)])
    struct = low.struct(
        "csr_softmax", table, len(known), classes, sizes[-1], steps[-1], out_steps[-1], hint="softmax"
    )
    for index in np.ndindex(*sizes[:-1]):
        moved = [
            replace(v, offset=v.offset + sum(i * k for i, k in zip(index, s, strict=False)))
            for v, s in ((x, steps), (out, out_steps))
        ]
        low.call(op, "csr_softmax_s8", f"&{struct}", *moved)


SOFTMAX = Kind(_normalise, _reference, _lower)
