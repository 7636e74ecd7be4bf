"""Long short-term memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class LstmCell(ConvolvedInputCell):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

        i_t, f_t, o_t = σ(V_i,f,o * x_t + U_i,f,o * h_{t-1} + b_i,f,o)
        g_t = tanh(V_g * x_t + U_g * h_{t-1} + b_g)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        h_t = o_t ∘ tanh(c_t),  h_0 = c_0 = 0

    The convolutional form is that of Shi et al. 2015 without peepholes. `v`, `u` and `b` hold the four in
    this order: i, f, o, g. The forget gate's bias begins at 1 (Jozefowicz et al. 2015).
    """

    name = "lstm"
    gates = 4
    biased = True

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.u = self.kernel(4 * group_out, group_out)
        assert self.b is not None
        with torch.no_grad():
            self.b[group_out : 2 * group_out].fill_(1.0)

    def step(self, term: Tensor, state: State | None) -> State:
        size = self.group_out
        if state is not None:
            term = term + self.recur(state[0], self.u)
        gates = torch.sigmoid(term[:, : 3 * size])
        inner, forget, outer = torch.chunk(gates, 3, dim=1)
        memory = inner * torch.tanh(term[:, 3 * size :])
        if state is not None:
            memory = forget * state[1] + memory
        return outer * torch.tanh(memory), memory

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        size = self.group_out
        if state is not None:
            term = builder.add(term, self.lower_recur(builder, state[0], f"{scope}.u"))
        # All gates go through one sigmoid before they are taken apart.
        gates = builder.sigmoid(builder.channels(term, 0, 3 * size))
        inner, forget, outer = (builder.channels(gates, i * size, (i + 1) * size) for i in range(3))
        memory = builder.mul(inner, builder.tanh(builder.channels(term, 3 * size, 4 * size)))
        if state is not None:
            memory = builder.add(builder.mul(forget, state[1]), memory)
        return builder.mul(outer, builder.tanh(memory)), memory
