"""Where every value lies: views of few buffers instead of one buffer a tensor.

A slice, split or reshape is a view of its input; the parts of a concatenation are views of its output, so
that their producers write them in place; an element-wise operation writes over an input that nobody needs
any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from csr_deploy.exporters.mcu.ir import DTYPES, Model, Op, Shape, Tensor

_DENSE = frozenset({"FULLY_CONNECTED", "SOFTMAX", "MEAN", "QUANTIZE", "DEQUANTIZE"})
"""Operations whose kernels want their values one behind the other."""
_IN_PLACE = frozenset(
    {
        "ABS", "ADD", "ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL",
        "PRELU", "QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "SOFTMAX", "SUB", "TANH",
    }
)  # fmt: skip
"""Operations whose kernels may write over an input of the same shape."""


@dataclass(frozen=True)
class View:
    """Part of a buffer or of a constant.

    Attributes:
        buffer: Name of the buffer; that of the constant where `constant` is set.
        offset: Bytes from its start.
        shape: As the tensor's.
        strides: Bytes, as many as the shape has axes.
        constant: Lies in flash.
    """

    buffer: str
    offset: int
    shape: Shape
    strides: tuple[int, ...]
    constant: bool = False
    element: int = 1

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one behind the other."""
        expected = packed_strides(self.shape, self.element)
        return all(n == 1 or s == e for n, s, e in zip(self.shape, self.strides, expected, strict=True))

    def reshaped(self, shape: Shape) -> View:
        """The same elements of a contiguous view under another shape."""
        if not self.is_contiguous or math.prod(shape) != math.prod(self.shape):
            raise AssertionError(f"{self} cannot be reshaped to {shape}")
        return replace(self, shape=shape, strides=packed_strides(shape, self.element))

    def part(self, begin: Shape, shape: Shape, steps: Shape | None = None) -> View:
        """A slice."""
        offset = self.offset + sum(b * s for b, s in zip(begin, self.strides, strict=True))
        strides = self.strides
        if steps is not None:
            strides = tuple(s * t for s, t in zip(strides, steps, strict=True))
        return replace(self, offset=offset, shape=shape, strides=strides)


def packed_strides(shape: Shape, element: int = 1) -> tuple[int, ...]:
    """Strides in bytes of contiguous elements."""
    out = [element]
    for n in reversed(shape[1:]):
        out.append(out[-1] * n)
    return tuple(reversed(out[: len(shape)])) if shape else ()


@dataclass(frozen=True)
class Layout:
    """Where the values of a model lie.

    Attributes:
        views: Of every value that is computed.
        sizes: Bytes of every buffer.
        first: Step (index of an operation; −1 for the model's input) in which a buffer is written first.
        last: Step in which it is read last; the number of operations for the model's output.
        aliases: Operations that need no kernel, as their output is a view of their input.
    """

    views: Mapping[str, View]
    sizes: Mapping[str, int]
    first: Mapping[str, int]
    last: Mapping[str, int]
    aliases: frozenset[int]


def lay_out(model: Model) -> Layout:
    """Decides views, buffers and their lifetimes."""
    return _Layout(model).done()


class _Layout:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.views: dict[str, View] = {}
        self.sizes: dict[str, int] = {}
        self.aliases: set[int] = set()
        self.users = model.consumers()
        self.placed = self._concatenated()
        self.last_use = self._last_uses()
        """Value → the last step that reads it or a view of it."""
        self._input()
        for step, op in enumerate(model.ops):
            self._place(step, op)

    def _input(self) -> None:
        self._own(self.model.tensors[self.model.input])

    def _own(self, tensor: Tensor) -> View:
        element = DTYPES[tensor.dtype]
        self.sizes[tensor.name] = tensor.size
        view = View(tensor.name, 0, tensor.shape, packed_strides(tensor.shape, element), element=element)
        self.views[tensor.name] = view
        return view

    def _concatenated(self) -> dict[str, tuple[Op, tuple[int, ...]]]:
        """Value → the concatenation that it is written into, and where."""
        out: dict[str, tuple[Op, tuple[int, ...]]] = {}
        makers = self.model.producers()
        for op in self.model.ops:
            if op.kind != "CONCATENATION":
                continue
            axis, at = op.attrs["axis"], 0
            for name in op.inputs:
                tensor = self.model.tensors[name]
                begin = tuple(at if i == axis else 0 for i in range(len(tensor.shape)))
                at += tensor.shape[axis]
                maker = makers.get(name)
                # Its producer must be free to write anywhere, and it must not stand in two places.
                if (
                    maker is not None
                    and maker.kind not in _VIEWS
                    and maker.kind not in _DENSE
                    and name not in out
                    and name != self.model.output
                    and not any(user.kind in _DENSE for user in self.users.get(name, []))
                ):
                    out[name] = (op, begin)
        return out

    def _last_uses(self) -> dict[str, int]:
        model = self.model
        last: dict[str, int] = {}
        for step in range(len(model.ops) - 1, -1, -1):
            op = model.ops[step]
            through = step
            if op.kind in _VIEWS or op.kind == "CONCATENATION":
                through = max([step, *(last.get(o, step) for o in op.outputs)])
            for name in op.inputs:
                if name and model.tensors[name].data is None:
                    last[name] = max(last.get(name, -1), through)
        last[model.output] = len(model.ops)
        # What becomes the output by views lives as long.
        for op in reversed(model.ops):
            if (op.kind in _VIEWS or op.kind == "CONCATENATION") and last.get(op.output) == len(model.ops):
                for name in op.inputs:
                    if name and model.tensors[name].data is None:
                        last[name] = len(model.ops)
        return last

    def _target(self, name: str) -> View | None:
        """The part of a concatenation's buffer that a value is written into."""
        if name not in self.placed:
            return None
        op, begin = self.placed[name]
        whole = self.views.get(op.output)
        if whole is None:
            whole = self._target(op.output) or self._own(self.model.tensors[op.output])
            self.views[op.output] = whole
        return whole.part(begin, self.model.tensors[name].shape)

    def _place(self, step: int, op: Op) -> None:
        viewed = _VIEWS[op.kind](self, op) if op.kind in _VIEWS else None
        if viewed is not None:
            self.views.update(viewed)
            self.aliases.add(step)
            return
        for name in op.outputs:
            if name in self.views:
                continue
            self.views[name] = (
                self._target(name) or self._in_place(step, op) or self._own(self.model.tensors[name])
            )
        if op.kind == "CONCATENATION" and all(self._lies_in(op, n) for n in op.inputs):
            self.aliases.add(step)

    def _lies_in(self, op: Op, name: str) -> bool:
        return name in self.placed and self.placed[name][0] is op

    def _in_place(self, step: int, op: Op) -> View | None:
        """An input's place, if the operation may write over it."""
        if op.kind not in _IN_PLACE and not op.attrs.get("in_place"):
            return None
        out = self.model.tensors[op.output]
        for name in op.inputs[:2]:
            view = self.views.get(name)
            if view is None or view.shape != out.shape or DTYPES[out.dtype] != view.element:
                continue
            whole = view.is_contiguous and math.prod(out.shape) * view.element == self.sizes[view.buffer]
            # Another operand may be a part of it that is read again after it was written over.
            others = [self.views[n] for n in op.inputs if n in self.views and n != name]
            apart = all(other == view or other.buffer != view.buffer for other in others)
            if whole and apart and self._is_dead(view.buffer, step):
                return view
        return None

    def _is_dead(self, buffer: str, step: int) -> bool:
        """Whether nothing after a step reads what a buffer holds now."""
        return all(
            self.last_use.get(name, -1) <= step
            for name, view in self.views.items()
            if view.buffer == buffer and not view.constant
        ) and not any(
            # A part of it that is still to be written belongs to a concatenation.
            self.placed[n][0].output in self.views and self.views[self.placed[n][0].output].buffer == buffer
            for n in self.placed
            if n not in self.views
        )

    def done(self) -> Layout:
        model = self.model
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        made = {name: step for step, op in enumerate(model.ops) for name in op.outputs}
        made[model.input] = -1
        for name, view in self.views.items():
            if view.constant:
                continue
            first[view.buffer] = min(first.get(view.buffer, made[name]), made[name])
            uses = self.last_use.get(name, made[name])
            last[view.buffer] = max(last.get(view.buffer, uses), uses, made[name])
        return Layout(self.views, self.sizes, first, last, frozenset(self.aliases))


# Views: an operation → the views of its outputs, or None if they cannot be views.


def _source(layout: _Layout, op: Op) -> View | None:
    view = layout.views.get(op.inputs[0])
    # What is written into a concatenation or is the model's output must be made by a kernel.
    if view is None or any(o in layout.placed for o in op.outputs):
        return None
    return view


def _slice(layout: _Layout, op: Op) -> dict[str, View] | None:
    source = _source(layout, op)
    if source is None or op.output == layout.model.output:
        return None
    view = source.part(op.attrs["begin"], layout.model.tensors[op.output].shape, op.attrs["steps"])
    wanted_dense = any(user.kind in _DENSE for user in layout.users.get(op.output, []))
    if not _inner_is_dense(view) or (wanted_dense and not view.is_contiguous):
        return None
    return {op.output: view}


def _reshape(layout: _Layout, op: Op) -> dict[str, View] | None:
    source = _source(layout, op)
    if source is None or not source.is_contiguous:
        return None
    return {op.output: source.reshaped(layout.model.tensors[op.output].shape)}


def _transpose(layout: _Layout, op: Op) -> dict[str, View] | None:
    source = _source(layout, op)
    if source is None or op.output == layout.model.output:
        return None
    permutation = op.attrs["permutation"]
    shape = tuple(source.shape[p] for p in permutation)
    strides = tuple(source.strides[p] for p in permutation)
    view = replace(source, shape=shape, strides=strides)
    # Kernels need channels side by side.
    moved = [p for p in permutation if source.shape[p] > 1]
    return {op.output: view} if moved == sorted(moved) or _inner_is_dense(view) else None


def _inner_is_dense(view: View) -> bool:
    return not view.shape or view.shape[-1] == 1 or view.strides[-1] == view.element


_VIEWS = {"SLICE": _slice, "RESHAPE": _reshape, "TRANSPOSE": _transpose}


def collapsed(views: list[View]) -> tuple[list[int], list[list[int]]]:
    """Joins neighbouring axes that every view walks through evenly.

    Args:
        views: Of one shape; broadcast axes have stride 0.

    Returns:
        Sizes of the axes left, and their strides for every view. At least one axis.
    """
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for axis in range(len(views[0].shape)):
        n = views[0].shape[axis]
        if n == 1:
            continue
        if sizes and all(s[-1] == v.strides[axis] * n for s, v in zip(strides, views, strict=True)):
            sizes[-1] *= n
            for s, v in zip(strides, views, strict=True):
                s[-1] = v.strides[axis]
        else:
            sizes.append(n)
            for s, v in zip(strides, views, strict=True):
                s.append(v.strides[axis])
    if not sizes:
        return [1], [[v.element] for v in views]
    return sizes, strides
