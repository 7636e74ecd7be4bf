"""Step cells: what happens at one step of the recurrence over channel groups.

A cell owns the weights that are shared by all T steps. It computes the input term of all steps in one
batched call (`input_terms`) and one step of the recurrence (`step`), and says the same in nodes of a static
graph (`lower_input`, `lower_step`), so that every cell unrolls and exports. An entry in `CELLS` makes a cell
known to checkpoints and the command line.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder

Pair = tuple[int, int]


class StepCell(nn.Module, abc.ABC):
    """One step of a convolutional recurrence over T channel groups.

    Args:
        group_in: d, channels of one input group.
        group_out: D, channels of one hidden state.
        kernel_size: (kh, kw) of both kernels.
        stride: Stride of the input kernel; the recurrent kernel always has stride 1.
        padding: Zero padding of the input kernel.
    """

    name: str

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__()
        self.group_in = group_in
        self.group_out = group_out
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding

    @property
    def recurrent_padding(self) -> Pair:
        """The padding of the recurrent kernel that keeps the size of the state."""
        return (self.kernel_size[0] // 2, self.kernel_size[1] // 2)

    @abc.abstractmethod
    def input_terms(self, x: Tensor) -> Tensor:
        """Input term of every step: [N·T, d, H, W] → [N·T, C, H', W'], C a multiple of D."""

    @abc.abstractmethod
    def step(self, term: Tensor, state: Tensor | None) -> Tensor:
        """One step: input term [N, C, H', W'] and previous state (None at t = 1) → state [N, D, H', W']."""

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
    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: str | None) -> str:
        """Adds the nodes of `step` to a static graph.

        Args:
            builder: The graph under construction.
            scope: Name prefix of this cell's weights.
            term: Name of the input term's value, [N, C, H', W'].
            state: Name of the previous state's value, [N, D, H', W'], or None at t = 1.

        Returns:
            The name of the new state's value.
        """


class VanillaCell(StepCell):
    """h_t = relu(V * x_t + U * h_{t-1}), Eq. 2 of the paper, without bias."""

    name = "vanilla"

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.v = nn.Parameter(torch.empty(group_out, group_in, *kernel_size))
        self.u = nn.Parameter(torch.empty(group_out, group_out, *kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming initialisation over the joint fan-in of V and U, as they feed one ReLU."""
        area = self.kernel_size[0] * self.kernel_size[1]
        std = math.sqrt(2.0 / ((self.group_in + self.group_out) * area))
        with torch.no_grad():
            self.v.normal_(0.0, std)
            self.u.normal_(0.0, std)

    def input_terms(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.v, None, self.stride, self.padding)

    def step(self, term: Tensor, state: Tensor | None) -> Tensor:
        if state is not None:
            term = term + nn.functional.conv2d(state, self.u, None, 1, self.recurrent_padding)
        return torch.relu(term)

    def lower_input(self, builder: GraphBuilder, scope: str, x: str) -> str:
        return builder.conv2d(x, builder.weight(f"{scope}.v"), stride=self.stride, padding=self.padding)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: str | None) -> str:
        if state is not None:
            recurrent = builder.conv2d(state, builder.weight(f"{scope}.u"), padding=self.recurrent_padding)
            term = builder.add(term, recurrent)
        return builder.relu(term)


CellFactory = Callable[[int, int, Pair, Pair, Pair], StepCell]

CELLS: dict[str, CellFactory] = {VanillaCell.name: VanillaCell}
