"""The sentence about each network, computed from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from csr_deploy.bench.html import numbers
from csr_deploy.bench.html.cells import Cell, Report


@dataclass(frozen=True)
class Tile:
    """One large figure.

    Attributes:
        value: E.g. "×0.97".
        name: What it is of.
        beside: Its interval or what must be known.
    """

    value: str
    name: str
    beside: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came out for one network on one device with one runtime.

    Attributes:
        device: Title.
        setting: Target, runtime, threads, batch.
        network: Its name.
        baseline: That of its baseline.
        tiles: The figures that matter most.
        text: The sentence.
        is_void: Whether its times count for nothing.
    """

    device: str
    setting: str
    network: str
    baseline: str
    tiles: tuple[Tile, ...]
    text: str
    is_void: bool


def verdicts(report: Report) -> list[Verdict]:
    """One for every network that has a baseline beside it."""
    return [
        _verdict(cell, panel.baseline) for panel in report.panels if panel.baseline for cell in panel.others
    ]


def _verdict(cell: Cell, base: Cell) -> Verdict:
    tiles, parts = [], []
    interval = cell.latency_ratio
    if interval is not None:
        shown = ""
        if interval.low is not None and interval.high is not None:
            shown = f"{interval.low:.2f}–{interval.high:.2f}"
        unclear = "; no clear difference" if interval.holds_one else ""
        tiles.append(Tile(numbers.ratio(interval.ratio), "latency", shown))
        parts.append(f"{interval.ratio:.2f} of the time" + (f" ({shown}{unclear})" if shown else ""))
    for ratio, name in (
        (cell.instruction_ratio, "instructions"),
        (cell.ratio_of("sizes.parameters"), "parameters"),
        (cell.model_ratio, "model size"),
        (cell.ratio_of("microcontroller.ram_bytes"), "RAM"),
        (cell.ratio_of("memory.private_bytes"), "private memory"),
    ):
        if ratio is not None:
            tiles.append(Tile(numbers.ratio(ratio), name))
            parts.append(f"{ratio:.2f} of the {name}")
    text = f"On {cell.panel.device} ({cell.panel.setting}) {cell.network}"
    if parts:
        text += f" needs {_listed(parts)} of {base.network}"
    change = cell.accuracy_difference
    if change is not None:
        margin = cell.accuracy_margin
        beside = "" if margin is None else f"±{margin:.2f}"
        tiles.insert(0, Tile(numbers.signed(change, 2), "top-1 points", beside))
        text += (", and " if parts else " ") + _accuracy(cell, change)
    elif not parts:
        text += f" cannot be compared with {base.network}: they have no figure in common"
    text += "."
    if cell.panel.void:
        text += f" Its times are void: {'; '.join(cell.panel.void)}."
    return Verdict(
        cell.panel.device,
        cell.panel.setting,
        cell.network,
        base.network,
        tuple(tiles),
        text,
        bool(cell.panel.void),
    )


def _accuracy(cell: Cell, change: float) -> str:
    images = f"{cell.number('accuracy.images') or 0:,.0f} images"
    if round(change, 2) == 0:
        return f"is as accurate on {images}"
    kind = "more" if change > 0 else "less"
    return f"is {abs(change):.2f} points {kind} accurate on {images} ({_significance(cell, change)})"


def _significance(cell: Cell, change: float) -> str:
    margin = cell.accuracy_margin
    if margin is None:
        return ""
    return f"±{margin:.2f}" + ("" if abs(change) > margin else ", no clear difference")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
