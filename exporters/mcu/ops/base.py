"""What the compiler knows of an operation, and helpers that several operations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.mcu.arithmetic import multiply, quantize_multiplier
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor

if TYPE_CHECKING:
    from csr_deploy.exporters.mcu.lower import Lowering

Array = NDArray[Any]
Normalise = Callable[[Op, Model], Op]
Reference = Callable[[Op, Model, Sequence[Array]], Array]
Lower = Callable[["Lowering", Op], None]


@dataclass(frozen=True)
class Kind:
    """One operation.

    Attributes:
        normalise: Checks types and shapes and turns TFLite's options into the compiler's attributes; None for
            operations that only passes make.
        reference: What it computes, on NumPy arrays of the input tensors.
        lower: Emits the kernel calls; None for operations that are views of their input.
    """

    normalise: Normalise | None
    reference: Reference
    lower: Lower | None


def refuse(op: Op, what: str, tensor: str = "", fix: str | None = None) -> ExportError:
    """An error that names operation, index and tensor."""
    where = op.label + (f", tensor {tensor}" if tensor else "")
    return ExportError(what, where=where, fix=fix)


def need_int8(op: Op, model: Model, *names: str) -> None:
    """Demands int8 tensors with one scale each.

    Raises:
        ExportError: Naming the tensor and its type.
    """
    for name in names:
        tensor = model.tensors[name]
        if tensor.dtype != "int8":
            raise refuse(
                op, f"has a {tensor.dtype} tensor", name, "Quantise the model to int8 (full integer) first."
            )
        if tensor.scales is None:
            raise refuse(op, "lacks quantisation parameters", name, "Quantise the model to int8 first.")
        if len(tensor.scales) != 1:
            raise refuse(op, f"has {len(tensor.scales)} scales where one is needed", name)


def constant(op: Op, model: Model, index: int) -> Array:
    """The content of a constant input.

    Raises:
        ExportError: If it is computed or left out.
    """
    name = op.inputs[index] if index < len(op.inputs) else ""
    data = model.tensors[name].data if name else None
    if data is None:
        raise refuse(op, f"needs a constant as input {index}", name, "Export it with a static shape.")
    return data


_MOST_LEFT = 22
"""A larger shift to the left of the difference of two bytes leaves 30 bits."""


def factor(op: Op, real: float) -> tuple[int, int]:
    """A ratio of scales as multiplier and shift.

    Raises:
        ExportError: If TFLite Micro's int32 arithmetic overflows with it.
    """
    multiplier, shift = quantize_multiplier(real)
    if shift > _MOST_LEFT:
        raise refuse(
            op, f"has an input scale {real:.3g} times that of its output", op.output, "Quantise it again."
        )
    return multiplier, shift


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """TFLite's SAME padding along one axis: before and after, for a window of that dilated extent."""
    total = max(0, (-(-size // stride) - 1) * stride + window - size)
    return total // 2, total - total // 2


def clipped(values: Array, op: Op) -> Array:
    """int64 values within an operation's activation range, as int8."""
    out: Array = np.clip(values, op.attrs["low"], op.attrs["high"]).astype(np.int8)
    return out


@dataclass(frozen=True)
class ChannelQuant:
    """Requantisation of accumulators to int8, per output channel.

    Attributes:
        bias: int32 [O], with the input's zero point folded in.
        multiplier: int32 [O], Q31.
        shift: int8 [O], > 0 to the left.
    """

    bias: Array
    multiplier: Array
    shift: Array


def channel_quant(
    op: Op, x: Tensor, weights: Tensor, bias: Tensor | None, out: Tensor, *, axis: int
) -> ChannelQuant:
    """Folds the input's zero point into the bias and turns scales into integer factors.

    Raises:
        ExportError: If quantisation parameters do not fit, or an accumulator may leave 31 bits.
    """
    if weights.data is None:
        raise refuse(op, "needs constant weights", weights.name)
    if weights.dtype != "int8":
        raise refuse(op, f"has {weights.dtype} weights", weights.name, "Quantise the weights to int8.")
    if weights.scales is None or weights.zero_points is None:
        raise refuse(op, "has weights without quantisation parameters", weights.name)
    if weights.zero_points.any():
        raise refuse(
            op,
            "has weights with a zero point",
            weights.name,
            "Quantise the weights symmetrically, as TFLite does.",
        )
    count = weights.shape[axis]
    if len(weights.scales) > 1 and (weights.axis != axis or len(weights.scales) != count):
        raise refuse(op, f"has weights quantised along axis {weights.axis}, not {axis}", weights.name)
    scales = np.broadcast_to(weights.scales, (count,))
    pairs = [
        quantize_multiplier(float(np.float64(x.scale) * np.float64(s) / np.float64(out.scale)))
        for s in scales
    ]
    values = weights.data.astype(np.int64)
    others = tuple(i for i in range(values.ndim) if i != axis)
    sums = values.sum(axis=others)
    start = np.zeros(count, np.int64)
    if bias is not None:
        if bias.data is None or bias.dtype != "int32" or bias.data.size != count:
            raise refuse(op, f"has a {bias.dtype} bias of shape {list(bias.shape)}", bias.name)
        start = bias.data.reshape(-1).astype(np.int64)
    multiplier = np.array([m for m, _ in pairs], np.int64)
    shift = np.array([s for _, s in pairs], np.int64)
    reach = 255 * np.abs(values).sum(axis=others)
    bound = (np.abs(start) + reach) << np.maximum(shift, 0)
    for channel in np.flatnonzero(bound >= _LARGEST):
        ends = start[channel] + np.array([-reach[channel], reach[channel]])
        made = _constant_channel(op, out, ends, int(multiplier[channel]), int(shift[channel]))
        if made is None:
            raise refuse(
                op,
                f"may sum up to {int(bound.max()):,} in its accumulator, beyond 30 bits",
                weights.name,
                "Use smaller kernels, or a coarser scale of the weights.",
            )
        start[channel], multiplier[channel], shift[channel] = made
    folded = start - x.zero_point * sums
    return ChannelQuant(folded.astype(np.int32), multiplier.astype(np.int32), shift.astype(np.int8))


_LARGEST = 1 << 30
"""Kernels double an accumulator in 32 bits."""


def _constant_channel(
    op: Op, out: Tensor, ends: Array, multiplier: int, shift: int
) -> tuple[int, int, int] | None:
    """A smaller bias with its factors for a channel whose bias is so large that its output never changes.

    Converters write such biases, up to the largest int32, for channels that training left without weights.

    Args:
        op: Gives the clamp.
        out: Gives the zero point.
        ends: Smallest and largest accumulator.
        multiplier: Of the channel.
        shift: Of the channel.
    """
    reach = int(ends[1] - ends[0]) // 2
    if shift > 0 or ends[0] < -(1 << 31) or ends[1] >= 1 << 31 or reach >= _LARGEST // 2:
        return None

    def results(at: Array, by: int, left: int) -> Array:
        return clipped(multiply(at, by, left) + out.zero_point, op)

    constant = results(ends, multiplier, shift)
    if constant[0] != constant[1]:
        return None
    bias = int(ends[0]) + reach
    for k in (1, 2):
        halved = (bias >> k, multiplier, shift + k)
        if shift + k <= 0 and (results(halved[0] + np.array([-reach, reach]), *halved[1:]) == constant).all():
            return halved
    # Nothing at all is added to the zero point.
    return (0, 0, shift) if (results(np.zeros(2, np.int64), 0, shift) == constant).all() else None


def geometry(
    op: Op, model: Model, kernel: tuple[int, int], out_channels: int | None = None
) -> dict[str, Any]:
    """Window attributes of a convolution or pool: kernel, stride, dilation and explicit padding.

    Raises:
        ExportError: If shapes do not fit.
    """
    a = op.attrs
    x, out = model.tensors[op.inputs[0]], model.tensors[op.output]
    if len(x.shape) != 4 or len(out.shape) != 4:
        raise refuse(op, f"takes 4-D tensors, not {list(x.shape)} → {list(out.shape)}", op.inputs[0])
    stride = (int(a["strideH"]), int(a["strideW"]))
    dilation = (int(a.get("dilationHFactor", 1) or 1), int(a.get("dilationWFactor", 1) or 1))
    if min(*stride, *dilation, *kernel) < 1 or max(*stride, *dilation, *kernel) > 255:
        raise refuse(op, f"has kernel {kernel}, stride {stride}, dilation {dilation}: outside 1…255")
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if int(a.get("padding", 0) or 0) == 0:
        pads = [same_padding(x.shape[1 + i], extents[i], stride[i]) for i in range(2)]
    else:
        pads = [(0, 0), (0, 0)]
    sizes = [(x.shape[1 + i] + sum(pads[i]) - extents[i]) // stride[i] + 1 for i in range(2)]
    if list(out.shape[:3]) != [x.shape[0], *sizes] or (out_channels or out.shape[3]) != out.shape[3]:
        raise refuse(
            op, f"gives {[x.shape[0], *sizes, out_channels]}, the file says {list(out.shape)}", out.name
        )
    return {
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "pads": (pads[0][0], pads[1][0], pads[0][1], pads[1][1]),
    }


def windows(x: Array, attrs: Any, out_shape: Sequence[int], fill: int) -> tuple[Array, Array]:
    """Values under every window [N, OH, OW, kh, kw, C], and which lie in the picture [OH, OW, kh, kw]."""
    (kh, kw), (sh, sw), (dh, dw) = attrs["kernel"], attrs["stride"], attrs["dilation"]
    top, left = attrs["pads"][:2]
    oh, ow = out_shape[1], out_shape[2]
    rows = np.arange(oh)[:, None] * sh - top + np.arange(kh)[None] * dh
    cols = np.arange(ow)[:, None] * sw - left + np.arange(kw)[None] * dw
    row_in, col_in = (rows >= 0) & (rows < x.shape[1]), (cols >= 0) & (cols < x.shape[2])
    picked = x[:, rows.clip(0, x.shape[1] - 1)][:, :, :, cols.clip(0, x.shape[2] - 1)]
    picked = picked.transpose(0, 1, 3, 2, 4, 5).astype(np.int64)
    inside = row_in[:, None, :, None] & col_in[None, :, None, :]
    return np.where(inside[None, ..., None], picked, fill), inside
