"""Random networks shared by several threads give the bytes of the NumPy reference, whatever their number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("flatbuffers", reason="needs flatbuffers")

from csr_deploy.exporters.mcu.compiler import evaluate  # noqa: E402
from csr_deploy.exporters.mcu.reader import read_tflite  # noqa: E402
from csr_deploy.exporters.native import team  # noqa: E402
from tests.mcu_graphs import RandomGraph  # noqa: E402
from tests.mcu_tflite import GraphBuilder  # noqa: E402
from tests.native_threads import ThreadedProgram, optimised  # noqa: E402
from tests.property.test_packed_graphs import Network  # noqa: E402

_CROSS = "aarch64-linux-gnu-gcc"
_MEMORY = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MACHINES: dict[str, dict[str, Any]] = {
    "thread sanitizer": {"flags": ("-O1", "-g", "-fsanitize=thread")},
    "memory sanitizers": {"flags": _MEMORY},
    "NEON": {
        "compiler": _CROSS,
        "flags": ("-O2", "-static", "-march=armv8-a"),
        "runner": ("qemu-aarch64", "-cpu", "cortex-a72"),
    },
    "SDOT": {
        "compiler": _CROSS,
        "flags": ("-O2", "-static", "-march=armv8.2-a+dotprod"),
        "runner": ("qemu-aarch64", "-cpu", "max"),
    },
}


@pytest.fixture(scope="module", params=list(MACHINES))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ThreadedProgram:
    return ThreadedProgram(tmp_path_factory.mktemp("threads"), **MACHINES[request.param])


@pytest.fixture(autouse=True)
def everything_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_LEAST", 0)


def _check(program: ThreadedProgram, content: bytes, shape: tuple[int, ...], seed: int) -> None:
    inputs = np.random.default_rng(seed).integers(-128, 128, (2, *shape)).astype(np.int8)
    graph = optimised(read_tflite(content, f"seed {seed}"))
    expected = np.stack([evaluate(graph, x).reshape(-1) for x in inputs])
    for threads, got in program.run(graph, inputs).items():
        assert np.array_equal(got, expected), f"seed {seed}, {threads} threads"


@pytest.mark.parametrize("seed", range(4))
def test_random_networks(program: ThreadedProgram, seed: int) -> None:
    network = Network(seed)
    _check(program, network.build(), network.shape, seed)


@pytest.mark.parametrize("seed", range(3))
def test_random_graphs(program: ThreadedProgram, seed: int) -> None:
    graph = RandomGraph(seed, 6)
    _check(program, graph.content, graph.shape, seed)


@pytest.mark.parametrize(
    ("height", "width", "filters"), [(1, 1, 3), (1, 70, 24), (5, 1, 8), (3, 2, 40), (9, 5, 1)]
)
def test_small_and_narrow(program: ThreadedProgram, height: int, width: int, filters: int) -> None:
    random = np.random.default_rng(filters)
    graph = GraphBuilder()
    shape = (1, height, width, 16)
    x = graph.input(shape, (0.04, -7))
    for kernel, channels in ((1, 16), (3, filters), (1, filters)):
        weights = random.integers(-127, 128, (filters, kernel, kernel, channels)).astype(np.int8)
        bias = random.integers(-3000, 3000, filters).astype(np.int32)
        x = graph.conv2d(x, weights, [0.002] * filters, bias, (0.05, -20))
    _check(program, graph.build(x), shape, filters)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2000, 2060))
def test_many_random_networks(program: ThreadedProgram, seed: int) -> None:
    network = Network(seed)
    _check(program, network.build(), network.shape, seed)
    graph = RandomGraph(seed, 6)
    _check(program, graph.content, graph.shape, seed)
