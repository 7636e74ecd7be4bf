"""Small networks that tests of the cells and of the operations they brought export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csr_deploy.nn import CELLS, csrify


class TwoLayers(nn.Module):
    """Two CSR-Convs in a row, the second one with a stride; T divides neither."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        groups = 16 if CELLS[cell].depthwise else 1
        self.first = nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, 2, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)
        csrify(self, ["first", "second"], 3, cell=cell)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.first(self.stem(x))))
        x = torch.relu(self.bn2(self.second(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Differences(nn.Module):
    """Subtractions and divisions as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("mean", torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.first(x), torch.sigmoid(self.second(x))
        y = (a - gate) * (1 - gate) - self.mean  # type: ignore[operator]
        y = (self.mean - y - 0.25) / 3  # type: ignore[operator]
        y = y - gate.mean((2, 3), keepdim=True)
        return y.mean((2, 3))
