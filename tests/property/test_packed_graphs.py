"""Random networks for boards: packed weights in plain C, NEON, SDOT, the variants for x86-64, and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("flatbuffers", reason="needs flatbuffers")

from csr_deploy.exporters.mcu.compiler import compile_model, evaluate, optimise  # noqa: E402
from csr_deploy.exporters.mcu.options import McuOptions  # noqa: E402
from csr_deploy.exporters.mcu.reader import read_tflite  # noqa: E402
from csr_deploy.runtimes.native.build import find_compiler  # noqa: E402
from csr_deploy.runtimes.native.platforms import X86_64, Variant, this_platform  # noqa: E402
from tests.mcu_graphs import RandomGraph  # noqa: E402
from tests.mcu_host import HostCompiler  # noqa: E402
from tests.mcu_tflite import GraphBuilder, Value  # noqa: E402
from tests.native import runnable  # noqa: E402

_CROSS = "aarch64-linux-gnu-gcc"
MACHINES: dict[str, dict[str, Any]] = {
    "plain C": {},
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
    # A runner, be it one that changes nothing, has the arena end at a page that cannot be read.
    **{
        variant.architecture: {"flags": ("-O2", *variant.flags), "runner": ("env",)}
        for variant in runnable(X86_64)[1:]
    },
}


def _demand(variant: Variant) -> None:
    """Skips where the compiler does not know a variant for x86-64."""
    compiler = find_compiler(this_platform())
    if compiler is None or variant not in compiler.platform.variants:
        pytest.skip(f"needs a compiler that knows {' '.join(variant.flags)}")


@pytest.fixture(scope="module", params=list(MACHINES))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    for variant in runnable(X86_64)[1:]:
        if request.param == variant.architecture:
            _demand(variant)
    return HostCompiler(tmp_path_factory.mktemp("kernels"), **MACHINES[request.param])


class Network:
    """Convolutions, a recurrence, gains and sums, of shapes that the small random graphs never have."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = GraphBuilder()
        self.shape = (1, self._int(1, 20), self._int(1, 36), self._int(1, 40))

    def _int(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def _weights(self, *shape: int) -> np.ndarray:
        most = int(self.random.choice([20, 84, 86, 127]))
        values = self.random.integers(-most, most + 1, shape).astype(np.int8)
        # What training left without weights has an arbitrary scale.
        if self._int(0, 2) == 0:
            values[self._int(0, shape[0] - 1)] = 0
        return values

    def _scales(self, weights: np.ndarray, axis: int = 0) -> list[float]:
        others = tuple(i for i in range(weights.ndim) if i != axis)
        scales = self.random.uniform(0.5, 2.0, weights.shape[axis]) * 0.02 / np.sqrt(weights[0].size)
        return list(np.where(weights.any(axis=others), scales, 1.0))

    def _bias(self, count: int) -> np.ndarray:
        return self.random.integers(-3000, 3000, count).astype(np.int32)

    def _conv(self, x: Value) -> Value:
        kernel = (3, 3) if self._int(0, 1) else (self._int(1, 5), self._int(1, 5))
        stride = (1, 1) if self._int(0, 2) else (self._int(1, 3), self._int(1, 3))
        dilation = (1, 1) if self._int(0, 3) else (self._int(1, 2), self._int(1, 2))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        fits = reach[0] <= x.shape[1] and reach[1] <= x.shape[2]
        padding = "VALID" if fits and self._int(0, 2) == 0 else "SAME"
        weights = self._weights(self._int(1, 40), *kernel, x.shape[3])
        relu = bool(self._int(0, 1))
        return self.graph.conv2d(
            x, weights, self._scales(weights), self._bias(len(weights)),
            (0.03, int(self.random.choice([-128, -100])) if relu else self._int(-30, 30)),
            stride=stride, dilation=dilation, padding=padding, activation="RELU" if relu else "NONE",
        )  # fmt: skip

    def _recurrence(self, x: Value, *, faded: bool = False) -> Value:
        steps, filters = self._int(2, 5), self._int(1, 20)
        group = max(1, x.shape[3] // steps)
        steps = min(steps, x.shape[3] // group)
        if steps < 2:
            return self._conv(x)
        kernel = int(self.random.choice([1, 3, 3, 3, 5]))
        back_kernel = int(self.random.choice([1, 3, 3, 3]))
        stride = (1, 1) if self._int(0, 2) else (2, 2)
        v, u = (
            self._weights(filters, kernel, kernel, group),
            self._weights(filters, back_kernel, back_kernel, filters),
        )
        v_scales, u_scales = self._scales(v), self._scales(u)
        out = (0.03, int(self.random.choice([-128, -90])))
        if self._int(0, 3) == 0:
            # Sums of both in the same units.
            v_scales = [0.002] * filters
            u_scales = [0.002 * (x.quant or out)[0] / out[0]] * filters
        if faded:
            # Filters whose weights training let decay to almost nothing, of V, of U or of both.
            for scales in (u_scales, v_scales):
                for channel in np.flatnonzero(self.random.random(filters) < 0.5):
                    scales[channel] *= 10.0 ** -self.random.uniform(6, 13)
        states: list[Value] = []
        for t in range(steps):
            part = self.graph.slice(x, (0, 0, 0, t * group), (*x.shape[:3], group))
            term = self.graph.conv2d(
                part, v, v_scales, self._bias(filters), (0.05, 3) if states else out, stride=stride,
                activation="NONE" if states else "RELU",
            )  # fmt: skip
            if states:
                back = self.graph.conv2d(states[-1], u, u_scales, self._bias(filters), (0.04, -9))
                term = self.graph.add(term, back, out, activation="RELU")
            states.append(term)
        return self.graph.concat(states, 3)

    def _gain(self, x: Value) -> Value:
        weights = self.random.integers(-127, 128, (1, 1, 1, x.shape[3])).astype(np.int8)
        scales = list(self.random.uniform(0.005, 0.03, x.shape[3]))
        relu = bool(self._int(0, 1))
        out = (0.04, -128) if relu else (0.05, self._int(-40, 40))
        return self.graph.depthwise_conv2d(
            x, weights, scales, self._bias(x.shape[3]), out, activation="RELU" if relu else "NONE"
        )

    def _depthwise(self, x: Value) -> Value:
        kernel = (self._int(1, 5), self._int(1, 5))
        weights = self.random.integers(-127, 128, (1, *kernel, x.shape[3])).astype(np.int8)
        return self.graph.depthwise_conv2d(
            x, weights, list(self.random.uniform(0.002, 0.01, x.shape[3])), self._bias(x.shape[3]),
            (0.05, self._int(-40, 40)), stride=(self._int(1, 2), self._int(1, 2)), padding="SAME",
        )  # fmt: skip

    def _sum(self, x: Value) -> Value:
        other = self._gain(x)
        return self.graph.add(x, other, (float(self.random.uniform(0.03, 0.09)), self._int(-60, 20)))

    def strips(self) -> bytes:
        """Depth-wise convolutions one after another, most with enough channels for several at a time."""
        self.shape = (1, self._int(1, 18), self._int(1, 18), self._int(8, 80))
        x = self.graph.input(self.shape, (0.04, self._int(-128, 20)))
        for _ in range(self._int(1, 3)):
            x = self._strip(x)
        return self.graph.build(x)

    def _strip(self, x: Value) -> Value:
        kernel = [(3, 3), (3, 3), (5, 5), (self._int(1, 7), self._int(1, 7))][self._int(0, 3)]
        stride = (self._int(1, 2),) * 2 if self._int(0, 3) else (self._int(1, 3), self._int(1, 3))
        dilation = (1, 1) if stride != (1, 1) or self._int(0, 2) else (self._int(1, 2), self._int(1, 2))
        weights = self._weights(x.shape[3], *kernel).transpose(1, 2, 0)[None].copy()
        if self._int(0, 4) == 0:
            # Two products of the least numbers do not fit 16 bits; converters of others may write them.
            weights[self.random.random(weights.shape) < 0.5] = -128
        # From shifts to the left to those of trained networks.
        scales = self.random.uniform(0.2, 1.0, x.shape[3]) * float(self.random.choice([0.004, 0.01, 2.0]))
        activation = str(self.random.choice(["NONE", "RELU", "RELU6"]))
        out = (0.05, int(self.random.choice([-128, -100, self._int(-30, 30)])))
        fits = kernel[0] * dilation[0] <= x.shape[1] and kernel[1] * dilation[1] <= x.shape[2]
        return self.graph.depthwise_conv2d(
            x, weights, list(scales), self._bias(x.shape[3]), out, stride=stride, dilation=dilation,
            padding="VALID" if fits and self._int(0, 2) == 0 else "SAME", activation=activation,
        )  # fmt: skip

    def faded(self) -> bytes:
        """A recurrence some of whose weights are almost nothing."""
        self.shape = (1, self._int(2, 12), self._int(2, 12), self._int(4, 40))
        x = self.graph.input(self.shape, (0.04, self._int(-128, 20)))
        return self.graph.build(self._recurrence(x, faded=True))

    def build(self) -> bytes:
        x = self.graph.input(self.shape, (0.04, self._int(-128, 20)))
        for _ in range(self._int(1, 3)):
            x = self._conv(x)
        for _ in range(self._int(1, 2)):
            x = self._recurrence(x)
        for step in (self._gain, self._sum)[: self._int(0, 2)]:
            x = step(x)
        if self._int(0, 1):
            x = self._depthwise(x)
        if self._int(0, 2) == 0:
            x = self.graph.mean(x, (1, 2), (0.03, self._int(-20, 20)))
        return self.graph.build(x)


def _check(machine: HostCompiler, content: bytes, shape: tuple[int, ...], seed: int) -> None:
    inputs = np.random.default_rng(seed).integers(-128, 128, (2, *shape)).astype(np.int8)
    model = read_tflite(content, f"seed {seed}")
    exact = [evaluate(optimise(model), x).reshape(-1) for x in inputs]
    for once in (False, True):
        options = McuOptions(cpu="aarch64", fuse_requantize=once)
        graph = optimise(model, options)
        expected = [evaluate(graph, x).reshape(-1) for x in inputs] if once else exact
        got = machine.run(compile_model(graph, options), inputs)
        assert np.array_equal(got, expected), f"seed {seed}, rounded {'once' if once else 'as in TFLite'}"


@pytest.mark.parametrize("seed", range(10))
def test_random_networks(machine: HostCompiler, seed: int) -> None:
    network = Network(seed)
    _check(machine, network.build(), network.shape, seed)


@pytest.mark.parametrize("seed", range(6))
def test_weights_that_decayed(machine: HostCompiler, seed: int) -> None:
    network = Network(seed)
    content = network.faded()
    _check(machine, content, network.shape, seed)
    graph = optimise(read_tflite(content, f"seed {seed}"), McuOptions(cpu="aarch64", fuse_requantize=True))
    # Otherwise its kernel is the plain one, which takes many times the instructions.
    assert [bool(op.attrs.get("joint")) for op in graph.ops if op.kind == "CSR_CELL"] == [True]


@pytest.mark.parametrize("seed", range(12))
def test_depthwise(machine: HostCompiler, seed: int) -> None:
    network = Network(seed)
    content = network.strips()
    _check(machine, content, network.shape, seed)


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs(machine: HostCompiler, seed: int) -> None:
    graph = RandomGraph(seed, 5)
    _check(machine, graph.content, graph.shape, seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_many_random_networks(machine: HostCompiler, seed: int) -> None:
    network = Network(seed)
    _check(machine, network.build(), network.shape, seed)
    network = Network(seed)
    content = network.strips()
    _check(machine, content, network.shape, seed)
    graph = RandomGraph(seed, 5)
    _check(machine, graph.content, graph.shape, seed)
