"""CSR-Conv: a convolution as a weight-shared recurrence over groups of its channels."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from csr_deploy.errors import ModelError
from csr_deploy.nn.cells import Pair, State, find_cell

ChannelFill = Literal["zero", "wrap"]


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class CSRConv2d(nn.Module):
    """Channel-split recurrent convolution (Wu et al., WACV 2023, Eq. 2).

    The C_in input channels are split into T groups x_1..x_T of d = ceil(C_in / T) channels and

        h_t = relu(V * x_t + U * h_{t-1}),  h_0 = 0,  t = 1..T

    with V: [D, d, kh, kw] and U: [D, D, kh, kw] shared by all steps, D = ceil(C_out / T). The result is
    the concatenation of h_1..h_T, cut to C_out channels. Other recurrences than this one are other cells,
    see `csr_deploy.nn.cells`. With T = 1 there is no recurrence, and with any cell it is `nn.Conv2d`
    without bias, depth-wise for a depth-wise cell.

    Attributes:
        group_in: d.
        group_out: D.
        used_steps: Steps whose state has a channel among the first C_out; later ones are not computed.

    Shapes:
        input [N, C_in, H, W] → output [N, C_out, H', W'], H' and W' as for `nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        num_steps: int,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        *,
        bias: bool = False,
        channel_fill: ChannelFill = "zero",
        cell: str = "vanilla",
    ) -> None:
        """Builds the layer.

        Args:
            in_channels: C_in.
            out_channels: C_out.
            kernel_size: Kernel size of V and U; odd where there is a U, which keeps the size of h.
            num_steps: T, the number of channel groups.
            stride: Stride of V.
            padding: Zero padding of V.
            bias: Adds a bias [C_out] to the concatenated states. The paper's layers have none.
            channel_fill: What fills the last group where T does not divide C_in: zeros, or the first
                channels again as in the authors' released module.
            cell: Name of the step cell, a key of `csr_deploy.nn.cells.CELLS`.

        Raises:
            ModelError: If the configuration cannot be built.
        """
        super().__init__()
        kernel_size, stride, padding = _pair(kernel_size), _pair(stride), _pair(padding)
        if num_steps < 1:
            raise ModelError(f"num_steps (T) is {num_steps}", fix="T counts channel groups: give T ≥ 1.")
        if num_steps > min(in_channels, out_channels):
            raise ModelError(
                f"num_steps (T = {num_steps}) is larger than the channels "
                f"({in_channels} in, {out_channels} out)",
                fix=f"Give T ≤ {min(in_channels, out_channels)}.",
            )
        if channel_fill not in get_args(ChannelFill):
            raise ModelError(f"unknown channel_fill '{channel_fill}'", fix="Use 'zero' or 'wrap'.")
        make_cell = find_cell(cell)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.num_steps = num_steps
        self.stride = stride
        self.padding = padding
        self.channel_fill: ChannelFill = channel_fill
        self.cell_name = cell
        self.group_in = math.ceil(in_channels / num_steps)
        self.group_out = math.ceil(out_channels / num_steps)
        # Rounding D up can leave the last states without a channel among the first C_out (5 channels in
        # 4 steps: D = 2, and the third state is the last one seen).
        self.used_steps = math.ceil(out_channels / self.group_out)
        if num_steps == 1:
            groups = in_channels if make_cell.depthwise else 1
            if out_channels % groups:
                raise ModelError(
                    f"{out_channels} channels are no multiple of {in_channels}, as a depth-wise cell needs",
                    fix="Use it where a layer has as many output channels as input channels.",
                )
            self.conv = nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
            )
        else:
            self.cell = make_cell(self.group_in, self.group_out, kernel_size, stride, padding)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def split(self, x: Tensor) -> Tensor:
        """Channel groups of the input, time in the batch axis: [N, C_in, H, W] → [N·T, d, H, W]."""
        n, c, h, w = x.shape
        fill = self.group_in * self.num_steps - c
        if fill:
            extra = x.new_zeros(n, fill, h, w) if self.channel_fill == "zero" else x[:, :fill]
            x = torch.cat([x, extra], dim=1)
        return x.reshape(n * self.num_steps, self.group_in, h, w)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer: [N, C_in, H, W] → [N, C_out, H', W']."""
        if self.num_steps == 1:
            out: Tensor = self.conv(x)
            return self._add_bias(out)
        # V of all T steps in one call: the recurrence itself only carries U.
        terms = self.cell.input_terms(self.split(x))
        steps = terms.reshape(x.shape[0], self.num_steps, *terms.shape[1:]).unbind(dim=1)
        state: State | None = None
        states = []
        for term in steps[: self.used_steps]:
            state = self.cell.step(term, state)
            states.append(state[0])
        # Cutting the last state, not the concatenation, keeps the result dense for what follows.
        excess = self.group_out * self.used_steps - self.out_channels
        if excess:
            states[-1] = states[-1][:, : self.group_out - excess]
        return self._add_bias(torch.cat(states, dim=1))

    def _add_bias(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"num_steps={self.num_steps}, stride={self.stride}, padding={self.padding}"
            + (f", channel_fill={self.channel_fill!r}" if self.channel_fill != "zero" else "")
            + (f", cell={self.cell_name!r}" if self.cell_name != "vanilla" else "")
        )


def parameter_ratio(group_in: int, group_out: int, num_steps: int) -> float:
    """λ_M of Prop. 1: CSR parameters over those of the plain convolution, C_in = dT and C_out = DT."""
    return (group_out + group_in) / (group_in * num_steps**2)
