"""What a step cell writes its part of the static graph with."""

from __future__ import annotations

import numpy as np

from csr_deploy.errors import GraphError
from csr_deploy.unroll.graph import GraphEditor

Pair = tuple[int, int]


class GraphBuilder:
    """Adds plain operations to a graph under construction.

    Args:
        editor: Where nodes go.
        origin: The layer being lowered, for messages and names.
    """

    def __init__(self, editor: GraphEditor, origin: str) -> None:
        self.editor = editor
        self.origin = origin
        self.step = 0

    def _add(self, op: str, inputs: list[str], kind: str, **attrs: object) -> str:
        hint = f"{self.origin}.t{self.step}.{kind}"
        return self.editor.add(op, inputs, hint, self.origin, **attrs)

    def weight(self, name: str) -> str:
        """A weight of the captured model, or what a cell derives from its weights, by its full name.

        It is the same constant whenever it is asked for.

        Raises:
            GraphError: If the model has no such weight.
        """
        if name not in self.editor.constants:
            raise GraphError(f"the cell asks for a weight '{name}' that was not captured", where=self.origin)
        return name

    def conv2d(
        self,
        x: str,
        weight: str,
        bias: str | None = None,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        groups: int = 1,
    ) -> str:
        """Convolution with symmetric zero padding."""
        return self._add(
            "conv2d",
            [x, weight] if bias is None else [x, weight, bias],
            "conv",
            stride=stride,
            padding=(padding[0], padding[1], padding[0], padding[1]),
            dilation=(1, 1),
            groups=groups,
            activation=None,
        )

    def add(self, x: str, y: str) -> str:
        """Element-wise sum."""
        return self._add("add", [x, y], "add", activation=None)

    def sub(self, x: str, y: str) -> str:
        """Element-wise difference."""
        return self._add("sub", [x, y], "sub", activation=None)

    def mul(self, x: str, y: str) -> str:
        """Element-wise product."""
        return self._add("mul", [x, y], "mul", activation=None)

    def affine(self, x: str, gain: str, bias: str) -> str:
        """Per-channel gain and bias."""
        return self._add("affine", [x, gain, bias], "affine", activation=None)

    def scale(self, x: str, gain: str) -> str:
        """Per-channel gain, without a bias."""
        zero = f"{gain}.zero"
        if zero not in self.editor.constants:
            self.editor.constant(zero, np.zeros(self.editor.shape(gain)))
        return self.affine(x, gain, zero)

    def channels(self, x: str, start: int, stop: int) -> str:
        """Channels start..stop; x itself where that is all of them."""
        shape = self.editor.shape(x)
        if (start, stop) == (0, shape[1]):
            return x
        starts = (0, start, *(0,) * (len(shape) - 2))
        stops = (shape[0], stop, *shape[2:])
        return self._add("slice", [x], "part", starts=starts, stops=stops, steps=(1,) * len(shape))

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self._add("relu", [x], "relu")

    def sigmoid(self, x: str) -> str:
        """Logistic function."""
        return self._add("sigmoid", [x], "sigmoid")

    def tanh(self, x: str) -> str:
        """Hyperbolic tangent."""
        return self._add("tanh", [x], "tanh")
