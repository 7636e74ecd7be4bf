"""Networks that tests export: small, odd, and none of them shipped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from csr_deploy.models import architecture
from csr_deploy.models.mobilenet import InvertedResidual
from csr_deploy.nn import CSRConv2d, csrify


def settle(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Gives BatchNorms statistics and gains that a trained network might have."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(torch.randn(16, *shape[1:]))
    return model.eval()


class OneLayer(nn.Module):
    """Convolution, CSR-Conv, BatchNorm, ReLU, mean, linear."""

    def __init__(self, layer: CSRConv2d, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, layer.in_channels, 3, padding=1)
        self.csr = layer
        self.bn = nn.BatchNorm2d(layer.out_channels)
        self.head = nn.Linear(layer.out_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.csr(torch.relu(self.stem(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Bottlenecks(nn.Module):
    """Blocks of MobileNet-V2, with 1×1 CSR-Convs: 17 untrained ones would make noise of rounding errors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.blocks = nn.Sequential(
            InvertedResidual(16, 8, 1, 2), InvertedResidual(8, 14, 6, 2), InvertedResidual(14, 14, 6, 1)
        )
        self.head = nn.Sequential(nn.Conv2d(14, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU6())
        self.fc = nn.Linear(40, 10)
        steps = {f"blocks.{b}.{c}": t for b in (1, 2) for c, t in (("expand", 3), ("project", 4))}
        csrify(self, {**steps, "head.0": 4})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return out


class Odd(nn.Module):
    """Everything the capture knows, in one network: no shipped architecture looks like this."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 5, stride=2, padding=2), nn.BatchNorm2d(12), nn.ReLU6())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(12, 24, (3, 5), padding=(1, 2), groups=12)
        self.dilated = nn.Conv2d(24, 10, 3, padding=2, dilation=2)
        self.csr = nn.Conv2d(22, 17, 3, padding=1)
        self.average = nn.AvgPool2d(3, 1, 1)
        self.gate = nn.Conv2d(17, 17, 1)
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(17 * 3 * 2, 12)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)
        csrify(self, ["csr"], 4, channel_fill="wrap")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = nn.functional.hardswish(self.grouped(x)) + 0.5
        left, right = self.depthwise(x).chunk(2, dim=1)
        y = nn.functional.silu(self.dilated(torch.cat([torch.sigmoid(left), right], 1)))
        x = torch.cat([y, x[:, :12]], 1)
        x = self.average(self.csr(x))
        x = x * nn.functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = nn.functional.adaptive_avg_pool2d(torch.tanh(x), (3, 2))
        # Behind a ReLU a BatchNorm cannot be folded into the linear layer.
        x = self.norm(torch.relu(self.hidden(self.dropout(x).flatten(1))))
        out: Tensor = self.head(x)
        return out


class Curved(nn.Module):
    """Activations with a negative side, and pools beyond TFLite: in ceil mode, padded, uncounted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1)
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.first = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.PReLU(16))
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.ceil = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.third = nn.Sequential(nn.Conv2d(16, 17, 3, padding=1), nn.BatchNorm2d(17), nn.PReLU(17))
        self.fourth = nn.Sequential(nn.Conv2d(17, 17, 3, padding=1), nn.BatchNorm2d(17), nn.PReLU())
        self.average = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.hidden = nn.Sequential(nn.Linear(17, 12), nn.PReLU(12))
        self.head = nn.Linear(12, 5)
        csrify(self, ["first.0", "second.0", "third.0", "fourth.0"], 4)
        for module in self.modules():
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, -0.2, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.pool(self.stem(x)))
        x = self.ceil(nn.functional.leaky_relu(x + self.second(x), 0.3))
        x = self.average(self.fourth(self.third(x))).mean((2, 3))
        out: Tensor = self.head(self.hidden(x))
        return out


def _vgg() -> nn.Module:
    return settle(architecture("vgg16-csr4").build(), (1, 3, 32, 32))


def _resnet() -> nn.Module:
    return settle(architecture("resnet20", modules=5, num_steps=3).build(), (1, 3, 32, 32))


def _bottlenecks() -> nn.Module:
    return settle(Bottlenecks(), (1, 3, 32, 32))


def _odd() -> nn.Module:
    return settle(Odd(), (1, 3, 24, 16))


def _curved() -> nn.Module:
    torch.manual_seed(0)
    return settle(Curved(), (1, 3, 24, 18))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet20-5x3": (_resnet, (3, 32, 32)),
    "bottlenecks": (_bottlenecks, (3, 32, 32)),
    "odd": (_odd, (3, 24, 16)),
    "curved": (_curved, (3, 24, 18)),
    "vgg16-csr4": (_vgg, (3, 32, 32)),
}
"""Name → (builder, (C, H, W))."""
