"""The CIFAR ResNet family (He et al. 2016, section 4.2): depth 6n + 2."""

from __future__ import annotations

from torch import Tensor, nn

from csr_deploy.errors import ModelError
from csr_deploy.models.modules import last_modules


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut.

    Where the shape changes, the shortcut subsamples and pads with channels of zeros (option A), or it is a
    1×1 convolution with a BatchNorm (option B).
    """

    shortcut: nn.Module | None

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, projection: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.stride = stride
        self.widen = out_channels - in_channels
        self.shortcut = None
        if projection and (stride != 1 or self.widen):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] → [N, C_out, H/stride, W/stride]."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            projected: Tensor = self.relu(out + self.shortcut(x))
            return projected
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.widen:
            before = self.widen // 2
            x = nn.functional.pad(x, (0, 0, 0, 0, before, self.widen - before))
        y: Tensor = self.relu(out + x)
        return y


class CifarResNet(nn.Module):
    """ResNet-(6n + 2) with 16, 32 and 64 channels.

    Shapes:
        input [N, C, H, W] → logits [N, num_classes].
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, projections: bool = False
    ) -> None:
        """Builds the network.

        Args:
            depth: 6n + 2: 20, 32, 44, 56, 110, …
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            projections: Option-B shortcuts instead of option A.

        Raises:
            ModelError: If the depth is not of the family.
        """
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ModelError(f"no CIFAR ResNet has depth {depth}", fix="Use 6n + 2: 20, 32, 44, 56 or 110.")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        channels = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, projection=projections))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                # Each block starts as the identity (Goyal et al. 2017): without it CSR networks start badly
                # at the learning rates of the short recipe.
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(self.pool(x).flatten(1))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """Convolutions of the last `modules` residual blocks, the "CSR-Conv modules" of Table 2.

        Raises:
            ModelError: If there are not that many blocks.
        """
        blocks = [n for n, m in self.named_modules() if isinstance(m, BasicBlock)]
        return [f"{b}.{conv}" for b in last_modules(blocks, modules) for conv in ("conv1", "conv2")]
