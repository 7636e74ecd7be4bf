"""Makes every recurrence round a step once, in 32 bits.

Sums of U·h_{t-1} are brought to the units of those of V·x_t, which are much finer than the state's scale, and
both are rounded together, where TFLite's graph rounds each convolution and then their sum.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import quantize_multiplier
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor
from csr_deploy.exporters.mcu.ops.conv2d import quant_of
from csr_deploy.exporters.mcu.ops.csr_cell import Joint

_COARSEST = 2.0**-4
"""The largest unit of a sum in parts of the state's scale: rounding to it must not show."""
_FINE = 2.0**-8
"""The unit of a sum of nothing but a bias, in parts of the state's scale."""
_LARGEST = 1 << 30
_UNHEARD = 2.0**-3
"""Parts of the state's scale that a sum reaches at most for its weights to be taken for zeros."""


def join_units(model: Model) -> Model:
    """See the module's description; a recurrence whose factors do not fit the kernel stays as it is."""
    tensors = dict(model.tensors)
    ops = []
    for op in model.ops:
        if op.kind == "CSR_CELL":
            heard = _without_unheard(model, op, tensors)
            joint = _joint(replace(model, tensors=tensors), heard)
            op = heard.with_attrs(joint=joint) if joint else op
        ops.append(op)
    return replace(model, tensors=tensors, ops=tuple(ops))


def _without_unheard(model: Model, op: Op, tensors: dict[str, Tensor]) -> Op:
    """A recurrence without the weights that training let decay to almost nothing.

    Each filter has a scale of its own, so that its integers are as large as any; but sums in units that are
    thousands of times finer than the other convolution's have no common unit with them.

    Args:
        model: Has the recurrence.
        op: The recurrence.
        tensors: Receives the new weights.
    """
    steps = op.attrs["steps"]
    step = float(model.tensors[op.output].scale)
    renamed: dict[str, str] = {}
    for convs in ([v for v, _, _ in steps], [u for _, u, _ in steps[1:]]):
        x, weights = model.of(convs[0].inputs[:2])
        if weights.scales is None or weights.data is None:
            return op
        bias = np.abs([quant_of(conv, model).bias for conv in convs]).max(axis=0)
        sums = np.abs(weights.data.astype(np.int64)).sum(axis=(1, 2, 3))
        unit = np.broadcast_to(weights.scales, len(sums)).astype(np.float64) * float(x.scale)
        unheard = (sums > 0) & ((128 * sums + bias) * unit < _UNHEARD * step)
        if unheard.any():
            name = renamed[weights.name] = f"{weights.name} (heard)"
            data = np.where(unheard[:, None, None, None], 0, weights.data).astype(weights.data.dtype)
            tensors[name] = replace(weights, name=name, data=data)

    def changed(part: Op | None) -> Op | None:
        return part and replace(part, inputs=tuple(renamed.get(i, i) for i in part.inputs))

    made = replace(op, inputs=tuple(renamed.get(i, i) for i in op.inputs))
    return made.with_attrs(steps=tuple((changed(v), changed(u), add) for v, u, add in steps))


def _joint(model: Model, op: Op) -> Joint | None:
    steps = op.attrs["steps"]
    v, u = steps[0][0], steps[1][1]
    state, x = model.tensors[op.output], model.tensors[v.inputs[0]]
    weights_v, weights_u = model.tensors[v.inputs[1]], model.tensors[u.inputs[1]]
    clamps = {(part.attrs["low"], part.attrs["high"]) for part in (v, *(add for _, _, add in steps[1:]))}
    data_v, data_u = weights_v.data, weights_u.data
    if (
        len(clamps) != 1
        or weights_v.scales is None
        or weights_u.scales is None
        or data_v is None
        or data_u is None
    ):
        return None
    filters = weights_v.shape[0]
    unit_v = np.broadcast_to(weights_v.scales, filters).astype(np.float64) * float(x.scale)
    unit_u = np.broadcast_to(weights_u.scales, filters).astype(np.float64) * float(state.scale)
    # Channels that training left without weights have arbitrary scales.
    dead_v, dead_u = (~d.reshape(filters, -1).any(axis=1) for d in (data_v, data_u))
    fine_v = np.where(dead_v, np.where(dead_u, float(state.scale) * _FINE, unit_u), unit_v)
    fine_u = np.where(dead_u, fine_v, unit_u)
    bias = np.array([quant_of(conv, model).bias for conv, _, _ in steps], np.int64)
    u_bias = np.array([quant_of(conv, model).bias for _, conv, _ in steps[1:]], np.int64)
    bias = np.where(dead_v, np.rint(bias * (unit_v / fine_v)).astype(np.int64), bias)
    u_bias = np.where(dead_u, np.rint(u_bias * (unit_u / fine_u)).astype(np.int64), u_bias)
    unit_v, unit_u = fine_v, fine_u
    factors = unit_v / float(state.scale)
    if factors.max() > _COARSEST:
        return None
    ratios = [quantize_multiplier(r) for r in unit_u / unit_v]
    scales = [quantize_multiplier(f) for f in factors]
    unit_multiplier, unit_shift = (np.array(column, np.int64) for column in zip(*ratios, strict=True))
    multiplier, shift = (np.array(column, np.int64) for column in zip(*scales, strict=True))
    reach_v = 128 * np.abs(data_v.astype(np.int64)).sum(axis=(1, 2, 3)) + np.abs(bias).max(axis=0)
    reach_u = 128 * np.abs(data_u.astype(np.int64)).sum(axis=(1, 2, 3)) + np.abs(u_bias).max(axis=0)
    shifted = reach_u << np.maximum(unit_shift, 0)
    if max((reach_v + np.ceil(reach_u * unit_u / unit_v) + 1).max(), reach_u.max()) >= _LARGEST:
        return None
    if shifted.max() >= _LARGEST or unit_shift.min() < -30 or shift.min() < -31:
        return None
    return Joint(
        bias.astype(np.int32),
        u_bias.astype(np.int32),
        unit_multiplier.astype(np.int32),
        unit_shift.astype(np.int8),
        multiplier.astype(np.int32),
        shift.astype(np.int8),
        bool((unit_u == unit_v).all()),
    )
