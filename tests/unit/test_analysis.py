"""Multiply-accumulates, against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from csr_deploy.analysis import analyse, count_macs, layer_figures
from csr_deploy.analysis.table2 import compare_table_2, markdown
from csr_deploy.errors import ModelError
from csr_deploy.models import BACKBONES, PRESETS, architecture, count_parameters
from csr_deploy.nn import CELLS, CSRConv2d


def test_plain_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    expected = 8 * 3 * 9 * 6 * 5 + 8 * 2 * 9 * 4 * 3 + 8 * 5
    assert count_macs(model, (1, 3, 12, 10)) == expected
    assert count_macs(model, (2, 3, 12, 10)) == 2 * expected


@pytest.mark.parametrize(("c_in", "c_out", "steps"), [(12, 18, 3), (10, 11, 4), (8, 8, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_csr_conv_is_t_times_v_and_t_minus_1_times_u(c_in: int, c_out: int, steps: int, stride: int) -> None:
    layer = CSRConv2d(c_in, c_out, 3, steps, stride, 1)
    d, big_d = -(-c_in // steps), -(-c_out // steps)
    area = (8 // stride) ** 2
    expected = (steps * d * big_d + (steps - 1) * big_d * big_d) * 9 * area
    assert count_macs(layer, (1, c_in, 8, 8)) == expected


def test_networks_of_the_paper() -> None:
    macs = {
        n: count_macs(architecture(n).build(), (1, 3, 32, 32)) for n in ("resnet56", "vgg16", "vgg16-csr4")
    }
    # He et al. and the CIFAR literature: 125 M and 313 M.
    assert macs["resnet56"] == 125_485_696
    assert macs["vgg16"] == 313_463_808
    assert abs(macs["vgg16-csr4"] / macs["vgg16"] - 0.61) < 0.005


def test_the_network_is_left_as_it_was() -> None:
    model = architecture("resnet20").build().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_macs(model, (1, 3, 32, 32))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not take an input of shape \[1, 4, 32, 32\]"):
        count_macs(architecture("resnet20").build(), (1, 4, 32, 32))


@pytest.mark.parametrize(
    "name",
    # The deepest network four times over adds nothing but time.
    [
        pytest.param(n, marks=[pytest.mark.full] if n.startswith("resnet110-csr") and n[-1] != "5" else [])
        for n in (*BACKBONES, *PRESETS)
    ],
)
def test_layers_sum_to_the_counter_of_torch(name: str) -> None:
    plan = architecture(name)
    with torch.device("meta"):
        model = plan.build()
    shape = (1, plan.in_channels, *plan.image_size)
    layers = layer_figures(model, shape)
    assert sum(layer.macs for layer in layers) == count_macs(model, shape)
    assert sum(layer.parameters for layer in layers) == count_parameters(model)
    recurrent = {layer.name: layer.recurrence.num_steps for layer in layers if layer.recurrence}
    assert recurrent == dict(plan.csr_layers)


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize(("c_in", "c_out", "steps"), [(12, 12, 3), (8, 8, 4)])
def test_every_cell_is_counted_as_it_runs(cell: str, c_in: int, c_out: int, steps: int) -> None:
    model = nn.Sequential(CSRConv2d(c_in, c_out, 3, steps, 2, 1, cell=cell, bias=True))
    (layer,) = layer_figures(model, (2, c_in, 9, 9))
    assert layer.macs == count_macs(model, (1, c_in, 9, 9))
    assert layer.parameters == count_parameters(model)
    assert layer.recurrence is not None
    assert layer.recurrence.cell == cell
    assert layer.kind == "CSRConv2d"


def test_states_that_are_cut_off_cost_no_recurrence() -> None:
    # D = 2: the third state is the last one seen, V still meets all four groups.
    model = nn.Sequential(CSRConv2d(8, 5, 3, 4, padding=1))
    (layer,) = layer_figures(model, (1, 8, 4, 4))
    assert layer.macs == (4 * 2 * 2 + 2 * 2 * 2) * 9 * 16 == count_macs(model, (1, 8, 4, 4))


def test_propositions() -> None:
    model = nn.Sequential(CSRConv2d(12, 24, 3, 3, padding=1))
    (layer,) = layer_figures(model, (1, 12, 6, 6))
    r = layer.recurrence
    assert r is not None
    assert (r.group_in, r.group_out) == (4, 8)
    assert layer.parameters / r.plain_parameters == pytest.approx(r.prop1) == 12 / (4 * 9)
    assert r.prop2 == (1 + 16 + 8) / (1 + 24)
    # Prop. 2: as many FLOPs where T = 1 + D/d.
    assert r.prop2 == 1
    assert r.plain_macs == 12 * 24 * 9 * 36


class Shared(nn.Module):
    """A layer used twice, one that never runs, a parameter without a layer and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.idle = nn.Linear(3, 3)
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.up(self.twice(self.twice(x))) * self.scale
        return out


def test_layers_of_any_model() -> None:
    layers = {layer.name: layer for layer in layer_figures(Shared(), (1, 4, 6, 5))}
    assert list(layers) == ["twice", "up", "", "idle"]
    assert layers["twice"].macs == 2 * 4 * 4 * 9 * 30
    assert layers["up"].macs == 4 * 2 * 4 * 30
    assert (layers["idle"].macs, layers["idle"].shape, layers["idle"].parameters) == (0, None, 12)
    assert layers[""].parameters == 1
    assert sum(layer.macs for layer in layers.values()) == count_macs(Shared(), (1, 4, 6, 5))


def test_a_network_that_cannot_be_captured_keeps_its_counts() -> None:
    figures = analyse(Shared(), "shared", (4, 6, 5))
    assert figures.memory is None
    assert figures.depth is None
    assert "conv_transpose2d" in figures.problem
    assert figures.macs == sum(layer.macs for layer in figures.layers)


def test_zeros_are_counted_where_weights_mean_something() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    conv = model.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight[0] = 0
        conv.bias.fill_(1.0)  # type: ignore[union-attr]
    figures = analyse(model, "pruned", (3, 4, 4), trained=True)
    assert figures.layers[0].nonzero == 4 * 27 + 4 - 27
    # The offsets of a fresh BatchNorm are zero.
    assert figures.nonzero == figures.parameters - 27 - 4
    assert analyse(model, "fresh", (3, 4, 4)).nonzero is None


def test_depth_and_memory_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        CSRConv2d(8, 12, 3, 4, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    figures = analyse(model, "small", (3, 10, 10))
    memory = figures.memory
    assert memory is not None
    assert memory.depth == {"0": 1, "3": 5, "8": 6}
    assert [layer.depth for layer in figures.layers] == [1, None, 5, None, 6]
    assert figures.depth == 6
    # BatchNorm behind the recurrence is a pass of its own: its input and its output.
    assert memory.peak_fused == 100 * (12 + 12)
    kernels = 8 * 27 + 3 * (2 + 3) * 9 + 12 + 12 * 5
    assert memory.flash == kernels + 12 * (8 + 3 + 3 + 12 + 5)


def test_a_shortcut_stays_in_memory() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.two(self.one(x))

    memory = analyse(nn.Sequential(Block(), nn.Flatten(), nn.Linear(256, 2)), "block", (4, 8, 8)).memory
    assert memory is not None
    # x, the 16 channels between, and the 4 that come out of them.
    assert memory.peak_fused == 64 * (4 + 16 + 4)
    assert memory.peak_fused_at == "0.two"


@pytest.mark.full
def test_estimates_against_generated_c(tmp_path: Path) -> None:
    from csr_deploy.export import ExportOptions, Network, export, load_export_data
    from csr_deploy.targets import TARGETS

    path = Path(__file__).parents[2] / "demos" / "models" / "fashion-resnet20-csr.pt"
    network = Network.from_checkpoint(path)
    data = load_export_data(network, "fashion-mnist", ExportOptions(), quantized=True)
    made = export(network, TARGETS["mcu"], data, tmp_path / "a").model
    memory = analyse(network.model, network.name, network.input_shape(1)[1:], trained=True).memory
    assert memory is not None
    assert made["constant_bytes"] == pytest.approx(memory.flash, rel=0.05)
    # The compiler lets convolutions write over their input, which the estimate does not.
    assert 0.7 * memory.peak_fused < made["arena_bytes"] <= memory.peak_fused


def test_table_2_says_why_wherever_it_differs() -> None:
    rows = compare_table_2()
    assert len(rows) == 31
    assert [row.preset for row in rows if not row.agrees and not row.note] == []
    by_name = {row.preset: row for row in rows}
    assert by_name["vgg16-csr4"].parameters == 2_022_399
    assert by_name["vgg16-csr4"].compression == pytest.approx(86.5, abs=0.05)
    assert by_name["densenet40-csr2"].macs < by_name["densenet40-csr2"].backbone_macs
    assert all(abs(row.compression - row.paper.compression) < 2.5 for row in rows)
    # The worst is CSR-Conv-3 of VGG-16.
    assert all(abs(row.parameters / 1e6 - row.paper.millions) < 0.12 for row in rows)


def test_the_table_in_the_docs_is_what_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    assert markdown(compare_table_2()) in page
