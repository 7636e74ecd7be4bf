"""Lipschitz RNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class LipschitzRnnCell(ConvolvedInputCell):
    """Lipschitz RNN (Erichson et al., ICLR 2021, Eq. 3 and 4), by the explicit Euler method.

        h_t = h_{t-1} + ε·A * h_{t-1} + ε·tanh(W * h_{t-1} + V * x_t + b),  h_0 = 0
        A = (1 − β)(M_A + M_Aᵀ) + β(M_A − M_Aᵀ) − γI,  W likewise of M_W

    Mᵀ is the adjoint of the convolution with M: in and out channels exchanged and the kernel turned round.
    β = 0.75 and γ = 0.001 are among the values that the authors use. Their step ε of 0.03 is for hundreds
    of steps; here there are two to nine, and ε = 0.5. In a static graph I + εA is one kernel.
    """

    name = "lipschitz-rnn"
    biased = True
    beta: ClassVar[float] = 0.75
    gamma: ClassVar[float] = 0.001
    epsilon: ClassVar[float] = 0.5

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.m_a = self.kernel(group_out, group_out)
        self.m_w = self.kernel(group_out, group_out)

    def _identity(self, like: Tensor) -> Tensor:
        """The kernel that leaves a state as it is."""
        kernel = torch.zeros_like(like)
        rows, cols = self.recurrent_padding
        index = torch.arange(self.group_out, device=like.device)
        kernel[index, index, rows, cols] = 1.0
        return kernel

    def _combined(self, m: Tensor) -> Tensor:
        """A of M_A, or W of M_W."""
        adjoint = m.transpose(0, 1).flip(2, 3)
        symmetric, skew = m + adjoint, m - adjoint
        return (1 - self.beta) * symmetric + self.beta * skew - self.gamma * self._identity(m)

    def derived(self) -> Mapping[str, Tensor]:
        return {
            "transition": self._identity(self.m_a) + self.epsilon * self._combined(self.m_a),
            "w": self._combined(self.m_w),
            "epsilon_gain": self.m_a.new_full((self.group_out,), self.epsilon),
        }

    def step(self, term: Tensor, state: State | None) -> State:
        if state is None:
            return (self.epsilon * torch.tanh(term),)
        (h,) = state
        new = torch.tanh(term + self.recur(h, self._combined(self.m_w)))
        return (h + self.epsilon * self.recur(h, self._combined(self.m_a)) + self.epsilon * new,)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        gain = builder.weight(f"{scope}.epsilon_gain")
        if state is None:
            return (builder.scale(builder.tanh(term), gain),)
        term = builder.add(term, self.lower_recur(builder, state[0], f"{scope}.w"))
        moved = self.lower_recur(builder, state[0], f"{scope}.transition")
        return (builder.add(moved, builder.scale(builder.tanh(term), gain)),)
