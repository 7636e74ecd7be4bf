"""From operations on views to kernel calls with constant tables.

Operations describe themselves through a `Lowering`: they ask for views and tables and add calls. Equal tables
and structures become one constant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor
from csr_deploy.exporters.mcu.layout import Layout, View, collapsed, packed_strides
from csr_deploy.exporters.mcu.packing import SLACK, Packed, pack, padded, scale_mode, with_constant_channels
from csr_deploy.exporters.mcu.scratch import ConvMode, conv_modes, group_count

Array = NDArray[Any]
Argument = str | View


@dataclass(frozen=True)
class Call:
    """One kernel call.

    Attributes:
        step: Index of the operation, for lifetimes.
        comment: Source operation and shapes.
        kernel: C function.
        arguments: C expressions, and views that become pointers.
        scratch: Bytes of scratch memory, passed as last argument where > 0.
        overlap: (source buffer, target buffer, distance in bytes) that the kernel allows, if any.
    """

    step: int
    comment: str
    kernel: str
    arguments: tuple[Argument, ...]
    scratch: int = 0
    overlap: tuple[str, str, int] | None = None


@dataclass(frozen=True)
class Constant:
    """One constant of the generated file.

    Attributes:
        name: C identifier.
        ctype: Element or structure type.
        values: Elements, or fields of the structure as C expressions.
        is_array: Whether it is an array.
        kind: "weight" or "table", for the account of flash.
        size: Bytes on a 32-bit processor.
    """

    name: str
    ctype: str
    values: tuple[Any, ...]
    is_array: bool
    kind: str
    size: int


_ELEMENT = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "int32_t": 4, "float": 4}
_STRUCT_SIZES = {
    "csr_window": 40, "csr_channel_quant": 16, "csr_conv": 16, "csr_add_quant": 20, "csr_cell": 52,
    "csr_loops": 36, "csr_mul_quant": 12, "csr_affine": 16, "csr_depthwise": 16, "csr_pool": 8,
    "csr_mean": 52, "csr_softmax": 20, "csr_points": 3, "csr_cell_add": 16, "csr_fused_cell": 48,
    "csr_prelu_quant": 16, "csr_packed_conv": 36, "csr_packed_cell": 64,
    "csr_packed_sum": 16, "csr_packed_affine": 24,
}  # fmt: skip


@dataclass
class Lowering:
    """The program under construction.

    Attributes:
        model: What is lowered.
        layout: Where its values lie.
        budget: Step → bytes of scratch memory that cost no arena.
        packed: Weights are packed for NEON.
        calls: Kernel calls so far.
        constants: By their content.
    """

    model: Model
    layout: Layout
    budget: Callable[[int], int] = lambda step: 0
    packed: bool = False
    calls: list[Call] = field(default_factory=list)
    constants: dict[Any, Constant] = field(default_factory=dict)
    step: int = 0
    _named: Counter[str] = field(default_factory=Counter)

    # Values

    def view(self, name: str) -> View:
        """Where a tensor lies; constants become tables."""
        tensor = self.model.tensors[name]
        if tensor.data is None:
            return self.layout.views[name]
        ctype = {"int8": "int8_t", "int32": "int32_t", "float32": "float", "uint8": "uint8_t"}.get(
            tensor.dtype
        )
        if ctype is None:
            raise ExportError(f"is a {tensor.dtype} constant that is computed with", where=f"tensor {name}")
        symbol = self.array(ctype, tensor.data, "weight" if tensor.data.size > 1 else "table", "constant")
        element = _ELEMENT[ctype]
        return View(symbol, 0, tensor.shape, packed_strides(tensor.shape, element), True, element)

    def contiguous(self, name: str) -> View:
        """Where a tensor lies, its elements one behind the other.

        Raises:
            ExportError: If they are not, which `compiler` prevents by inserting copies.
        """
        view = self.view(name)
        if not view.is_contiguous:
            raise ExportError("is needed in one piece and lies in parts", where=f"tensor {name}")
        return view

    def pictures(self, source: View, target: View) -> Iterator[tuple[View, View]]:
        """Pairs of views [1, H, W, C], one for every picture of a batch."""
        for n in range(source.shape[0]):
            yield (
                source.part((n, 0, 0, 0), (1, *source.shape[1:])),
                target.part((n, 0, 0, 0), (1, *target.shape[1:])),
            )

    # Constants

    def array(self, ctype: str, values: Array | Sequence[int], kind: str, hint: str) -> str:
        """The name of an array with these elements."""
        flat = np.asarray(values).reshape(-1)
        key = (ctype, flat.tobytes(), flat.dtype.str)
        if key not in self.constants:
            self.constants[key] = Constant(
                self._name(hint), ctype, tuple(flat.tolist()), True, kind, flat.size * _ELEMENT[ctype]
            )
        return self.constants[key].name

    def struct(self, ctype: str, *fields: Any, hint: str) -> str:
        """The name of a structure with these fields."""
        key = (ctype, tuple(map(str, fields)))
        if key not in self.constants:
            self.constants[key] = Constant(
                self._name(hint), ctype, tuple(fields), False, "table", _STRUCT_SIZES[ctype]
            )
        return self.constants[key].name

    def structs(self, ctype: str, rows: Sequence[Sequence[Any]], hint: str) -> str:
        """The name of an array of structures."""
        key = (ctype, tuple(tuple(map(str, row)) for row in rows), "array")
        if key not in self.constants:
            self.constants[key] = Constant(
                self._name(hint), ctype, tuple(tuple(r) for r in rows), True, "table",
                _STRUCT_SIZES[ctype] * len(rows),
            )  # fmt: skip
        return self.constants[key].name

    def _name(self, hint: str) -> str:
        name = f"{hint}_{self._named[hint]}"
        self._named[hint] += 1
        return name

    def weights(self, tensor: Tensor) -> str:
        """The name of a weight table; equal weights are one."""
        if tensor.data is None:
            raise ExportError("is not constant", where=f"tensor {tensor.name}")
        return self.array("int8_t", tensor.data, "weight", "weights")

    def quant_fields(self, quant: Any, points: tuple[int, int, int, int]) -> list[Any]:
        """Fields of a `csr_channel_quant`; `points` are the input's and output's zero point and the clamp."""
        return [
            self.array("int32_t", quant.bias, "table", "bias"),
            self.array("int32_t", quant.multiplier, "table", "multiplier"),
            self.array("int8_t", quant.shift, "table", "shift"),
            *points,
        ]

    def channel_quant(self, quant: Any, points: tuple[int, int, int, int]) -> str:
        """The name of a `csr_channel_quant`."""
        return self.struct("csr_channel_quant", *self.quant_fields(quant, points), hint="quant")

    def window(self, op: Op, source: View, target: View) -> str:
        """The name of the `csr_window` of a windowed operation on two views [1, H, W, C]."""
        a = op.attrs
        for view in (source, target):
            if view.shape[3] > 1 and view.strides[3] != 1:
                raise ExportError("needs its channels side by side", where=op.label)
        return self.struct(
            "csr_window",
            source.shape[1], source.shape[2], source.shape[3],
            target.shape[1], target.shape[2],
            a["pads"][0], a["pads"][1],
            *a["kernel"], *a["stride"], *a["dilation"],
            source.strides[1], source.strides[2], target.strides[1], target.strides[2],
            hint="window",
        )  # fmt: skip

    # Calls

    def call(
        self,
        op: Op,
        kernel: str,
        *arguments: Argument,
        scratch: int = 0,
        distance: int | None = None,
        comment: str | None = None,
    ) -> None:
        """Adds a kernel call.

        Args:
            op: For the comment.
            kernel: C function.
            arguments: In the order of its parameters.
            scratch: Bytes of scratch memory.
            distance: Bytes that the target must lie behind the source where they overlap; None: they must
                not.
            comment: Instead of the operation's.
        """
        views = [a for a in arguments if isinstance(a, View) and not a.constant]
        overlap = None
        if distance is not None and len(views) == 2 and views[0].buffer != views[1].buffer:
            overlap = (views[0].buffer, views[1].buffer, distance + views[1].offset - views[0].offset)
        self.calls.append(
            Call(self.step, comment or self._comment(op), kernel, tuple(arguments), scratch, overlap)
        )

    def _comment(self, op: Op) -> str:
        values = [self.model.tensors[n] for n in op.inputs if n and self.model.tensors[n].data is None]
        shapes = ", ".join(str(list(t.shape)) for t in values)
        return f"{op.index} {op.kind} {shapes} -> {list(self.model.tensors[op.output].shape)}"

    def convolution(
        self,
        op: Op,
        source: View,
        target: View,
        weights: Tensor,
        quant: Any,
        points: tuple[int, int, int, int],
    ) -> None:
        """Calls of a convolution, one a picture of the batch."""
        if self.packed:
            for x, out in self.pictures(source, target):
                self._packed_convolution(op, x, out, weights, quant, points)
            return
        fields = self.channel_quant(quant, points)
        for x, out in self.pictures(source, target):
            kernel: tuple[int, int] = op.attrs["kernel"]
            groups = group_count(kernel, x.shape[3])
            pixels = out.shape[1] * out.shape[2]
            modes = conv_modes(groups, math.prod(kernel) * x.shape[3], out.shape[3], pixels)
            mode = self.pick(modes)
            struct = self.struct(
                "csr_conv", f"&{self.window(op, x, out)}", self.weights(weights), f"&{fields}",
                out.shape[3], mode.tile, int(mode.resident), hint="conv",
            )  # fmt: skip
            distance = self.raster_distance(op, x, out, reads_own=False)
            self.call(op, "csr_conv2d_s8", f"&{struct}", x, out, scratch=mode.scratch, distance=distance)

    def packed_weights(self, tensor: Tensor) -> tuple[str, str]:
        """The names of packed weights and of what is known of their sizes; see `Packed`."""
        if tensor.data is None:
            raise ExportError("is not constant", where=f"tensor {tensor.name}")
        packed: Packed = pack(tensor.data.reshape(_four(tensor.shape)))
        return (
            self.array("int8_t", packed.data, "weight", "weights"),
            self.array("uint8_t", packed.three, "table", "three"),
        )

    def _packed_convolution(
        self, op: Op, x: View, out: View, weights: Tensor, quant: Any, points: tuple[int, int, int, int]
    ) -> None:
        a = op.attrs
        assert weights.data is not None
        bias, multiplier, shift = with_constant_channels(
            quant.bias, quant.multiplier, quant.shift, weights.data
        )
        inside = not any(a["pads"])
        pointwise = inside and a["kernel"] == a["stride"] == (1, 1)
        if pointwise and x.is_contiguous and out.is_contiguous and x.shape[1] * x.shape[2] <= _MOST_WIDTH:
            # One long row has tiles of pixels whatever the picture's width.
            x, out = (v.reshaped((1, 1, v.shape[1] * v.shape[2], v.shape[3])) for v in (x, out))
        # Whole vectors are read, which must not reach beyond the last pixel.
        rows, scratch = (0, 0) if inside and x.shape[3] % SLACK == 0 else surrounded_rows(op, x, out)
        struct = self.struct(
            "csr_packed_conv", f"&{self.window(op, x, out)}", *self.packed_weights(weights),
            self.array("int32_t", padded(bias), "table", "bias"),
            self.array("int32_t", padded(multiplier), "table", "multiplier"),
            self.array("int32_t", padded(shift), "table", "shift"),
            out.shape[3], rows, *points, scale_mode(shift, *points[1:]), hint="conv",
        )  # fmt: skip
        self.call(op, "csr_packed_conv_s8", f"&{struct}", x, out, scratch=scratch)

    def pick(self, modes: Sequence[ConvMode]) -> ConvMode:
        """The cheapest mode whose scratch memory costs no arena, or the one that takes least."""
        fitting = [m for m in modes if m.scratch <= self.budget(self.step)]
        if fitting:
            return min(fitting, key=lambda m: (m.cost, m.scratch))
        return min(modes, key=lambda m: (m.scratch, m.cost))

    def depthwise_scratch(self, op: Op, source: View) -> int:
        """Bytes that the depth-wise kernel takes: its weights, paired and widened."""
        kernel: tuple[int, int] = op.attrs["kernel"]
        taps, channels = math.prod(kernel), source.shape[3]
        if op.attrs["multiplier"] != 1:
            return 0
        return 4 * ((taps + 1) // 2) * ((channels + 3) // 4 * 4)

    def raster_distance(self, op: Op, source: View, target: View, *, reads_own: bool) -> int:
        """How far behind its input a kernel must write that reads windows and writes pixels in raster order.

        Args:
            op: Gives the window.
            source: [1, H, W, C].
            target: [1, H, W, C].
            reads_own: Whether a pixel's window is still read while the pixel is written.
        """
        a = op.attrs
        rows = np.maximum(np.arange(target.shape[1]) * a["stride"][0] - a["pads"][0], 0) * source.strides[1]
        cols = np.maximum(np.arange(target.shape[2]) * a["stride"][1] - a["pads"][1], 0) * source.strides[2]
        lowest = (rows[:, None] + cols[None]).reshape(-1)
        upcoming = np.minimum.accumulate(lowest[::-1])[::-1]
        written = (
            np.arange(target.shape[1])[:, None] * target.strides[1]
            + np.arange(target.shape[2])[None] * target.strides[2]
        ).reshape(-1) + target.shape[3]
        ends = np.maximum.accumulate(written)
        if reads_own:
            return int((ends - upcoming).max())
        # Nothing is read after the last pixel.
        return int((ends[:-1] - upcoming[1:]).max(initial=-(1 << 30)))

    def repeats_first(self, op: Op) -> bool:
        """Whether a kernel that repeats only its second operand must take the two the other way round."""
        a, b = self.model.of(op.inputs)
        out = self.model.tensors[op.output]
        if out.shape in (a.shape, b.shape):
            return a.shape != out.shape
        # Both are repeated: the first should have its values side by side.
        return bool(out.shape) and a.shape[-1:] != out.shape[-1:]

    def elementwise(self, op: Op, kernel: str, *arguments: str, swapped: bool = False) -> None:
        """Calls of a kernel of two operands and `csr_loops`."""
        names = tuple(reversed(op.inputs)) if swapped else op.inputs
        out = self.view(op.output)
        operands = [broadcast(self.view(n), out.shape) for n in names]
        self._loops(op, kernel, [*operands, out], list(arguments))

    def unary(self, op: Op, kernel: str, *arguments: str) -> None:
        """Calls of a kernel of one operand and `csr_loops`."""
        self._loops(op, kernel, [self.view(op.inputs[0]), self.view(op.output)], list(arguments))

    def _loops(self, op: Op, kernel: str, views: list[View], arguments: list[str]) -> None:
        sizes, strides = collapsed(views)
        # The innermost axis must be dense in all but a second operand, which may be repeated.
        allowed = [(0, 1) if len(views) == 3 and i == 1 else (1,) for i in range(len(views))]
        if any(s[-1] not in may for s, may in zip(strides, allowed, strict=True)):
            sizes = [*sizes, 1]
            for s in strides:
                s.append(1)
        second = strides[1][-1] if len(views) == 3 else 1
        *outer, span = sizes
        while len(outer) < 2:
            outer.insert(0, 1)
            for s in strides:
                s.insert(0, 0)
        head, (rows, pixels) = outer[:-2], outer[-2:]
        if max(rows, pixels) > 65535:
            raise ExportError(f"has {max(rows, pixels):,} parts that lie apart", where=op.label)
        pitches = [s[-3:-1] for s in strides]
        a, out = pitches[0], pitches[-1]
        b = pitches[1] if len(views) == 3 else [0, 0]
        loops = self.struct("csr_loops", rows, pixels, span, *a, *b, *out, second, hint="loops")
        for index in np.ndindex(*head):
            moved = [
                replace(v, offset=v.offset + sum(i * k for i, k in zip(index, s, strict=False)))
                for v, s in zip(views, strides, strict=True)
            ]
            self.call(op, kernel, f"&{loops}", *arguments, *moved)

    def copy(self, op: Op, source: View, target: View) -> None:
        """Copies elements between two views of one shape."""
        if source.element != 1:
            source, target = _as_bytes(source), _as_bytes(target)
        self._loops(op, "csr_copy_s8", [source, target], [])

    def fill(self, op: Op, value: int, target: View) -> None:
        """Sets all elements of a view."""
        self._loops(op, "csr_fill_s8", [target], [str(value)])


_MOST_WIDTH = 65535
_COPIED = 32 * 1024
"""Bytes of rows that are copied at a time: what the first cache of a small core holds."""


def surrounded(op: Op, rows: int, width: int) -> tuple[int, int]:
    """Height and width of what so many rows of output pixels of a windowed operation read."""
    (kh, kw), (sh, sw), (dh, dw) = op.attrs["kernel"], op.attrs["stride"], op.attrs["dilation"]
    return (rows - 1) * sh + (kh - 1) * dh + 1, (width - 1) * sw + (kw - 1) * dw + 1


def surrounded_rows(op: Op, x: View, out: View) -> tuple[int, int]:
    """Output rows whose input is copied at a time, and the bytes of the copy."""

    def size(rows: int) -> int:
        return math.prod(surrounded(op, rows, out.shape[2])) * x.shape[3] + SLACK

    rows = out.shape[1]
    while rows > 1 and size(rows) > _COPIED:
        rows -= 1
    # The last copy should not be of a few rows.
    rows = -(-out.shape[1] // -(-out.shape[1] // rows))
    return rows, size(rows)


def _four(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape) if len(shape) == 4 else (shape[0], 1, 1, shape[1])


def _as_bytes(view: View) -> View:
    return replace(view, shape=(*view.shape, view.element), strides=(*view.strides, 1), element=1)


def broadcast(view: View, shape: Sequence[int]) -> View:
    """A view whose missing and single elements are repeated to a shape."""
    missing = len(shape) - len(view.shape)
    old = (*([1] * missing), *view.shape)
    strides = (*([0] * missing), *view.strides)
    return replace(
        view,
        shape=tuple(shape),
        strides=tuple(0 if n == 1 and m != 1 else s for n, m, s in zip(old, shape, strides, strict=True)),
    )


def float_literal(value: float) -> str:
    """A C float that reads back exactly."""
    text = f"{value:.9g}"
    return (text if "." in text or "e" in text else f"{text}.0") + "f"
