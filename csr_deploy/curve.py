"""The course of a training run: one record an epoch, kept as CSV. Without torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from csr_deploy.atomic import atomic_write
from csr_deploy.errors import DataError


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.csv.

    Attributes:
        epoch: From 1.
        learning_rate: At the epoch's first step.
        train_loss: Mean over the epoch's augmented images, with label smoothing where the recipe has it.
        train_top1: Share of those images, 0..1.
        test_loss: Mean cross-entropy over the test part after the epoch.
        test_top1: Share of the test part, 0..1.
        seconds: Wall time of the epoch with its evaluation.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_top1: float
    test_loss: float
    test_top1: float
    seconds: float


def write_curve(path: Path, records: Sequence[EpochRecord]) -> None:
    """Writes the records as CSV, whole or not at all.

    Raises:
        ExportError: If the file cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in records)


def read_curve(path: Path) -> list[EpochRecord]:
    """Reads what `write_curve` wrote.

    Raises:
        DataError: If the file is missing or not of that form.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                EpochRecord(int(row.pop("epoch")), **{k: float(v) for k, v in row.items()})
                for row in csv.DictReader(file)
            ]
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"is no metrics.csv of csr-train: {error!r}", where=str(path)) from error
