"""Draws accuracy against model size from a result of `csr-bench --json`.

    python tools/plot_size.py bench.json docs/images/size.png

A backbone and its CSR network of one target are joined by an arrow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: E402

_COLOURS = ("#1f6fb4", "#d1495b", "#2a9d6f", "#8a5fbf")


def draw(result: dict[str, object], out: Path) -> None:
    """Draws one figure.

    Args:
        result: What `csr-bench --json` wrote; pairs are found by name, `X` and `X-csr…`.
        out: The picture.
    """
    rows = result["measurements"]
    assert isinstance(rows, list)
    figure, axes = plt.subplots(figsize=(7.2, 3.8), dpi=150)
    for colour, target in zip(_COLOURS, dict.fromkeys(r["target"] for r in rows), strict=False):
        of_target = [r for r in rows if r["target"] == target]
        points = {
            r["network"]: (r["sizes"]["file_bytes"] / 1024, 100 * r["accuracy"]["top1"]) for r in of_target
        }
        axes.scatter(*zip(*points.values(), strict=True), color=colour, s=48, label=target, zorder=3)
        for name, point in points.items():
            axes.annotate(name, point, xytext=(6, 6), textcoords="offset points", fontsize=8, color=colour)
        for name, point in points.items():
            backbone = next((b for b in points if name.startswith(f"{b}-csr")), None)
            if backbone:
                arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.5}
                axes.annotate("", point, xytext=points[backbone], arrowprops=arrow)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 4)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("model file, KiB")
    axes.set_ylabel("top-1, %")
    axes.margins(x=0.15, y=0.3)
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, metadata={"Software": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
