"""Parameter counts of the paper, and what names build."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.models import BACKBONES, PRESETS, Architecture, architecture, count_parameters
from csr_deploy.nn import CSRConv2d


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet56", 0.85),
        ("resnet56-csr2", 0.334),
        ("resnet56-csr3", 0.250),
        ("resnet56-csr5", 0.100),
        ("resnet110", 1.73),
        ("resnet20", 0.27),
    ],
)
def test_parameter_counts(name: str, millions: float) -> None:
    digits = len(str(millions).split(".")[1])
    count = count_parameters(architecture(name).build())
    # Two digits are printed by the paper, which rounds 855,770 to 0.85.
    assert count / 1e6 == pytest.approx(millions, abs=10**-digits)


def test_vgg16_has_14_98_million_parameters_without_batch_norm() -> None:
    assert round(count_parameters(architecture("vgg16").build(), batch_norm=False) / 1e6, 2) == 14.98


def test_vgg16_csr4_is_table_1() -> None:
    model = architecture("vgg16-csr4").build()
    features = model.get_submodule("features")
    convs = [m for m in features.children() if isinstance(m, (nn.Conv2d, CSRConv2d))]
    assert [count_parameters(m) for m in convs] == [
        1_728,
        36_864,
        73_728,
        147_456,
        299_520,
        48_672,
        48_672,
        143_685,
        *[190_962] * 5,
    ]
    assert [isinstance(m, CSRConv2d) for m in convs] == [False] * 5 + [True] * 8
    assert count_parameters(model.get_submodule("classifier"), batch_norm=False) == 267_264


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet20-csr", "resnet56-csr2", "vgg16-csr4", "mobilenetv2-csr4"]
)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_networks_compute(name: str, channels: int, size: int) -> None:
    model = architecture(name, num_classes=7, in_channels=channels).build().eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", [*BACKBONES, *PRESETS])
def test_every_name_builds(name: str) -> None:
    plan = architecture(name)
    with torch.device("meta"):
        model = plan.build()
    layers = {n: m.num_steps for n, m in model.named_modules() if isinstance(m, CSRConv2d)}
    assert layers == dict(plan.csr_layers)
    assert bool(layers) == (name in PRESETS)
    assert plan.name == name


@pytest.mark.parametrize(
    ("name", "count", "millions", "compression"),
    [
        ("mobilenetv2", 2_237_770, 2.24, 0.0),
        # Table 2 says 4, 7, 17, 18 and 18 modules; csr_deploy/models/mobilenet.py says how they are read.
        ("mobilenetv2-csr1", 1_630_575, 1.65, 26.4),
        ("mobilenetv2-csr2", 1_502_575, 1.47, 34.3),
        ("mobilenetv2-csr3", 1_241_554, 1.25, 44.1),
        ("mobilenetv2-csr4", 1_059_972, 1.09, 51.4),
        ("mobilenetv2-csr5", 900_604, 0.95, 57.3),
    ],
)
def test_mobilenet_counts(name: str, count: int, millions: float, compression: float) -> None:
    with torch.device("meta"):
        made = count_parameters(architecture(name).build())
    assert made == count
    assert made / 1e6 == pytest.approx(millions, abs=0.051)
    assert 100 * (1 - made / 2_237_770) == pytest.approx(compression, abs=2.6)


def test_mobilenet_modules_are_blocks_and_the_last_convolution() -> None:
    plan = architecture("mobilenetv2", modules=2, num_steps=3)
    assert plan.csr_layers == {f"blocks.{b}.{c}": 3 for b in (15, 16) for c in ("expand", "project")}
    assert list(architecture("mobilenetv2", modules=18, num_steps=3).csr_layers)[:2] == [
        "head",
        "blocks.0.expand",
    ]
    with pytest.raises(ModelError, match="of 18"):
        architecture("mobilenetv2", modules=19, num_steps=3)
    with pytest.raises(ModelError, match="num_steps"):
        architecture("mobilenetv2", modules=1, num_steps=0).build()


def test_a_preset_may_leave_layers_of_its_modules_plain() -> None:
    assert set(architecture("mobilenetv2-csr2").csr_layers) == {f"blocks.{b}.project" for b in range(10, 17)}
    steps = architecture("mobilenetv2-csr5").csr_layers
    assert (steps["blocks.3.expand"], steps["blocks.3.project"], steps["head"]) == (3, 4, 4)


def test_mobilenet_sizes() -> None:
    model = architecture("mobilenetv2").build().eval()
    with torch.no_grad():
        assert model.get_submodule("blocks")(torch.zeros(1, 32, 32, 32)).shape == (1, 320, 8, 8)


def test_resnet_with_projections() -> None:
    plan = Architecture("resnet56", options={"projections": True})
    with torch.device("meta"):
        model = plan.build()
    assert count_parameters(model) == 855_770
    shortcuts = [n for n, m in model.named_modules() if n.endswith("shortcut")]
    assert shortcuts == ["layer2.0.shortcut", "layer3.0.shortcut"]


def test_modules_are_counted_from_the_last_block() -> None:
    plan = architecture("resnet20", modules=2, num_steps=4)
    assert list(plan.csr_layers) == ["layer3.1.conv1", "layer3.1.conv2", "layer3.2.conv1", "layer3.2.conv2"]
    assert plan.name == "resnet20-m2t4"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet65", {}, "Did you mean resnet56"),
        ("resnet20", {"modules": 3}, "needs both"),
        ("resnet20", {"num_steps": 3}, "needs both"),
        ("resnet20", {"modules": 10, "num_steps": 2}, "10 CSR-Conv modules asked for, of 9"),
        ("resnet20", {"modules": 0, "num_steps": 2}, "from 1 to 9"),
        ("vgg16", {"modules": 14, "num_steps": 2}, "from 1 to 13"),
        ("resnet56-csr2", {"modules": 3, "num_steps": 2}, "already says"),
    ],
)
def test_names_and_counts_that_do_not_exist(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        architecture(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Architecture("resnet99"), "unknown backbone"),
        (Architecture("resnet8", options={"depth": 3, "colour": 1}), "options of backbone"),
        (Architecture("vgg16", options={"widths": (8, -1)}), "options of backbone"),
        (Architecture("resnet8", csr_layers={"layer1.0.conv9": 2}), "no layer 'layer1.0.conv9'"),
    ],
)
def test_plans_that_cannot_be_built(plan: Architecture, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        plan.build()
