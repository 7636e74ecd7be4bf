"""MobileNet-V2 in the layout of the paper's authors, restated from the published description.

Plain modules in `nn.Sequential`s, the recurrence written out step by step, `param_u` for V and `param_v` for
U, the missing input channels filled by wrapping round.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Recurrent(nn.Module):
    """h_1 = V x_1, h_t = α relu(V x_t + U h) − β U h + U h; the first C_out channels."""

    def __init__(self, channels: int, out: int, kernel: int, steps: int, stride: int = 1) -> None:
        super().__init__()
        self.steps, self.out, self.stride, self.padding = steps, out, stride, kernel // 2
        self.d, self.size = math.ceil(channels / steps), math.ceil(out / steps)
        self.param_u = nn.Parameter(0.3 * torch.randn(self.size, self.d, kernel, kernel))
        self.param_v = nn.Parameter(0.3 * torch.randn(self.size, self.size, kernel, kernel))
        self.alpha = nn.Parameter(torch.tensor(0.9))
        self.beta = nn.Parameter(torch.tensor(0.6))
        self.groups = (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x], dim=1)[:, : self.d * self.steps]
        h: Tensor | None = None
        states = []
        for part in torch.split(x, self.d, dim=1):
            v = F.conv2d(part, self.param_u, None, self.stride, self.padding, 1, self.groups[0])
            if h is None:
                h = v
            else:
                u = F.conv2d(h, self.param_v, None, 1, self.padding, 1, self.groups[1])
                h = self.alpha * torch.relu(v + u) - self.beta * u + u
            states.append(h)
        return torch.cat(states, dim=1)[:, : self.out]


class DepthwiseRecurrent(Recurrent):
    """The same with depth-wise kernels."""

    def __init__(self, channels: int, kernel: int, steps: int, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel, steps, stride)
        self.param_u = nn.Parameter(0.3 * torch.randn(self.size, 1, kernel, kernel))
        self.param_v = nn.Parameter(0.3 * torch.randn(self.size, 1, kernel, kernel))
        self.groups = (self.d, self.size)


Layer = Callable[[int, int, int], nn.Module]
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def pointwise(channels: int, out: int, steps: int) -> nn.Module:
    if steps == 1:
        return nn.Conv2d(channels, out, 1, bias=False)
    return Recurrent(channels, out, 1, steps)


def depthwise(channels: int, stride: int, steps: int) -> nn.Module:
    if steps == 1:
        return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return DepthwiseRecurrent(channels, 3, steps, stride)


class Block(nn.Module):
    """An inverted residual; `steps` are T of expansion, depth-wise convolution and projection."""

    def __init__(
        self, channels: int, out: int, expansion: int, stride: int, steps: tuple[int, int, int], always: bool
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1 or always:
            layers += [pointwise(channels, hidden, steps[0]), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [depthwise(hidden, stride, steps[1]), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [pointwise(hidden, out, steps[2]), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*layers)
        self.identity = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.identity else y


class AuthorsMobileNetV2(nn.Module):
    """`features`, `conv` and `classifier`; `cifar` is the form with a stem of stride 1.

    Args:
        cifar: Expand in the first block too, and keep the size for longer.
        blocks: The blocks, counted from 0, whose convolutions are CSR-Convs.
        steps: T of their expansions, depth-wise convolutions and projections.
        classes: Number of logits.
    """

    def __init__(
        self, cifar: bool, blocks: range, steps: tuple[int, int, int] = (3, 1, 4), classes: int = 10
    ) -> None:
        super().__init__()
        strides = (1, 1, 1, 2, 1, 2, 1) if cifar else (1, 2, 2, 2, 1, 2, 1)
        stem = nn.Conv2d(3, 32, 3, 1 if cifar else 2, 1, bias=False)
        layers: list[nn.Module] = [nn.Sequential(stem, nn.BatchNorm2d(32), nn.ReLU6())]
        channels = 32
        for (expansion, out, count), first in zip(STAGES, strides, strict=True):
            for index in range(count):
                chosen = steps if len(layers) - 1 in blocks else (1, 1, 1)
                stride = first if index == 0 else 1
                layers.append(Block(channels, out, expansion, stride, chosen, always=cifar))
                channels = out
        head = nn.Conv2d(channels, 1280, 1, bias=False)
        layers.append(nn.Sequential(head, nn.BatchNorm2d(1280), nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out
