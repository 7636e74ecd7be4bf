"""FastRNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class FastRnnCell(ConvolvedInputCell):
    """FastRNN (Kusupati et al. 2018, Eq. 2 and 3): a weighted residual connection around each step.

        h̃_t = tanh(V * x_t + U * h_{t-1} + b)
        h_t = α·h̃_t + β·h_{t-1},  h_0 = 0

    α = σ(`alpha`) and β = σ(`beta`) are learned scalars in (0, 1). Both begin at one half: the α of
    about 1/T that the paper begins with is for hundreds of steps, here there are two to nine.
    """

    name = "fastrnn"
    biased = True

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.u = self.kernel(group_out, group_out)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def derived(self) -> Mapping[str, Tensor]:
        return {
            "alpha_gain": torch.sigmoid(self.alpha).expand(self.group_out),
            "beta_gain": torch.sigmoid(self.beta).expand(self.group_out),
        }

    def step(self, term: Tensor, state: State | None) -> State:
        alpha = torch.sigmoid(self.alpha)
        if state is None:
            return (alpha * torch.tanh(term),)
        new = torch.tanh(term + self.recur(state[0], self.u))
        return (alpha * new + torch.sigmoid(self.beta) * state[0],)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        if state is None:
            return (builder.scale(builder.tanh(term), builder.weight(f"{scope}.alpha_gain")),)
        term = builder.add(term, self.lower_recur(builder, state[0], f"{scope}.u"))
        new = builder.scale(builder.tanh(term), builder.weight(f"{scope}.alpha_gain"))
        return (builder.add(new, builder.scale(state[0], builder.weight(f"{scope}.beta_gain"))),)
