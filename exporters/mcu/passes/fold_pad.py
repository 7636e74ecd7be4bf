"""A PAD of rows and columns with the zero point becomes the padding of the convolutions behind it.

Between the two may stand slices of channels, as in a channel-split convolution with an odd stride.
"""

from __future__ import annotations

from dataclasses import replace

from csr_deploy.exporters.mcu.ir import Model, Op, Tensor, rebuild
from csr_deploy.exporters.mcu.ops.depthwise import is_affine

_WINDOWED = ("CONV_2D", "DEPTHWISE_CONV_2D")


def fold_pad(model: Model) -> Model:
    """See the module's description."""
    makers = model.producers()
    sliced: dict[str, str] = {}
    tensors: list[Tensor] = []
    ops: list[Op] = []
    for op in model.ops:
        found = _source(model, makers, op) if op.kind in _WINDOWED else None
        if found is None:
            ops.append(op)
            continue
        pad, cut = found
        source = pad.inputs[0]
        if cut is not None:
            if cut.output not in sliced:
                before = model.tensors[cut.output]
                whole = model.tensors[source]
                name = f"{cut.output}.unpadded"
                tensors.append(replace(before, name=name, shape=(*whole.shape[:3], before.shape[3])))
                ops.append(replace(cut, inputs=(source,), outputs=(name,)))
                sliced[cut.output] = name
            source = sliced[cut.output]
        top, left, bottom, right = op.attrs["pads"]
        (_, y0, x0, _), (_, y1, x1, _) = pad.attrs["before"], pad.attrs["after"]
        made = op.with_attrs(pads=(top + y0, left + x0, bottom + y1, right + x1))
        if op.kind == "DEPTHWISE_CONV_2D":
            made = made.with_attrs(in_place=is_affine(made.attrs))
        ops.append(replace(made, inputs=(source, *op.inputs[1:])))
    return rebuild(model, ops, tensors)


def _source(model: Model, makers: dict[str, Op], op: Op) -> tuple[Op, Op | None] | None:
    """The PAD that can be folded into a convolution, and the slice of channels between them."""
    maker = makers.get(op.inputs[0])
    cut = None
    if maker is not None and maker.kind == "SLICE" and _cuts_channels(model, maker):
        cut, maker = maker, makers.get(maker.inputs[0])
    if maker is None or maker.kind != "PAD" or len(maker.attrs["before"]) != 4:
        return None
    before, after = maker.attrs["before"], maker.attrs["after"]
    spatial = not (before[0] or after[0] or before[3] or after[3])
    zero = model.tensors[maker.inputs[0]].zero_point
    return (maker, cut) if spatial and maker.attrs["value"] == zero else None


def _cuts_channels(model: Model, op: Op) -> bool:
    begin, steps = op.attrs["begin"], op.attrs["steps"]
    same = model.tensors[op.inputs[0]].shape[:3] == model.tensors[op.output].shape[:3]
    return len(begin) == 4 and same and set(begin[:3]) == {0} and set(steps) == {1}
