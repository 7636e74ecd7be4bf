"""The baseline without a recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, State

if TYPE_CHECKING:
    from csr_deploy.unroll.builder import GraphBuilder


class SharedGroupConvCell(ConvolvedInputCell):
    """h_t = relu(V * x_t): a group convolution whose T groups share one kernel (baseline of Table 4).

    Nothing passes from one group to the next, so kernels may have even sizes.
    """

    name = "s-groupconv"
    recurrent = False
    fan_gain = 2.0

    def step(self, term: Tensor, state: State | None) -> State:
        return (torch.relu(term),)

    def lower_step(self, builder: GraphBuilder, scope: str, term: str, state: Names | None) -> Names:
        return (builder.relu(term),)
