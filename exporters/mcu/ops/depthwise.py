"""DEPTHWISE_CONV_2D; one of a single tap is a gain and a bias per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import activation_range, multiply
from csr_deploy.exporters.mcu.ir import Model, Op
from csr_deploy.exporters.mcu.linear import BYTES, find_lines
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import (
    Array,
    ChannelQuant,
    Kind,
    channel_quant,
    clipped,
    geometry,
    need_int8,
    refuse,
    windows,
)


def _quant_of(op: Op, model: Model) -> ChannelQuant:
    x, weights = model.of(op.inputs[:2])
    bias = model.tensors[op.inputs[2]] if len(op.inputs) > 2 and op.inputs[2] else None
    return channel_quant(op, x, weights, bias, model.tensors[op.output], axis=3)


def _normalise(op: Op, model: Model) -> Op:
    x, weights = model.of(op.inputs[:2])
    out = model.tensors[op.output]
    need_int8(op, model, x.name, out.name)
    if len(weights.shape) != 4 or weights.shape[0] != 1:
        raise refuse(op, f"has weights of shape {list(weights.shape)}", weights.name)
    if len(x.shape) != 4 or weights.shape[3] % x.shape[3]:
        raise refuse(op, f"cannot apply weights {list(weights.shape)} to {list(x.shape)}", weights.name)
    attrs = geometry(op, model, (weights.shape[1], weights.shape[2]), weights.shape[3])
    low, high = activation_range(op.attrs, out, op.label)
    attrs |= {"multiplier": weights.shape[3] // x.shape[3], "low": low, "high": high}
    attrs["in_place"] = is_affine(attrs)
    made = Op(op.kind, op.inputs, op.outputs, attrs, op.index)
    _quant_of(made, model)
    return made


def _reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    q = _quant_of(op, model)
    out = model.tensors[op.output]
    weights = inputs[1][0].astype(np.int64)
    values, _ = windows(inputs[0], op.attrs, out.shape, model.tensors[op.inputs[0]].zero_point)
    acc = np.einsum("nyxijc,ijc->nyxc", np.repeat(values, op.attrs["multiplier"], axis=5), weights) + q.bias
    scaled = multiply(acc, q.multiplier.astype(np.int64), q.shift) + out.zero_point
    return clipped(scaled, op)


def is_affine(attrs: Mapping[str, Any]) -> bool:
    """Whether every output value depends on one input value at the same place."""
    same = (attrs["kernel"], attrs["stride"]) == ((1, 1), (1, 1)) and attrs["pads"] == (0, 0, 0, 0)
    return bool(same and attrs["multiplier"] == 1)


def _lower_packed_affine(low: Lowering, op: Op) -> bool:
    """A gain and a bias a channel as lines, where they are exact; gives whether they are."""
    x, weights = low.model.of(op.inputs[:2])
    out = low.model.tensors[op.output]
    assert weights.data is not None and weights.scales is not None
    q = _quant_of(op, low.model)
    gain = weights.data.reshape(-1).astype(np.int64)
    scaled = multiply(BYTES[:, None] * gain + q.bias, q.multiplier.astype(np.int64), q.shift)
    wanted = clipped(scaled + out.zero_point, op).astype(np.int64)
    ratios = gain * weights.scales.astype(np.float64) * (float(x.scale) / float(out.scale))
    lines = find_lines(wanted, ratios, op.attrs["low"], op.attrs["high"])
    if lines is None:
        return False
    channels = x.shape[-1]
    narrow = "NULL"
    if lines.narrow:
        narrow = low.array("int16_t", lines.factor >> 7, "table", "narrow")
    struct = low.struct(
        "csr_packed_affine", narrow, low.array("int32_t", lines.factor, "table", "factor"),
        low.array("int32_t", lines.bias, "table", "bias"), channels, x.size // channels, lines.right,
        op.attrs["low"], op.attrs["high"], hint="affine",
    )  # fmt: skip
    low.call(op, "csr_packed_affine_s8", f"&{struct}", low.view(x.name), low.view(out.name))
    return True


def _lower(low: Lowering, op: Op) -> None:
    x, weights = low.model.of(op.inputs[:2])
    out = low.model.tensors[op.output]
    dense = op.attrs["in_place"] and low.view(x.name).is_contiguous and low.view(out.name).is_contiguous
    if dense and low.packed and _lower_packed_affine(low, op):
        return
    quant = low.channel_quant(
        _quant_of(op, low.model), (x.zero_point, out.zero_point, op.attrs["low"], op.attrs["high"])
    )
    if dense:
        channels = x.shape[-1]
        struct = low.struct(
            "csr_affine", f"&{quant}", low.weights(weights), channels, x.size // channels, hint="affine"
        )
        low.call(op, "csr_affine_s8", f"&{struct}", low.view(x.name), low.view(out.name))
        return
    for source, target in low.pictures(low.view(x.name), low.view(out.name)):
        window = low.window(op, source, target)
        struct = low.struct(
            "csr_depthwise",
            f"&{window}",
            low.weights(weights),
            f"&{quant}",
            op.attrs["multiplier"],
            hint="depthwise",
        )
        low.call(
            op,
            "csr_depthwise_s8",
            f"&{struct}",
            source,
            target,
            scratch=low.depthwise_scratch(op, source),
            distance=low.raster_distance(op, source, target, reads_own=True),
        )


DEPTHWISE_CONV_2D = Kind(_normalise, _reference, _lower)
