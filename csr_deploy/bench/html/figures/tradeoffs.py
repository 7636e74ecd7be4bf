"""Accuracy against cost, with the networks that no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from csr_deploy.bench.html import numbers
from csr_deploy.bench.html.cells import Cell, Report
from csr_deploy.bench.html.figures.base import INK, Figure, Section, Style, axis, label, rounded
from csr_deploy.bench.html.palette import SIGNS

_HEIGHT = 380
_LOG_FROM = 6.0
"""Costs that differ by more than this stand on a logarithmic axis."""

_Cost = Callable[[Cell], float | None]


def tradeoff_section(report: Report, style: Style) -> Section | None:
    """Size once, then latency, instructions and memory by device."""
    cells = [c for c in report.cells if c.number("accuracy.top1") is not None]
    figures: list[Figure | None] = [
        _figure("size of the model", "", _once(cells), _model, style, numbers.size)
    ]
    for device in report.devices_of_cells:
        own = [c for c in cells if c.panel.device == device]
        figures.append(_figure("latency", device, own, lambda c: c.latency_ns, style, numbers.time))
        # Counts of different runtimes say little about each other.
        for runtime in dict.fromkeys(c.panel.runtime for c in own):
            same = [c for c in own if c.panel.runtime == runtime]
            name = f"instructions ({runtime})"
            figures.append(_figure(name, device, same, lambda c: c.instructions, style, numbers.large))
        for what, path in (("private memory", "memory.private_bytes"), ("RAM", "microcontroller.ram_bytes")):
            figures.append(_figure(what, device, own, _number(path), style, numbers.size))
    drawn = [f for f in figures if f is not None]
    if not drawn:
        return None
    text = (
        "Up and to the left is better. The dashed line joins what no other network in the same figure beats "
        "in both (the Pareto front); points on it have a rim. The bar at a point is the 95 % interval of the "
        "accuracy that the number of test images allows (Wilson)."
    )
    used = dict.fromkeys(c.panel.setting for c in cells)
    return Section(
        "tradeoffs",
        "Accuracy against cost",
        text,
        drawn,
        tuple((SIGNS[style.settings[setting]], setting) for setting in used),
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats, by cost.

    Args:
        points: (cost, gain): less of the first is better, more of the second.
    """
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def wilson(share: float, images: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share that was counted on so many images."""
    centre = (share + z * z / (2 * images)) / (1 + z * z / images)
    spread = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    spread /= 1 + z * z / images
    return centre - spread, centre + spread


def _model(cell: Cell) -> float | None:
    return cell.model_bytes


def _number(path: str) -> _Cost:
    return lambda cell: cell.number(path)


def _once(cells: Sequence[Cell]) -> list[Cell]:
    """Each file once, wherever it was measured."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        seen.setdefault(cell.values.sha256, cell)
    return list(seen.values())


def _figure(
    what: str, place: str, cells: Sequence[Cell], cost: _Cost, style: Style, text: Callable[[float], str]
) -> Figure | None:
    points = [
        (c, x, 100 * y) for c in cells if (x := cost(c)) and (y := c.number("accuracy.top1")) is not None
    ]
    if len(points) < 2:
        return None
    scale, unit = _unit(text, max(x for _, x, _ in points))
    front = [points[i] for i in pareto([(x, y) for _, x, y in points])]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": rounded([x / scale for _, x, _ in front]),
            "y": rounded([y for _, _, y in front]),
            "line": {"color": INK, "width": 1.5, "dash": "dash"},
            "hoverinfo": "skip",
        }
    ]
    rows = []
    for cell, x, y in points:
        is_best = any(cell is c for c, _, _ in front)
        data.append(_point(cell, x / scale, y, text(x), style, is_best))
        rows.append(
            (
                cell.network,
                cell.panel.setting,
                text(x),
                f"{y:.2f} %",
                "yes" if is_best else "",
            )
        )
    costs = [x for _, x, _ in points]
    is_log = max(costs) / min(costs) > _LOG_FROM
    x_axis = axis(title={"text": f"{label(what)}, {unit}"})
    if is_log:
        ticks = _log_ticks(min(costs) / scale, max(costs) / scale)
        x_axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{t:,g}" for t in ticks]}
    else:
        x_axis["rangemode"] = "tozero"
    best = " and ".join(f"{c.network} ({c.panel.setting})" for c, _, _ in front)
    return Figure(
        title=f"Accuracy against {what}",
        place=place,
        alt=f"Top-1 accuracy against {what}{f' on {place}' if place else ''} of {len(points)} "
        f"measurements. On the Pareto front: {best}.",
        data=data,
        layout={"xaxis": x_axis, "yaxis": axis(title={"text": "top-1, %"})},
        height=_HEIGHT,
        head=("network", "setting", what, "top-1", "on the front"),
        rows=rows,
        note="Logarithmic cost axis." if is_log else "",
    )


def _point(cell: Cell, x: float, y: float, shown: str, style: Style, is_best: bool) -> dict[str, Any]:
    colour = style.colour(cell)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": rounded([x]),
        "y": rounded([y]),
        "marker": {
            "color": colour,
            "symbol": style.mark(cell),
            "size": 13,
            "line": {"color": INK, "width": 2 if is_best else 0},
        },
        "text": [f"{label(cell.network)}<br>{label(cell.panel.setting)}<br>{shown}<br>{y:.2f} %"],
        "hovertemplate": "%{text}<extra></extra>",
    }
    images = cell.number("accuracy.images")
    if images:
        low, high = (100 * v for v in wilson(y / 100, int(images)))
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": rounded([max(high - y, 0)]),
            "arrayminus": rounded([max(y - low, 0)]),
            "color": colour,
            "thickness": 1,
            "width": 3,
        }
    return trace


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … around and between two numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [float(f"{step}e{power}") for power in range(first, last + 1) for step in (1, 2, 5)]
    return [t for t in ticks if low / 2 <= t <= high * 2]


def _unit(text: Callable[[float], str], largest: float) -> tuple[float, str]:
    """Divisor and name of the unit of an axis."""
    if text is numbers.time:
        return (1e6, "ms") if largest >= 1e6 else (1e3, "µs")
    if text is numbers.large:
        return (1e6, "millions") if largest >= 1e6 else (1e3, "thousands")
    return (2**20, "MiB") if largest >= 2**20 else (2**10, "KiB")
