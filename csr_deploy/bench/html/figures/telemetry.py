"""The machine while latencies were taken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from csr_deploy.bench.html.cells import GroupResult, Report
from csr_deploy.bench.html.figures.base import INK, Figure, Section, Style, axis, label, rounded, translucent
from csr_deploy.bench.telemetry import Telemetry, TelemetrySample
from csr_deploy.bench.telemetry.summary import summarise_telemetry

_ONE_OF_MANY = re.compile(r"cpu\d+")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MOST_LINES = len(_DASHES)
_ROW, _FRAME = 130, 70
_ALARM = "#D55E00"
# From zero, so that the noise of a steady clock does not look like throttling.
_RANGES: Mapping[str, Mapping[str, Any]] = {
    "clock, MHz": {"rangemode": "tozero"},
    "load, %": {"range": [0, 108]},
    "power, mW": {"rangemode": "tozero"},
}

Series = Mapping[str, list[tuple[float, float]]]


def telemetry_section(report: Report, style: Style) -> Section | None:
    """One figure a group whose machine told something."""
    figures = []
    for group, title in zip(report.groups, report.titles, strict=True):
        telemetry = group.result.telemetry
        if telemetry is not None:
            figure = _figure(group, telemetry, title, style)
            figures += [figure] if figure else []
    if not figures:
        return None
    text = (
        "What the machine told while latencies were taken. Coloured bands are the timed windows, in the "
        "colour of their network; crosses mark samples at which the machine was being slowed down."
    )
    return Section("telemetry", "Clocks, temperature and load", text, figures)


def _figure(group: GroupResult, telemetry: Telemetry, title: str, style: Style) -> Figure | None:
    samples = telemetry.samples
    charts: list[tuple[str, Series]] = [
        ("clock, MHz", _series(samples, lambda s: _joined(s.clocks_mhz))),
        ("temperature, °C", _series(samples, lambda s: s.temperatures_c)),
        ("load, %", _series(samples, lambda s: _joined(s.load_percent))),
        ("power, mW", _series(samples, lambda s: s.power_mw)),
    ]
    charts = [(name, series) for name, series in charts if series]
    throttled = [s for s in samples if s.throttled]
    if not charts:
        return None
    height = 1 / len(charts)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"xaxis": axis(title={"text": "seconds since the start"}, zeroline=False)}
    rows = []
    for number, (name, series) in enumerate(charts):
        key = "" if number == 0 else str(number + 1)
        top = 1 - number * height
        layout[f"yaxis{key}"] = axis(
            title={"text": name}, domain=rounded([max(top - height * 0.86, 0), top]), **_RANGES.get(name, {})
        )
        for line, (unit, points) in enumerate(series.items()):
            data.append(_line(unit, name, points, f"y{key}", _DASHES[line % len(_DASHES)]))
            values = [v for _, v in points]
            rows.append((name, unit, f"{min(values):,.4g}", f"{mean(values):,.4g}", f"{max(values):,.4g}"))
    if throttled:
        highest = max(v for points in charts[0][1].values() for _, v in points)
        data.append(_marks(throttled, highest))
    layout["shapes"] = _windows(group, telemetry, style)
    last = samples[-1].time_ns / 1e9
    # Room for the names at the ends of the lines.
    layout["xaxis"]["range"] = rounded([-0.02 * last, 1.14 * last])
    layout["xaxis"]["anchor"] = f"y{len(charts)}" if len(charts) > 1 else "y"
    settings = ", ".join(dict.fromkeys(m.target for m in group.result.measurements))
    what = summarise_telemetry(telemetry)
    notes = [what, *telemetry.void, *telemetry.notes]
    return Figure(
        title=settings,
        place=title,
        alt=f"{', '.join(n for n, _ in charts)} over time on {title}. {what}",
        data=data,
        layout=layout,
        height=_FRAME + _ROW * len(charts),
        head=("chart", "unit", "lowest", "mean", "highest"),
        rows=rows,
        note=" ".join(notes),
    )


def _joined(values: Mapping[str, float]) -> Mapping[str, float]:
    """The clocks or loads of single processors as their mean, where there is no sum of them already."""
    single = [v for unit, v in values.items() if _ONE_OF_MANY.fullmatch(unit)]
    rest = {unit: v for unit, v in values.items() if not _ONE_OF_MANY.fullmatch(unit)}
    return {"cpu": mean(single), **rest} if single and "cpu" not in rest else rest


def _series(samples: Iterable[TelemetrySample], of: Any) -> Series:
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        for unit, value in of(sample).items():
            found.setdefault(unit, []).append((sample.time_ns / 1e9, value))
    # The ones that reach highest, where there are more than a reader could tell apart.
    kept = sorted(found, key=lambda unit: -max(v for _, v in found[unit]))[:_MOST_LINES]
    return {unit: found[unit] for unit in found if unit in kept}


def _line(
    unit: str, name: str, points: list[tuple[float, float]], axis_name: str, dash: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+text",
        "name": label(unit),
        "text": [*("" for _ in points[1:]), label(unit)],
        "textposition": "middle right",
        "cliponaxis": False,
        "x": rounded([t for t, _ in points]),
        "y": rounded([v for _, v in points]),
        "yaxis": axis_name,
        "line": {"color": INK, "width": 1.6, "dash": dash},
        "hovertemplate": f"{label(unit)} %{{y}} ({name})<extra></extra>",
    }


def _marks(samples: list[TelemetrySample], height: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "throttled",
        "x": rounded([s.time_ns / 1e9 for s in samples]),
        "y": rounded([height] * len(samples)),
        "marker": {"symbol": "x", "size": 9, "color": _ALARM},
        "text": [label(", ".join(s.throttled)) for s in samples],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _windows(group: GroupResult, telemetry: Telemetry, style: Style) -> list[dict[str, Any]]:
    networks = {m.subject: m.network for m in group.result.measurements}
    return [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": float(f"{w.start_ns / 1e9:.5g}"),
            "x1": float(f"{w.end_ns / 1e9:.5g}"),
            "y0": 0,
            "y1": 1,
            "line": {"width": 0},
            "layer": "below",
            "fillcolor": translucent(style.networks[networks[w.subject]], 0.22),
        }
        for w in telemetry.windows
        if networks.get(w.subject) in style.networks
    ]
