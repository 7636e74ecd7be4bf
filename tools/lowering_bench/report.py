"""The table for people, as Markdown and on the terminal, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from lowering_bench.goals import BYTES, HERE, PRIVATE
from lowering_bench.records import Record
from lowering_bench.subjects import BOARDS

_NOTHING = "–"
_FIGURES = {**BOARDS, PRIVATE: "private", HERE: "time", BYTES: "bytes"}
LEGEND = (
    "Ratios are to the backbone made step by step by this project, in the same runtime and with the same "
    "threads. Pi 4, Pi 5: instructions of one inference on the emulated board, exact and no measure of time; "
    "with several threads those of the busiest one, which do not repeat. ÷ LiteRT: all instructions to those "
    "of LiteRT's backbone with the same numbers, board by board. Private, mapped: memory on the last of "
    "these boards that loading and one inference take. x86: median wall time on this machine, all rows of a "
    "network and runtime in turns, the ratio with its 95 % interval. B/param: bytes of the file for each "
    "parameter. Stock: torch.onnx and quantize_static, or litert-torch and ai-edge-quantizer, on the "
    "plain module."
)


def header(records: Sequence[Record], boards: Sequence[str]) -> list[str]:
    """Titles of the columns."""
    return [
        "network", "runtime", "threads", "made", "MACs", *(BOARDS[b] for b in boards), "÷ LiteRT", "private",
        "mapped", "x86", "kB", "B/param", "goals",
    ]  # fmt: skip


def cells(record: Record, boards: Sequence[str]) -> list[str]:
    """One row's cells."""
    variant = record.variant
    named = [variant.network, variant.format.label, str(record.threads), variant.shown_way]
    if record.error:
        return [*named, "failed", *[_NOTHING] * (len(boards) + 7)]
    last: Mapping[str, Any] = next(
        (record.boards[b] for b in reversed(list(boards)) if b in record.boards), {}
    )
    return [
        *named,
        _ratio(record.macs_ratio),
        *(_counted(record.boards.get(b), record.threads) for b in boards),
        " / ".join(_ratio(record.boards.get(b, {}).get("to_litert")) for b in boards),
        _memory(last, "private_bytes"),
        _memory(last, "mapped_bytes"),
        _timed(record.here),
        f"{(record.file_bytes or 0) / 1e3:,.0f}",
        _ratio(record.bytes_per_parameter),
        "; ".join(f"{_FIGURES[g.figure]} ≤ {g.most:g} {g.verdict}" for g in record.goals) or _NOTHING,
    ]


def _ratio(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


def _counted(found: Mapping[str, Any] | None, threads: int) -> str:
    if not found:
        return _NOTHING
    if found.get("error"):
        return "failed"
    name = "instructions" if threads == 1 else "busiest_thread"
    text = f"{found[name] / 1e6:.2f} M"
    return f"{text}, {found[f'{name}_ratio']:.2f}" if f"{name}_ratio" in found else text


def _memory(found: Mapping[str, Any], name: str) -> str:
    if found.get(name) is None:
        return _NOTHING
    text = f"{found[name] / 1e6:.2f} MB"
    return f"{text}, {found[f'{name}_ratio']:.2f}" if f"{name}_ratio" in found else text


def _timed(here: Mapping[str, Any]) -> str:
    if here.get("error"):
        return "failed"
    if here.get("void"):
        return "void"
    if "ns" not in here:
        return _NOTHING
    text = f"{here['ns'] / 1e6:.3f} ms"
    return f"{text}, {here['ratio']:.2f} [{here['low']:.2f}, {here['high']:.2f}]" if "ratio" in here else text


def failures(records: Sequence[Record]) -> list[str]:
    """Why there are cells without figures, and what readers must know; each once."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        found = [record.error] if record.error else []
        found += [v["error"] for v in record.boards.values() if v.get("error")]
        found += [record.here["error"]] if record.here.get("error") else []
        found += [f"timed here: {v}" for v in record.here.get("void", ())[:1]]
        for reason in [*found, *record.notes]:
            reasons.setdefault(reason, []).append(record.variant.name)
    return [f"{', '.join(dict.fromkeys(where))}: {reason}" for reason, where in reasons.items()]


def best_goals(records: Sequence[Record]) -> list[tuple[str, str, str, float, float | None, str, str]]:
    """Each goal with the best row: network, format, figure, most, value, how it was made, verdict."""
    best: dict[tuple[str, str, str], tuple[Record, Any]] = {}
    for record in records:
        for judged in record.goals:
            key = (record.variant.network, record.variant.format.label, judged.figure)
            before = best.get(key)
            if before is None or (
                judged.value is not None and judged.value < (before[1].value or float("inf"))
            ):
                best[key] = record, judged
    return [
        (network, label, _FIGURES[figure], g.most, g.value, record.variant.shown_way, g.verdict)
        for (network, label, figure), (record, g) in best.items()
    ]


def markdown(
    records: Sequence[Record], boards: Sequence[str], versions: Mapping[str, str], command: str
) -> str:
    """The whole table, its goals and its failures."""
    lines = [f"`{command}`, {', '.join(f'{k} {v}' for k, v in versions.items())}.", ""]
    lines += list(_markdown_table(header(records, boards), (cells(r, boards) for r in records)))
    lines += ["", LEGEND, ""]
    goals = [
        (network, label, figure, f"≤ {most:g}", _ratio(value), way, text)
        for network, label, figure, most, value, way, text in best_goals(records)
    ]
    if goals:
        titles = ["network", "runtime", "figure", "goal", "best", "made", "verdict"]
        lines += [*_markdown_table(titles, goals), ""]
    lines += [f"- {text}" for text in failures(records)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(titles: Sequence[str], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |"


def table(records: Sequence[Record], boards: Sequence[str]) -> Table:
    """For a terminal; goals that are reached in green, missed ones in red."""
    drawn = Table(caption=LEGEND, caption_justify="left")
    for title in header(records, boards):
        drawn.add_column(title, no_wrap=title not in ("goals", "made", "x86"))
    before = None
    for record in records:
        group = (record.variant.format, record.threads, record.variant.is_csr)
        if before is not None and before != group and not record.variant.is_csr:
            drawn.add_section()
        before = group
        *text, _ = map(escape, cells(record, boards))
        drawn.add_row(*text, "\n".join(_coloured(record)) or _NOTHING)
    return drawn


def _coloured(record: Record) -> Iterator[str]:
    colours = {"reached": "green", "not measured": "dim"}
    for goal in record.goals:
        colour = colours.get(goal.verdict, "red")
        yield f"[{colour}]{_FIGURES[goal.figure]} ≤ {goal.most:g} {goal.verdict}[/]"


def plain(records: Sequence[Record], versions: Mapping[str, str], command: str) -> dict[str, Any]:
    """For JSON."""
    names = ("network", "format", "figure", "most", "value", "way", "verdict")
    return {
        "schema": 1,
        "command": command,
        "versions": dict(versions),
        "rows": [r.plain() for r in records],
        "goals": [dict(zip(names, g, strict=True)) for g in best_goals(records)],
        "failures": failures(records),
    }
