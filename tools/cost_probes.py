"""Small graphs in which one kind of operation dominates, so that a cost model can tell the kinds apart.

In whole networks the kinds go together: every CSR-Conv has slices, a concatenation and an affine, and a fit
to such networks alone may give the cost of one to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from csr_deploy.unroll.graph import Array, Graph, Node, build_graph

_REPEATS = 4
_GROUPS = 4
# Channels of a group and side of the picture: the widths of stages 2 and 3 of a ResNet-56 in four groups.
_SHAPES = ((8, 16), (16, 8))


class _Builder:
    """A chain of nodes behind a 1×1 convolution of the image."""

    def __init__(self, channels: int, side: int, seed: int) -> None:
        self.side = side
        self.generator = np.random.default_rng(seed)
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []
        self.value = "image"
        self.conv(3, channels, 1)

    def constant(self, shape: tuple[int, ...], spread: float, middle: float = 0.0) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.generator.normal(middle, spread, shape)
        return name

    def add(self, op: str, *inputs: str, **attrs: object) -> str:
        self.value = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, self.value, attrs))
        return self.value

    def conv(self, inner: int, filters: int, size: int) -> str:
        weight = self.constant((filters, inner, size, size), 1 / (inner * size * size) ** 0.5)
        bias, pad = self.constant((filters,), 0.1), size // 2
        attrs = {"stride": (1, 1), "padding": (pad,) * 4, "dilation": (1, 1), "groups": 1}
        return self.add("conv2d", self.value, weight, bias, **attrs, activation="relu")

    def affine(self, channels: int) -> str:
        gain, bias = self.constant((channels,), 0.1, 1.0), self.constant((channels,), 0.1)
        return self.add("affine", self.value, gain, bias, activation="relu")

    def group(self, x: str, channels: int, index: int) -> str:
        starts = (0, index * channels, 0, 0)
        stops = (1, (index + 1) * channels, self.side, self.side)
        return self.add("slice", x, starts=starts, stops=stops, steps=(1, 1, 1, 1))

    def graph(self) -> Graph:
        return build_graph(self.nodes, self.constants, "image", (1, 3, self.side, self.side), self.value)


def _split_and_join(b: _Builder, channels: int) -> None:
    x = b.value
    parts = [b.group(x, channels, i) for i in reversed(range(_GROUPS))]
    b.add("concat", *parts, axis=1)


def _join_channels(b: _Builder, channels: int) -> None:
    x = b.value
    b.add("concat", x, b.conv(channels, channels, 1), axis=1)
    b.conv(2 * channels, channels, 1)


def _join_rows(b: _Builder, channels: int) -> None:
    x = b.value
    b.add("concat", x, b.conv(channels, channels, 1), axis=3)
    b.conv(channels, channels, 1)
    b.add("slice", b.value, starts=(0,) * 4, stops=(1, channels, b.side, b.side), steps=(1,) * 4)


def _residual(b: _Builder, channels: int) -> None:
    x = b.value
    b.add("add", x, b.affine(channels), activation="relu")


def _folded_affine(b: _Builder, channels: int) -> None:
    b.add("width_to_channels", b.value, block=4)
    b.affine(4 * channels)
    b.add("channels_to_width", b.value, block=4)


def _conv(size: int, wider: int) -> Callable[[_Builder, int], None]:
    def step(b: _Builder, channels: int) -> None:
        b.conv(channels * wider, channels * wider, size)

    return step


@dataclass(frozen=True)
class Probe:
    """A chain of one step.

    Attributes:
        kind: What the step is.
        channels: Of the chain.
        side: Of the picture.
        step: Appends the step once; its second argument is the width of one group.
        groups: The chain's channels, in widths of one group.
    """

    kind: str
    channels: int
    side: int
    step: Callable[[_Builder, int], None]
    groups: int = 1

    @property
    def name(self) -> str:
        """Unique."""
        return f"probe-{self.kind}-c{self.channels}-s{self.side}"

    def graph(self, seed: int) -> Graph:
        """The graph, with random constants."""
        builder = _Builder(self.channels * self.groups, self.side, seed)
        for _ in range(_REPEATS):
            self.step(builder, self.channels)
        return builder.graph()


def probes() -> Iterator[Probe]:
    """All of them."""
    for channels, side in _SHAPES:
        yield Probe("split-and-join", channels, side, _split_and_join, _GROUPS)
        yield Probe("join-channels", channels, side, _join_channels)
        yield Probe("join-rows", channels, side, _join_rows)
        yield Probe("affine", channels, side, lambda b, c: _ignore(b.affine(c)))
        yield Probe("affine-of-all", channels, side, lambda b, c: _ignore(b.affine(_GROUPS * c)), _GROUPS)
        yield Probe("affine-folded", channels, side, _folded_affine)
        yield Probe("residual", channels, side, _residual)
        yield Probe("residual-of-all", channels, side, lambda b, c: _residual(b, _GROUPS * c), _GROUPS)
        for size in (1, 3):
            for wider in (1, 2, 4):
                yield Probe(f"conv{size}x{wider}", channels, side, _conv(size, wider), wider)


def _ignore(_: str) -> None:
    """Drops a name."""
