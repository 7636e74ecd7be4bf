"""One colour a network and one mark a setting, the same through the whole report.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#F0E442")
MARKS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "cross", "x")
SIGNS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle-up": "▲",
    "triangle-down": "▼",
    "star": "★",
    "cross": "✚",
    "x": "✖",
}


def colours(networks: Sequence[str]) -> Mapping[str, str]:
    """Network → colour; they repeat after eight."""
    return {network: COLOURS[i % len(COLOURS)] for i, network in enumerate(networks)}


def marks(settings: Sequence[str]) -> Mapping[str, str]:
    """Setting → mark of Plotly; they repeat after eight."""
    return {setting: MARKS[i % len(MARKS)] for i, setting in enumerate(settings)}
