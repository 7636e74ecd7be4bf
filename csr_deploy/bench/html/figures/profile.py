"""Where the time of an inference goes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from csr_deploy.bench.html import numbers
from csr_deploy.bench.html.cells import Cell, Panel, Report
from csr_deploy.bench.html.figures.base import Figure, Section, Style, axis, label, rounded

_MOST_KINDS = 12
_MOST_OPS = 15
_BAR, _GAP, _FRAME = 16, 12, 64
_OTHER = "all others"


def profile_section(report: Report, style: Style) -> Section | None:
    """One figure a panel in which the runtime told times of operators."""
    figures = [f for f in (_figure(p, style) for p in report.panels) if f is not None]
    if not figures:
        return None
    text = (
        "Time by kind of operator, from the runtime's own profiler in a process of its own. A profiled "
        "inference is slower than a timed one: compare shares, not sums with latencies. The tables list the "
        f"{_MOST_OPS} longest operators of every network."
    )
    return Section("profile", "Time by operator", text, figures)


def _figure(panel: Panel, style: Style) -> Figure | None:
    cells = [c for c in panel.cells if c.values.profile]
    if not cells:
        return None
    sums = {id(c): _by_kind(c) for c in cells}
    total: dict[str, float] = defaultdict(float)
    for times in sums.values():
        for kind, ns in times.items():
            total[kind] += ns
    ranked = sorted(total, key=lambda kind: (-total[kind], kind))
    kinds = ranked[:_MOST_KINDS]
    if len(ranked) > _MOST_KINDS:
        kinds.append(_OTHER)
    data: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    for cell in cells[::-1]:
        times = sums[id(cell)]
        values = [
            sum(v for k, v in times.items() if k not in kinds) if kind == _OTHER else times.get(kind, 0)
            for kind in kinds
        ]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label(cell.network),
                "x": rounded([v / 1e3 for v in values]),
                "y": [label(kind) for kind in kinds],
                "marker": {"color": style.colour(cell)},
                "hovertemplate": f"{label(cell.network)}, %{{y}}: %{{x}} µs<extra></extra>",
            }
        )
    for cell in cells:
        for op in (cell.values.profile or ())[:_MOST_OPS]:
            rows.append((cell.network, op.op, op.name, numbers.time(op.ns), numbers.share(op.share)))
    layout = {
        "barmode": "group",
        "bargap": 0.25,
        "xaxis": axis(title={"text": "time in one inference, µs"}),
        "yaxis": axis(categoryorder="array", categoryarray=[label(kind) for kind in kinds[::-1]]),
    }
    longest = "; ".join(
        f"{c.network}: most in {max(sums[id(c)], key=lambda k: sums[id(c)][k])}" for c in cells
    )
    return Figure(
        title=panel.setting,
        place=panel.device,
        alt=f"Time by kind of operator on {panel.title}. {longest}.",
        data=data,
        layout=layout,
        height=_FRAME + len(kinds) * (_GAP + _BAR * len(cells)),
        head=("network", "kind", "operator", "time", "share"),
        rows=rows,
    )


def _by_kind(cell: Cell) -> dict[str, float]:
    times: dict[str, float] = defaultdict(float)
    for op in cell.values.profile or ():
        times[op.op] += op.ns
    return dict(times)
