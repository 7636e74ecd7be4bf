"""How the error of a recurrence grows over its steps."""

from __future__ import annotations

from statistics import median
from typing import Any

from csr_deploy.bench.html.cells import Cell, Panel, Report
from csr_deploy.bench.html.figures.base import Figure, Section, Style, axis, label, rounded, translucent
from csr_deploy.bench.results import LayerDrift

_HEIGHT = 360
_INTEGER = "integer against float"
_FLOAT = "float in the file against float64"
Errors = list[tuple[str, list[float | None]]]


def drift_section(report: Report, style: Style) -> Section | None:
    """One figure an artifact with recurrences, wherever it was measured."""
    figures: list[Figure] = []
    seen: set[str] = set()
    # Beside that of integers the noise of float arithmetic is of no interest.
    integers = any(_errors(c)[0] == _INTEGER for c in report.cells)
    for panel in report.panels:
        cells = [
            c
            for c in panel.cells
            if c.values.sha256 not in seen and _errors(c)[1] and (_errors(c)[0] == _INTEGER or not integers)
        ]
        seen |= {c.values.sha256 for c in cells}
        if cells:
            figures.append(_figure(panel, cells, style))
    if not figures:
        return None
    text = (
        "Error of the hidden state h of every recurrent layer after each of its steps, as a share of the "
        "state itself (rms over rms), found when the model was exported. A thin line is a layer, the thick "
        "one the median where at least half of the layers tell. Lines that rise mean that errors add up "
        "along the steps."
    )
    return Section("drift", "Drift over the steps", text, figures)


def _errors(cell: Cell) -> tuple[str, Errors]:
    """What kind of error it is, and that of every step of every layer."""
    drift = cell.values.drift
    layers: tuple[LayerDrift, ...] = drift.layers if drift is not None else ()
    quantized: Errors = [(d.layer, list(d.quantization)) for d in layers if any(d.quantization)]
    if quantized:
        return _INTEGER, quantized
    return _FLOAT, [(d.layer, list(d.conversion)) for d in layers if any(d.conversion)]


def _figure(panel: Panel, cells: list[Cell], style: Style) -> Figure:
    data: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    last = 1
    kinds, ends = [], []
    for cell in cells:
        kind, layers = _errors(cell)
        kinds.append(kind)
        colour = style.colour(cell)
        steps = max(len(errors) for _, errors in layers)
        last = max(last, steps)
        for name, errors in layers:
            known = [(t, e) for t, e in enumerate(errors, 1) if e]
            data.append(_line(known, label(f"{cell.network} {name}"), translucent(colour, 0.55), 1))
            rows.append((cell.network, name, *("–" if e is None else f"{100 * e:.3g} %" for e in errors)))
        middle = [
            (t, median(v)) for t in range(1, steps + 1) if 2 * len(v := _at(layers, t)) >= max(len(layers), 1)
        ]
        data.append(_line(middle, label(f"{cell.network}, median"), colour, 4))
        if middle:
            ends.append(f"{cell.network} median {100 * middle[0][1]:.3g} % to {100 * middle[-1][1]:.3g} %")
    target = panel.target
    return Figure(
        title=f"{target}: {', '.join(dict.fromkeys(kinds))}",
        place="",
        alt=f"Error of hidden states over the steps of {target}: {'; '.join(ends)}.",
        data=data,
        layout={
            "xaxis": axis(
                title={"text": "step t"}, tickvals=list(range(1, last + 1)), range=[0.8, last + 0.2]
            ),
            "yaxis": axis(title={"text": "error of h, %"}, type="log", exponentformat="power"),
        },
        height=_HEIGHT,
        head=("network", "layer", *(f"t = {t}" for t in range(1, last + 1))),
        rows=[(*row, *("" for _ in range(last + 2 - len(row)))) for row in rows],
    )


def _at(layers: Errors, step: int) -> list[float]:
    return [e for _, errors in layers if len(errors) >= step and (e := errors[step - 1])]


def _line(points: list[tuple[int, float]], name: str, colour: str, width: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [t for t, _ in points],
        "y": rounded([100 * e for _, e in points]),
        "line": {"color": colour, "width": width},
        "marker": {"size": 4 if width < 2 else 8},
        "hovertemplate": f"{name}<br>t = %{{x}}: %{{y:.3g}} %<extra></extra>",
    }
