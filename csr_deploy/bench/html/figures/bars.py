"""Amounts side by side: instructions, memory, what a microcontroller needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from csr_deploy.bench.html import numbers
from csr_deploy.bench.html.cells import Cell, Report
from csr_deploy.bench.html.figures.base import Figure, Section, Style, axis, label, rounded

_BAR, _GAP, _FRAME = 24, 14, 24
_Amount = Callable[[Cell], float | None]


def instruction_section(report: Report, style: Style) -> Section | None:
    """Instructions of emulated boards, one figure a device."""
    figures = [
        figure
        for device in report.devices_of_cells
        if (
            figure := _bars(
                "Instructions of one inference",
                device,
                [c for c in report.cells if c.panel.device == device and c.values.microcontroller is None],
                lambda c: c.number("instructions.per_inference"),
                style,
                numbers.large,
            )
        )
    ]
    text = (
        "Instructions of the real kernels, counted exactly in an emulator. They are no measure of time: no "
        "milliseconds were measured there, and none can be derived. Compare networks on one board with one "
        "runtime; between boards or runtimes counts say less."
    )
    return Section("instructions", "Instructions", text, figures) if figures else None


def microcontroller_section(report: Report, style: Style) -> Section | None:
    """Instructions or cycles, flash, RAM and arena of every microcontroller."""
    kinds: tuple[tuple[str, _Amount, Callable[[float], str]], ...] = (
        ("Instructions of one inference", lambda c: c.number("microcontroller.instructions"), numbers.large),
        ("Cycles of one inference", lambda c: c.number("microcontroller.cycles"), numbers.large),
        ("Flash", lambda c: c.number("microcontroller.flash_bytes"), numbers.size),
        ("RAM (arena and stack)", lambda c: c.number("microcontroller.ram_bytes"), numbers.size),
    )
    figures = []
    for device in report.devices_of_cells:
        own = [c for c in report.cells if c.panel.device == device and c.values.microcontroller]
        for name, amount, text in kinds:
            figure = _bars(name, device, own, amount, style, text)
            if figure is not None:
                figures.append(figure)
    about = (
        "Flash is weights, tables and code of the model and what it needs of the C library; RAM is its arena "
        "and the deepest stack. Instructions are counted in QEMU to within one tick of the board's counter "
        "and are neither a time nor a measure of one."
    )
    return Section("microcontrollers", "Microcontrollers", about, figures) if figures else None


def memory_section(report: Report, style: Style) -> Section | None:
    """Sizes of the models, and memory of a process by device."""
    figures = []
    by_file = list({(c.values.target, c.values.sha256): c for c in report.cells}.values())
    sizes = _bars(
        "Size of the model", "", by_file, lambda c: c.model_bytes, style, numbers.size, by_target=True
    )
    if sizes is not None:
        figures.append(sizes)
    for device in report.devices_of_cells:
        own = [c for c in report.cells if c.panel.device == device]
        for name, path in (
            ("Private memory", "memory.private_bytes"),
            ("GPU memory", "memory.device_bytes"),
            ("Arena", "sizes.arena_bytes"),
        ):
            figure = _bars(name, device, own, _number(path), style, numbers.size)
            if figure is not None:
                figures.append(figure)
    text = (
        "Size of the model is its file, or the constants in flash of a model in C. Private memory is what "
        "loading and a few inferences added to a process that had already imported the runtime."
    )
    return Section("memory", "Size and memory", text, figures) if figures else None


def _number(path: str) -> _Amount:
    return lambda cell: cell.number(path)


def _bars(
    title: str,
    place: str,
    cells: Sequence[Cell],
    amount: _Amount,
    style: Style,
    text: Callable[[float], str],
    *,
    by_target: bool = False,
) -> Figure | None:
    found = [(c, v) for c in cells if (v := amount(c)) is not None]
    if not found:
        return None
    groups = list(dict.fromkeys(_group(c, by_target) for c, _ in found))
    networks = list(dict.fromkeys(c.network for c, _ in found))
    data: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    # Plotly stacks the bars of a group from below.
    for network in networks[::-1]:
        own = [(c, v) for c, v in found if c.network == network]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label(network),
                "y": [_two_lines(_group(c, by_target)) for c, _ in own],
                "x": rounded([v for _, v in own]),
                "marker": {"color": style.networks[network]},
                "text": [text(v) + _ratio(c, amount) for c, v in own],
                "textposition": "outside",
                "cliponaxis": False,
                "hovertemplate": f"{label(network)}: %{{text}}<extra></extra>",
            }
        )
    for cell, value in found:
        rows.append((cell.network, _group(cell, by_target), text(value), _ratio(cell, amount).strip()))
    layout = {
        "barmode": "group",
        "margin": {"b": 8},
        "bargap": 0.25,
        "xaxis": axis(range=[0, float(f"{1.45 * max(v for _, v in found):.4g}") or 1], showticklabels=False),
        "yaxis": axis(categoryorder="array", categoryarray=[_two_lines(g) for g in groups[::-1]]),
    }
    listed = "; ".join(f"{c.network} {text(v)} ({_group(c, by_target)})" for c, v in found[:8])
    return Figure(
        title=title,
        place=place,
        alt=f"{title}{f' on {place}' if place else ''}: {listed}{'; …' if len(found) > 8 else ''}.",
        data=data,
        layout=layout,
        height=_FRAME + len(groups) * (_GAP + _BAR * len(networks)),
        head=("network", "setting", "amount", "ratio to the baseline"),
        rows=rows,
    )


def _group(cell: Cell, by_target: bool) -> str:
    return cell.values.target if by_target else cell.panel.setting


def _ratio(cell: Cell, amount: _Amount) -> str:
    base = cell.panel.baseline
    ratio = None if base is None else cell.ratio(amount(cell), amount(base))
    return "" if ratio is None else f"  ×{ratio:.2f}"


def _two_lines(setting: str) -> str:
    first, _, rest = setting.partition(", ")
    return label(first) + (f"<br>{label(rest)}" if rest else "")
