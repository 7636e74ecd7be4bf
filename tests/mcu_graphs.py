"""Random int8 graphs that use what the microcontroller compiler has: windows, sums, moves, recurrences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.mcu_tflite import GraphBuilder, Quant, Value


class RandomGraph:
    """One graph, the same for the same seed.

    Args:
        seed: Fixes everything.
        operations: Number of operations before the output layer.
    """

    def __init__(self, seed: int, operations: int) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = GraphBuilder()
        side, channels = int(self.random.integers(4, 9)), int(self.random.integers(1, 10))
        self.shape = (1, side, int(self.random.integers(4, 9)), channels)
        self.values = [self.graph.input(self.shape, self._quant())]
        for _ in range(operations):
            steps: list[Callable[[Value], Value]] = [
                self._conv, self._conv, self._conv, self._depthwise, self._affine, self._binary, self._binary,
                self._pool, self._unary, self._joined, self._joined, self._slice, self._pad, self._recurrence,
                self._recurrence, self._subsample, self._padded_recurrence,
            ]  # fmt: skip
            source = self.values[-1 - int(self.random.integers(0, min(3, len(self.values))))]
            self.values.append(steps[int(self.random.integers(len(steps)))](source))
        self.content = self.graph.build(self._head(self.values[-1]))

    def _quant(self) -> Quant:
        return float(self.random.uniform(0.01, 0.2)), int(self.random.integers(-128, 100))

    def _activation(self) -> str:
        return str(self.random.choice(["NONE", "RELU", "RELU6"]))

    def _weights(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.random.integers(-127, 128, shape).astype(np.int8)

    def _scales(self, count: int) -> np.ndarray:
        return self.random.uniform(0.0005, 0.02, count).astype(np.float32)

    def _bias(self, count: int) -> np.ndarray:
        return self.random.integers(-3000, 3000, count).astype(np.int32)

    def _kernel(self, x: Value, padding: str) -> tuple[int, int]:
        most = [3 if padding == "SAME" else min(3, n) for n in x.shape[1:3]]
        return int(self.random.integers(1, most[0] + 1)), int(self.random.integers(1, most[1] + 1))

    def _conv(self, x: Value) -> Value:
        padding = str(self.random.choice(["SAME", "VALID"]))
        kernel, filters = self._kernel(x, padding), int(self.random.integers(1, 14))
        stride = tuple(int(v) for v in self.random.integers(1, 3, 2)) if min(x.shape[1:3]) > 3 else (1, 1)
        dilation = (
            (2, 2) if padding == "SAME" and self.random.random() < 0.15 and stride == (1, 1) else (1, 1)
        )
        return self.graph.conv2d(
            x, self._weights((filters, *kernel, x.shape[3])), self._scales(filters), self._bias(filters),
            self._quant(), stride=stride, dilation=dilation, padding=padding, activation=self._activation(),
        )  # fmt: skip

    def _depthwise(self, x: Value) -> Value:
        padding = str(self.random.choice(["SAME", "VALID"]))
        kernel, multiplier = self._kernel(x, padding), int(self.random.choice([1, 1, 2]))
        filters = x.shape[3] * multiplier
        return self.graph.depthwise_conv2d(
            x, self._weights((1, *kernel, filters)), self._scales(filters), self._bias(filters),
            self._quant(), padding=padding, activation=self._activation(),
        )  # fmt: skip

    def _affine(self, x: Value) -> Value:
        filters = x.shape[3]
        scales = self.random.uniform(0.002, 0.05, filters).astype(np.float32)
        return self.graph.depthwise_conv2d(
            x, self._weights((1, 1, 1, filters)), scales, self._bias(filters), self._quant(), padding="VALID"
        )

    def _binary(self, x: Value) -> Value:
        kind = str(self.random.choice(["ADD", "ADD", "SUB", "MUL"]))
        same = [v for v in self.values if v.shape == x.shape]
        choice = self.random.random()
        if choice < 0.3:
            shape = (1, 1, 1, x.shape[3]) if self.random.random() < 0.5 else (1, 1, 1, 1)
            other = self.graph.constant(self._weights(shape), self._quant())
        else:
            other = same[int(self.random.integers(len(same)))]
        pair = (x, other) if self.random.random() < 0.5 else (other, x)
        return self.graph.binary(kind, *pair, self._quant(), activation=self._activation())

    def _pool(self, x: Value) -> Value:
        kind = str(self.random.choice(["MAX_POOL_2D", "AVERAGE_POOL_2D"]))
        padding = "VALID" if min(x.shape[1:3]) >= 4 and self.random.random() < 0.5 else "SAME"
        stride = (2, 2) if min(x.shape[1:3]) >= 4 else (1, 1)
        return self.graph.pool(kind, x, (2, 2), stride=stride, padding=padding)

    def _unary(self, x: Value) -> Value:
        kind = str(self.random.choice(["RELU", "LOGISTIC", "HARD_SWISH"]))
        out = (1 / 256, -128) if kind == "LOGISTIC" else self._quant()
        return self.graph.unary(kind, x, out)

    def _joined(self, x: Value) -> Value:
        """Convolutions of one scale, joined along channels; one of them may be used again."""
        out = self._quant()
        parts = []
        for _ in range(int(self.random.integers(2, 4))):
            filters = int(self.random.integers(1, 7))
            weights, scales = self._weights((filters, 3, 3, x.shape[3])), self._scales(filters)
            parts.append(self.graph.conv2d(x, weights, scales, self._bias(filters), out))
        self.values.append(parts[0])
        return self.graph.concat(parts, 3)

    def _slice(self, x: Value) -> Value:
        count = int(self.random.integers(1, x.shape[3] + 1))
        first = int(self.random.integers(0, x.shape[3] - count + 1))
        return self.graph.slice(x, (0, 0, 0, first), (*x.shape[:3], count))

    def _pad(self, x: Value) -> Value:
        pads = [(0, 0), *((int(a), int(b)) for a, b in self.random.integers(0, 2, (2, 2))), (0, 0)]
        if self.random.random() < 0.3:
            pads[3] = (1, 2)
        return self.graph.pad(x, pads)

    def _subsample(self, x: Value) -> Value:
        if x.shape[1] % 2 or x.shape[2] % 2:
            return self._conv(x)
        return self.graph.slice(
            self.graph.space_to_depth(x, 2), (0, 0, 0, 0), (1, x.shape[1] // 2, x.shape[2] // 2, x.shape[3])
        )

    def _padded_recurrence(self, x: Value) -> Value:
        return self._recurrence(self.graph.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), "VALID", (2, 2))

    def _recurrence(self, x: Value, padding: str = "SAME", stride: tuple[int, int] = (1, 1)) -> Value:
        """A channel-split recurrence as csr-deploy unrolls it."""
        steps = int(self.random.integers(2, 4))
        if x.shape[3] < steps or min(x.shape[1:3]) < 3:
            return self._conv(x)
        group, filters, state = x.shape[3] // steps, int(self.random.integers(1, 7)), self._quant()
        v, u = self._weights((filters, 3, 3, group)), self._weights((filters, 3, 3, filters))
        v_scales, u_scales = self._scales(filters), self._scales(filters)
        states: list[Value] = []
        for t in range(steps):
            part = self.graph.slice(x, (0, 0, 0, t * group), (*x.shape[:3], group))
            first = not states
            term = self.graph.conv2d(
                part, v, v_scales, self._bias(filters), state if first else self._quant(), padding=padding,
                stride=stride, activation="RELU" if first else "NONE",
            )  # fmt: skip
            if not first:
                back = self.graph.conv2d(states[-1], u, u_scales, self._bias(filters), self._quant())
                term = self.graph.add(term, back, state, activation="RELU")
            states.append(term)
        return self.graph.concat(states, 3)

    def _head(self, x: Value) -> Value:
        choice = int(self.random.integers(4))
        if choice == 0:
            return x
        if choice == 1:
            x = self.graph.mean(x, (1, 2), self._quant(), keep_dims=True)
        features, count = int(np.prod(x.shape)), 5
        flat = self.graph.reshape(x, (1, features))
        scales = self._scales(1) / 4
        logits = self.graph.fully_connected(
            flat, self._weights((count, features)), scales, self._bias(count), (0.1, 3)
        )
        return self.graph.softmax(logits) if choice == 2 else logits
