"""How latencies are distributed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.bench.html import numbers
from csr_deploy.bench.html.cells import Cell, Panel, Report
from csr_deploy.bench.html.figures.base import (
    INK,
    Figure,
    Section,
    Style,
    axis,
    label,
    rounded,
    thinned,
    translucent,
)

_QUANTILES = 201
_MOST_MEDIANS = 2
"""Where an axis ends at the latest: on a disturbed machine the slowest would leave no room for the others."""
_ROW, _FRAME = 78, 70
_HEAD = (
    "network",
    "median of windows",
    "p50",
    "p90",
    "p95",
    "p99",
    "fastest",
    "slowest",
    "first",
    "load",
    "throughput",
    "samples",
)
_PATHS = ("median", "p50", "p90", "p95", "p99", "min", "max", "first", "load")


def latency_section(report: Report, style: Style) -> Section | None:
    """One figure a panel that was timed."""
    figures = [_figure(p, style) for p in report.panels if any(c.windows for c in p.cells)]
    if not figures:
        return None
    text = (
        "Each shape is the distribution of all timed inferences of one network, with its quartiles as a box; "
        "the upright strokes are the medians of the single windows. Networks of one figure were measured in "
        f"turns. A shape is drawn from {_QUANTILES} quantiles of the samples, not from all of them; the "
        "numbers in the tables are of all. Axes end at the largest 99th percentile, or at "
        f"{_MOST_MEDIANS} times the largest median where that is less: the slowest are in the tables."
    )
    return Section("latency", "Latency", text, figures)


def _figure(panel: Panel, style: Style) -> Figure:
    cells = [c for c in panel.cells if c.windows]
    samples = [np.concatenate([np.asarray(w) for w in c.windows]) for c in cells]
    end = min(
        max(float(np.percentile(s, 99)) for s in samples),
        _MOST_MEDIANS * max(float(np.median(s)) for s in samples),
    )
    start = min(float(s.min()) for s in samples)
    # An axis has a length even where all samples are equal.
    end = max(end, 1.02 * start + 1)
    scale, unit = (1e6, "ms") if end >= 1e5 else (1e3, "µs")
    data: list[dict[str, Any]] = []
    notes = []
    for row, (cell, values) in enumerate(zip(cells, samples, strict=True)):
        colour = style.colour(cell)
        width = _bandwidth(values, end - start) / scale
        data += [_shape(row, values, scale, colour, cell, width), _medians(row, cell, scale)]
        notes.append(_caption(row, cell))
    x_axis = axis(
        title={"text": f"latency, {unit}" + (f", batch of {panel.batch}" if panel.batch > 1 else "")},
        range=rounded([max(start - 0.04 * (end - start), 0) / scale, (end + 0.04 * (end - start)) / scale]),
    )
    layout = {
        "xaxis": x_axis,
        "yaxis": axis(showticklabels=False, range=[len(cells) - 0.35, -0.7], zeroline=False, showgrid=False),
        "annotations": notes,
        "margin": {"l": 8, "r": 8, "t": 4},
    }
    spread = "; ".join(
        f"{c.network} median {numbers.time(c.number('latency.median_ns') or 0)}, "
        f"p99 {numbers.time(c.number('latency.p99_ns') or 0)}"
        for c in cells
    )
    return Figure(
        title=panel.setting,
        place=panel.device,
        alt=f"Distribution of latencies on {panel.title}: {spread}.",
        data=data,
        layout=layout,
        height=_FRAME + _ROW * len(cells),
        head=_HEAD,
        rows=[_row(c) for c in cells],
        note="VOID: " + "; ".join(panel.void) if panel.void else "",
    )


def _bandwidth(values: NDArray[np.int64], shown: float) -> float:
    """Silverman's rule of thumb by the quartiles: a few very slow inferences must not blur all others."""
    quartiles = np.percentile(values, (25, 75))
    spread = min(float(values.std()), float(quartiles[1] - quartiles[0]) / 1.34)
    rule = 0.9 * spread / math.pow(min(len(values), _QUANTILES), 0.2)
    return max(rule, shown / 250)


def _shape(
    row: int, values: NDArray[np.int64], scale: float, colour: str, cell: Cell, bandwidth: float
) -> dict[str, Any]:
    drawn = rounded([v / scale for v in thinned(values.tolist(), _QUANTILES)])
    return {
        "type": "violin",
        "orientation": "h",
        "x": drawn,
        "y": [row] * len(drawn),
        "name": label(cell.network),
        "width": 0.72,
        "points": False,
        "spanmode": "hard",
        "bandwidth": rounded([bandwidth])[0],
        "box": {"visible": True, "width": 0.18},
        "line": {"color": colour, "width": 1.5},
        "fillcolor": translucent(colour, 0.3),
        "hoverinfo": "x+name",
    }


def _medians(row: int, cell: Cell, scale: float) -> dict[str, Any]:
    medians = rounded([float(np.median(w)) / scale for w in cell.windows])
    return {
        "type": "scatter",
        "mode": "markers",
        "x": medians,
        "y": [row] * len(medians),
        "marker": {"symbol": "line-ns-open", "size": 16, "color": INK, "line": {"width": 1.5, "color": INK}},
        "hovertemplate": "median of a window: %{x}<extra></extra>",
    }


def _caption(row: int, cell: Cell) -> dict[str, Any]:
    median, interval = cell.number("latency.median_ns"), cell.latency_ratio
    text = f"<b>{label(cell.network)}</b>"
    if median is not None:
        text += f"  {numbers.time(median)}"
    if interval is not None:
        text += f"  ×{interval.ratio:.2f}"
    return {
        "text": text,
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": row - 0.5,
        "yanchor": "middle",
        "showarrow": False,
    }


def _row(cell: Cell) -> tuple[str, ...]:
    times = [cell.number(f"latency.{name}_ns") for name in _PATHS]
    rate = cell.number("latency.images_per_second")
    return (
        cell.network,
        *(numbers.NOTHING if t is None else numbers.time(t) for t in times),
        numbers.NOTHING if rate is None else numbers.rate(rate),
        f"{sum(len(w) for w in cell.windows):,} in {len(cell.windows)} windows",
    )
