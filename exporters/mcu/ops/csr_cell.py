"""CSR_CELL: a whole channel-split recurrence, made by `passes/roll_csr.py` from its unrolled steps.

h_1 = conv(x_1, V), h_t = add(conv(x_t, V), conv(h_{t-1}, U)); the result is the concatenation of h_1..h_T.
Every intermediate is rounded to int8 exactly as in the unrolled graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csr_deploy.exporters.mcu.arithmetic import doubling_high, multiply
from csr_deploy.exporters.mcu.ir import Model, Op
from csr_deploy.exporters.mcu.layout import View
from csr_deploy.exporters.mcu.lower import Lowering, surrounded
from csr_deploy.exporters.mcu.ops.base import Array, Kind, windows
from csr_deploy.exporters.mcu.ops.conv2d import CONV_2D, quant_of
from csr_deploy.exporters.mcu.ops.elementwise import ADD, add_quant
from csr_deploy.exporters.mcu.packing import SLACK, padded, scale_mode
from csr_deploy.exporters.mcu.scratch import ConvMode, cell_modes, group_count


def _reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    values = dict(zip(op.inputs, inputs, strict=True))
    if op.attrs.get("once"):
        return _reference_once(op, model, values)
    if op.attrs.get("joint"):
        return _reference_joint(op, model, values)
    states = []
    for v, u, add in op.attrs["steps"]:
        for part, kind in ((v, CONV_2D), (u, CONV_2D), (add, ADD)):
            if part is None:
                continue
            known = [values[n] if n in values else model.tensors[n].data for n in part.inputs]
            values[part.output] = kind.reference(part, model, [k for k in known if k is not None])
        states.append(values[(add or v).output])
    return np.concatenate(states, axis=3)


@dataclass(frozen=True)
class Once:
    """Integer factors of a recurrence that rounds every step once.

    Attributes:
        bias: int32 [T, D], in units of V's accumulators, zero points folded in.
        multiplier_v: int32 [D]: what an accumulator of V counts, times 2^right, in units of the state.
        multiplier_u: int32 [D], the same of U.
        right: int8 [D].
    """

    bias: Array
    multiplier_v: Array
    multiplier_u: Array
    right: Array


def _reference_once(op: Op, model: Model, values: dict[str, Array]) -> Array:
    once: Once = op.attrs["once"]
    steps = op.attrs["steps"]
    state = model.tensors[op.output]
    last = steps[-1][2].attrs
    half = np.int64(1) << (once.right.astype(np.int64) - 1)
    states: list[Array] = []
    for t, (v, u, _) in enumerate(steps):
        acc = _sums(model, v, values[v.inputs[0]]) + once.bias[t]
        total = acc * once.multiplier_v + half
        if t:
            total = total + _sums(model, u, states[-1]) * once.multiplier_u
        scaled = (total >> once.right) + state.zero_point
        states.append(np.clip(scaled, last["low"], last["high"]).astype(np.int8))
    return np.concatenate(states, axis=3)


def _sums(model: Model, op: Op, x: Array) -> Array:
    """Accumulators of a convolution without its bias, int64; zero points are not subtracted."""
    weights = model.tensors[op.inputs[1]].data
    assert weights is not None
    values, _ = windows(x, op.attrs, model.tensors[op.output].shape, model.tensors[op.inputs[0]].zero_point)
    return np.tensordot(values, weights.astype(np.int64), axes=([3, 4, 5], [1, 2, 3]))


@dataclass(frozen=True)
class Joint:
    """Integer factors of a recurrence that adds sums of U, brought to the units of V's, to those of V.

    h_t = clamp(requantize(bias[t] + V·x_t + units(u_bias[t] + U·h_{t-1})) + zero point), where
    units(s) = s · 2^unit_shift · unit_multiplier / 2^31, rounded after the shift and after the product.

    Attributes:
        bias: int32 [T, D]; zero points are folded in.
        u_bias: int32 [T − 1, D], of the steps from the second one on.
        unit_multiplier: int32 [D], Q31.
        unit_shift: int8 [D], > 0 to the left.
        multiplier: int32 [D], Q31.
        shift: int8 [D], > 0 to the left.
        same_units: units(s) = s in all channels.
    """

    bias: Array
    u_bias: Array
    unit_multiplier: Array
    unit_shift: Array
    multiplier: Array
    shift: Array
    same_units: bool


def _units(sums: Array, joint: Joint) -> Array:
    if joint.same_units:
        return sums
    shift = joint.unit_shift.astype(np.int64)
    right = np.maximum(-shift, 0)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 0)
    shifted = ((sums + half) >> right) << np.maximum(shift, 0)
    return doubling_high(shifted, joint.unit_multiplier.astype(np.int64))


def _reference_joint(op: Op, model: Model, values: dict[str, Array]) -> Array:
    joint: Joint = op.attrs["joint"]
    steps = op.attrs["steps"]
    state = model.tensors[op.output]
    last = steps[-1][2].attrs
    states: list[Array] = []
    for t, (v, u, _) in enumerate(steps):
        acc = _sums(model, v, values[v.inputs[0]]) + joint.bias[t]
        if t:
            acc = acc + _units(_sums(model, u, states[-1]) + joint.u_bias[t - 1], joint)
        scaled = multiply(acc, joint.multiplier.astype(np.int64), joint.shift) + state.zero_point
        states.append(np.clip(scaled, last["low"], last["high"]).astype(np.int8))
    return np.concatenate(states, axis=3)


@dataclass(frozen=True)
class _Shape:
    """What both kernels of a recurrence have in common."""

    windows: tuple[str, str]
    weights: tuple[str, str]
    x: View
    out: View
    filters: int
    gap: int
    mode: ConvMode


def _shape(low: Lowering, op: Op, term_bytes: int) -> _Shape:
    steps = op.attrs["steps"]
    xs = [low.view(v.inputs[0]) for v, _, _ in steps[:2]]
    out = low.view(op.output)
    filters = out.shape[3] // len(steps)
    state = out.part((0, 0, 0, 0), (*out.shape[:3], filters))
    (first, _, _), (_, recurrent, _) = steps[0], steps[1]
    kernel_v: tuple[int, int] = first.attrs["kernel"]
    kernel_u: tuple[int, int] = recurrent.attrs["kernel"]
    channels = xs[0].shape[3]
    modes = cell_modes(
        group_count(kernel_v, channels),
        math.prod(kernel_v) * channels,
        group_count(kernel_u, filters),
        math.prod(kernel_u) * filters,
        filters,
        out.shape[1] * out.shape[2],
        len(steps),
        term_bytes,
    )
    weights = [low.weights(low.model.tensors[conv.inputs[1]]) for conv in (first, recurrent)]
    windows = (low.window(first, xs[0], state), low.window(recurrent, state, state))
    return _Shape(
        windows, (weights[0], weights[1]), xs[0], out, filters, xs[1].offset - xs[0].offset, low.pick(modes)
    )


def _lower(low: Lowering, op: Op) -> None:
    model, steps = low.model, op.attrs["steps"]
    if op.attrs.get("once"):
        _lower_once(low, op)
        return
    if op.attrs.get("joint"):
        _lower_joint(low, op)
        return
    shape = _shape(low, op, 1)
    state, x = model.tensors[op.output], model.tensors[steps[0][0].inputs[0]]
    convolutions = [v for v, _, _ in steps] + [u for _, u, _ in steps[1:]]
    quants = [quant_of(c, model) for c in convolutions]
    points = [(model.tensors[c.output].zero_point, c.attrs["low"], c.attrs["high"]) for c in convolutions]
    adds = []
    for v, u, _ in steps[1:]:
        q = add_quant(model.tensors[v.output], model.tensors[u.output], state)
        adds.append((q.a[0], q.b[0], q.out[0], q.a[1], q.b[1], q.out[1]))
    last = steps[-1][2].attrs
    struct = low.struct(
        "csr_cell",
        *(f"&{w}" for w in shape.windows), *shape.weights,
        low.array("int32_t", np.concatenate([q.bias for q in quants]), "table", "bias"),
        low.array("int32_t", np.concatenate([q.multiplier for q in quants]), "table", "multiplier"),
        low.array("int8_t", np.concatenate([q.shift for q in quants]), "table", "shift"),
        low.structs("csr_points", points, "points"), low.structs("csr_cell_add", adds, "adds"),
        shape.filters, shape.gap, shape.filters, len(steps), shape.mode.tile, int(shape.mode.resident),
        x.zero_point, f"{{{state.zero_point}, {last['low']}, {last['high']}}}",
        hint="cell",
    )  # fmt: skip
    low.call(
        op,
        "csr_cell_s8",
        f"&{struct}",
        shape.x,
        shape.out,
        scratch=shape.mode.scratch,
        comment=_comment(low, op),
    )


def _lower_once(low: Lowering, op: Op) -> None:
    once: Once = op.attrs["once"]
    shape = _shape(low, op, 4)
    steps = op.attrs["steps"]
    state, x = low.model.tensors[op.output], low.model.tensors[steps[0][0].inputs[0]]
    last = steps[-1][2].attrs
    struct = low.struct(
        "csr_fused_cell",
        *(f"&{w}" for w in shape.windows), *shape.weights,
        low.array("int32_t", once.bias, "table", "bias"),
        low.array("int32_t", once.multiplier_v, "table", "multiplier"),
        low.array("int32_t", once.multiplier_u, "table", "multiplier"),
        low.array("int8_t", once.right, "table", "shift"),
        shape.filters, shape.gap, shape.filters, len(steps), shape.mode.tile, int(shape.mode.resident),
        x.zero_point, f"{{{state.zero_point}, {last['low']}, {last['high']}}}",
        hint="cell",
    )  # fmt: skip
    low.call(
        op,
        "csr_fused_cell_s8",
        f"&{struct}",
        shape.x,
        shape.out,
        scratch=shape.mode.scratch,
        comment=_comment(low, op) + ", rounded once",
    )


def _lower_joint(low: Lowering, op: Op) -> None:
    joint: Joint = op.attrs["joint"]
    steps = op.attrs["steps"]
    (first, _, _), (_, recurrent, _) = steps[0], steps[1]
    state, x = low.model.tensors[op.output], low.model.tensors[first.inputs[0]]
    xs = [low.view(v.inputs[0]) for v, _, _ in steps[:2]]
    out = low.view(op.output)
    filters = out.shape[3] // len(steps)
    part = out.part((0, 0, 0, 0), (*out.shape[:3], filters))
    step = xs[1].offset - xs[0].offset
    last = steps[-1][2].attrs
    points = (state.zero_point, last["low"], last["high"])
    bias, u_bias = joint.bias, joint.u_bias
    if joint.same_units:
        bias = np.concatenate([bias[:1], bias[1:] + u_bias])
    units = ["NULL", "NULL"]
    if not joint.same_units:
        units = [
            low.array("int32_t", padded(joint.unit_multiplier), "table", "multiplier"),
            low.array("int32_t", padded(joint.unit_shift), "table", "shift"),
        ]
    bias, u_bias = _without_repeats(bias), _without_repeats(u_bias)
    v, v_three = low.packed_weights(low.model.tensors[first.inputs[1]])
    u, u_three = low.packed_weights(low.model.tensors[recurrent.inputs[1]])
    struct = low.struct(
        "csr_packed_cell",
        f"&{low.window(first, xs[0], part)}", f"&{low.window(recurrent, part, part)}",
        v, u, v_three, u_three,
        low.array("int32_t", padded(bias), "table", "bias"),
        low.array("int32_t", padded(u_bias), "table", "bias"), *units,
        low.array("int32_t", padded(joint.multiplier), "table", "multiplier"),
        low.array("int32_t", padded(joint.shift), "table", "shift"),
        filters, step, filters, len(steps), len(bias), len(u_bias), scale_mode(joint.shift, *points),
        x.zero_point, f"{{{points[0]}, {points[1]}, {points[2]}}}",
        hint="cell",
    )  # fmt: skip
    channels = step * (len(steps) - 1) + xs[0].shape[3]
    pictures = math.prod(surrounded(first, out.shape[1], out.shape[2])) * channels + SLACK
    states = 2 * (math.prod(surrounded(recurrent, out.shape[1], out.shape[2])) * filters + SLACK)
    comment = _comment(low, op) + ", rounded once"
    low.call(op, "csr_packed_cell_s8", f"&{struct}", xs[0], out, scratch=pictures + states, comment=comment)


def _without_repeats(rows: Array) -> Array:
    """Rows up to those that only repeat the last one."""
    count = len(rows)
    while count > 1 and (rows[count - 2] == rows[-1]).all():
        count -= 1
    return rows[:count]


def _comment(low: Lowering, op: Op) -> str:
    x = low.view(op.inputs[0])
    out = low.model.tensors[op.output]
    return f"{op.index} CSR_CELL T={len(op.attrs['steps'])} {list(x.shape)} a step -> {list(out.shape)}"


CSR_CELL = Kind(None, _reference, _lower)
