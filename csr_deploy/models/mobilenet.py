"""MobileNet-V2 (Sandler et al. 2018) for small images, in the form that the paper's authors released.

It differs from the ImageNet network in three ways: the stem and the stages of 24 and 32 channels keep the
size (32×32 pictures reach the head as 8×8), and the first block has an expansion too, of 32 to 32 channels.
With 10 classes it has 2,237,770 parameters (Table 2: 2.24 M).

Table 2 gives one T a row and does not say which of a block's convolutions it holds for. No one reading
reaches all its counts. The presets use these, in which projections and H always have the printed T; E and P
are T of the expansions and of the projections, and 18 modules are the 17 blocks and the 1×1 convolution
behind them (H):

| preset | modules | E, P, H | ours, M | Table 2, M | ours, % | Table 2, % | E = P = H = T, M |
|---|---|---|---|---|---|---|---|
| `mobilenetv2-csr1` | 4 | 1, 3, 1 | 1.631 | 1.65 | 27.1 | 26.4 | 1.517 |
| `mobilenetv2-csr2` | 7 | 1, 3, 1 | 1.503 | 1.47 | 32.9 | 34.3 | 1.359 |
| `mobilenetv2-csr3` | 17 | 3, 3, 1 | 1.242 | 1.25 | 44.5 | 44.1 | 1.242 |
| `mobilenetv2-csr4` | 18 | 3, 3, 3 | 1.060 | 1.09 | 52.6 | 51.4 | 1.060 |
| `mobilenetv2-csr5` | 18 | 3, 4, 4 | 0.900 | 0.95 | 59.8 | 57.3 | 0.644 |

E = 3 and P = 4 is what the released notebook has, and what the ImageNet rows of T = 4 were counted with:
2 and 12 blocks have 3.01 M and 2.47 M parameters, as printed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csr_deploy.models.modules import last_modules

_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""(expansion factor, output channels, blocks): Sandler et al. 2018, table 2."""
CIFAR_STRIDES = (1, 1, 1, 2, 1, 2, 1)
"""Stride of each stage's first block, as released."""


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depth-wise convolution, linear 1×1 projection; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU6()
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] → [N, C_out, H/stride, W/stride]."""
        y = self.relu(self.bn1(self.expand(x)))
        y = self.relu(self.bn2(self.depthwise(y)))
        y = self.bn3(self.project(y))
        out: Tensor = x + y if self.shortcut else y
        return out


class CifarMobileNetV2(nn.Module):
    """MobileNet-V2 with a stem of stride 1.

    Shapes:
        input [N, C, H, W] → logits [N, num_classes].
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        head_channels: int = 1280,
        strides: Sequence[int] = CIFAR_STRIDES,
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            width: Factor of all channels but the head's; what it leaves of a channel is cut off.
            head_channels: Output channels of the last 1×1 convolution.
            strides: Of the first block of each of the seven stages.
        """
        super().__init__()
        channels = int(32 * width)
        self.stem = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks: list[nn.Module] = []
        for (expansion, full, count), stride in zip(_STAGES, strides, strict=True):
            for index in range(count):
                wide = int(full * width)
                blocks.append(InvertedResidual(channels, wide, expansion, stride if index == 0 else 1))
                channels = wide
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, head_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head_channels)
        self.relu = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(head_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.blocks(self.relu(self.bn1(self.stem(x))))
        x = self.relu(self.bn2(self.head(x)))
        out: Tensor = self.fc(self.pool(x).flatten(1))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """Expansions and projections of the last `modules` blocks.

        Table 2 counts up to 18 modules, one more than there are blocks: with all of them, the 1×1
        convolution behind the blocks is one too.

        Raises:
            ModelError: If there are not that many modules.
        """
        blocks = [f"blocks.{name}" for name, _ in self.blocks.named_children()]
        chosen = last_modules(["head", *blocks], modules)
        return [
            layer
            for module in chosen
            for layer in ((module,) if module == "head" else (f"{module}.expand", f"{module}.project"))
        ]
