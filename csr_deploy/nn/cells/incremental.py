"""The recurrence that the paper's authors released, and its depth-wise form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from csr_deploy.errors import ModelError
from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class IncrementalCell(ConvolvedInputCell):
    """The authors' released module, which differs from Eq. 2 of their paper.

        h_1 = V * x_1
        h_t = α·relu(V * x_t + U * h_{t-1}) − β·(U * h_{t-1}) + U * h_{t-1},  t = 2..T

    There is no activation on h_1 and none on the output; α (`alpha`) and β (`beta`) are learned scalars. Both
    begin at 1, where the recurrence is that of Eq. 2. In a static graph the last two terms are one,
    (1 − β)·(U * h_{t-1}). Their names: `param_u` is V, `param_v` is U.
    """

    name = "incremental"
    fan_gain = 2.0

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__(group_in, group_out, kernel_size, stride, padding)
        self.u = self.kernel(group_out, 1 if self.depthwise else group_out)
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.ones(()))

    def derived(self) -> Mapping[str, Tensor]:
        return {
            "alpha_gain": self.alpha.expand(self.group_out),
            "leak_gain": (1 - self.beta).expand(self.group_out),
        }

    def step(self, term: Tensor, state: State | None) -> State:
        if state is None:
            return (term,)
        recurrent = self.recur(state[0], self.u)
        return (self.alpha * torch.relu(term + recurrent) - self.beta * recurrent + recurrent,)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        if state is None:
            return (term,)
        recurrent = self.lower_recur(builder, state[0], f"{scope}.u")
        new = builder.relu(builder.add(term, recurrent))
        scaled = builder.scale(new, builder.weight(f"{scope}.alpha_gain"))
        return (builder.add(scaled, builder.scale(recurrent, builder.weight(f"{scope}.leak_gain"))),)


class DepthwiseIncrementalCell(IncrementalCell):
    """The same with depth-wise V [D, 1, kh, kw] and U [D, 1, kh, kw]: no channel meets another one.

    It takes the place of a depth-wise convolution. As V has D / d filters for each of the d channels of a
    group, D has to be a multiple of d.
    """

    name = "incremental-depthwise"
    depthwise = True

    def __init__(self, group_in: int, group_out: int, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
        if group_out % group_in:
            raise ModelError(
                f"a depth-wise cell cannot make states of {group_out} channels "
                f"from groups of {group_in} channels",
                fix="Use it where a layer has as many output channels as input channels.",
            )
        super().__init__(group_in, group_out, kernel_size, stride, padding)
