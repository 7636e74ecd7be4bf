"""Every step cell as C: unrolled, quantised and compiled, it gives TFLite Micro's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite_micro", reason="needs tflite-micro")
pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
torch = pytest.importorskip("torch", reason="needs torch to build layers")

from torch import nn  # noqa: E402

from csr_deploy.data.preprocess import Preprocessing  # noqa: E402
from csr_deploy.exporters.base import WriteRequest  # noqa: E402
from csr_deploy.exporters.mcu.compiler import compile_tflite  # noqa: E402
from csr_deploy.exporters.tflite import EXPORTER as TFLITE  # noqa: E402
from csr_deploy.exporters.tflite import TfliteWriter  # noqa: E402
from csr_deploy.nn import CSRConv2d  # noqa: E402
from csr_deploy.nn.cells import CELLS  # noqa: E402
from csr_deploy.quantize import QuantizeOptions, quantize  # noqa: E402
from csr_deploy.unroll.lowering import unroll  # noqa: E402
from tests.mcu_host import HostCompiler  # noqa: E402
from tests.mcu_tflite import run_tflm  # noqa: E402

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    return HostCompiler(tmp_path_factory.mktemp("cells"))


def _flatbuffer(model: nn.Module) -> bytes:
    graph = TFLITE.legalise(unroll(model, (1, *SHAPE), "stepwise"))
    batches = [torch.randn((8, *SHAPE), generator=torch.Generator().manual_seed(0))]
    preprocessing = Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3)
    options = QuantizeOptions("min-max", False, 0)
    quantized = quantize(graph, batches, preprocessing, options, TFLITE.scheme)
    content, _ = TfliteWriter(WriteRequest(quantized.graph, quantized, 8, Path("x"), "cell")).write()
    return content


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_of_every_cell(host: HostCompiler, cell: str) -> None:
    torch.manual_seed(0)
    layer = CSRConv2d(12, 12, 3, 3, 1, 1, cell=cell)
    # The whole map is the output, so that no difference is averaged away.
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), layer, nn.BatchNorm2d(12)).eval()
    content = _flatbuffer(model)
    program = compile_tflite(content, cell)
    inputs = np.random.default_rng(0).integers(-128, 128, (4, *program.input.shape)).astype(np.int8)
    expected = np.array([out.reshape(-1) for out in run_tflm(content, *inputs)])
    assert len(np.unique(expected)) > 64
    np.testing.assert_array_equal(host.run(program, inputs), expected)
    # A byte a parameter: the steps share theirs.
    assert program.flash[0] <= sum(p.numel() for p in model.parameters())
