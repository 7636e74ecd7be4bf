"""MEAN over any axes.

Source: TFLite Micro's QuantizedMeanOrSum, which it uses for all int8 means, whatever the axes and scales: the
factor is that of the scales, divided by the number of values in integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import multiply, quantize_multiplier
from csr_deploy.exporters.mcu.ir import Model, Op
from csr_deploy.exporters.mcu.layout import View, collapsed
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind, constant, need_int8, refuse

_MOST_PARTS = 2


def _factor(op: Op, model: Model) -> tuple[int, int]:
    """Multiplier and shift to the left of a sum."""
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    multiplier, left = quantize_multiplier(float(x.scale) / float(out.scale))
    count = _count(op, model)
    divisor_bits = min(count.bit_length() - 1, 32, 31 + left)
    return (multiplier << divisor_bits) // count, left - divisor_bits


def _count(op: Op, model: Model) -> int:
    return math.prod(model.tensors[op.inputs[0]].shape[a] for a in op.attrs["axes"])


def _normalise(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    need_int8(op, model, x.name, out.name)
    rank = len(x.shape)
    given = [int(a) for a in constant(op, model, 1).reshape(-1)]
    if any(not -rank <= a < rank for a in given):
        raise refuse(op, f"has axes {given} of {list(x.shape)}", x.name)
    axes = tuple(sorted({a % rank for a in given}))
    kept = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    full = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    if out.shape not in (kept, full):
        raise refuse(op, f"turns {list(x.shape)} into {list(out.shape)} by axes {list(axes)}", out.name)
    made = Op(op.kind, (x.name,), op.outputs, {"axes": axes, "keep": out.shape == full}, op.index)
    _, shift = _factor(made, model)
    if _count(made, model) * 255 << max(shift, 0) >= 1 << 30:
        raise refuse(
            op, f"sums {_count(made, model):,} values, beyond 30 bits", x.name, "Use a smaller input."
        )
    return made


def _reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    total = inputs[0].astype(np.int64).sum(axis=op.attrs["axes"]) - x.zero_point * _count(op, model)
    values = multiply(np.asarray(total), *_factor(op, model)) + out.zero_point
    clamped: Array = np.clip(values, -128, 127).astype(np.int8)
    return clamped.reshape(out.shape)


def _axes(view: View, axes: Sequence[int]) -> View:
    return replace(
        view, shape=tuple(view.shape[a] for a in axes), strides=tuple(view.strides[a] for a in axes)
    )


def _padded(sizes: list[int], strides: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """At least `_MOST_PARTS` axes."""
    missing = [1] * (_MOST_PARTS - len(sizes))
    return [*missing, *sizes], [[*(0 for _ in missing), *s] for s in strides]


def _lower(low: Lowering, op: Op) -> None:
    x, out = low.view(op.inputs[0]), low.view(op.output)
    reduced = op.attrs["axes"]
    kept = [a for a in range(len(x.shape)) if a not in reduced]
    target = _axes(out, kept) if op.attrs["keep"] else out
    counts, (steps,) = _padded(*collapsed([_axes(x, reduced)]))
    if len(counts) > _MOST_PARTS:
        raise refuse(
            op, f"has axes {list(reduced)}, which lie in {len(counts)} parts", op.output, "Split the mean."
        )
    sizes, (moves, out_moves) = _padded(*collapsed([_axes(x, kept), target]))
    tensor = low.model.tensors[op.inputs[0]]
    multiplier, shift = _factor(op, low.model)
    struct = low.struct(
        "csr_mean",
        multiplier, -tensor.zero_point * math.prod(counts),
        *sizes[-2:], *counts,
        *moves[-2:], *steps, *out_moves[-2:],
        shift, low.model.tensors[op.output].zero_point,
        hint="mean",
    )  # fmt: skip
    for index in np.ndindex(*sizes[:-2]):
        moved = [
            replace(v, offset=v.offset + sum(i * k for i, k in zip(index, s, strict=False)))
            for v, s in ((x, moves), (out, out_moves))
        ]
        low.call(op, "csr_mean_s8", f"&{struct}", *moved)


MEAN = Kind(_normalise, _reference, _lower)
