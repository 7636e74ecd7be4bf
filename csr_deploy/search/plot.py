"""Draws what a search found: accuracy over each cost, the front in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr_deploy.atomic import atomic_write
from csr_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from csr_deploy.search.front import Found, Front
    from csr_deploy.search.objectives import Objective

_MOST_NAMES = 24


def draw_front(front: Front, path: Path) -> None:
    """Draws a PNG with one diagram a cost.

    Args:
        front: What was found.
        path: File to write, whole or not at all.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        ExportError: If the file cannot be written.
    """
    try:
        # Not pyplot, which would keep figures and look for a display.
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "search", "Drawing the Pareto front") from error
    accuracy, *costs = front.objectives
    figure = Figure(figsize=(5.2 * len(costs) + 2.4, 4.4), layout="constrained")
    stopped = sum(f.outcome == "stopped" for f in front.others)
    figure.suptitle(
        f"{front.backbone}: {len(front.front)} networks on the front of "
        f"{len(front.front) + len(front.others)} tried, {stopped} stopped early"
    )
    axes = figure.subplots(1, len(costs), squeeze=False)[0]
    for each, cost in zip(axes, costs, strict=True):
        _draw(each, front, accuracy, cost)
    # Numbers in the points, names beside: names would lie on each other.
    handles = [
        Line2D([], [], linestyle="", marker=f"${number}$", color="C0", label=_short(found, front))
        for number, found in enumerate(front.front[:_MOST_NAMES], start=1)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def _short(found: Found, front: Front) -> str:
    return found.network.removeprefix(f"{front.backbone}-")


def _draw(axes: Any, front: Front, accuracy: Objective, cost: Objective) -> None:
    from matplotlib.ticker import EngFormatter

    def points(group: Sequence[Found]) -> tuple[list[float], list[float]]:
        return [f.values[cost.text] for f in group], [100 * f.values[accuracy.text] for f in group]

    # Not the stopped ones: their accuracy is that of an earlier epoch.
    beaten = [f for f in front.others if f.outcome == "trained"]
    axes.scatter(*points(beaten), marker="o", color="0.65", s=30, label="beaten")
    axes.scatter(*points(front.front), marker="o", color="C0", s=120, label="front", zorder=3)
    if len(front.objectives) == 2:
        best = sorted(front.front, key=lambda f: f.values[cost.text])
        axes.plot(*points(best), color="C0", drawstyle="steps-post", linewidth=1, zorder=2)
    for number, found in enumerate(front.front[:_MOST_NAMES], start=1):
        x, y = found.values[cost.text], 100 * found.values[accuracy.text]
        axes.annotate(str(number), (x, y), ha="center", va="center", color="white", fontsize=8, zorder=4)
    axes.set_xlabel(cost.text + (f" ({cost.unit})" if cost.unit else ""))
    axes.set_ylabel("top-1 of held-out images (%)")
    if cost.kind != "latency":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.grid(alpha=0.3)
    axes.margins(0.1)
    axes.legend(loc="lower right", fontsize=8)
