"""AVERAGE_POOL_2D and MAX_POOL_2D; what lies beyond the picture is left out of both.

Source: TFLite's reference integer kernels; the average is rounded to nearest, halves away from zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import activation_range
from csr_deploy.exporters.mcu.ir import Model, Op
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind, geometry, need_int8, refuse, windows

_SAME_SCALE = 1e-6
"""TFLite Micro's tolerance."""


def _normalise(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    need_int8(op, model, x.name, out.name)
    if abs(float(x.scale) - float(out.scale)) > _SAME_SCALE or x.zero_point != out.zero_point:
        raise refuse(
            op,
            f"has scale {x.scale:.6g} and zero point {x.zero_point}, "
            f"its output {out.scale:.6g} and {out.zero_point}",
            x.name,
            "Quantise the model so that both have one scale, as TFLite Micro's kernel demands.",
        )
    if len(x.shape) == 4 and len(out.shape) == 4 and x.shape[3] != out.shape[3]:
        raise refuse(op, f"turns {x.shape[3]} channels into {out.shape[3]}", out.name)
    attrs = geometry(op, model, (int(op.attrs["filterHeight"]), int(op.attrs["filterWidth"])))
    low, high = activation_range(op.attrs, out, op.label)
    return Op(op.kind, op.inputs, op.outputs, {**attrs, "low": low, "high": high}, op.index)


def _reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    average = op.kind == "AVERAGE_POOL_2D"
    values, inside = windows(inputs[0], op.attrs, model.tensors[op.output].shape, 0 if average else -128)
    if average:
        total = values.sum(axis=(3, 4))
        count = inside.sum(axis=(2, 3))[None, :, :, None]
        pooled = np.sign(total) * ((np.abs(total) + count // 2) // count)
    else:
        pooled = values.max(axis=(3, 4))
    clamped: Array = np.clip(pooled, op.attrs["low"], op.attrs["high"]).astype(np.int8)
    return clamped


def _lower(low: Lowering, op: Op) -> None:
    kernel = "csr_average_pool_s8" if op.kind == "AVERAGE_POOL_2D" else "csr_max_pool_s8"
    for x, out in low.pictures(low.view(op.inputs[0]), low.view(op.output)):
        window = low.window(op, x, out)
        struct = low.struct("csr_pool", f"&{window}", op.attrs["low"], op.attrs["high"], hint="pool")
        distance = low.raster_distance(op, x, out, reads_own=True)
        low.call(op, kernel, f"&{struct}", x, out, distance=distance)


AVERAGE_POOL_2D = MAX_POOL_2D = Kind(_normalise, _reference, _lower)
