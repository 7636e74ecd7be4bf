"""What is to be reached: the table of design section 2, and the goal set for resnet56-csr2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRIVATE, BYTES, HERE = "private", "bytes", "x86"
"""Figures beside the boards' instructions: private memory, file bytes a parameter, wall time here."""


@dataclass(frozen=True)
class Goal:
    """A figure that is to be at most so much.

    Attributes:
        figure: A board (instructions), `HERE` or `PRIVATE`, as ratios to the backbone, or `BYTES`.
        limit: Most it may be; with `above_macs`, above the network's MAC ratio.
        above_macs: Whether the MAC ratio is added.
    """

    figure: str
    limit: float
    above_macs: bool = False

    def most(self, macs_ratio: float) -> float:
        """The limit for a network, in hundredths."""
        return round(self.limit + macs_ratio, 2) if self.above_macs else self.limit


_GOALS: Mapping[tuple[str, str], tuple[Goal, ...]] = {
    ("resnet56-t4", "litert int8"): (
        Goal("pi4", 0.70), Goal("pi5", 0.90), Goal(HERE, 1.3), Goal(PRIVATE, 1.0), Goal(BYTES, 1.5),
    ),
    ("resnet56-t4", "ort int8"): (Goal("pi4", 0.80), Goal("pi5", 1.0), Goal(HERE, 1.2)),
    ("resnet56-t4", "litert float32"): (Goal("pi5", 0.68), Goal(HERE, 0.80)),
    ("resnet56-t4", "ort float32"): (Goal("pi5", 0.75), Goal(HERE, 0.9)),
    ("resnet56-csr2", "litert int8"): (Goal("pi4", 0.08, True), Goal("pi5", 0.25, True)),
    ("vgg16-csr4", "litert int8"): (
        Goal("pi4", 0.62), Goal("pi5", 0.63), Goal(HERE, 0.62), Goal(PRIVATE, 0.5), Goal(BYTES, 1.06),
    ),
    ("vgg16-csr4", "ort int8"): (Goal("pi4", 0.64), Goal("pi5", 0.68), Goal(HERE, 0.8)),
    ("vgg16-csr4", "litert float32"): (Goal(HERE, 0.48),),
    ("vgg16-csr4", "ort float32"): (Goal(HERE, 0.52),),
}  # fmt: skip


def goals_of(network: str, label: str) -> tuple[Goal, ...]:
    """Goals of a network in a format, given by its label; all are for one thread."""
    return _GOALS.get((network, label), ())


def verdict(value: float | None, most: float) -> str:
    """Whether a goal is reached, or by how much it is missed, a hundredth at least."""
    if value is None:
        return "not measured"
    return "reached" if value <= most else f"missed by {max(0.01, value - most):.2f}"
