"""The networks of the microcontroller figures, and the table that shows them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from csr_deploy.analysis import count_macs
from csr_deploy.errors import ExportError, MissingDependencyError
from csr_deploy.models import count_parameters
from csr_deploy.nn import CSRConv2d

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of tools/ as it is imported when it runs."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def _shapes_only(network: Any) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = network.build()
    return module


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("resnet56-t4", 151_610, None),
        ("resnet56", 855_770, None),
        ("vgg16", 14.99e6, None),
        ("vgg16-csr4", 2.03e6, None),
        ("resnet8", 78e3, 12.5e6),
        ("mobilenet-025", None, 7.5e6),
    ],
)
def test_networks_are_those_of_the_issue(
    tool: Any, name: str, parameters: float | None, macs: float | None
) -> None:
    network = tool("mcu_networks").NETWORKS[name]
    module = _shapes_only(network)
    assert count_parameters(module) == network.parameters
    assert count_macs(module, network.input_shape) == network.macs
    # The issue and the design round to two or three digits.
    assert parameters is None or network.parameters == pytest.approx(parameters, rel=3e-3)
    assert macs is None or network.macs == pytest.approx(macs, rel=3e-3)


def test_mac_ratios_are_those_of_the_design(tool: Any) -> None:
    networks = tool("mcu_networks").NETWORKS
    for name, ratio in (("resnet56-t4", 0.63), ("vgg16-csr4", 0.61)):
        backbone = networks[networks[name].backbone]
        assert networks[name].macs / backbone.macs == pytest.approx(ratio, abs=0.005)


def test_resnet56_t4_has_36_layers_of_four_steps(tool: Any) -> None:
    module = _shapes_only(tool("mcu_networks").NETWORKS["resnet56-t4"])
    layers = [m for m in module.modules() if isinstance(m, CSRConv2d)]
    assert [layer.num_steps for layer in layers] == [4] * 36
    assert {layer.kernel_size for layer in layers} == {(3, 3)}


def test_a_network_that_is_there_is_not_made_again(tool: Any, tmp_path: Path) -> None:
    file = tmp_path / "resnet8-tflite-int8" / "resnet8.tflite"
    file.parent.mkdir()
    file.write_bytes(b"kept")
    assert tool("mcu_networks").make("resnet8", tmp_path) == file
    assert file.read_bytes() == b"kept"


def _text(drawn: Any) -> str:
    console = Console(width=240)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get()


def test_table_shows_ratios_goals_and_reasons(tool: Any) -> None:
    bench = tool("bench_mcu")
    device = "qemu:cortex-m4"
    cells = [
        bench.Cell("resnet56", "csr-deploy", device, 200_000_000, 40_000, 1_000, 900_000, 850_000, True, 1.0),
        bench.Cell(
            "resnet56-t4", "csr-deploy", device, 100_000_000, 30_000, 1_000, 180_000, 150_000, True, 1.0
        ),
        bench.Cell(
            "resnet56-t4", "bakenn 1.0.0", device, 300_000_000, 54_000, 800, 277_000, 150_000, True, 1.0
        ),
        bench.Cell("resnet8", "bakenn", device, error="needs the package 'bakenn[tflite]'"),
    ]
    lines = _text(bench.table(cells)).splitlines()
    ours = next(line for line in lines if "resnet56-t4" in line and "csr-deploy" in line)
    columns = [column.strip() for column in ours.split("│")][1:-1]
    assert columns[3:5] == ["100.00 M", "1.25"]
    assert columns[8:11] == ["0.33", "0.50", "yes"]
    assert any("TFLM + CMSIS-NN*" in line and "262.80 M" in line for line in lines)
    assert any("not measured here" in line for line in lines)
    assert any("goal" in line and "≤ 125.00 M" in line for line in lines)
    assert any("resnet8" in line and "failed" in line for line in lines)
    assert bench.failures(cells) == ["resnet8 bakenn qemu:cortex-m4: needs the package 'bakenn[tflite]'"]


def test_a_missing_peer_says_how_to_install_it(tool: Any, tmp_path: Path) -> None:
    peer = tool("peers.bakenn_peer")
    with pytest.raises(MissingDependencyError, match=r"pip install 'bakenn\[tflite\]"):
        peer.compile_model(tmp_path / "x.tflite", tmp_path, str(tmp_path / "no-python"))


def test_shim_gives_the_peer_its_buffers_and_scratch(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = tool("peers.bakenn_peer")
    made = (
        '{"sources": ["a.c"], "includes": ["."], "defines": [], "version": "1", "refusal": "", "kernels": {},'
        ' "arena_bytes": 100, "scratch_bytes": 8, "mve_scratch_bytes": 24, "alignment": 16,'
        ' "input": {"shape": [1, 5, 5, 3]}, "output": {"shape": [1, 10]}}'
    )
    monkeypatch.setattr(peer, "_run", lambda command: subprocess.CompletedProcess(command, 0, made, ""))
    model = peer.compile_model(Path("net.tflite"), tmp_path, sys.executable)
    header = (model.folder / "model.h").read_text()
    # 100 + 16 more of scratch, rounded up to 128; then 75 and 10, each rounded up to a multiple of 16.
    assert "#define MODEL_ARENA_BYTES 224u" in header
    assert "arena + 128, (int8_t *)model->arena + 208" in (model.folder / "model.c").read_text()


def test_a_model_the_peer_refuses_is_told(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = tool("peers.bakenn_peer")

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        status = 0 if command[1] == "-c" else 1
        return subprocess.CompletedProcess(command, status, "", "Traceback\nno TANH")

    monkeypatch.setattr(peer, "_run", run)
    with pytest.raises(ExportError, match="net.tflite: bakenn refuses it: no TANH"):
        peer.compile_model(Path("net.tflite"), tmp_path, sys.executable)
