"""The recurrence of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class VanillaCell(ConvolvedInputCell):
    """h_t = relu(V * x_t + U * h_{t-1}), Eq. 2 of the paper, without bias."""

    name = "vanilla"
    fan_gain = 2.0

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.u = self.kernel(group_out, group_out)

    def step(self, term: Tensor, state: State | None) -> State:
        if state is not None:
            term = term + self.recur(state[0], self.u)
        return (torch.relu(term),)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        if state is not None:
            term = builder.add(term, self.lower_recur(builder, state[0], f"{scope}.u"))
        return (builder.relu(term),)
