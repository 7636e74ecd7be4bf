"""Columns of the summary table and of the CSV file."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csr_deploy.bench.html import numbers
from csr_deploy.bench.html.cells import Cell, Report

_Number = Callable[[Cell], float | None]


@dataclass(frozen=True)
class Entry:
    """A cell of the summary table.

    Attributes:
        text: What is written.
        beside: The ratio or difference to the baseline; empty where there is none.
        sort: What to sort by; None sorts last.
        network: Whose colour goes before it; None for none.
    """

    text: str
    beside: str = ""
    sort: float | str | None = None
    network: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of the summary table.

    Attributes:
        name: Its head.
        of: Its cells.
        is_number: Whether it is aligned to the right and sorted by number.
    """

    name: str
    of: Callable[[Cell], Entry]
    is_number: bool = True


def summary(report: Report) -> tuple[list[Column], list[list[Entry]]]:
    """The columns that have anything in them, and their cells, a row a measurement."""
    texts = [
        Column("network", _network, False),
        Column("setting", lambda c: Entry(c.panel.setting, sort=c.panel.setting), False),
    ]
    if len(report.devices_of_cells) > 1:
        texts.insert(1, Column("device", lambda c: Entry(c.panel.device, sort=c.panel.device), False))
    figures = [
        Column("top-1", _accuracy),
        Column("latency", _latency),
        Column("GPU time", _amount(*_timed("latency.gpu.median_ns"), numbers.time)),
        Column(
            "instructions", _amount(lambda c: c.instructions, lambda c: c.instruction_ratio, numbers.large)
        ),
        Column("parameters", _plain("sizes.parameters", numbers.count)),
        Column("multiply-adds", _plain("sizes.macs", numbers.large)),
        Column("model size", _amount(lambda c: c.model_bytes, lambda c: c.model_ratio, numbers.size)),
        Column("private memory", _plain("memory.private_bytes", numbers.size)),
        Column("RAM", _plain("microcontroller.ram_bytes", numbers.size)),
        Column("flash", _plain("microcontroller.flash_bytes", numbers.size)),
        Column("energy", _energy),
        Column("same as float", _agreement),
        Column("golden outputs", _golden, False),
    ]
    rows = {column.name: [column.of(cell) for cell in report.cells] for column in figures}
    columns = [*texts, *(c for c in figures if any(e.text != numbers.NOTHING for e in rows[c.name]))]
    return columns, [[column.of(cell) for column in columns] for cell in report.cells]


def _network(cell: Cell) -> Entry:
    beside = "baseline" if cell.is_baseline and len(cell.panel.cells) > 1 else ""
    return Entry(cell.network, beside, cell.network, cell.network)


def _accuracy(cell: Cell) -> Entry:
    top1, change = cell.number("accuracy.top1"), cell.accuracy_difference
    if top1 is None:
        return Entry(numbers.NOTHING)
    return Entry(numbers.share(top1), "" if change is None else f"{numbers.signed(change, 2)} points", top1)


def _latency(cell: Cell) -> Entry:
    median, interval = cell.number("latency.median_ns"), cell.latency_ratio
    if median is None:
        # Said only where a reader would look for a time.
        return Entry("not measured (emulated)" if cell.instructions is not None else numbers.NOTHING)
    if cell.panel.void:
        return Entry(numbers.time(median), "VOID")
    beside = ""
    if interval is not None:
        beside = numbers.ratio(interval.ratio)
        if interval.low is not None and interval.high is not None:
            beside += f" ({interval.low:.2f}–{interval.high:.2f})"
    return Entry(numbers.time(median), beside, median)


def _amount(of: _Number, ratio_of: _Number, text: Callable[[float], str]) -> Callable[[Cell], Entry]:
    def entry(cell: Cell) -> Entry:
        value, ratio = of(cell), ratio_of(cell)
        if value is None:
            return Entry(numbers.NOTHING)
        return Entry(text(value), "" if ratio is None else numbers.ratio(ratio), value)

    return entry


def _timed(path: str) -> tuple[_Number, _Number]:
    """A number and its ratio to the baseline's, but where times are void."""
    return (
        lambda c: None if c.panel.void else c.number(path),
        lambda c: None if c.panel.void else c.ratio_of(path),
    )


def _plain(path: str, text: Callable[[float], str]) -> Callable[[Cell], Entry]:
    return _amount(lambda c: c.number(path), lambda c: c.ratio_of(path), text)


def _energy(cell: Cell) -> Entry:
    entry = _plain("energy.millijoules", numbers.energy)(cell)
    return Entry(entry.text, "VOID") if cell.panel.void and entry.text != numbers.NOTHING else entry


def _agreement(cell: Cell) -> Entry:
    share = cell.number("accuracy.agreement_with_float.share")
    images = cell.number("accuracy.agreement_with_float.images")
    if share is None or images is None:
        return Entry(numbers.NOTHING)
    return Entry(f"{100 * share:.1f} %", f"of {images:,.0f}", share)


def _golden(cell: Cell) -> Entry:
    golden = cell.values.golden
    if golden is None:
        return Entry(numbers.NOTHING)
    text = f"{golden.images} equal" if golden.exact else f"{golden.images} within {golden.max_difference:.2g}"
    return Entry(text, sort=text)


_PATHS = (
    "accuracy.top1",
    "accuracy.top5",
    "accuracy.agreement_with_float.share",
    "accuracy.images",
    "sizes.parameters",
    "sizes.macs",
    "sizes.file_bytes",
    "sizes.compressed_bytes",
    "sizes.weight_bytes",
    "sizes.constant_bytes",
    "sizes.arena_bytes",
    "latency.load_ns",
    "latency.first_ns",
    "latency.median_ns",
    "latency.p50_ns",
    "latency.p90_ns",
    "latency.p95_ns",
    "latency.p99_ns",
    "latency.min_ns",
    "latency.max_ns",
    "latency.images_per_second",
    "latency.gpu.median_ns",
    "memory.private_bytes",
    "memory.mapped_bytes",
    "memory.peak_rss_bytes",
    "memory.device_bytes",
    "energy.millijoules",
    "energy.mean_mw",
    "instructions.per_inference",
    "instructions.busiest_thread",
    "instructions.first",
    "instructions.load",
    "microcontroller.instructions",
    "microcontroller.instructions_per_mac",
    "microcontroller.cycles",
    "microcontroller.stack_bytes",
    "microcontroller.ram_bytes",
    "microcontroller.flash_bytes",
)
_TEXTS = ("status", "device", "subject", "network", "target", "runtime", "runtime_version", "kernels")
_RATIOS: tuple[tuple[str, _Number], ...] = (
    ("accuracy_difference_points", lambda c: c.accuracy_difference),
    ("parameter_ratio", lambda c: c.ratio_of("sizes.parameters")),
    ("model_size_ratio", lambda c: c.model_ratio),
    ("private_memory_ratio", lambda c: c.ratio_of("memory.private_bytes")),
    ("instruction_ratio", lambda c: c.instruction_ratio),
    ("latency_ratio", lambda c: c.latency_ratio.ratio if c.latency_ratio else None),
    ("latency_ratio_low", lambda c: c.latency_ratio.low if c.latency_ratio else None),
    ("latency_ratio_high", lambda c: c.latency_ratio.high if c.latency_ratio else None),
)
_LAST = ("stage", "reason", "fix", "group", "attempt", "started", "finished", "file", "sha256")
CSV_HEAD = (
    *_TEXTS,
    "threads",
    "batch",
    "baseline",
    *(path.replace(".", "_") for path in _PATHS),
    *(name for name, _ in _RATIOS),
    *_LAST,
)


def csv_rows(report: Report) -> list[list[str]]:
    """Every measurement as a row, then what failed and what is missing; units stand in the heads."""
    rows = []
    for cell in report.cells:
        values, source = cell.values, cell.panel.source
        texts = {
            "status": "void" if cell.panel.void else "quick" if cell.panel.quick else "measured",
            "device": cell.panel.device,
            "subject": values.subject,
            "network": values.network,
            "target": values.target,
            "runtime": values.runtime,
            "runtime_version": values.runtime_version,
            "kernels": values.kernels,
            "threads": str(values.threads),
            "batch": str(values.batch),
            "baseline": "" if cell.panel.baseline is None else cell.panel.baseline.label,
            "reason": "; ".join(cell.panel.void),
            "group": source.group or "",
            "attempt": str(source.attempt),
            "started": source.started or "",
            "finished": source.finished or "",
            "file": values.file,
            "sha256": values.sha256,
        }
        figures = {path.replace(".", "_"): _raw(cell.number(path)) for path in _PATHS}
        ratios = {name: _raw(of(cell)) for name, of in _RATIOS}
        rows.append(_row({**texts, **figures, **ratios}))
    for failure in report.failures:
        rows.append(
            _row(
                {
                    "status": "failed",
                    "device": failure.device,
                    "subject": failure.subject or "",
                    "stage": failure.stage,
                    "reason": failure.reason,
                    "fix": failure.fix or "",
                }
            )
        )
    for group, device, subjects in report.missing:
        rows.append(_row({"status": "missing", "device": device, "subject": subjects, "group": group}))
    return rows


def _row(values: dict[str, str]) -> list[str]:
    return [_harmless(values.get(name, "")) for name in CSV_HEAD]


def _raw(value: float | None) -> str:
    return "" if value is None else repr(value)


def _harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula; numbers stay as they are."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
    return text


def markdown_cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    flat = " ".join(text.split())
    for sign in "\\`*_[]|":
        flat = flat.replace(sign, f"\\{sign}")
    return html.escape(flat, quote=False)


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[bool] = ()
) -> list[str]:
    """Lines of a table.

    Args:
        head: Heads of the columns.
        rows: Cells.
        align: For every column whether it is aligned to the right.
    """
    marks = ["---:" if right else "---" for right in (align or [False] * len(head))]
    lines = [[markdown_cell(h) for h in head], marks, *([markdown_cell(c) for c in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]
