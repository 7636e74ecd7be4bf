"""DenseNet for small images (Huang et al. 2017), without bottlenecks and without compression.

DenseNet-40 with growth 12 has 1,059,298 parameters with 10 classes (Table 2: 1.06 M). Its stem has twice the
growth rate of channels; with the 16 of the original text it would have 1.02 M.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from csr_deploy.errors import ModelError
from csr_deploy.models.modules import last_modules


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution whose channels are added behind those of the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C + growth, H, W]."""
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1×1 convolution and a 2×2 average between two dense blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, H/2, W/2]."""
        out: Tensor = self.pool(self.conv(self.relu(self.bn(x))))
        return out


class CifarDenseNet(nn.Module):
    """Three dense blocks of equal length: depth 3n + 4.

    Shapes:
        input [N, C, H, W] with H, W ≥ 4 → logits [N, num_classes].
    """

    def __init__(
        self, depth: int = 40, num_classes: int = 10, in_channels: int = 3, growth: int = 12
    ) -> None:
        """Builds the network.

        Args:
            depth: 3n + 4: 13, 22, 40, 100, ….
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            growth: Channels that each layer adds.

        Raises:
            ModelError: If the depth is not of the family.
        """
        super().__init__()
        if depth < 7 or (depth - 4) % 3:
            raise ModelError(f"no DenseNet has depth {depth}", fix="Use 3n + 4: 13, 22, 40 or 100.")
        channels = 2 * growth
        self.stem = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        for block in (1, 2, 3):
            layers = []
            for _ in range((depth - 4) // 3):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            setattr(self, f"block{block}", nn.Sequential(*layers))
            if block < 3:
                setattr(self, f"transition{block}", Transition(channels))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def _stages(self) -> Sequence[nn.Module]:
        names = ("block1", "transition1", "block2", "transition2", "block3")
        return [self.get_submodule(name) for name in names]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.stem(x)
        for stage in self._stages():
            x = stage(x)
        out: Tensor = self.fc(self.pool(self.relu(self.bn(x))).flatten(1))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """Convolutions of the last `modules` dense layers; the transitions stay as they are.

        Raises:
            ModelError: If there are not that many layers.
        """
        layers = [name for name, module in self.named_modules() if isinstance(module, DenseLayer)]
        return [f"{layer}.conv" for layer in last_modules(layers, modules)]
