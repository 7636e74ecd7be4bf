"""Checks every operation of a file and turns TFLite's options into the compiler's attributes."""

from __future__ import annotations

import difflib

from csr_deploy.errors import ExportError
from csr_deploy.exporters.mcu.ir import Model, Op, rebuild
from csr_deploy.exporters.mcu.ops import KINDS
from csr_deploy.exporters.mcu.ops.moves import split_ops
from csr_deploy.exporters.mcu.passes.drop_shapes import drop_shapes

_SPLITS = ("SPLIT", "SPLIT_V")


def normalise(model: Model) -> Model:
    """See the module's description.

    Raises:
        ExportError: Naming the first operation that has no kernel, its index and its output tensor.
    """
    model = drop_shapes(model)
    ops: list[Op] = []
    for op in model.ops:
        if op.kind in _SPLITS:
            ops += split_ops(op, model)
            continue
        kind = KINDS.get(op.kind)
        if kind is None or kind.normalise is None:
            known = sorted({*(k for k, v in KINDS.items() if v.normalise), *_SPLITS})
            close = difflib.get_close_matches(op.kind, known, n=1)
            raise ExportError(
                f"has no microcontroller kernel (there are: {', '.join(known)})",
                where=f"{op.label}, tensor {op.outputs[0] if op.outputs else '?'}",
                fix="Replace the operation in the network"
                + (f", by {close[0]} for example." if close else "."),
            )
        ops.append(kind.normalise(op, model))
    return rebuild(model, ops)
