"""Makes every recurrence round a step once.

h_t = clamp(round(s_x·s_V/s_h · acc_V + s_U · acc_U) + zero): both accumulators are brought to the scale of
the state in 64 bits and rounded together, where TFLite's graph rounds each convolution and then their sum.
"""

from __future__ import annotations

import math

import numpy as np

from csr_deploy.exporters.mcu.ir import Model, Op
from csr_deploy.exporters.mcu.ops.conv2d import quant_of
from csr_deploy.exporters.mcu.ops.csr_cell import Once

_LEAST_RIGHT, _MOST_RIGHT = 33, 62
"""The kernel shifts the upper word of a 64-bit sum."""


def fuse_requantize(model: Model) -> Model:
    """See the module's description; a recurrence whose factors do not fit the kernel stays as it is."""
    ops = []
    for op in model.ops:
        once = _once(model, op) if op.kind == "CSR_CELL" else None
        ops.append(op.with_attrs(once=once) if once else op)
    return Model(model.tensors, tuple(ops), model.input, model.output)


def _once(model: Model, op: Op) -> Once | None:
    steps = op.attrs["steps"]
    v, u = steps[0][0], steps[1][1]
    state, x = model.tensors[op.output], model.tensors[v.inputs[0]]
    weights_v, weights_u = model.tensors[v.inputs[1]], model.tensors[u.inputs[1]]
    clamps = {(part.attrs["low"], part.attrs["high"]) for part in (v, *(add for _, _, add in steps[1:]))}
    if len(clamps) != 1 or weights_v.scales is None or weights_u.scales is None or weights_u.data is None:
        return None
    filters = weights_v.shape[0]
    factor_v = (
        np.broadcast_to(weights_v.scales, filters).astype(np.float64) * float(x.scale) / float(state.scale)
    )
    factor_u = np.broadcast_to(weights_u.scales, filters).astype(np.float64)
    exponents = np.array([math.frexp(m)[1] for m in np.maximum(factor_v, factor_u)])
    # One bit less, so that rounding up stays below 2^31.
    right = 30 - exponents
    if right.min() < _LEAST_RIGHT or right.max() > _MOST_RIGHT:
        return None
    multiplier_v = np.rint(np.ldexp(factor_v, right)).astype(np.int64)
    multiplier_u = np.rint(np.ldexp(factor_u, right)).astype(np.int64)
    rows = []
    for conv_v, conv_u, _ in steps:
        bias = quant_of(conv_v, model).bias.astype(np.float64)
        if conv_u is not None:
            bias = bias + quant_of(conv_u, model).bias * (factor_u / factor_v)
        rows.append(np.rint(bias))
    bias_rows = np.array(rows)
    assert weights_v.data is not None
    reach = 255 * np.abs(weights_v.data.astype(np.int64)).sum(axis=(1, 2, 3))
    if (np.abs(bias_rows) + reach).max() >= 1 << 30 or 255 * np.abs(weights_u.data.astype(np.int64)).sum(
        axis=(1, 2, 3)
    ).max() >= 1 << 30:
        return None
    return Once(
        bias_rows.astype(np.int32),
        multiplier_v.astype(np.int32),
        multiplier_u.astype(np.int32),
        right.astype(np.int8),
    )
