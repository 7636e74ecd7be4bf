"""The compiler's intermediate representation: an int8 TFLite graph, checked after every pass. NumPy only.

Tensors keep TFLite's layout (NHWC) and quantisation: real = scale · (integer − zero_point). Every pass is a
pure function from `Model` to `Model` that leaves the integers it computes unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ExportError, GraphError

Shape = tuple[int, ...]
Integers = NDArray[Any]

DTYPES: dict[str, int] = {"int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4, "bool": 1}
"""Bytes of an element."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value or a constant.

    Attributes:
        name: Unique in its model.
        shape: NHWC for pictures.
        dtype: Key of `DTYPES`.
        scales: float32 [1], or one a slice along `axis`; None if not quantised.
        zero_points: As many as scales.
        axis: Quantised dimension where there are several scales.
        data: Content of a constant; None for values that are computed.
    """

    name: str
    shape: Shape
    dtype: str
    scales: NDArray[np.float32] | None = None
    zero_points: NDArray[np.int64] | None = None
    axis: int = 0
    data: Integers | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    @property
    def scale(self) -> np.float32:
        """The one scale of a per-tensor quantised tensor."""
        if self.scales is None or len(self.scales) != 1:
            raise ExportError(
                "needs one scale and has "
                + ("none" if self.scales is None else f"{len(self.scales)}, one a channel"),
                where=f"tensor {self.name}",
                fix="Quantise activations per tensor.",
            )
        return np.float32(self.scales[0])

    @property
    def zero_point(self) -> int:
        """The one zero point of a per-tensor quantised tensor."""
        _ = self.scale
        return int(self.zero_points[0]) if self.zero_points is not None else 0

    def same_quantization(self, other: Tensor) -> bool:
        """Whether equal integers mean equal reals in both."""
        if self.dtype != other.dtype:
            return False
        if self.scales is None or other.scales is None:
            return self.scales is other.scales
        return self.scale == other.scale and self.zero_point == other.zero_point


@dataclass(frozen=True, eq=False)
class Op:
    """One operation.

    Attributes:
        kind: TFLite's name, or that of an operation a pass introduced.
        inputs: Names of tensors; "" for an optional input left out.
        outputs: Names of tensors.
        attrs: Attributes, defined by the operation's module.
        index: Of the operator of the .tflite file it comes from (the last of several), for messages.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    index: int = -1

    @property
    def output(self) -> str:
        """The only output."""
        return self.outputs[0]

    @property
    def label(self) -> str:
        """For messages and comments."""
        return f"{self.kind} (operator {self.index})"

    def with_attrs(self, **attrs: Any) -> Op:
        """A copy with some attributes changed."""
        return replace(self, attrs={**self.attrs, **attrs})


@dataclass(frozen=True, eq=False)
class Model:
    """A graph with one input and one output.

    Attributes:
        tensors: By name.
        ops: In an order in which every value is made before it is used.
        input: Name of the input.
        output: Name of the output.
    """

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    input: str
    output: str

    def of(self, names: Iterable[str]) -> list[Tensor]:
        """Tensors by name."""
        return [self.tensors[n] for n in names]

    def producers(self) -> dict[str, Op]:
        """Value → the operation that makes it."""
        return {name: op for op in self.ops for name in op.outputs}

    def consumers(self) -> dict[str, list[Op]]:
        """Tensor → the operations that read it, in order."""
        out: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                out.setdefault(name, []).append(op)
        return out

    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        total = 0
        for op in self.ops:
            if op.kind in ("CONV_2D", "FULLY_CONNECTED"):
                weights = self.tensors[op.inputs[1]]
                total += math.prod(self.tensors[op.output].shape) * math.prod(weights.shape[1:])
            elif op.kind == "DEPTHWISE_CONV_2D":
                weights = self.tensors[op.inputs[1]]
                total += math.prod(self.tensors[op.output].shape) * math.prod(weights.shape[1:3])
        return total


def rebuild(model: Model, ops: Iterable[Op], tensors: Iterable[Tensor] = ()) -> Model:
    """The model with other operations and further tensors, verified; dead operations and tensors are dropped.

    Raises:
        GraphError: If it is not well formed.
    """
    known = {**model.tensors, **{t.name: t for t in tensors}}
    live = {model.output}
    kept: list[Op] = []
    for op in reversed(list(ops)):
        if not live.isdisjoint(op.outputs):
            live.update(n for n in op.inputs if n)
            kept.append(op)
    kept.reverse()
    live.add(model.input)
    live.update(n for op in kept for n in op.outputs)
    made = Model({n: t for n, t in known.items() if n in live}, tuple(kept), model.input, model.output)
    verify(made)
    return made


def verify(model: Model) -> None:
    """Checks names, order and shapes of constants.

    Raises:
        GraphError: Naming the operation.
    """
    made = {model.input}
    for op in model.ops:
        for name in op.inputs:
            if not name:
                continue
            tensor = model.tensors.get(name)
            if tensor is None:
                raise GraphError(f"reads '{name}', which is not a tensor", where=op.label)
            if tensor.data is None and name not in made:
                raise GraphError(f"reads '{name}' before it is made", where=op.label)
        for name in op.outputs:
            if name not in model.tensors:
                raise GraphError(f"makes '{name}', which is not a tensor", where=op.label)
            if name in made or model.tensors[name].data is not None:
                raise GraphError(f"makes '{name}' a second time", where=op.label)
            made.add(name)
    if model.output not in made:
        raise GraphError("is never made", where=f"output '{model.output}'")
    for tensor in model.tensors.values():
        if tensor.data is not None and tuple(tensor.data.shape) != tensor.shape:
            raise GraphError(
                f"has content of shape {list(tensor.data.shape)} and shape {list(tensor.shape)}",
                where=f"tensor '{tensor.name}'",
            )
