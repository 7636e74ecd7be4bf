"""Each network against its backbone: every cost as a ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from csr_deploy.bench.html.cells import Cell, Panel, Report
from csr_deploy.bench.html.figures.base import INK, Figure, Section, Style, axis, label, rounded

RATIOS: tuple[tuple[str, Callable[[Cell], float | None]], ...] = (
    ("parameters", lambda c: c.ratio_of("sizes.parameters")),
    ("multiply-adds", lambda c: c.ratio_of("sizes.macs")),
    ("model size", lambda c: c.model_ratio),
    ("compressed", lambda c: c.ratio_of("sizes.compressed_bytes")),
    ("private memory", lambda c: c.ratio_of("memory.private_bytes")),
    ("GPU memory", lambda c: c.ratio_of("memory.device_bytes")),
    ("arena", lambda c: c.ratio_of("sizes.arena_bytes")),
    ("RAM", lambda c: c.ratio_of("microcontroller.ram_bytes")),
    ("flash", lambda c: c.ratio_of("microcontroller.flash_bytes")),
    ("instructions", lambda c: c.instruction_ratio),
    ("latency", lambda c: c.latency_ratio.ratio if c.latency_ratio else None),
    ("energy", lambda c: None if c.panel.void else c.ratio_of("energy.millijoules")),
)
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
_ROW, _FRAME = 30, 64
_MOST_TEXTS = 2
"""Networks whose ratios can stand beside their points without covering others."""


def ratio_section(report: Report, style: Style) -> Section | None:
    """One figure a panel that has something to compare."""
    figures = [f for f in (_figure(p, style) for p in report.panels) if f is not None]
    if not figures:
        return None
    text = (
        "Every cost as a multiple of the baseline's: left of the line at ×1 is less than the baseline needs. "
        "The bar at a latency is its confidence interval."
    )
    return Section("ratios", "Against the baseline", text, figures)


def _figure(panel: Panel, style: Style) -> Figure | None:
    names = [n for n, of in RATIOS if any(of(c) is not None for c in panel.others)]
    if not names or panel.baseline is None:
        return None
    data, rows, seen = [], [], [1.0]
    for number, cell in enumerate(panel.others):
        found = [(n, r) for n, of in RATIOS if n in names and (r := of(cell)) is not None and r > 0]
        seen += [r for _, r in found]
        interval = cell.latency_ratio
        data.append(_trace(cell, found, style.colour(cell), number))
        if interval and interval.low and interval.high:
            seen += [interval.low, interval.high]
        for name, ratio in found:
            shown = ""
            if name == "latency" and interval and interval.low is not None and interval.high is not None:
                shown = f"{interval.low:.3f}–{interval.high:.3f}"
            rows.append((cell.network, name, f"×{ratio:.3f}", shown))
    low, high = math.log10(min(seen) / 1.25), math.log10(max(seen) * 1.45)
    layout = {
        "xaxis": axis(
            type="log",
            range=rounded([low, high]),
            tickvals=_spread(low, high),
            ticktext=[f"×{t:g}" for t in _spread(low, high)],
        ),
        "yaxis": axis(categoryorder="array", categoryarray=names[::-1], range=[-0.6, len(names) - 0.4]),
        "shapes": [_line_at_one()],
    }
    others = " and ".join(c.network for c in panel.others)
    return Figure(
        title=panel.setting,
        place=panel.device,
        alt=f"Costs of {others} as multiples of those of {panel.baseline.network} on {panel.title}.",
        data=data,
        layout=layout,
        height=_FRAME + (_ROW + 8 * (len(panel.others) > 1)) * len(names),
        head=("network", "cost", f"ratio to {panel.baseline.network}", "interval"),
        rows=rows,
    )


def _trace(cell: Cell, found: list[tuple[str, float]], colour: str, number: int) -> dict[str, Any]:
    ratios = rounded([r for _, r in found])
    alone = len(cell.panel.others) == 1
    interval = cell.latency_ratio
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text" if len(cell.panel.others) <= _MOST_TEXTS else "markers",
        "name": label(cell.network),
        "x": ratios,
        "y": [n for n, _ in found],
        "text": [f"×{r:.2f}" for r in ratios],
        "textposition": ("middle right" if alone else "bottom center" if number else "top center"),
        "marker": {"color": colour, "size": 11},
        "hovertemplate": f"{label(cell.network)}, %{{y}}: %{{text}}<extra></extra>",
        "cliponaxis": False,
    }
    if interval and interval.low is not None and interval.high is not None:
        up = [interval.high - r if n == "latency" else 0 for n, r in found]
        down = [r - interval.low if n == "latency" else 0 for n, r in found]
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": rounded([max(v, 0) for v in up]),
            "arrayminus": rounded([max(v, 0) for v in down]),
            "color": colour,
            "thickness": 2,
            "width": 4,
        }
        if alone:
            # Above the interval, not on it.
            trace["textposition"] = ["top center" if n == "latency" else "middle right" for n, _ in found]
    return trace


def _spread(low: float, high: float) -> list[float]:
    """Ticks that do not touch each other."""
    inside = [t for t in _TICKS if low <= math.log10(t) <= high]
    apart = (high - low) / 7
    kept: list[float] = [1.0]
    for tick in sorted(inside, key=lambda t: abs(math.log10(t))):
        if all(abs(math.log10(tick / k)) >= apart for k in kept):
            kept.append(tick)
    return sorted(kept)


def _line_at_one() -> dict[str, Any]:
    line = {"color": INK, "width": 1, "dash": "dot"}
    return {
        "type": "line",
        "x0": 1,
        "x1": 1,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
        "layer": "below",
    }
