"""Operations that move values: SLICE, STRIDED_SLICE, SPLIT, SPLIT_V, RESHAPE, TRANSPOSE, CONCATENATION, PAD.

Most of them become views (`layout.py`). What cannot be a view is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from csr_deploy.exporters.mcu.ir import Model, Op
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops.base import Array, Kind, constant, refuse

_BYTES = ("int8", "uint8", "bool", "float32", "int32")


def _check_same(op: Op, model: Model, names: Sequence[str]) -> None:
    out = model.tensors[op.outputs[0]]
    for name in names:
        tensor = model.tensors[name]
        if tensor.dtype not in _BYTES:
            raise refuse(op, f"moves {tensor.dtype} values", name, "Quantise the model to int8.")
        if not tensor.same_quantization(out):
            raise refuse(
                op,
                f"has an input of another scale than its output '{out.name}'",
                name,
                "Quantise the model so that both have one scale, as TFLite Micro's kernel demands.",
            )


def _ints(values: Array) -> list[int]:
    return [int(v) for v in values.reshape(-1)]


def _made_slice(op: Op, model: Model, begin: Sequence[int], steps: Sequence[int], output: str) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[output]
    if len(out.shape) != len(x.shape):
        raise refuse(op, f"turns {list(x.shape)} into {list(out.shape)}", output)
    for size, first, step, count in zip(x.shape, begin, steps, out.shape, strict=True):
        if step < 1 or first < 0 or count < 1 or first + (count - 1) * step >= size:
            raise refuse(op, f"takes {count} values from {first} by {step} out of {size}", output)
    _check_same(op, model, [x.name])
    attrs = {"begin": tuple(begin), "steps": tuple(steps)}
    return Op("SLICE", (x.name,), (output,), attrs, op.index)


def _normalise_slice(op: Op, model: Model) -> Op:
    begin = _ints(constant(op, model, 1))
    return _made_slice(op, model, begin, [1] * len(begin), op.output)


def _reference_slice(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    shape = model.tensors[op.output].shape
    index = tuple(
        slice(b, b + (n - 1) * s + 1, s)
        for b, s, n in zip(op.attrs["begin"], op.attrs["steps"], shape, strict=True)
    )
    return inputs[0][index]


def _lower_slice(low: Lowering, op: Op) -> None:
    out = low.view(op.output)
    low.copy(op, low.view(op.inputs[0]).part(op.attrs["begin"], out.shape, op.attrs["steps"]), out)


SLICE = Kind(_normalise_slice, _reference_slice, _lower_slice)


def _normalise_strided_slice(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    begin, end, steps = (_ints(constant(op, model, i)) for i in (1, 2, 3))
    a = op.attrs
    if any(a.get(k) for k in ("ellipsisMask", "newAxisMask", "offset")):
        raise refuse(op, "has an ellipsis or a new axis", x.name, "Use plain slices.")
    shrink = int(a.get("shrinkAxisMask", 0) or 0)
    firsts: list[int] = []
    kept: list[int] = []
    for axis, (b, e, s) in enumerate(zip(begin, end, steps, strict=True)):
        size = x.shape[axis]
        if s < 1:
            raise refuse(op, f"runs backwards along axis {axis}", x.name)
        bit = 1 << axis
        first = 0 if int(a.get("beginMask", 0) or 0) & bit else min(max(b + size if b < 0 else b, 0), size)
        if shrink & bit:
            firsts.append(first)
            kept.append(1)
            continue
        stop = size if int(a.get("endMask", 0) or 0) & bit else min(max(e + size if e < 0 else e, 0), size)
        firsts.append(first)
        kept.append(max(0, -(-(stop - first) // s)))
    if shrink:
        raise refuse(op, "removes an axis", out.name, "Use a slice and a reshape.")
    if tuple(kept) != out.shape:
        raise refuse(op, f"gives {kept}, the file says {list(out.shape)}", out.name)
    return _made_slice(op, model, firsts, steps, op.output)


STRIDED_SLICE = Kind(_normalise_strided_slice, _reference_slice, None)


def split_ops(op: Op, model: Model) -> list[Op]:
    """SPLIT or SPLIT_V as one SLICE an output."""
    source, axis_input = (1, 0) if op.kind == "SPLIT" else (0, 2)
    x = model.tensors[op.inputs[source]]
    axis = _ints(constant(op, model, axis_input))[0] % len(x.shape)
    out, at = [], 0
    for name in op.outputs:
        begin = [at if i == axis else 0 for i in range(len(x.shape))]
        plain = Op(op.kind, (x.name,), (name,), {}, op.index)
        out.append(_made_slice(plain, model, begin, [1] * len(begin), name))
        at += model.tensors[name].shape[axis]
    if at != x.shape[axis]:
        raise refuse(op, f"splits {x.shape[axis]} values into {at}", x.name)
    return out


def _normalise_reshape(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    if math.prod(x.shape) != math.prod(out.shape):
        raise refuse(op, f"turns {list(x.shape)} into {list(out.shape)}", out.name)
    _check_same(op, model, [x.name])
    return Op("RESHAPE", (x.name,), op.outputs, {}, op.index)


def _reference_reshape(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    return inputs[0].reshape(model.tensors[op.output].shape)


def _lower_reshape(low: Lowering, op: Op) -> None:
    source, target = low.view(op.inputs[0]), low.view(op.output)
    if target.is_contiguous:
        target = target.reshaped(source.shape)
    elif source.is_contiguous:
        source = source.reshaped(target.shape)
    else:
        raise refuse(op, "is between two tensors that lie in parts", op.output)
    low.copy(op, source, target)


RESHAPE = Kind(_normalise_reshape, _reference_reshape, _lower_reshape)


def _normalise_transpose(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    permutation = tuple(_ints(constant(op, model, 1)))
    if sorted(permutation) != list(range(len(x.shape))) or out.shape != tuple(
        x.shape[p] for p in permutation
    ):
        raise refuse(op, f"turns {list(x.shape)} into {list(out.shape)} by {permutation}", out.name)
    _check_same(op, model, [x.name])
    return Op("TRANSPOSE", (x.name,), op.outputs, {"permutation": permutation}, op.index)


def _reference_transpose(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    return np.transpose(inputs[0], op.attrs["permutation"])


def _lower_transpose(low: Lowering, op: Op) -> None:
    source, target = low.view(op.inputs[0]), low.view(op.output)
    strides = tuple(source.strides[p] for p in op.attrs["permutation"])
    low.copy(op, replace(source, shape=target.shape, strides=strides), target)


TRANSPOSE = Kind(_normalise_transpose, _reference_transpose, _lower_transpose)


def _normalise_concat(op: Op, model: Model) -> Op:
    out = model.tensors[op.output]
    axis = int(op.attrs.get("axis", 0) or 0) % len(out.shape)
    if int(op.attrs.get("fusedActivationFunction", 0) or 0):
        raise refuse(op, "has a fused activation", out.name)
    _check_same(op, model, op.inputs)
    total = 0
    for tensor in model.of(op.inputs):
        others = [(a, b) for i, (a, b) in enumerate(zip(tensor.shape, out.shape, strict=True)) if i != axis]
        if any(a != b for a, b in others):
            raise refuse(
                op, f"joins {list(tensor.shape)} into {list(out.shape)} along axis {axis}", tensor.name
            )
        total += tensor.shape[axis]
    if total != out.shape[axis]:
        raise refuse(op, f"joins {total} values along axis {axis} of {list(out.shape)}", out.name)
    return Op("CONCATENATION", op.inputs, op.outputs, {"axis": axis}, op.index)


def _reference_concat(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    return np.concatenate(inputs, axis=op.attrs["axis"])


def _lower_concat(low: Lowering, op: Op) -> None:
    whole, at, axis = low.view(op.output), 0, op.attrs["axis"]
    for name in op.inputs:
        source = low.view(name)
        begin = tuple(at if i == axis else 0 for i in range(len(whole.shape)))
        target = whole.part(begin, source.shape)
        at += source.shape[axis]
        # Its producer has written it in place.
        if (source.buffer, source.offset, source.strides) != (target.buffer, target.offset, target.strides):
            low.copy(op, source, target)


CONCATENATION = Kind(_normalise_concat, _reference_concat, _lower_concat)


def _normalise_pad(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    pads = constant(op, model, 1).reshape(-1, 2)
    before, after = tuple(int(v) for v in pads[:, 0]), tuple(int(v) for v in pads[:, 1])
    expected = tuple(n + b + a for n, b, a in zip(x.shape, before, after, strict=True))
    if min(*before, *after) < 0 or expected != out.shape:
        raise refuse(op, f"pads {list(x.shape)} by {before} and {after} to {list(out.shape)}", out.name)
    _check_same(op, model, [x.name])
    if x.dtype != "int8":
        raise refuse(op, f"pads {x.dtype} values", x.name, "Quantise the model to int8.")
    value = x.zero_point
    if len(op.inputs) > 2 and op.inputs[2]:
        value = _ints(constant(op, model, 2))[0]
    return Op("PAD", (x.name,), op.outputs, {"before": before, "after": after, "value": value}, op.index)


def _reference_pad(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    pads = list(zip(op.attrs["before"], op.attrs["after"], strict=True))
    return np.pad(inputs[0], pads, constant_values=op.attrs["value"])


def _lower_pad(low: Lowering, op: Op) -> None:
    source, target = low.view(op.inputs[0]), low.view(op.output)
    low.fill(op, op.attrs["value"], target)
    low.copy(op, source, target.part(op.attrs["before"], source.shape))


PAD = Kind(_normalise_pad, _reference_pad, _lower_pad)


def _normalise_space_to_depth(op: Op, model: Model) -> Op:
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    block = int(op.attrs.get("blockSize", 0) or 0)
    if len(x.shape) != 4 or block < 1 or x.shape[1] % block or x.shape[2] % block:
        raise refuse(op, f"has block size {block} for {list(x.shape)}", x.name)
    n, h, w, c = x.shape
    if out.shape != (n, h // block, w // block, c * block * block):
        raise refuse(op, f"turns {list(x.shape)} into {list(out.shape)}", out.name)
    _check_same(op, model, [x.name])
    return Op("SPACE_TO_DEPTH", (x.name,), op.outputs, {"block": block}, op.index)


def _reference_space_to_depth(op: Op, model: Model, inputs: Sequence[Array]) -> Array:
    n, h, w, c = inputs[0].shape
    b = op.attrs["block"]
    split = inputs[0].reshape(n, h // b, b, w // b, b, c)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(model.tensors[op.output].shape)


def _lower_space_to_depth(low: Lowering, op: Op) -> None:
    source, target = low.view(op.inputs[0]), low.view(op.output)
    b, c = op.attrs["block"], source.shape[3]
    shape = (*target.shape[:3], c)
    for place in range(b * b):
        part = source.part((0, place // b, place % b, 0), shape, (1, b, b, 1))
        low.copy(op, part, target.part((0, 0, 0, place * c), shape))


SPACE_TO_DEPTH = Kind(_normalise_space_to_depth, _reference_space_to_depth, _lower_space_to_depth)
