"""Makes the int8 networks that the microcontroller figures are measured on.

    python tools/mcu_networks.py OUT [--networks resnet8 mobilenet-025 …]

Nothing is trained: instructions, memory and code depend on shapes, and hardly on values. Weights and
BatchNorm gains are random and seeded; BatchNorm statistics come from the packaged Fashion-MNIST pictures,
converted to colour and resized, and so does the calibration. Logits of such a network say nothing about a
picture, but they vary, so that two implementations can be compared byte for byte. A file that is there
already is used again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import randomise, resnet56_projections
from torch import Tensor, nn

from csr_deploy.artifact import Artifact
from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.export import ExportData, ExportOptions, Network, artifact_directory, export
from csr_deploy.models import architecture
from csr_deploy.targets import find_target

_SEED = 0
_CALIBRATION = 64
_PARITY = 32
_PICTURES = "fashion-mnist"


@dataclass(frozen=True)
class McuNetwork:
    """One network of the figures.

    Attributes:
        name: As in the figures.
        build: A freshly initialised module.
        size: Height and width of the picture, in pixels; it has three channels.
        classes: Number of logits.
        backbone: The network it is compared with; itself for a plain one.
        parameters: Of the module, BatchNorm's included.
        macs: Multiply-accumulates of one inference.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int
    classes: int
    backbone: str
    parameters: int
    macs: int

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """[N, C, H, W]."""
        return (1, 3, self.size, self.size)


class _Residual(nn.Module):
    """Two 3×3 convolutions; where the shape changes, a 1×1 convolution in the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1),
            nn.BatchNorm2d(out_channels),
        )
        plain = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if plain else nn.Conv2d(in_channels, out_channels, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


class TinyResNet8(nn.Module):
    """The image-classification network of MLPerf Tiny v1.1, up to its logits.

    Strided 3×3 convolutions pad by one pixel on each side, as in PyTorch; the original pads below and right
    only.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            _Residual(16, 16, 1),
            _Residual(16, 32, 2),
            _Residual(32, 64, 2),
            nn.AvgPool2d(8),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] → [N, num_classes]."""
        y: Tensor = self.layers(x)
        return y


_MOBILENET_V1 = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
"""(channels at width 1, stride) of the depthwise separable layers: Howard et al. 2017, table 1."""


class MobileNetV1(nn.Module):
    """MobileNet-V1 for 96×96 pictures, with ReLU as in MLPerf Tiny's visual wake words, up to its logits."""

    def __init__(self, width: float = 0.25, num_classes: int = 2) -> None:
        super().__init__()
        channels = int(32 * width)
        layers = [nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        for full, stride in _MOBILENET_V1:
            wide = int(full * width)
            layers += [
                nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, wide, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
            channels = wide
        self.layers = nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 96, 96] → [N, num_classes]."""
        y: Tensor = self.layers(x)
        return y


NETWORKS: dict[str, McuNetwork] = {
    network.name: network
    for network in (
        McuNetwork("resnet56", resnet56_projections().build, 32, 10, "resnet56", 855_770, 125_747_840),
        McuNetwork("resnet56-t4", resnet56_projections(4).build, 32, 10, "resnet56", 151_610, 79_741_568),
        McuNetwork("vgg16", architecture("vgg16").build, 32, 10, "vgg16", 14_987_200, 313_463_808),
        McuNetwork("vgg16-csr4", architecture("vgg16-csr4").build, 32, 10, "vgg16", 2_031_879, 191_390_508),
        McuNetwork("resnet8", TinyResNet8, 32, 10, "resnet8", 78_186, 12_501_632),
        McuNetwork("mobilenet-025", MobileNetV1, 96, 2, "mobilenet-025", 213_586, 7_489_664),
    )
}
"""Name → network."""


def make(name: str, out: Path) -> Path:
    """The .tflite file of a network, made where it is missing.

    Args:
        name: A key of `NETWORKS`.
        out: Folder of the artifacts.

    Returns:
        `<out>/<name>-tflite-int8/<name>.tflite`.

    Raises:
        CsrError: If the network cannot be exported.
    """
    network = NETWORKS[name]
    preprocessing = Preprocessing(network.size, network.size, (0.5,) * 3, (0.25,) * 3)
    target = find_target("tflite-int8")
    labels = tuple(str(i) for i in range(network.classes))
    named = Network(name, nn.Identity(), labels, preprocessing)
    folder = artifact_directory(out, named, target)
    path = folder / f"{name}.tflite"
    if path.exists():
        return path
    calibration = sample(open_dataset(_PICTURES, "train"), preprocessing, _CALIBRATION, _SEED)
    parity = sample(open_dataset(_PICTURES, "test"), preprocessing, _PARITY, _SEED)
    torch.manual_seed(_SEED)
    pictures = torch.from_numpy(preprocessing.normalize(calibration.images[:16]))
    model = randomise(network.build(), pictures, _SEED)
    # Random logits have near ties, which int8 may decide either way.
    options = ExportOptions(agreement=0.0, calibration_images=_CALIBRATION, parity_images=_PARITY)
    made: Artifact = export(
        Network(name, model, labels, preprocessing, {"untrained": True, "seed": _SEED}),
        target,
        ExportData(calibration, parity, None),
        folder,
        options,
    )
    return made.model_file


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the artifacts")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    options: Any = parser.parse_args(arguments)
    for name in options.networks:
        sys.stdout.write(f"{make(name, options.out)}\n")


if __name__ == "__main__":
    main()
