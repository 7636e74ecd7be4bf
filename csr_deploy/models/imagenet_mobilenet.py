"""MobileNet-V2 for ImageNet (Sandler et al. 2018), with torchvision's names of modules and parameters.

With 1,000 classes it has 3,504,872 parameters. The form for small images is `csr_deploy.models.mobilenet`.
"""

from __future__ import annotations

from torch import Tensor, nn

from csr_deploy.models.modules import conv_norm, last_modules, scaled_width

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion factor, output channels, blocks, stride of the first): Sandler et al. 2018, table 2."""


class InvertedResidual(nn.Module):
    """1×1 expansion where there is one, 3×3 depth-wise convolution, linear 1×1 projection."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm(in_channels, hidden, 1, activation=nn.ReLU6))
        self.conv = nn.Sequential(
            *layers,
            conv_norm(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.expands = expansion != 1
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] → [N, C_out, H/stride, W/stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class ImageNetMobileNetV2(nn.Module):
    """The network, for pictures of 224×224 or any other size from 32×32 on.

    Shapes:
        input [N, C, H, W] → logits [N, num_classes].
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            width: Factor of all channels, rounded to multiples of 8; below 1 the head's 1280 stay.
            dropout: Share of the features dropped before the classifier, in training.
        """
        super().__init__()
        channels = scaled_width(32 * width)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, 2, activation=nn.ReLU6)]
        for expansion, full, count, stride in _STAGES:
            for index in range(count):
                wide = scaled_width(full * width)
                layers.append(InvertedResidual(channels, wide, expansion, stride if index == 0 else 1))
                channels = wide
        head = scaled_width(1280 * max(1.0, width))
        layers.append(conv_norm(channels, head, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        out: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """Expansions and projections of the last `modules` blocks; with all 18 modules, the head too.

        Raises:
            ModelError: If there are not that many modules.
        """
        head = f"features.{len(self.features) - 1}"
        names = {head: [f"{head}.0"]}
        for index, block in enumerate(self.features):
            if isinstance(block, InvertedResidual):
                project = f"features.{index}.conv.{2 if block.expands else 1}"
                expand = [f"features.{index}.conv.0.0"] if block.expands else []
                names[f"features.{index}"] = [*expand, project]
        return [layer for module in last_modules(list(names), modules) for layer in names[module]]

    def csr_kind(self, layer: str) -> str:
        """Of a layer of `csr_layers`: "expand", "project" or "head"."""
        parts = layer.split(".")
        if parts[2] != "conv":
            return "head"
        return "expand" if len(parts) == 5 else "project"
