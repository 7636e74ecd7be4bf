"""A network of what gated cells and EfficientNets add to convolutions and sums; its output is a whole map."""

from __future__ import annotations

import numpy as np

from tests.mcu_tflite import GraphBuilder, Quant, Value

SHAPE = (1, 8, 8, 3)
_GATE: Quant = (1 / 256, -128)
_TANH: Quant = (1 / 128, 0)


class _Network:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = GraphBuilder()

    def _weights(self, *shape: int) -> np.ndarray:
        return self.random.integers(-127, 128, shape).astype(np.int8)

    def _conv(self, x: Value, filters: int, out: Quant, kernel: int = 3, groups: int = 1) -> Value:
        """Weights so scaled that outputs spread over most of int8."""
        weights = self._weights(filters, kernel, kernel, x.shape[3] // groups)
        spread = 70 * 75 * x.quantised[0] * np.sqrt(weights[0].size)
        bias = self.random.integers(-2000, 2000, filters).astype(np.int32)
        return self.graph.conv2d(x, weights, [45 * out[0] / spread] * filters, bias, out)

    def _gate(self, x: Value, filters: int) -> Value:
        return self.graph.unary("LOGISTIC", self._conv(x, filters, (0.05, 3)), _GATE)

    def excited(self, x: Value) -> Value:
        """A depth-wise convolution of many groups, hard swish, squeeze and excitation."""
        channels = x.shape[3]
        deep = self._conv(x, channels, (0.06, -2), groups=channels)
        swish = self.graph.unary("HARD_SWISH", deep, (0.03, -115))
        squeezed = self.graph.mean(swish, (1, 2), (0.02, -100), keep_dims=True)
        reduced = self._conv(squeezed, 3, (0.03, 1), kernel=1)
        slopes = self.graph.constant(self._weights(1, 1, 1, 3), (0.004, 5))
        gains = self._conv(
            self.graph.binary("PRELU", reduced, slopes, (0.02, -9)), channels, (0.05, 2), kernel=1
        )
        return self.graph.mul(swish, self.graph.unary("LOGISTIC", gains, _GATE), (0.02, -110))

    def gated(self, x: Value, state: Value, out: Quant) -> Value:
        """h + z · (tanh(c) − h) and a leak of 1 − z, with groups in the candidate's convolution."""
        filters = state.shape[3]
        update = self._gate(x, filters)
        reset = self.graph.mul(self._gate(x, filters), state, (0.02, 4))
        candidate = self.graph.unary("TANH", self._conv(reset, filters, (0.03, 7), groups=2), _TANH)
        moved = self.graph.mul(update, self.graph.sub(candidate, state, (0.03, 6)), (0.02, 1))
        one = self.graph.constant(np.array([127], np.int8), (1 / 255, -128))
        leak = self.graph.mul(self.graph.sub(one, update, _GATE), x, (0.03, -5))
        new = self.graph.add(self.graph.add(state, moved, out), leak, out)
        return self.graph.binary("MAXIMUM", new, self.graph.binary("MINIMUM", new, state, out), out)


def gated_network(seed: int = 0) -> bytes:
    """An int8 model from 8×8×3 to the 768 values of its last map."""
    net = _Network(seed)
    graph = net.graph
    x = graph.input(SHAPE, (0.02, -3))
    front = net._conv(x, 12, (0.04, -6))
    block = net.excited(front)
    first, second = graph.split(block, 3, 2)
    state_quant = (0.025, -8)
    state = graph.unary("LEAKY_RELU", net._conv(first, 6, state_quant), state_quant, alpha=0.2)
    after = net.gated(second, state, state_quant)
    joined = graph.concat([state, after], 3)
    half = graph.constant(np.array([64], np.int8), (1 / 128, 0))
    scaled = graph.mul(joined, half, (0.008, 2))
    return graph.build(graph.reshape(scaled, (1, 768)))
