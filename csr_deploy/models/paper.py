"""Table 2 of the paper (Wu et al., WACV 2023), as printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One CSR network.

    Attributes:
        preset: Key of `csr_deploy.models.PRESETS`.
        compression: Compression rate in per cent.
        millions: Parameters, in millions.
        modules: The column `#C-C`: modules that are CSR-Convs.
        num_steps: T.
    """

    preset: str
    compression: float
    millions: float
    modules: int
    num_steps: int


PAPER_BACKBONES: dict[str, float] = {
    "vgg16": 14.98,
    "resnet56": 0.85,
    "resnet110": 1.74,
    "densenet40": 1.06,
    "mobilenetv2": 2.24,
    "resnet50": 25.56,
    "efficientnetb0": 5.28,
    "mobilenetv2-imagenet": 3.50,
}
"""Backbone → parameters in millions."""

WITHOUT_BATCH_NORM = frozenset({"vgg16"})
"""Backbones whose counts leave BatchNorm out, as Table 1 does."""

_ROWS: dict[str, tuple[tuple[float, float, int, int], ...]] = {
    "vgg16": (
        (39.3, 9.09, 5, 2),
        (49.0, 7.64, 4, 3),
        (67.2, 4.91, 6, 3),
        (86.5, 2.02, 9, 5),
        (95.0, 0.75, 12, 9),
    ),
    "resnet56": (
        (21.8, 0.66, 4, 2),
        (61.0, 0.33, 11, 3),
        (70.3, 0.25, 17, 3),
        (78.8, 0.18, 15, 4),
        (88.9, 0.09, 22, 5),
    ),
    "resnet110": (
        (17.2, 1.44, 7, 2),
        (36.4, 1.11, 14, 2),
        (61.3, 0.67, 22, 3),
        (79.6, 0.35, 31, 4),
        (87.1, 0.22, 33, 5),
    ),
    "densenet40": (
        (15.9, 0.89, 19, 2),
        (35.2, 0.69, 11, 3),
        (50.3, 0.53, 22, 3),
        (63.7, 0.38, 23, 4),
        (82.4, 0.19, 34, 5),
    ),
    "mobilenetv2": (
        (26.4, 1.65, 4, 3),
        (34.3, 1.47, 7, 3),
        (44.1, 1.25, 17, 3),
        (51.4, 1.09, 18, 3),
        (57.3, 0.95, 18, 4),
    ),
    "resnet50": ((35.7, 16.43, 10, 3), (70.3, 7.59, 15, 4)),
    "efficientnetb0": ((18.9, 4.28, 3, 3), (26.3, 3.89, 4, 5)),
    "mobilenetv2-imagenet": ((14.0, 3.01, 2, 4), (29.5, 2.47, 12, 4)),
}

TABLE_2: tuple[PaperRow, ...] = tuple(
    PaperRow(f"{backbone}-csr{number}", *figures)
    for backbone, rows in _ROWS.items()
    for number, figures in enumerate(rows, start=1)
)
"""All rows: five networks of each CIFAR-10 backbone, two of each ImageNet backbone."""
