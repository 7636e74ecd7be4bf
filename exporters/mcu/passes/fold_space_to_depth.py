"""A SLICE of one block position of a SPACE_TO_DEPTH is a strided SLICE of its input."""

from __future__ import annotations

from csr_deploy.exporters.mcu.ir import Model, Op, rebuild


def fold_space_to_depth(model: Model) -> Model:
    """See the module's description."""
    makers = model.producers()
    ops = []
    for op in model.ops:
        maker = makers.get(op.inputs[0]) if op.kind == "SLICE" else None
        ops.append(_folded(model, op, maker) if maker and maker.kind == "SPACE_TO_DEPTH" else op)
    return rebuild(model, ops)


def _folded(model: Model, op: Op, maker: Op) -> Op:
    block = maker.attrs["block"]
    channels = model.tensors[maker.inputs[0]].shape[3]
    n, y, x, c = op.attrs["begin"]
    steps = op.attrs["steps"]
    count = model.tensors[op.output].shape[3]
    place, first = divmod(c, channels)
    if steps[3] != 1 or first + count > channels:
        return op
    begin = (n, y * block + place // block, x * block + place % block, first)
    moved = (steps[0], steps[1] * block, steps[2] * block, 1)
    return Op("SLICE", maker.inputs, op.outputs, {"begin": begin, "steps": moved}, op.index)
