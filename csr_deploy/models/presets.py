"""The CSR networks of the paper's Table 2: which layers, and which T.

Table 2 gives a number of modules and one T a row. One rule reads all rows: the last modules of the backbone
become CSR-Convs with the printed T, as many as are printed, unless that misses the printed compression rate
by more than two percentage points. Then the number of modules, or T of one kind of layer, is the one that
comes nearest. `note` says so wherever a preset differs from the printed row; the structure as printed is
always to be had from the backbone with its number of modules and T. The exception is VGG-16: Table 1 shows
one CSR-Conv fewer than Table 2 counts modules, so rows 4 and 5 have one fewer than printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csr_deploy.models.vgg import VGG16_WIDTHS


@dataclass(frozen=True)
class Preset:
    """One CSR network of the paper: the last `modules` modules of a backbone with T steps.

    Attributes:
        backbone: Key of `csr_deploy.models.BACKBONES`.
        modules: How many modules, from the last backwards, become CSR-Convs.
        num_steps: T.
        options: Further keyword arguments of the backbone.
        layer_steps: Kind of layer, see `layer_kind` → T, where it is another one; 1 leaves it as it is.
        note: Why it differs from the paper's row, where it does.
    """

    backbone: str
    modules: int
    num_steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    layer_steps: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


_PROJECTIONS_ONLY = "T in the projections only: the one reading that comes near for rows 1 and 2 alike."

_EXPANSIONS_3 = "Expansions with T = 3, projections with T = 4, as in the authors' notebook."

PRESETS: dict[str, Preset] = {
    "vgg16-csr1": Preset("vgg16", 5, 2, note="With BatchNorm it is 9.09 M."),
    "vgg16-csr2": Preset("vgg16", 4, 3, note="7.646 M, which the paper cuts off."),
    "vgg16-csr3": Preset(
        "vgg16",
        6,
        3,
        note="No six layers with T = 3 have 4.91 M; conv 6, 7 and 9–13 have 4.90 M but are seven.",
    ),
    # Table 1 widens conv 5 to 260 channels, the next multiple of T = 5.
    "vgg16-csr4": Preset(
        "vgg16",
        8,
        5,
        {"widths": (*VGG16_WIDTHS[:4], 260, *VGG16_WIDTHS[5:])},
        note="Table 1, layer by layer: eight CSR-Convs, and a widened conv 5 that Table 2 counts too.",
    ),
    "vgg16-csr5": Preset(
        "vgg16",
        11,
        9,
        note="One fewer than printed, as Table 1 has against Table 2 in CSR-Conv-4; twelve have 0.66 M.",
    ),
    "resnet20-csr": Preset("resnet20", 3, 3),
    "resnet56-csr1": Preset(
        "resnet56",
        5,
        2,
        note="Four blocks with T = 2 save 17.3 % at most; with T = 3 in one convolution each, 21.8 %.",
    ),
    "resnet56-csr2": Preset("resnet56", 11, 3, note="Without BatchNorm in both counts it is 61.1 %."),
    "resnet56-csr3": Preset(
        "resnet56", 17, 3, note="Printed is a size between those of 16 blocks (0.264 M) and 17."
    ),
    "resnet56-csr4": Preset("resnet56", 15, 4, note="16 blocks have 0.177 M (79.3 %)."),
    "resnet56-csr5": Preset("resnet56", 22, 5, note="23 blocks have 0.096 M (88.7 %)."),
    "resnet110-csr1": Preset(
        "resnet110", 8, 2, note="No seven blocks with T = 2 save more than 14.9 % (1.470 M)."
    ),
    "resnet110-csr2": Preset(
        "resnet110", 17, 2, note="No 14 blocks with T = 2 save more than 29.9 % (1.212 M)."
    ),
    "resnet110-csr3": Preset("resnet110", 22, 3, note="Without BatchNorm in both counts it is 61.3 %."),
    "resnet110-csr4": Preset("resnet110", 31, 4, note="32 blocks have 0.358 M (79.3 %)."),
    "resnet110-csr5": Preset("resnet110", 38, 5, note="33 blocks with T = 5 have 0.278 M (83.9 %)."),
    "densenet40-csr1": Preset(
        "densenet40", 5, 2, note="19 layers have 0.55 M if the last, 0.86 M if the first."
    ),
    "densenet40-csr2": Preset("densenet40", 10, 3, note="The last 11 layers have 0.655 M (38.1 %)."),
    "densenet40-csr3": Preset("densenet40", 16, 3, note="The last 22 layers have 0.391 M (63.1 %)."),
    "densenet40-csr4": Preset("densenet40", 20, 4, note="The last 23 layers have 0.335 M (68.4 %)."),
    "densenet40-csr5": Preset("densenet40", 34, 5, note="All 36 layers have 0.198 M (81.3 %)."),
    # See csr_deploy.models.mobilenet for how these readings were found.
    "mobilenetv2-csr1": Preset("mobilenetv2", 4, 3, layer_steps={"expand": 1}, note=_PROJECTIONS_ONLY),
    "mobilenetv2-csr2": Preset("mobilenetv2", 7, 3, layer_steps={"expand": 1}, note=_PROJECTIONS_ONLY),
    "mobilenetv2-csr3": Preset("mobilenetv2", 17, 3, note="No reading with one T is nearer."),
    "mobilenetv2-csr4": Preset(
        "mobilenetv2",
        18,
        3,
        note="No reading with T = 3 alone is nearer. The 18th module is the last 1×1 convolution.",
    ),
    "mobilenetv2-csr5": Preset(
        "mobilenetv2",
        18,
        4,
        layer_steps={"expand": 3},
        note="Expansions with T = 3, as in the authors' notebook; all T = 3 but the head's: 0.96 M.",
    ),
    "resnet50-csr1": Preset(
        "resnet50",
        3,
        3,
        note="Ten blocks are too many (11.55 M, 54.8 %); the nine convolutions of stage 4 fit.",
    ),
    "resnet50-csr2": Preset(
        "resnet50",
        15,
        4,
        layer_steps={"conv1": 5, "conv3": 5},
        note="1×1 convolutions with T = 5; with T = 4 everywhere it is 8.26 M (67.7 %).",
    ),
    "efficientnetb0-csr1": Preset(
        "efficientnetb0", 3, 3, note="Expansion, squeeze and projection; without the squeeze 4.44 M (16.0 %)."
    ),
    "efficientnetb0-csr2": Preset(
        "efficientnetb0",
        3,
        5,
        note="Four blocks have 3.46 M (34.6 %), without their squeeze 3.67 M (30.6 %).",
    ),
    "mobilenetv2-imagenet-csr1": Preset(
        "mobilenetv2-imagenet", 2, 4, layer_steps={"expand": 3}, note=_EXPANSIONS_3
    ),
    "mobilenetv2-imagenet-csr2": Preset(
        "mobilenetv2-imagenet", 12, 4, layer_steps={"expand": 3}, note=_EXPANSIONS_3
    ),
}
