"""Cells in layers, networks, checkpoints and training."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from csr_deploy.checkpoint import load_checkpoint
from csr_deploy.cli.train import main as csr_train
from csr_deploy.data import Preprocessing
from csr_deploy.drift import measure_drift
from csr_deploy.errors import ModelError
from csr_deploy.models import architecture
from csr_deploy.nn import CELLS, CSRConv2d, csrify, find_cell
from csr_deploy.qat import QuantizationAware
from csr_deploy.quantize import QuantizeOptions, Simulation, quantize
from csr_deploy.quantize.scheme import AFFINE
from csr_deploy.types import Quantization
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.evaluate import run_graph
from csr_deploy.unroll.graph import Graph
from csr_deploy.unroll.lowering import unroll
from tests.cell_networks import Differences
from tests.networks import OneLayer, settle

PREPROCESSING = Preprocessing(9, 8, (0.5,) * 3, (0.25,) * 3)


def one_layer(cell: str) -> nn.Module:
    torch.manual_seed(0)
    model = OneLayer(CSRConv2d(12, 12, 3, 3, padding=1, cell=cell))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".alpha", ".beta", ".eta")):
                parameter.mul_(0.7).add_(0.2)
    return settle(model, (1, 3, 9, 8))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 9, 8, 3), np.uint8)


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_is_the_plain_convolution(cell: str) -> None:
    groups = 6 if CELLS[cell].depthwise else 1
    plain = nn.Conv2d(6, 6, 3, 2, 1, groups=groups)
    layer = CSRConv2d(6, 6, 3, 1, 2, 1, bias=True, cell=cell)
    layer.load_state_dict({"conv.weight": plain.weight.detach(), "bias": plain.bias.detach()})  # type: ignore[union-attr]
    x = torch.randn(2, 6, 7, 7)
    torch.testing.assert_close(layer(x), plain(x))


def test_an_unknown_cell_gets_a_suggestion() -> None:
    with pytest.raises(ModelError) as caught:
        find_cell("lstmm")
    assert caught.value.fix == "Did you mean lstm?"
    with pytest.raises(ModelError) as caught:
        csrify(nn.Sequential(nn.Conv2d(4, 4, 3)), ["0"], 2, cell="transformer")
    assert caught.value.fix is not None
    assert "s-groupconv" in caught.value.fix


def test_only_the_baseline_without_a_recurrence_takes_even_kernels() -> None:
    x = torch.randn(1, 8, 6, 6)
    assert CSRConv2d(8, 8, 2, 2, stride=2, cell="s-groupconv")(x).shape == (1, 8, 3, 3)
    for cell in CELLS.keys() - {"s-groupconv"}:
        with pytest.raises(ModelError, match="is even"):
            CSRConv2d(8, 8, 2, 2, stride=2, cell=cell)


def test_the_baseline_is_a_group_convolution_of_equal_groups() -> None:
    layer = CSRConv2d(6, 9, 3, 3, padding=1, cell="s-groupconv")
    grouped = nn.Conv2d(6, 9, 3, padding=1, groups=3, bias=False)
    grouped.weight.data.copy_(layer.cell.v.detach().repeat(3, 1, 1, 1))
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(layer(x), torch.relu(grouped(x)))


def test_the_released_form_begins_as_equation_2() -> None:
    torch.manual_seed(0)
    released, paper = CSRConv2d(6, 6, 3, 3, padding=1, cell="incremental"), CSRConv2d(6, 6, 3, 3, padding=1)
    paper.load_state_dict({k: released.state_dict()[k] for k in paper.state_dict()})
    # V is positive, and so is h_1 without its activation.
    for layer in (released, paper):
        layer.cell.v.data.abs_()
    x = torch.rand(1, 6, 4, 4)
    torch.testing.assert_close(released(x), paper(x))


def test_the_forget_gate_begins_open() -> None:
    layer = CSRConv2d(8, 8, 3, 2, padding=1, cell="lstm")
    assert layer.cell.b.detach().tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


@pytest.mark.parametrize("cell", CELLS)
def test_states_begin_neither_tiny_nor_huge(cell: str) -> None:
    torch.manual_seed(0)
    channels = 64
    layer = CSRConv2d(channels, channels, 3, 4, padding=1, cell=cell)
    out = layer(torch.randn(4, channels, 12, 12).relu()).detach()
    assert 0.05 < float(out.std()) < 3, float(out.std())


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False)
        self.project = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(torch.relu(self.depthwise(self.expand(x)))).mean((2, 3))
        return out


def test_a_depthwise_convolution_takes_a_depthwise_cell_only() -> None:
    with pytest.raises(ModelError, match="depth-wise") as caught:
        csrify(Depthwise(), ["depthwise"], 3)
    assert "incremental-depthwise" in (caught.value.fix or "")
    steps = {"depthwise": 3, "project": 2}
    cells = {"depthwise": "incremental-depthwise"}
    model = csrify(Depthwise(), steps, cell="gru", layer_cells=cells).double().eval()
    layer = model.get_submodule("depthwise")
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {
        "cell.v": (4, 1, 3, 3),
        "cell.u": (4, 1, 3, 3),
        "cell.alpha": (),
        "cell.beta": (),
    }
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        # Nothing that happens in a channel of the first group leaves its channel.
        inner = torch.randn(1, 12, 6, 6, dtype=torch.float64)
        changed = inner.clone()
        changed[:, 1] += 1
        moved = (layer(inner) - layer(changed)).abs().amax((0, 2, 3)) > 0
    assert moved.nonzero()[:, 0].tolist() == [1, 5, 9]
    graph = unroll(model, (1, 3, 6, 6))
    torch.testing.assert_close(run_graph(graph, x), model(x).detach(), rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match="'expand', which is not replaced"):
        csrify(Depthwise(), steps, layer_cells={"expand": "gru"})


def test_a_network_with_another_cell_says_so() -> None:
    plan = architecture("resnet20-csr").with_cell("fastrnn")
    assert plan.name == "resnet20-csr-fastrnn"
    layers = [m for m in plan.build().modules() if isinstance(m, CSRConv2d)]
    assert {m.cell_name for m in layers} == {"fastrnn"}
    with pytest.raises(ModelError, match="has no CSR-Convs"):
        architecture("resnet20").with_cell("gru")


@pytest.mark.parametrize("cell", ["lstm", "incremental"])
def test_training_a_cell_and_reading_it_back(
    cell: str, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["-n", "resnet8", "-d", image_folder, "-o", tmp_path / "run", "--recipe", "short"]
    arguments += ["--batch-size", 16, "--lr", 0.1, "--no-bf16", "--threads", 1, "--device", "cpu"]
    arguments += ["--epochs", 2, "--csr-modules", 2, "--csr-steps", 2, "--cell", cell, "--no-plot"]
    monkeypatch.setattr(sys, "argv", ["csr-train", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        csr_train()
    assert not ended.value.code
    checkpoint = load_checkpoint(tmp_path / "run" / "model.pt")
    assert (checkpoint.architecture.cell, checkpoint.architecture.name) == (cell, f"resnet8-m2t2-{cell}")
    # Behind a BatchNorm alpha has no gradient as long as beta is 1.
    learned = [v for k, v in checkpoint.state.items() if k.endswith("cell.beta")]
    assert all(float(v) != 1.0 for v in learned)
    assert len(learned) == (4 if cell == "incremental" else 0)
    checkpoint.build()


@pytest.mark.parametrize("cell", CELLS)
def test_quantisation_aware_training_reaches_every_parameter(cell: str) -> None:
    model = one_layer(cell)
    aware = QuantizationAware(model, PREPROCESSING, pictures(32))
    x = torch.from_numpy(PREPROCESSING.normalize(pictures(16)))
    out = aware(x)
    with torch.no_grad():
        real = model(x)
        assert 0 < float((out - real).square().mean()) < 0.01 * float(real.var())
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def quantized(cell: str) -> tuple[Graph, Simulation]:
    model = one_layer(cell)
    x = torch.from_numpy(PREPROCESSING.normalize(pictures(32)))
    made = quantize(unroll(model, (1, 3, 9, 8)), [x], PREPROCESSING, QuantizeOptions())
    return made.graph, Simulation(made)


@pytest.mark.parametrize("cell", ["gru", "lstm", "fastrnn"])
def test_gates_have_the_scales_that_tflite_prescribes(cell: str) -> None:
    graph, simulation = quantized(cell)
    scales = simulation.quantized.activations
    found = {op: {scales[n.output] for n in graph.nodes if n.op == op} for op in ("sigmoid", "tanh")}
    assert found["tanh"] == {Quantization(1 / 128, 0)}
    assert found["sigmoid"] == ({Quantization(1 / 256, -128)} if cell != "fastrnn" else set())
    producers = graph.producers()
    for node in graph.nodes:
        if node.op == "slice" and producers[node.inputs[0]].op == "sigmoid":
            assert scales[node.output] == AFFINE.fixed_output["sigmoid"]


def test_gates_that_are_joined_with_other_values_do_not_clip_them() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            first, second = torch.sigmoid(y).chunk(2, dim=1)
            return torch.cat([first, 5 * y, second], 1).mean((2, 3))

    torch.manual_seed(0)
    model = Joined().eval()
    x = torch.from_numpy(PREPROCESSING.normalize(pictures(32)))
    made = quantize(unroll(model, (1, 3, 9, 8)), [x], PREPROCESSING, QuantizeOptions())
    joined = next(n for n in made.graph.nodes if n.op == "concat")
    assert 128 * made.activations[joined.output].scale > 2
    with torch.no_grad():
        error = (Simulation(made).run(x) - model(x)).square().mean()
        assert float(error) < 0.01 * float(model(x).var())


@pytest.mark.parametrize("cell", CELLS)
def test_the_drift_of_every_state_is_found(cell: str) -> None:
    model = one_layer(cell)
    x = torch.from_numpy(PREPROCESSING.normalize(pictures(4)))
    drift = measure_drift(model, unroll(model, (1, 3, 9, 8)), None, x)
    steps = drift.layers["csr"]
    assert len(steps) == 3
    assert all(s.unroll is not None and s.unroll < 1e-10 for s in steps)
    assert all(math.isfinite(s.rms) and s.rms > 0 for s in steps)


def test_subtractions_and_divisions_are_captured() -> None:
    torch.manual_seed(0)
    model = Differences().eval()
    graph = capture(model, (1, 3, 9, 8))
    assert {"sub", "add", "mul"} <= {n.op for n in graph.nodes}
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    expected = model.double()(x).detach()
    torch.testing.assert_close(run_graph(graph, x), expected, rtol=0, atol=1e-12)
