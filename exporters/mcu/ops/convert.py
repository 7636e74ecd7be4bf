"""QUANTIZE and DEQUANTIZE: between float32 and int8 at a model's ends, and from one scale to another.

Floats beyond the range saturate, and what is no number becomes the lowest value. TFLite Micro converts them
to int32 before it clamps, which is undefined for quotients beyond ±2^31; up to there both give the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from csr_deploy.exporters.mcu.ir import Model, Op, Tensor
from csr_deploy.exporters.mcu.lower import Lowering, float_literal
from csr_deploy.exporters.mcu.ops.base import Array, Kind, need_int8, refuse
from csr_deploy.exporters.mcu.ops.tables import check_shapes, look_up, lower_table, requantised, table


def _content(op: Op, model: Model) -> Array:
    return table(requantised, op, model.tensors[op.inputs[0]], model.tensors[op.output])


def _normalise_quantize(op: Op, model: Model) -> Op:
    x, out = check_shapes(op, model)
    made = Op(op.kind, op.inputs, op.outputs, {}, op.index)
    if x.dtype == "float32":
        need_int8(op, model, out.name)
        return made
    if (x.dtype, out.dtype) not in (("int8", "int8"), ("uint8", "int8"), ("int8", "uint8")):
        raise refuse(op, f"turns {x.dtype} into {out.dtype}", out.name, "Quantise the model to int8.")
    for tensor in (x, out):
        if tensor.scales is None:
            raise refuse(
                op, "lacks quantisation parameters", tensor.name, "Quantise the model to int8 first."
            )
    _content(made, model)
    return made


def _reference_quantize(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    out = model.tensors[op.output]
    if inputs[0].dtype != np.float32:
        return look_up(_content(op, model), inputs[0], out)
    # 1024 steps are beyond both ends whatever the zero point; so is what is no number, at the lower end.
    steps = np.nan_to_num(inputs[0] / out.scale, nan=-1024, posinf=1024, neginf=-1024).clip(-1024, 1024)
    whole = np.trunc(steps)
    rest = steps - whole
    rounded = whole.astype(np.int64) + (rest >= 0.5) - (rest <= -0.5)
    clamped: Array = np.clip(rounded + out.zero_point, -128, 127).astype(np.int8)
    return clamped


def _call(low: Lowering, op: Op, kernel: str, quantised: Tensor, distance: int) -> None:
    x, out = low.contiguous(op.inputs[0]), low.contiguous(op.output)
    count = math.prod(out.shape)
    scale, zero = float_literal(float(quantised.scale)), str(quantised.zero_point)
    low.call(op, kernel, f"{count}u", scale, zero, x, out, distance=distance)


def _lower_quantize(low: Lowering, op: Op) -> None:
    if low.model.tensors[op.inputs[0]].dtype != "float32":
        lower_table(low, op, _content(op, low.model))
        return
    # Four bytes are read for one that is written.
    _call(low, op, "csr_quantize_f32", low.model.tensors[op.output], 0)


QUANTIZE = Kind(_normalise_quantize, _reference_quantize, _lower_quantize)


def _normalise_dequantize(op: Op, model: Model) -> Op:
    _, out = check_shapes(op, model)
    need_int8(op, model, op.inputs[0])
    if out.dtype != "float32":
        raise refuse(op, f"makes {out.dtype} values", out.name, "Dequantise to float32.")
    return Op(op.kind, op.inputs, op.outputs, {}, op.index)


def _reference_dequantize(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    x = model.tensors[op.inputs[0]]
    return x.scale * (inputs[0].astype(np.int32) - x.zero_point).astype(np.float32)


def _lower_dequantize(low: Lowering, op: Op) -> None:
    x = low.model.tensors[op.inputs[0]]
    # Every value but the last is written while bytes after it are still to be read.
    _call(low, op, "csr_dequantize_s8", x, 3 * (math.prod(x.shape) - 1))


DEQUANTIZE = Kind(_normalise_dequantize, _reference_dequantize, _lower_dequantize)
