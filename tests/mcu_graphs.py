"""Random int8 graphs that use what the microcontroller compiler has: windows, sums, moves, recurrences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.mcu_tflite import GraphBuilder, Quant, Value

FIXED: dict[str, Quant] = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
"""Outputs that TFLite fixes."""


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
                self._pool, self._unary, self._unary, self._joined, self._joined, self._slice, self._pad,
                self._recurrence, self._recurrence, self._subsample, self._padded_recurrence, self._groups,
                self._broadcast, self._pick, self._excited, self._gated, self._split, self._turned,
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
        kinds = ["RELU", "LOGISTIC", "HARD_SWISH", "TANH", "LEAKY_RELU", "RELU6", "ABS", "QUANTIZE"]
        kind = str(self.random.choice(kinds))
        if kind == "LEAKY_RELU":
            return self.graph.unary(kind, x, self._quant(), alpha=float(self.random.uniform(-1, 1)))
        return self.graph.unary(kind, x, x.quant if kind == "RELU6" else FIXED.get(kind, self._quant()))

    def _groups(self, x: Value) -> Value:
        """A convolution of groups; with one channel each it may be depth-wise."""
        divisors = [n for n in range(1, x.shape[3] + 1) if x.shape[3] % n == 0]
        groups = int(self.random.choice(divisors))
        filters = groups * int(self.random.integers(1, 4))
        weights = self._weights((filters, *self._kernel(x, "SAME"), x.shape[3] // groups))
        return self.graph.conv2d(
            x, weights, self._scales(filters), self._bias(filters), self._quant(),
            activation=self._activation(),
        )  # fmt: skip

    def _broadcast(self, x: Value) -> Value:
        """A part of a value is repeated over the whole of it, on either side."""
        shape = [n if self.random.random() < 0.5 else 1 for n in x.shape]
        begin = [int(self.random.integers(0, n - m + 1)) for n, m in zip(x.shape, shape, strict=True)]
        part = self.graph.slice(x, begin, shape)
        pair = (x, part) if self.random.random() < 0.5 else (part, x)
        kind = str(self.random.choice(["ADD", "SUB", "MUL"]))
        return self.graph.binary(kind, *pair, self._quant(), activation=self._activation())

    def _pick(self, x: Value) -> Value:
        kind = str(self.random.choice(["MINIMUM", "MAXIMUM", "PRELU"]))
        shape = x.shape if self.random.random() < 0.5 else (1, 1, 1, x.shape[3])
        if kind == "PRELU":
            slopes = self.graph.constant(self._weights(shape), (0.01, int(self.random.integers(-9, 9))))
            return self.graph.binary(kind, x, slopes, self._quant())
        same = [v for v in self.values if v.shape == x.shape and v.quant == x.quant and v is not x]
        other = same[0] if same else self.graph.constant(self._weights(shape), x.quant)
        return self.graph.binary(kind, x, other, x.quantised)

    def _excited(self, x: Value) -> Value:
        """Squeeze and excitation."""
        squeezed = self.graph.mean(x, (1, 2), self._quant(), keep_dims=True)
        channels = x.shape[3]
        gains = self.graph.conv2d(
            squeezed, self._weights((channels, 1, 1, channels)), self._scales(channels),
            self._bias(channels), self._quant(),
        )  # fmt: skip
        gates = self.graph.unary("LOGISTIC", gains, FIXED["LOGISTIC"])
        pair = (x, gates) if self.random.random() < 0.5 else (gates, x)
        return self.graph.mul(*pair, self._quant())

    def _gated(self, x: Value) -> Value:
        """The state of a gated cell: h = tanh(c) + z · (x − tanh(c)), with z between 0 and 1."""
        filters = x.shape[3]

        def linear() -> Value:
            weights, scales = self._weights((filters, 3, 3, filters)), self._scales(filters)
            return self.graph.conv2d(x, weights, scales, self._bias(filters), self._quant())

        gate = self.graph.unary("LOGISTIC", linear(), FIXED["LOGISTIC"])
        new = self.graph.unary("TANH", linear(), FIXED["TANH"])
        kept = self.graph.mul(gate, self.graph.sub(x, new, self._quant()), self._quant())
        return self.graph.add(new, kept, self._quant())

    def _split(self, x: Value) -> Value:
        if x.shape[3] % 2:
            sizes = [1, x.shape[3] - 1] if x.shape[3] > 1 else [1]
            parts = self.graph.split_v(x, 3, sizes)
            return self.graph.concat(parts[::-1], 3)
        first, second = self.graph.split(x, 3, 2)
        return self.graph.mul(first, second, self._quant())

    def _turned(self, x: Value) -> Value:
        """Rows and columns changed places, added to the value itself where that fits."""
        turned = self.graph.transpose(x, (0, 2, 1, 3))
        return self.graph.add(x, turned, self._quant()) if turned.shape == x.shape else turned

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
