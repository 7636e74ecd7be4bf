"""VGG-16 for small images, after Simonyan & Zisserman (2015) with BatchNorm, as counted in Table 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csr_deploy.models.modules import last_modules

VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_POOL_AFTER = (1, 3, 6, 9)


class VGG16(nn.Module):
    """13 convolutions 3×3 with BatchNorm, four 2×2 max-pools, global average, 512 → 512 → classes.

    No layer has a bias: the paper's Table 1 counts the classifier as 512·512 + 512·10 = 267,264.

    Shapes:
        input [N, C, H, W] with H, W ≥ 16 → logits [N, num_classes].
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = VGG16_WIDTHS,
        hidden: int = 512,
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            widths: Output channels of conv 1–13; CSR-Conv-4 of Table 1 widens conv 5 to 260.
            hidden: Width of the classifier's hidden layer.
        """
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for index, width in enumerate(widths):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            if index in _POOL_AFTER:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes, bias=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        out: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """Names of the last `modules` convolutions, the "CSR-Conv modules" of Table 2.

        Raises:
            ModelError: If there are not that many convolutions.
        """
        convs = [f"features.{n}" for n, m in self.features.named_children() if isinstance(m, nn.Conv2d)]
        return list(last_modules(convs, modules))
