"""RESHAPE without its shape input: the shape of its output says the same, and what computes it goes.

Converters compute the shape from another tensor's (SHAPE, STRIDED_SLICE, PACK) where the batch was open.
"""

from __future__ import annotations

from dataclasses import replace

from csr_deploy.exporters.mcu.ir import Model, rebuild


def drop_shapes(model: Model) -> Model:
    """See the module's description; for a model as read."""
    ops = [replace(op, inputs=op.inputs[:1]) if op.kind == "RESHAPE" else op for op in model.ops]
    return rebuild(model, ops)
