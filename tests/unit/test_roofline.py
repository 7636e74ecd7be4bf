"""The tables of how far networks are from their processor's limit."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csr_deploy.unroll.cost import CostModel
from csr_deploy.unroll.graph import Node, build_graph

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("roofline")


def _graph() -> Any:
    attrs = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1, "activation": "relu"}
    nodes = [
        Node("conv2d", ("image", "kernel", "bias"), "h", attrs),
        Node("conv2d", ("h", "kernel2", "bias"), "out", attrs),
    ]
    constants = {"kernel": np.ones((4, 3, 3, 3)), "kernel2": np.ones((4, 4, 3, 3)), "bias": np.ones(4)}
    return build_graph(nodes, constants, "image", (1, 3, 8, 8), "out")


def test_work_of_a_graph(tool: Any) -> None:
    costs = CostModel("x", True, (8, 1), {"conv.mac": 1.0, "conv": 1000.0})
    work = tool.work_of(_graph(), 1, costs)
    assert work.macs == 64 * 9 * (3 * 4 + 4 * 4)
    # Three values of 3, 4 and 4 channels twice, two kernels, and the shared bias in 32 bits.
    assert work.moved == 2 * 64 * (3 + 4 + 4) + 9 * 4 * 3 + 9 * 4 * 4 + 4 * 4
    assert work.operations == 2
    assert sum(work.shares.values()) == pytest.approx(1, abs=1e-3)
    # Floats are four times as wide; nobody knows their costs here.
    wide = tool.work_of(_graph(), 4, None)
    assert wide.moved == 4 * (work.moved - 16) + 16 and wide.shares == {}


def test_a_row_tells_how_far_it_is_from_the_limit(tool: Any) -> None:
    form = tool.FORMATS[0]
    variant = tool.Variant("resnet56-t4", form, "lowered for pi5", ("pi5",))
    shares = {"multiply-accumulates": 0.5, "slices, concatenations, pads": 0.2, "pooling": 0.3}
    work = tool.Work(120, 2_000, 10, 7, shares)
    row = tool.Row(variant, "pi5", 160_000_000, work, 25_000_000)
    assert row.limit == 10_000_000
    cells = dict(zip(tool.TITLES, row.cells(), strict=True))
    assert cells["limit"] == "10.00 M" and cells["÷ limit"] == "2.5"
    assert (cells["tiles"], cells["copies"], cells["rest"]) == ("50 %", "20 %", "30 %")
    unknown = tool.Row(variant, "pi4", 160, tool.Work(1, 1, 1, 1, {}), None)
    assert unknown.cells()[-7:] == ["–"] * 7
    text = tool.markdown(form, [row, unknown])
    assert len({line.count("|") for line in text.splitlines()[2:]}) == 1


def test_every_board_has_a_limit(tool: Any) -> None:
    formats = {f.numbers for f in tool.FORMATS}
    assert set(tool.PEAK) == {(board, numbers) for board in tool.BOARDS for numbers in formats}
