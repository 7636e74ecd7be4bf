"""Incremental RNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class IncrementalRnnCell(ConvolvedInputCell):
    """Incremental RNN (Kag, Zhang & Saligrama, ICLR 2020): a step towards the equilibrium of an ODE.

    Their Euler iteration, with g_t^0 = 0 and h_t = g_t^K:

        g_t^i = g_t^{i-1} + η·(tanh(U * (g_t^{i-1} + h_{t-1}) + V * x_t + b) − α·(g_t^{i-1} + h_{t-1}))

    This cell takes K = 1, one evaluation of V and U a step as in all other cells:

        h_t = η·(tanh(V * x_t + U * h_{t-1} + b) − α·h_{t-1}),  h_0 = 0

    η (`eta`) and α (`alpha`) are learned scalars, one half at the beginning.
    """

    name = "incremental-rnn"
    biased = True

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.u = self.kernel(group_out, group_out)
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.eta = nn.Parameter(torch.tensor(0.5))

    def derived(self) -> Mapping[str, Tensor]:
        return {
            "eta_gain": self.eta.expand(self.group_out),
            "leak_gain": (-self.eta * self.alpha).expand(self.group_out),
        }

    def step(self, term: Tensor, state: State | None) -> State:
        if state is None:
            return (self.eta * torch.tanh(term),)
        new = torch.tanh(term + self.recur(state[0], self.u))
        return (self.eta * (new - self.alpha * state[0]),)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        if state is None:
            return (builder.scale(builder.tanh(term), builder.weight(f"{scope}.eta_gain")),)
        term = builder.add(term, self.lower_recur(builder, state[0], f"{scope}.u"))
        new = builder.scale(builder.tanh(term), builder.weight(f"{scope}.eta_gain"))
        return (builder.add(new, builder.scale(state[0], builder.weight(f"{scope}.leak_gain"))),)
