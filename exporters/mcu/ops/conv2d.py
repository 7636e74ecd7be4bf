"""CONV_2D and FULLY_CONNECTED, which is a 1×1 convolution of one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import activation_range, multiply
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor
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


def _bias(op: Op, model: Model) -> Tensor | None:
    return model.tensors[op.inputs[2]] if len(op.inputs) > 2 and op.inputs[2] else None


def quant_of(op: Op, model: Model) -> ChannelQuant:
    """Integer factors of a convolution's output channels."""
    x, weights = model.of(op.inputs[:2])
    return channel_quant(op, x, weights, _bias(op, model), model.tensors[op.output], axis=0)


def _normalise(op: Op, model: Model) -> Op:
    x, weights = model.of(op.inputs[:2])
    out = model.tensors[op.output]
    need_int8(op, model, x.name, out.name)
    if len(weights.shape) != 4:
        raise refuse(op, f"has weights of shape {list(weights.shape)}", weights.name)
    groups = x.shape[3] // weights.shape[3] if len(x.shape) == 4 and weights.shape[3] else 0
    if groups < 1 or groups * weights.shape[3] != x.shape[3] or weights.shape[0] % groups:
        raise refuse(op, f"cannot apply weights {list(weights.shape)} to {list(x.shape)}", weights.name)
    attrs = geometry(op, model, (weights.shape[1], weights.shape[2]), weights.shape[0])
    low, high = activation_range(op.attrs, out, op.label)
    attrs |= {"groups": groups, "low": low, "high": high}
    made = Op(op.kind, op.inputs, op.outputs, attrs, op.index)
    quant_of(made, model)
    return made


def _reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    x, weights = inputs[0], inputs[1].astype(np.int64)
    q = quant_of(op, model)
    out = model.tensors[op.output]
    values, _ = windows(x, op.attrs, out.shape, model.tensors[op.inputs[0]].zero_point)
    groups = op.attrs["groups"]
    parts = zip(np.split(values, groups, axis=5), np.split(weights, groups), strict=True)
    sums = [np.tensordot(v, w, axes=([3, 4, 5], [1, 2, 3])) for v, w in parts]
    acc = np.concatenate(sums, axis=3) + q.bias
    scaled = multiply(acc, q.multiplier.astype(np.int64), q.shift) + out.zero_point
    return clipped(scaled, op)


def _lower(low: Lowering, op: Op) -> None:
    x, weights = low.model.of(op.inputs[:2])
    out = low.model.tensors[op.output]
    points = (x.zero_point, out.zero_point, op.attrs["low"], op.attrs["high"])
    quant = quant_of(op, low.model)
    if op.attrs["groups"] == 1:
        low.convolution(op, low.view(x.name), low.view(out.name), weights, quant, points)
        return
    channels, filters = weights.shape[3], weights.shape[0] // op.attrs["groups"]
    source, target = low.view(x.name), low.view(out.name)
    for group in range(op.attrs["groups"]):
        own = slice(group * filters, (group + 1) * filters)
        assert weights.data is not None
        low.convolution(
            op,
            source.part((0, 0, 0, group * channels), (*source.shape[:3], channels)),
            target.part((0, 0, 0, group * filters), (*target.shape[:3], filters)),
            replace(weights, shape=(filters, *weights.shape[1:]), data=weights.data[own]),
            ChannelQuant(quant.bias[own], quant.multiplier[own], quant.shift[own]),
            points,
        )


CONV_2D = Kind(_normalise, _reference, _lower)


def _normalise_linear(op: Op, model: Model) -> Op:
    x, weights = model.of(op.inputs[:2])
    out = model.tensors[op.output]
    need_int8(op, model, x.name, out.name)
    if len(weights.shape) != 2:
        raise refuse(op, f"has weights of shape {list(weights.shape)}", weights.name)
    if int(op.attrs.get("weightsFormat", 0) or 0):
        raise refuse(op, "has shuffled weights", weights.name, "Convert the model without that optimisation.")
    outputs, features = weights.shape
    if x.size % features or out.size != x.size // features * outputs:
        raise refuse(op, f"cannot apply weights {list(weights.shape)} to {list(x.shape)}", weights.name)
    low, high = activation_range(op.attrs, out, op.label)
    made = Op(op.kind, op.inputs, op.outputs, {"low": low, "high": high}, op.index)
    quant_of(made, model)
    return made


def _reference_linear(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    weights = inputs[1].astype(np.int64)
    x = inputs[0].reshape(-1, weights.shape[1]).astype(np.int64)
    q = quant_of(op, model)
    out = model.tensors[op.output]
    scaled = multiply(x @ weights.T + q.bias, q.multiplier.astype(np.int64), q.shift) + out.zero_point
    return clipped(scaled, op).reshape(out.shape)


def _lower_linear(low: Lowering, op: Op) -> None:
    x, weights = low.model.of(op.inputs[:2])
    out = low.model.tensors[op.output]
    outputs, features = weights.shape
    rows = x.size // features
    attrs = {"kernel": (1, 1), "stride": (1, 1), "dilation": (1, 1), "pads": (0, 0, 0, 0)}
    low.convolution(
        op.with_attrs(**attrs),
        low.contiguous(x.name).reshaped((1, 1, rows, features)),
        low.contiguous(out.name).reshaped((1, 1, rows, outputs)),
        weights,
        quant_of(op, low.model),
        (x.zero_point, out.zero_point, op.attrs["low"], op.attrs["high"]),
    )


FULLY_CONNECTED = Kind(_normalise_linear, _reference_linear, _lower_linear)
