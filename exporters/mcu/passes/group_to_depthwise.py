"""A CONV_2D of as many groups as channels and filters is a DEPTHWISE_CONV_2D, which has a kernel of its own.

Both sum the same products of a window and one filter; only the order of the weights differs. With several
filters a channel the kernel of convolutions, group by group, takes fewer instructions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr_deploy.exporters.mcu.ir import Model, Op, Tensor, rebuild
from csr_deploy.exporters.mcu.ops.depthwise import is_affine


def group_to_depthwise(model: Model) -> Model:
    """See the module's description."""
    tensors: dict[str, Tensor] = {}
    ops = []
    for op in model.ops:
        channels = model.tensors[op.inputs[0]].shape[-1]
        weights = model.tensors[op.inputs[1]] if op.kind == "CONV_2D" else None
        if weights is None or not 1 < op.attrs["groups"] == channels == weights.shape[0]:
            ops.append(op)
            continue
        assert weights.data is not None
        # [C, kh, kw, 1] → [1, kh, kw, C].
        moved = np.ascontiguousarray(weights.data.transpose(3, 1, 2, 0))
        made = replace(weights, name=f"{weights.name}.depthwise", shape=moved.shape, axis=3, data=moved)
        tensors[made.name] = made
        attrs = {k: v for k, v in op.attrs.items() if k != "groups"}
        attrs["multiplier"] = 1
        attrs["in_place"] = is_affine(attrs)
        inputs = (op.inputs[0], made.name, *op.inputs[2:])
        ops.append(Op("DEPTHWISE_CONV_2D", inputs, op.outputs, attrs, op.index))
    return rebuild(model, ops, tensors.values())
