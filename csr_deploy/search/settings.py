"""What a search is: plain values, alike in every worker. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from csr_deploy.errors import OptionError

# What may differ between workers of one study, and between one start and the next.
_FREE = ("data", "out", "trials", "storage", "study", "teacher", "init", "device", "threads", "heartbeat")


@dataclass(frozen=True)
class SearchSettings:
    """All settings of a search.

    Attributes:
        backbone: Key of `csr_deploy.models.BACKBONES`.
        data: Image set: a path or the name of a built-in one.
        out: Folder that receives trials and results.
        trials: Networks to try, over all workers and starts.
        storage: URL of the database.
        study: Name of the study in it.
        objectives: As `csr_deploy.search.objectives.parse_objectives` takes them.
        steps: Choices of T besides 1.
        per_module: Choose T for every module, instead of one T for the last modules.
        max_modules: Most modules, from the last backwards; None for all.
        cells: Names of cells to choose from.
        widths: Factors of the channels to choose from.
        target_compression: Least compression in percent of the backbone's parameters; None for any.
        epochs: Of a proxy training.
        limit: Training images of a proxy training.
        validation: Images of the training part that are held out, to tell the accuracy.
        batch_size: Images a step.
        learning_rate: Peak of the one-cycle schedule.
        muon_rate: Peak of Muon; 0 for SGD alone.
        prune_margin: Points of accuracy by which another network must be ahead; None to stop no training.
        image_size: Height and width the network takes; None for those of the images.
        teacher: Checkpoint of a teacher.
        init: Checkpoint of the backbone, whose front layers are taken over.
        seed: Fixes the draws of images and, with the network's name, every training.
        device: Torch device of the trainings.
        threads: CPU threads of a worker; None for its share of the machine.
        bf16: bfloat16 autocast; None where the device has it.
        heartbeat: Seconds between signs of life; a worker silent for four times as long has died.
    """

    backbone: str
    data: str
    out: str
    trials: int
    storage: str
    study: str
    objectives: tuple[str, ...] = ("accuracy", "parameters")
    steps: tuple[int, ...] = (2, 3, 4)
    per_module: bool = False
    max_modules: int | None = None
    cells: tuple[str, ...] = ("vanilla",)
    widths: tuple[float, ...] = (1.0,)
    target_compression: float | None = None
    epochs: int = 4
    limit: int = 4000
    validation: int = 1000
    batch_size: int = 64
    learning_rate: float = 0.1
    muon_rate: float = 0.05
    prune_margin: float | None = 3.0
    image_size: tuple[int, int] | None = None
    teacher: str | None = None
    init: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    bf16: bool | None = None
    heartbeat: float = 15.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: If one makes no sense.
        """
        limits = {
            "trials": self.trials >= 1,
            "steps": bool(self.steps) and all(t >= 2 for t in self.steps),
            "max_modules": self.max_modules is None or self.max_modules >= 1,
            "cells": bool(self.cells),
            "widths": bool(self.widths) and all(0 < w <= 16 for w in self.widths),
            "target_compression": self.target_compression is None or self.target_compression < 100,
            "epochs": self.epochs >= 1,
            "limit": self.limit >= 2,
            "validation": self.validation >= 1,
            "batch_size": self.batch_size >= 2,
            "prune_margin": self.prune_margin is None or 0 <= self.prune_margin <= 100,
            "seed": 0 <= self.seed < 2**63,
            "threads": self.threads is None or self.threads >= 1,
            "heartbeat": 1 <= self.heartbeat <= 3600,
        }
        for name, fine in limits.items():
            if not fine:
                raise OptionError(f"{name} = {getattr(self, name)} makes no sense", where="search")
        if self.init is not None and self.widths != (1.0,):
            raise OptionError(
                "networks of other widths can take nothing over from the backbone",
                where="--init",
                fix="Leave out --init or --width.",
            )

    @property
    def grace(self) -> int:
        """Seconds of silence after which a worker counts as dead."""
        return max(2, round(4 * self.heartbeat))

    def identity(self) -> dict[str, Any]:
        """What must be alike in all workers of a study: the trials could not be compared otherwise."""
        return {k: _plain(v) for k, v in asdict(self).items() if k not in _FREE}

    def to_json(self) -> dict[str, Any]:
        """Plain values, for another process."""
        return {k: _plain(v) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SearchSettings:
        """What `to_json` gave."""
        known = {f.name for f in fields(cls)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{k: v for k, v in given.items() if k in known})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
