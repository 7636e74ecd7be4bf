"""CSR_CELL: a whole channel-split recurrence, made by `passes/roll_csr.py` from its unrolled steps.

h_1 = conv(x_1, V), h_t = add(conv(x_t, V), conv(h_{t-1}, U)); the result is the concatenation of h_1..h_T.
Every intermediate is rounded to int8 exactly as in the unrolled graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from csr_deploy.exporters.mcu.ir import Model, Op
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind
from csr_deploy.exporters.mcu.ops.conv2d import CONV_2D, quant_of
from csr_deploy.exporters.mcu.ops.elementwise import ADD, add_fields
from csr_deploy.exporters.mcu.scratch import cell_modes, group_count


def _reference(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    values = dict(zip(op.inputs, inputs, strict=True))
    states = []
    for v, u, add in op.attrs["steps"]:
        for part, kind in ((v, CONV_2D), (u, CONV_2D), (add, ADD)):
            if part is None:
                continue
            known = [values[n] if n in values else model.tensors[n].data for n in part.inputs]
            values[part.output] = kind.reference(part, model, [k for k in known if k is not None])
        states.append(values[(add or v).output])
    return np.concatenate(states, axis=3)


def _lower(low: Lowering, op: Op) -> None:
    model, steps = low.model, op.attrs["steps"]
    xs = [low.view(v.inputs[0]) for v, _, _ in steps]
    whole = low.view(op.output)
    filters = whole.shape[3] // len(steps)
    parts = [whole.part((0, 0, 0, t * filters), (*whole.shape[:3], filters)) for t in range(len(steps))]
    (first, _, _), (_, recurrent, _) = steps[0], steps[1]
    v_window, u_window = low.window(first, xs[0], parts[0]), low.window(recurrent, parts[0], parts[0])
    v_quants, u_quants, adds = [], [], []
    state = model.tensors[op.output]
    for t, (v, u, add) in enumerate(steps):
        x, term = model.tensors[v.inputs[0]], model.tensors[v.output]
        points = (x.zero_point, term.zero_point, v.attrs["low"], v.attrs["high"])
        v_quants.append(low.quant_fields(quant_of(v, model), points))
        if t:
            back = model.tensors[u.output]
            points = (state.zero_point, back.zero_point, u.attrs["low"], u.attrs["high"])
            u_quants.append(low.quant_fields(quant_of(u, model), points))
            adds.append(add_fields(term, back, state, add.attrs["low"], add.attrs["high"]))
    kernel_v: Any = first.attrs["kernel"]
    kernel_u: Any = recurrent.attrs["kernel"]
    channels = xs[0].shape[3]
    mode = low.pick(
        cell_modes(
            group_count(kernel_v, channels),
            kernel_v[0] * kernel_v[1] * channels,
            group_count(kernel_u, filters),
            kernel_u[0] * kernel_u[1] * filters,
            filters,
            whole.shape[1] * whole.shape[2],
            len(steps),
        )
    )
    struct = low.struct(
        "csr_cell",
        f"&{v_window}", f"&{u_window}",
        low.weights(model.tensors[first.inputs[1]]), low.weights(model.tensors[recurrent.inputs[1]]),
        low.structs("csr_channel_quant", v_quants, "quants"),
        low.structs("csr_channel_quant", u_quants, "quants"),
        low.structs("csr_add_quant", adds, "adds"),
        filters, xs[1].offset - xs[0].offset, filters, len(steps), mode.tile, int(mode.resident),
        hint="cell",
    )  # fmt: skip
    low.call(op, "csr_cell_s8", f"&{struct}", xs[0], whole, scratch=mode.scratch, comment=_comment(low, op))


def _comment(low: Lowering, op: Op) -> str:
    x = low.view(op.inputs[0])
    out = low.model.tensors[op.output]
    return f"{op.index} CSR_CELL T={len(op.attrs['steps'])} {list(x.shape)} a step -> {list(out.shape)}"


CSR_CELL = Kind(None, _reference, _lower)
