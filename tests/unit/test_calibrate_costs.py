"""The networks that cost models are fitted to."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from csr_deploy.unroll.cost import node_features

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("calibrate_costs")


def test_samples_are_drawn_alike_and_have_names_of_their_own(tool: Any) -> None:
    drawn = tool.samples(46, wide=True)
    assert drawn == tool.samples(46, wide=True)
    plain = {(channels, side) for channels, _, side in tool.SHAPES}
    assert len({s.name for s in drawn}) == len(drawn) == len(plain) + len(tool.DEPTHWISE) + 46
    assert {s.folded for s in drawn} == {1, 4} and {s.depthwise for s in drawn} == {0, 3, 5}
    assert all(s.folded == s.pixels == 1 for s in tool.samples(46, wide=False))


def test_samples_hold_what_they_are_called_after(tool: Any, tmp_path: Path) -> None:
    depthwise = tool.Sample(24, 1, 8, depthwise=5)
    graph = tool.make(depthwise, "tflite-fp32", tmp_path / "d.tflite", 0)
    groups = [n.attrs["groups"] for n in graph.nodes if n.op == "conv2d"]
    assert groups.count(24) == 2 and (tmp_path / "d.tflite").stat().st_size > 0
    folded = tool.Sample(16, 2, 8, groups=True, folded=4)
    graph = tool.make(folded, "tflite-fp32", tmp_path / "f.tflite", 0)
    # Four pixels of a group of eight channels, or of both groups.
    assert {graph.shapes[n.output][1] for n in graph.nodes if n.op == "affine"} == {4 * 8, 4 * 16}


def test_a_tap_is_told_from_an_element() -> None:
    shapes = [(1, 20, 6, 6), (20, 1, 3, 3)]
    features = node_features("conv2d", shapes, (1, 20, 6, 6), {"groups": 20}, True, (8, 4))
    affine = node_features("affine", [(1, 20, 6, 6), (20,), (20,)], (1, 20, 6, 6), {}, True, (8, 4))
    # Twenty channels take three groups of eight lanes.
    assert features["depthwise.element"] == affine["depthwise.element"] == 36 * 24
    assert (features["depthwise.tap"], affine["depthwise.tap"]) == (9 * 36 * 24, 36 * 24)
