"""Accuracy by class."""

from __future__ import annotations

from typing import Any

from csr_deploy.bench.html import numbers
from csr_deploy.bench.html.cells import Cell, Panel, Report
from csr_deploy.bench.html.figures.base import INK, Figure, Section, Style, axis, label, rounded

_MOST = 30
_ROW, _FRAME = 24, 64


def class_section(report: Report, style: Style) -> Section | None:
    """One figure a set of files, wherever they were measured."""
    figures: list[Figure] = []
    seen: set[str] = set()
    for panel in report.panels:
        cells = [c for c in panel.cells if c.values.accuracy and c.values.accuracy.per_class]
        files = {c.values.sha256 for c in cells}
        if cells and not seen.issuperset(files):
            seen.update(files)
            figures.append(_figure(panel, cells, style))
    if not figures:
        return None
    text = "Share of the test images of each class that were classified correctly."
    return Section("classes", "Accuracy by class", text, figures)


def _figure(panel: Panel, cells: list[Cell], style: Style) -> Figure:
    found = {id(c): {k.name: k for k in c.values.accuracy.per_class} for c in cells if c.values.accuracy}
    names = list(dict.fromkeys(name for classes in found.values() for name in classes))
    gaps = {n: [classes[n].top1 for classes in found.values() if n in classes] for n in names}
    widest = sorted(names, key=lambda n: min(gaps[n]) - max(gaps[n]))[:_MOST]
    drawn = [n for n in names if n in widest]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [v for n in drawn for v in (*rounded([100 * min(gaps[n]), 100 * max(gaps[n])]), None)],
            "y": [v for n in drawn for v in (label(n), label(n), None)],
            "line": {"color": INK, "width": 1},
            "hoverinfo": "skip",
        }
    ]
    for number, cell in enumerate(cells):
        own = found[id(cell)]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(cell.network),
                "x": rounded([100 * own[n].top1 for n in drawn if n in own]),
                "y": [label(n) for n in drawn if n in own],
                # Equal ones stay visible as rings.
                "marker": {"color": style.colour(cell), "size": max(14 - 4 * number, 6)},
                "hovertemplate": f"{label(cell.network)}, %{{y}}: %{{x}} %<extra></extra>",
            }
        )
    rows = [
        (
            name,
            *(
                numbers.share(found[id(c)][name].top1) if name in found[id(c)] else numbers.NOTHING
                for c in cells
            ),
            f"{max(classes[name].images for classes in found.values() if name in classes):,}",
        )
        for name in names
    ]
    least = min(names, key=lambda n: min(gaps[n]))
    title = f"{panel.target} on {panel.device}"
    cut = len(names) - len(drawn)
    return Figure(
        title=panel.target,
        place=panel.device,
        alt=f"Accuracy by class, {title}. Lowest: {least} with {100 * min(gaps[least]):.1f} %.",
        data=data,
        layout={
            "xaxis": axis(title={"text": "top-1, %"}),
            "yaxis": axis(categoryorder="array", categoryarray=[label(n) for n in drawn[::-1]]),
        },
        height=_FRAME + _ROW * len(drawn),
        head=("class", *(c.network for c in cells), "images"),
        rows=rows,
        note=f"The {len(drawn)} classes that differ most; the table has all {len(names)}." if cut else "",
    )
