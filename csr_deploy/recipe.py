"""Recipes: everything that decides how a network is trained. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from csr_deploy.errors import OptionError

Schedule = Literal["one-cycle", "halve", "tenth"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: by SGD with momentum, or by Muon for kernels and SGD for the rest.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images a step, over all processes.
        schedule: "one-cycle"; "halve" every `decay_every` epochs (the paper, CIFAR-10); "tenth" every
            `decay_every` epochs (the paper, ImageNet).
        learning_rate: Peak (one-cycle) or initial learning rate.
        decay_every: Epochs between decays of "halve" and "tenth".
        momentum: Momentum of both.
        weight_decay: L2 penalty; BatchNorm and biases are exempt in the one-cycle recipe.
        nesterov: Nesterov momentum of SGD; Muon always has it.
        muon_rate: Learning rate of Muon, at the moment SGD's is `learning_rate`; 0 for SGD alone.
        muon_decay: Decoupled weight decay of Muon: kernels shrink by this, times the rate, a step.
        label_smoothing: 0 for plain cross-entropy.
        ema_decay: Decay a step of an exponential moving average of the weights; 0 for none.
        crop_padding: Pixels of reflected border that random crops may move into.
        flip: Random horizontal flips.
        progressive: Train the first third of the epochs on unpadded crops of 3/4 of the image's size.
        warmup: Share of the steps in which one-cycle's learning rate rises.
        distill_weight: Share of the distillation loss where there is a teacher; the labels have the rest.
        distill_temperature: Temperature that softens the teacher's and the student's logits.
    """

    epochs: int
    batch_size: int = 128
    schedule: Schedule = "halve"
    learning_rate: float = 0.05
    decay_every: int = 30
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    muon_rate: float = 0.0
    muon_decay: float = 0.05
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    progressive: bool = False
    warmup: float = 0.25
    distill_weight: float = 0.9
    distill_temperature: float = 2.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: If one makes no sense.
        """
        limits = {
            "epochs": self.epochs >= 1,
            "schedule": self.schedule in get_args(Schedule),
            "batch_size": self.batch_size >= 2,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "decay_every": self.decay_every >= 1,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "muon_rate": 0 <= self.muon_rate < math.inf,
            "muon_decay": 0 <= self.muon_decay < math.inf,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "ema_decay": 0 <= self.ema_decay < 1,
            "crop_padding": self.crop_padding >= 0,
            "warmup": 0 < self.warmup < 1,
            "distill_weight": 0 < self.distill_weight <= 1,
            "distill_temperature": 0 < self.distill_temperature < math.inf,
            "nesterov": not self.nesterov or self.momentum > 0,
        }
        for name, fine in limits.items():
            if not fine:
                raise OptionError(f"{name} = {getattr(self, name)} makes no sense", where="recipe")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of one step."""
        if self.schedule == "one-cycle":
            total = self.epochs * steps_per_epoch
            rising = max(1.0, self.warmup * total)
            if step < rising:
                return self.learning_rate * (0.04 + 0.96 * step / rising)
            angle = math.pi * (step - rising) / max(1.0, total - rising)
            return self.learning_rate * 0.5 * (1 + math.cos(angle))
        factor = 0.5 if self.schedule == "halve" else 0.1
        return self.learning_rate * factor ** (step // steps_per_epoch // self.decay_every)

    def crop_size(self, epoch: int, size: int) -> int:
        """Side of the training crops in an epoch, for images whose side is `size`."""
        return max(1, size * 3 // 4) if self._is_small(epoch) else size

    def border(self, epoch: int) -> int:
        """Pixels of border around the image that crops may move into in an epoch."""
        return 0 if self._is_small(epoch) else self.crop_padding

    def _is_small(self, epoch: int) -> bool:
        return self.progressive and epoch < self.epochs // 3


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(epochs=300),
    "paper-imagenet": Recipe(epochs=40, schedule="tenth", decay_every=10),
    "short": Recipe(
        epochs=16,
        schedule="one-cycle",
        learning_rate=0.1,
        muon_rate=0.05,
        nesterov=True,
        label_smoothing=0.05,
        progressive=True,
    ),
}
