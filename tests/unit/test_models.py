"""Parameter counts of the paper, and what names build."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.models import BACKBONES, PRESETS, Architecture, architecture, count_parameters
from csr_deploy.models.modules import CountsModules
from csr_deploy.models.paper import PAPER_BACKBONES, TABLE_2
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
        ("densenet40", 1.06),
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
    "name",
    ["resnet8", "resnet20-csr", "resnet56-csr2", "vgg16-csr4", "mobilenetv2-csr4", "densenet40-csr5"],
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


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 25_557_032),
        ("efficientnetb0", 5_288_548),
        ("mobilenetv2-imagenet", 3_504_872),
        ("mobilenetv2-imagenet-csr2", 2_469_032),
        ("densenet40", 1_059_298),
    ],
)
def test_counts_to_the_last_parameter(name: str, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(architecture(name).build()) == count


def test_the_authors_cell_adds_two_scalars_a_layer() -> None:
    plan = architecture("mobilenetv2-imagenet-csr2")
    assert len(plan.csr_layers) == 24
    assert {n for n in plan.csr_layers if n.startswith("features.6.")} == {
        "features.6.conv.0.0",
        "features.6.conv.2",
    }
    assert (plan.csr_layers["features.6.conv.0.0"], plan.csr_layers["features.6.conv.2"]) == (3, 4)
    with torch.device("meta"):
        assert count_parameters(plan.with_cell("incremental").build()) == 2_469_080


def test_every_row_of_table_2_has_a_preset() -> None:
    assert len(TABLE_2) == 31
    for row in TABLE_2:
        assert row.num_steps == PRESETS[row.preset].num_steps
    assert {PRESETS[row.preset].backbone for row in TABLE_2} == set(PAPER_BACKBONES)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("resnet50-csr2", {"conv1": 5, "conv2": 4, "conv3": 5}),
        ("efficientnetb0-csr1", {"expand": 3, "squeeze": 3, "project": 3}),
        ("mobilenetv2-imagenet-csr1", {"expand": 3, "project": 4}),
    ],
)
def test_t_of_every_kind_of_layer(name: str, kinds: dict[str, int]) -> None:
    from csr_deploy.models.modules import layer_kind

    plan = architecture(name)
    with torch.device("meta"):
        backbone = architecture(plan.backbone).build()
    found = {(layer_kind(backbone, layer), steps) for layer, steps in plan.csr_layers.items()}
    assert found == set(kinds.items())


@pytest.mark.parametrize(
    ("name", "modules", "first"),
    [
        ("efficientnetb0", 16, "features.1.0.block.1.fc1"),
        ("mobilenetv2-imagenet", 17, "features.1.conv.1"),
        ("mobilenetv2-imagenet", 18, "features.18.0"),
        ("densenet40", 36, "block1.0.conv"),
        ("resnet50", 16, "layer1.0.conv1"),
    ],
)
def test_all_modules(name: str, modules: int, first: str) -> None:
    assert next(iter(architecture(name, modules=modules, num_steps=2).csr_layers)) == first
    with pytest.raises(ModelError, match=f"of {18 if name.startswith('mobile') else modules}"):
        architecture(name, modules=19 if name.startswith("mobile") else modules + 1, num_steps=2)


def test_a_head_has_a_kind_of_its_own() -> None:
    with torch.device("meta"):
        model = architecture("mobilenetv2-imagenet").build()
    assert isinstance(model, CountsModules)
    from csr_deploy.models.modules import layer_kind

    assert {layer_kind(model, n) for n in model.csr_layers(18)} == {"head", "expand", "project"}


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet50", {"blocks": (1, 2, 1, 1), "width": 8}),
        ("efficientnetb0", {"width": 0.25, "repeats": (1, 1, 1, 2, 1, 1, 1)}),
        ("mobilenetv2-imagenet", {"width": 0.25}),
        ("densenet40", {"depth": 13}),
    ],
)
def test_networks_of_imagenet_learn(backbone: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    plan = Architecture(backbone, num_classes=5, options=options)
    with torch.device("meta"):
        whole = plan.build()
    assert isinstance(whole, CountsModules)
    layers = dict.fromkeys(whole.csr_layers(2), 2)
    model = Architecture(backbone, num_classes=5, options=options, csr_layers=layers).build().train()
    x, y = torch.randn(4, 3, 48, 64), torch.tensor([0, 1, 2, 3])
    # Dropping whole branches makes the loss of one batch random.
    for module in model.modules():
        if hasattr(module, "rate"):
            module.rate = 0.0
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(x).shape == (4, 5)


def test_drop_path_drops_whole_images() -> None:
    from csr_deploy.models.modules import DropPath

    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    kept = layer(torch.ones(4000, 2, 3, 3)).flatten(1)
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert bool((kept == kept[:, :1]).all())
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    x = torch.randn(3, 2, 1, 1)
    assert layer.eval()(x) is x


def test_sizes_and_classes_of_the_data_they_are_meant_for() -> None:
    assert architecture("resnet56").image_size == (32, 32)
    plan = architecture("resnet50-csr1")
    assert (plan.image_size, plan.num_classes) == ((224, 224), 1000)
    assert architecture("resnet50", num_classes=7).num_classes == 7
    with pytest.raises(ModelError, match="unknown backbone"):
        _ = Architecture("resnet51").image_size


@pytest.mark.parametrize("depth", [4, 12, 41])
def test_densenets_that_do_not_exist(depth: int) -> None:
    with pytest.raises(ModelError, match="no DenseNet has depth"):
        Architecture("densenet40", options={"depth": depth}).build()
