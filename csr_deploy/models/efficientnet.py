"""EfficientNet-B0 (Tan and Le 2019), with torchvision's names of modules and parameters.

With 1,000 classes it has 5,288,548 parameters. EfficientNet-Lite0, which quantises better and is faster on
small devices, is `csr_deploy.models.efficientnet_lite`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csr_deploy.models.modules import DropPath, conv_norm, last_modules, scaled_width

_STAGES = (
    (1, 16, 3, 1),
    (6, 24, 3, 2),
    (6, 40, 5, 2),
    (6, 80, 3, 2),
    (6, 112, 5, 1),
    (6, 192, 5, 2),
    (6, 320, 3, 1),
)
"""(expansion factor, output channels, kernel, stride of the first block): Tan and Le 2019, table 1."""
B0_REPEATS = (1, 2, 2, 3, 3, 4, 1)


class SqueezeExcitation(nn.Module):
    """A gain a channel, computed from the channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU()
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, H, W]."""
        gains: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return x * gains


class MBConv(nn.Module):
    """1×1 expansion where there is one, depth-wise convolution, squeeze-excite, linear 1×1 projection."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int, drop: float
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [conv_norm(in_channels, hidden, 1, activation=nn.SiLU)] if expansion != 1 else []
        self.block = nn.Sequential(
            *expand,
            conv_norm(hidden, hidden, kernel, stride, groups=hidden, activation=nn.SiLU),
            SqueezeExcitation(hidden, max(1, in_channels // 4)),
            conv_norm(hidden, out_channels, 1),
        )
        self.stochastic_depth = DropPath(drop)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] → [N, C_out, H/stride, W/stride]."""
        y: Tensor = self.block(x)
        return x + self.stochastic_depth(y) if self.shortcut else y


class EfficientNet(nn.Module):
    """EfficientNet-B0, for pictures of 224×224 or any other size from 32×32 on.

    Shapes:
        input [N, C, H, W] → logits [N, num_classes].
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        repeats: Sequence[int] = B0_REPEATS,
        dropout: float = 0.2,
        drop_path: float = 0.2,
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            width: Factor of all channels, rounded to multiples of 8.
            repeats: Blocks of each of the seven stages.
            dropout: Share of the features dropped before the classifier, in training.
            drop_path: Share of images for which the last block is left out, in training; less for those
                before it, in proportion.
        """
        super().__init__()
        channels = scaled_width(32 * width)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, 2, activation=nn.SiLU)]
        count = 0
        for (expansion, full, kernel, stride), repeat in zip(_STAGES, repeats, strict=True):
            stage: list[nn.Module] = []
            for index in range(repeat):
                rate = drop_path * count / sum(repeats)
                wide = scaled_width(full * width)
                first = stride if index == 0 else 1
                stage.append(MBConv(channels, wide, expansion, kernel, first, rate))
                channels, count = wide, count + 1
            layers.append(nn.Sequential(*stage))
        head = 4 * channels
        layers.append(conv_norm(channels, head, 1, activation=nn.SiLU))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                bound = module.out_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        out: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """Of each of the last `modules` blocks the expansion, the squeeze and the projection.

        The convolution behind the squeeze stays as it is: from 48 to 1,152 channels, U alone is larger.

        Raises:
            ModelError: If there are not that many blocks.
        """
        blocks = {name: module for name, module in self.named_modules() if isinstance(module, MBConv)}
        layers = []
        for name in last_modules(list(blocks), modules):
            expands = len(blocks[name].block) == 4
            layers += [f"{name}.block.0.0"] if expands else []
            layers += [f"{name}.block.{1 + expands}.fc1", f"{name}.block.{2 + expands}.0"]
        return layers

    def csr_kind(self, layer: str) -> str:
        """Of a layer of `csr_layers`: "expand", "squeeze" or "project"."""
        part, last = layer.split(".")[-2:]
        if last == "fc1":
            return "squeeze"
        return "expand" if part == "0" else "project"
