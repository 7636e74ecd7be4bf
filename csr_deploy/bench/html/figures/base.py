"""What every figure is: traces and layout of Plotly as plain values, and the same as a table."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csr_deploy.bench.html.cells import Cell, Report
from csr_deploy.bench.html.palette import colours, marks

INK = "@ink"
"""Stands for the colour of text, which the page knows: it is dark or light."""

_LONGEST = 44
_DIGITS = 5


@dataclass(frozen=True)
class Figure:
    """A plot and its table.

    Attributes:
        title: What it shows, in plain text.
        place: The device that it is of; empty where it is of all.
        alt: What a reader who cannot see it should know; the table has the numbers.
        data: Traces of Plotly.
        layout: Layout of Plotly, without colours and fonts.
        height: In CSS pixels.
        head: Heads of the table's columns.
        rows: Its cells.
        note: What a reader must know to understand it.
    """

    title: str
    place: str
    alt: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: Anchor.
        title: Heading.
        text: What it is about.
        figures: At least one.
        legend: Marks that its figures use, as (sign, meaning).
        hidden: Figures that were left out because there are too many; their numbers are in the CSV file.
    """

    id: str
    title: str
    text: str
    figures: Sequence[Figure]
    legend: Sequence[tuple[str, str]] = ()
    hidden: int = 0


class Style:
    """Colours of networks and marks of settings in one report."""

    def __init__(self, report: Report) -> None:
        self.networks = colours(report.networks)
        self.settings = marks(list(dict.fromkeys(p.setting for p in report.panels)))

    def colour(self, cell: Cell) -> str:
        """Colour of a cell's network."""
        return self.networks[cell.network]

    def mark(self, cell: Cell) -> str:
        """Mark of a cell's setting."""
        return self.settings[cell.panel.setting]


def label(text: str) -> str:
    """Text for Plotly, which takes some HTML for markup: nothing in a result may be any."""
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return html.escape(short)


def rounded(values: Sequence[float]) -> list[float]:
    """To as many digits as a plot can show."""
    return [float(f"{v:.{_DIGITS}g}") for v in values]


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Evenly spaced quantiles of a sample, its smallest and largest included: the same distribution."""
    if len(values) <= most:
        return sorted(values)
    return [float(v) for v in np.quantile(np.asarray(values, np.float64), np.linspace(0, 1, most))]


def translucent(colour: str, alpha: float) -> str:
    """A colour "#rrggbb" as rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def axis(**more: Any) -> dict[str, Any]:
    """An axis whose labels never leave the figure."""
    return {"automargin": True, **more}
