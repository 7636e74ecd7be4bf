"""EfficientNet-Lite0 (Liu 2020, TensorFlow's repository `tpu`), 4,652,008 parameters with 1,000 classes.

It is EfficientNet-B0 (Tan and Le 2019, table 1) without squeeze-and-excitation, with ReLU6 in place of swish,
and with a stem and a head whose width never scales: what quantises badly was left out. The released weights
were trained with TensorFlow's padding, which puts the odd row and column of a stride of 2 at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from csr_deploy.models.modules import last_modules

INPUT_SIZE = 224
INPUT_MEAN, INPUT_STD = 127 / 255, 128 / 255
"""Of the released weights, per channel and in units of 0..1."""
_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
"""(expansion factor, output channels, blocks, kernel, stride of the first block)."""
_STEM, _HEAD = 32, 1280
# TensorFlow's layers have this, not torch's 1e-5.
_EPSILON = 1e-3


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON, momentum=0.01)


def _pad_as_tensorflow(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Padding "same" of a strided convolution: the smaller half in front."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return nn.functional.pad(x, pads)


class MBConvLite(nn.Module):
    """1×1 expansion where there is one, depth-wise convolution, linear 1×1 projection, shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int, drop: float
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.stride = stride
        self.kernel = kernel
        if expansion != 1:
            self.expand = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self.bn0 = _norm(hidden)
        padding = kernel // 2 if stride == 1 else 0
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden, bias=False)
        self.bn1 = _norm(hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)
        self.relu = nn.ReLU6()
        self.drop = drop
        self.expands = expansion != 1
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] → [N, C_out, ⌈H/stride⌉, ⌈W/stride⌉]."""
        y = self.relu(self.bn0(self.expand(x))) if self.expands else x
        if self.stride != 1:
            y = _pad_as_tensorflow(y, self.kernel, self.stride)
        y = self.relu(self.bn1(self.depthwise(y)))
        out: Tensor = self.bn2(self.project(y))
        if not self.shortcut:
            return out
        if self.training and self.drop:
            # Stochastic depth: some pictures of a batch go round the block, the others are scaled up for it.
            kept = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop
            out = out * kept / (1 - self.drop)
        return x + out


class EfficientNetLite0(nn.Module):
    """The network, for pictures of 224×224 or any other size from 32×32 on.

    Shapes:
        input [N, C, H, W] → logits [N, num_classes].
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2, drop_connect: float = 0.0
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the input image.
            dropout: Share of the features dropped before the classifier, in training.
            drop_connect: Share of pictures that go round a block, in training: so many round the one that
                would follow the last, fewer round those before it, in proportion.
        """
        super().__init__()
        self.stem = nn.Conv2d(in_channels, _STEM, 3, 2, bias=False)
        self.bn0 = _norm(_STEM)
        channels, blocks = _STEM, list[nn.Module]()
        count = sum(stage[2] for stage in _STAGES)
        for expansion, out_channels, repeats, kernel, stride in _STAGES:
            for index in range(repeats):
                rate = drop_connect * len(blocks) / count
                first = stride if index == 0 else 1
                blocks.append(MBConvLite(channels, out_channels, expansion, kernel, first, rate))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, _HEAD, 1, bias=False)
        self.bn1 = _norm(_HEAD)
        self.relu = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(_HEAD, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.relu(self.bn0(self.stem(_pad_as_tensorflow(x, 3, 2))))
        x = self.blocks(x)
        x = self.relu(self.bn1(self.head(x)))
        out: Tensor = self.fc(self.dropout(self.pool(x).flatten(1)))
        return out

    def csr_layers(self, modules: int) -> list[str]:
        """Expansions and projections of the last `modules` blocks; the head too with one more than all 16.

        Raises:
            ModelError: If there are not that many modules.
        """
        names = {
            f"blocks.{i}": [f"blocks.{i}.{part}" for part in ("expand", "project") if hasattr(block, part)]
            for i, block in enumerate(self.blocks)
        }
        chosen = last_modules(["head", *names], modules)
        return [layer for module in chosen for layer in names.get(module, [module])]


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of the released PyTorch weights, `_blocks.0._depthwise_conv.weight`, to ours."""
    renamed = {}
    for name, tensor in state.items():
        parts = [part.removeprefix("_").removesuffix("_conv") for part in name.split(".")]
        renamed[".".join(part.removeprefix("conv_") for part in parts)] = tensor
    return renamed
