"""Draws the course of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csr_deploy.atomic import atomic_write
from csr_deploy.curve import EpochRecord
from csr_deploy.errors import DataError, MissingDependencyError


def draw_curves(records: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Draws loss and top-1 of both parts and the learning rate over the epochs, as PNG.

    Args:
        records: The run, at least one epoch.
        path: File to write, whole or not at all.
        title: Stands above the plots.

    Raises:
        DataError: If there are no records.
        MissingDependencyError: If matplotlib is not installed.
        ExportError: If the file cannot be written.
    """
    if not records:
        raise DataError("has no epoch to draw", where=title)
    try:
        # Not pyplot, which would keep figures and look for a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train", "Drawing training curves") from error
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    figure.suptitle(title)
    epochs = [r.epoch for r in records]
    # One epoch makes no line, so every epoch of a short run has its point.
    marker = "o" if len(records) <= 30 else ""
    lines = {
        "loss": {"train": [r.train_loss for r in records], "test": [r.test_loss for r in records]},
        "top-1 (%)": {
            "train": [100 * r.train_top1 for r in records],
            "test": [100 * r.test_top1 for r in records],
        },
        "learning rate": {"": [r.learning_rate for r in records]},
    }
    for axes, (name, series) in zip(figure.subplots(1, len(lines)), lines.items(), strict=True):
        for label, values in series.items():
            axes.plot(epochs, values, marker=marker, markersize=3, label=label or None)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
