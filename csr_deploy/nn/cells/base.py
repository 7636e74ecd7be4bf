"""What every step cell is: one step of a convolutional recurrence over channel groups.

A cell owns the weights that are shared by all T steps. It computes the input term of all steps in one
batched call (`input_terms`) and one step of the recurrence (`step`), and says the same in nodes of a static
graph (`lower_input`, `lower_step`), so that every cell unrolls and exports.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from csr_deploy.errors import ModelError

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder

Pair = tuple[int, int]
State = tuple[Tensor, ...]
"""What a step hands to the next one: h_t first, then what else the cell remembers, [N, D, H', W'] each."""
Names = tuple[str, ...]
"""The same in a static graph: names of values."""


class StepCell(nn.Module, abc.ABC):
    """One step of a convolutional recurrence over T channel groups.

    Attributes:
        name: Key of `csr_deploy.nn.cells.CELLS`.
        recurrent: Whether a step reads the state before it through a kernel, which then has to be odd.
        depthwise: Whether the kernels mix no channels, as those of a depth-wise convolution.
    """

    name: ClassVar[str]
    recurrent: ClassVar[bool] = True
    depthwise: ClassVar[bool] = False

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        """Checks the geometry; children make their weights.

        Args:
            group_in: d, channels of one input group.
            group_out: D, channels of one hidden state.
            kernel_size: (kh, kw) of all kernels.
            stride: Stride of the input kernel; recurrent kernels always have stride 1.
            padding: Zero padding of the input kernel.

        Raises:
            ModelError: If the cell cannot have this geometry.
        """
        super().__init__()
        if self.recurrent and not all(k % 2 for k in kernel_size):
            raise ModelError(
                f"kernel size {kernel_size} is even, so U cannot keep the size of the hidden state",
                fix="Use an odd kernel size, T = 1, or the cell s-groupconv, which has no recurrence.",
            )
        self.group_in = group_in
        self.group_out = group_out
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding

    @property
    def recurrent_padding(self) -> Pair:
        """The padding of a recurrent kernel that keeps the size of the state."""
        return (self.kernel_size[0] // 2, self.kernel_size[1] // 2)

    def derived(self) -> Mapping[str, Tensor]:
        """Tensors that the static graph has in place of parameters, computed from them.

        Learned scalars become per-channel gains here, sums of kernels one kernel. Gradients flow through it.
        """
        return {}

    @abc.abstractmethod
    def input_terms(self, x: Tensor) -> Tensor:
        """Input term of every step: [N·T, d, H, W] → [N·T, C, H', W'], C a multiple of D."""

    @abc.abstractmethod
    def step(self, term: Tensor, state: State | None) -> State:
        """One step: input term [N, C, H', W'] and previous state (None at t = 1) → state, h_t first."""

    @abc.abstractmethod
    def lower_input(self, builder: GraphBuilder, scope: str, x: str) -> str:
        """Adds the nodes of `input_terms` to a static graph.

        Args:
            builder: The graph under construction.
            scope: Name prefix of this cell's weights.
            x: Name of a group's value [N, d, H, W], or of several groups stacked in the batch axis.

        Returns:
            The name of the term's value, [N, C, H', W'].
        """

    @abc.abstractmethod
    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        """Adds the nodes of `step` to a static graph.

        Args:
            builder: The graph under construction.
            scope: Name prefix of this cell's weights.
            term: Name of the input term's value, [N, C, H', W'].
            state: Names of the previous state's values, or None at t = 1.

        Returns:
            The names of the new state's values, h_t first.
        """


class ConvolvedInputCell(StepCell):
    """A cell whose input term is one convolution: V * x_t, for several gates at once, with a bias perhaps.

    Attributes:
        gates: Terms that a step needs; V has D filters for each.
        biased: Whether V has a bias `b`, as the recurrences with bounded activations have.
        fan_gain: What the variance of an initial weight is, times the joint fan-in of V and U.
    """

    gates: ClassVar[int] = 1
    biased: ClassVar[bool] = False
    fan_gain: ClassVar[float] = 1.0

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.v = self.kernel(self.gates * group_out, 1 if self.depthwise else group_in)
        self.b = nn.Parameter(torch.zeros(self.gates * group_out)) if self.biased else None

    def kernel(self, filters: int, channels: int) -> nn.Parameter:
        """A new kernel [filters, channels, kh, kw]; V and U feed one activation and share its fan-in."""
        inputs, states = (1, 1) if self.depthwise else (self.group_in, self.group_out)
        fan = self.kernel_size[0] * self.kernel_size[1] * (inputs + states * self.recurrent)
        weight = torch.empty(filters, channels, *self.kernel_size)
        return nn.Parameter(nn.init.normal_(weight, 0.0, math.sqrt(self.fan_gain / fan)))

    def input_terms(self, x: Tensor) -> Tensor:
        groups = self.group_in if self.depthwise else 1
        return nn.functional.conv2d(x, self.v, self.b, self.stride, self.padding, groups=groups)

    def recur(self, state: Tensor, kernel: Tensor) -> Tensor:
        """U * h_{t-1}: [N, D, H', W'] → the same size, as many channels as the kernel has filters."""
        groups = self.group_out if self.depthwise else 1
        return nn.functional.conv2d(state, kernel, None, 1, self.recurrent_padding, groups=groups)

    def lower_input(self, builder: GraphBuilder, scope: str, x: str) -> str:
        return builder.conv2d(
            x,
            builder.weight(f"{scope}.v"),
            builder.weight(f"{scope}.b") if self.biased else None,
            stride=self.stride,
            padding=self.padding,
            groups=self.group_in if self.depthwise else 1,
        )

    def lower_recur(self, builder: GraphBuilder, state: str, kernel: str) -> str:
        """Adds the node of `recur` to a static graph."""
        return builder.conv2d(
            state,
            builder.weight(kernel),
            padding=self.recurrent_padding,
            groups=self.group_out if self.depthwise else 1,
        )
