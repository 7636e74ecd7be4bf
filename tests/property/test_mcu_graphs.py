"""Random int8 graphs: the C, the NumPy references, with and without passes, and TFLite Micro agree."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tflite_micro", reason="needs tflite-micro")

from csr_deploy.exporters.mcu.compiler import PASSES, compile_model, evaluate  # noqa: E402
from csr_deploy.exporters.mcu.options import McuOptions  # noqa: E402
from csr_deploy.exporters.mcu.passes.fuse_requantize import fuse_requantize  # noqa: E402
from csr_deploy.exporters.mcu.passes.normalise import normalise  # noqa: E402
from csr_deploy.exporters.mcu.reader import read_tflite  # noqa: E402
from tests.mcu_graphs import RandomGraph  # noqa: E402
from tests.mcu_host import HostCompiler  # noqa: E402
from tests.mcu_tflite import run_tflm  # noqa: E402


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    return HostCompiler(tmp_path_factory.mktemp("sanitized"))


def _check(host: HostCompiler, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = RandomGraph(seed, int(random.integers(1, 9)))
    inputs = random.integers(-128, 128, (3, *graph.shape)).astype(np.int8)
    expected = [out.reshape(-1) for out in run_tflm(graph.content, *inputs)]
    model = normalise(read_tflite(graph.content, f"seed {seed}"))
    got = [evaluate(model, x).reshape(-1) for x in inputs]
    assert np.array_equal(got, expected), f"seed {seed}: NumPy differs from TFLite Micro"
    for run in PASSES:
        model = run(model)
        got = [evaluate(model, x).reshape(-1) for x in inputs]
        assert np.array_equal(got, expected), f"seed {seed}: {run.__name__} changes the result"
    share = float(random.choice([0.0, 0.17, 2.0]))
    program = compile_model(model, McuOptions(scratch_share=share))
    assert np.array_equal(host.run(program, inputs), expected), f"seed {seed}: the C differs"
    once = fuse_requantize(model)
    if any(op.attrs.get("once") for op in once.ops):
        got = [evaluate(once, x).reshape(-1) for x in inputs]
        program = compile_model(once, McuOptions(scratch_share=share, fuse_requantize=True))
        assert any(call.kernel == "csr_fused_cell_s8" for call in program.calls)
        assert np.array_equal(host.run(program, inputs), got), f"seed {seed}: the C rounded once differs"


@pytest.mark.parametrize("seed", range(24))
def test_random_graphs(host: HostCompiler, seed: int) -> None:
    _check(host, seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_many_random_graphs(host: HostCompiler, seed: int) -> None:
    _check(host, seed)
