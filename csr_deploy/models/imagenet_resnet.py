"""ResNet-50 for ImageNet (He et al. 2016) in the form of torchvision: the stride is in the 3×3 convolution.

Modules and parameters are named as in torchvision and timm, so that weights saved by either load as they are.
With 1,000 classes it has 25,557,032 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csr_deploy.models.modules import last_modules

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution; the shortcut is a 1×1 convolution where the shape changes."""

    downsample: nn.Module | None

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] → [N, 4·width, H/stride, W/stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


class ImageNetResNet(nn.Module):
    """Four stages of bottleneck blocks; (3, 4, 6, 3) blocks are ResNet-50.

    Shapes:
        input [N, C, H, W] with H, W ≥ 32 → logits [N, num_classes].
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            blocks: Blocks of each of the four stages.
            width: Channels of the stem and of the first stage's 3×3 convolutions.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        stages = []
        for stage, count in enumerate(blocks):
            inner, layers = width * 2**stage, []
            for index in range(count):
                layers.append(Bottleneck(channels, inner, 2 if stage and index == 0 else 1))
                channels = inner * _EXPANSION
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                # Each block starts as the identity (Goyal et al. 2017), as in the CIFAR ResNets here.
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(self.avgpool(x).flatten(1))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """The three convolutions of each of the last `modules` blocks; shortcuts stay as they are.

        Raises:
            ModelError: If there are not that many blocks.
        """
        blocks = [name for name, module in self.named_modules() if isinstance(module, Bottleneck)]
        return [f"{b}.{conv}" for b in last_modules(blocks, modules) for conv in ("conv1", "conv2", "conv3")]
