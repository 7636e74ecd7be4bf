"""The weight-tying ledger refuses a file that stores a shared kernel more than once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csr_deploy import export as exporting
from csr_deploy.data import Preprocessing
from csr_deploy.errors import LedgerError
from csr_deploy.nn import CSRConv2d
from csr_deploy.targets import TARGETS
from csr_deploy.unroll.graph import Graph, GraphEditor, Node
from csr_deploy.unroll.lowering import Lowered, lower
from tests.networks import OneLayer, settle


def untie(graph: Graph) -> Graph:
    """A faulty pass: every convolution gets a copy of its kernel, slightly changed."""
    editor = GraphEditor(graph)
    for index, node in enumerate(editor):
        if node.op == "conv2d":
            copy = editor.constant(
                f"{node.inputs[1]}.copy", graph.constants[node.inputs[1]] * (1 + 1e-3 * index)
            )
            inputs = (node.inputs[0], copy, *node.inputs[2:])
            editor.keep(Node(node.op, inputs, node.output, node.attrs, node.origin))
        else:
            editor.keep(node)
    return editor.done()


@pytest.mark.parametrize("target", ["onnx", "tflite-fp32"])
def test_a_pass_that_unties_weights_is_found(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = settle(OneLayer(CSRConv2d(12, 12, 3, 4, padding=1)), (1, 3, 8, 8))
    preprocessing = Preprocessing(8, 8, (0.3,) * 3, (0.3,) * 3)
    network = exporting.Network("tied", model, ("a", "b", "c", "d"), preprocessing)
    options = exporting.ExportOptions(parity_images=8)
    data = exporting.load_export_data(network, None, options, quantized=False)
    exporting.export(network, TARGETS[target], data, tmp_path / "fine", options)

    def faulty(*arguments: Any) -> Lowered:
        made = lower(*arguments)
        return replace(made, graph=untie(made.graph))

    monkeypatch.setattr(exporting, "lower", faulty)
    with pytest.raises(LedgerError, match="duplicated"):
        exporting.export(network, TARGETS[target], data, tmp_path / "untied", options)
    assert not (tmp_path / "untied").exists()
