"""Gated recurrent unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class GruCell(ConvolvedInputCell):
    """Gated recurrent unit (Cho et al. 2014), with convolutions as in Ballas et al. 2016.

        z_t = σ(V_z * x_t + U_z * h_{t-1} + b_z)
        r_t = σ(V_r * x_t + U_r * h_{t-1} + b_r)
        n_t = tanh(V_n * x_t + U_n * (r_t ∘ h_{t-1}) + b_n)
        h_t = z_t ∘ h_{t-1} + (1 − z_t) ∘ n_t = n_t + z_t ∘ (h_{t-1} − n_t),  h_0 = 0

    `v` holds V_z, V_r, V_n and `b` their biases; `u` holds U_z and U_r, `u_n` is U_n. At t = 1 there is
    nothing to reset: h_1 = n_1 − z_1 ∘ n_1.
    """

    name = "gru"
    gates = 3
    biased = True

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.u = self.kernel(2 * group_out, group_out)
        self.u_n = self.kernel(group_out, group_out)

    def step(self, term: Tensor, state: State | None) -> State:
        size = self.group_out
        if state is None:
            update = torch.sigmoid(term[:, :size])
            new = torch.tanh(term[:, 2 * size :])
            return (new - update * new,)
        (h,) = state
        gates = torch.sigmoid(term[:, : 2 * size] + self.recur(h, self.u))
        update, reset = gates[:, :size], gates[:, size:]
        new = torch.tanh(term[:, 2 * size :] + self.recur(reset * h, self.u_n))
        return (new + update * (h - new),)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        size = self.group_out
        candidate = builder.channels(term, 2 * size, 3 * size)
        if state is None:
            update = builder.sigmoid(builder.channels(term, 0, size))
            new = builder.tanh(candidate)
            return (builder.sub(new, builder.mul(update, new)),)
        (h,) = state
        recurrent = self.lower_recur(builder, h, f"{scope}.u")
        # Both gates go through one sigmoid before they are taken apart.
        gates = builder.sigmoid(builder.add(builder.channels(term, 0, 2 * size), recurrent))
        update, reset = builder.channels(gates, 0, size), builder.channels(gates, size, 2 * size)
        kept = self.lower_recur(builder, builder.mul(reset, h), f"{scope}.u_n")
        new = builder.tanh(builder.add(candidate, kept))
        return (builder.add(new, builder.mul(update, builder.sub(h, new))),)
