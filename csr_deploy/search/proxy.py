"""Short trainings that tell networks apart: few images, few epochs, and a held-out part of the training set.

The test part of the image set is never looked at: whoever chooses a network by it cannot test with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.checkpoint import Checkpoint, file_sha256, load_checkpoint
from csr_deploy.curve import EpochRecord, read_curve
from csr_deploy.data import ImageDataset, fingerprint, natural_preprocessing, open_dataset
from csr_deploy.data.dataset import Image
from csr_deploy.distill import load_teacher
from csr_deploy.distributed import native_bf16, pick_device
from csr_deploy.errors import DataError
from csr_deploy.models import Architecture
from csr_deploy.recipe import RECIPES, Recipe
from csr_deploy.search.settings import SearchSettings
from csr_deploy.soft_targets import write_soft_targets
from csr_deploy.train import Progress, TrainingData, TrainOptions, prepare_data, train


class Part(ImageDataset):
    """Some images of a set.

    Args:
        whole: The set.
        indices: Which of its images.
    """

    def __init__(self, whole: ImageDataset, indices: NDArray[np.int64]) -> None:
        super().__init__(whole.name, whole.classes, whole.labels[indices])
        self._whole, self._indices = whole, indices

    def image(self, index: int) -> Image:
        return self._whole.image(int(self._indices[index]))


def balanced_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A seeded order of images whose every beginning holds the classes alike, as far as there are images."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        rank[own] = np.arange(len(own))
    return order[np.argsort(rank[order], kind="stable")]


def split_training_part(whole: ImageDataset, limit: int, validation: int, seed: int) -> tuple[Part, Part]:
    """Images to train with, and others to tell the accuracy.

    Args:
        whole: The training part of a set.
        limit: Most training images; where there are too few for both, a fifth is held out.
        validation: Most images held out.
        seed: Of the draw.

    Raises:
        DataError: If there are too few images.
    """
    order = balanced_order(whole.labels, seed)
    held = min(validation, max(1, len(order) // 5))
    if len(order) < 4:
        raise DataError(f"has only {len(order)} training images", where=whole.name, fix="Give more images.")
    return Part(whole, order[held : held + limit]), Part(whole, order[:held])


@dataclass(frozen=True)
class ProxyResult:
    """What a short training gave.

    Attributes:
        curve: Top-1 of the held-out images after each epoch.
        seconds: Of the training.
    """

    curve: Sequence[float]
    seconds: float

    @property
    def accuracy(self) -> float:
        """After the last epoch."""
        return self.curve[-1]


class Proxy:
    """The data and the recipe that all networks of a search are trained with.

    Args:
        settings: Of the search.
        out: The search's folder.

    Raises:
        CsrError: If the data, the teacher or the device cannot be used.
    """

    def __init__(self, settings: SearchSettings, out: Path) -> None:
        self.settings, self._out = settings, out
        whole = open_dataset(settings.data, "train")
        training, held = split_training_part(whole, settings.limit, settings.validation, settings.seed)
        self.data: TrainingData = prepare_data(
            training, held, natural_preprocessing(whole, settings.image_size)
        )
        self.device = pick_device(settings.device)
        self._bf16 = native_bf16(self.device) if settings.bf16 is None else settings.bf16
        self.recipe: Recipe = replace(
            RECIPES["short"],
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            muon_rate=settings.muon_rate,
            progressive=False,
        )
        self.fingerprint = fingerprint(self.data.train_images, self.data.train_labels)
        self._teacher = self._read_teacher()

    def identity(self) -> dict[str, Any]:
        """What must be the same in all workers, beside the settings."""
        s = self.settings
        return {
            "data_sha256": self.fingerprint,
            "validation_sha256": fingerprint(self.data.test_images, self.data.test_labels),
            "teacher_sha256": file_sha256(Path(s.teacher)) if s.teacher else None,
            "init_sha256": file_sha256(Path(s.init)) if s.init else None,
        }

    def _read_teacher(self) -> Path | None:
        """Answers of the teacher, computed once for all trainings."""
        if self.settings.teacher is None:
            return None
        data = self.data
        targets = load_teacher(
            Path(self.settings.teacher),
            data.train_images,
            data.classes,
            data.preprocessing,
            self.fingerprint,
            self.device,
        )
        own = file_sha256(Path(self.settings.teacher))
        path = self._out / f"teacher-{own[:8]}-{self.fingerprint[:8]}.npz"
        if not path.exists():
            write_soft_targets(path, targets)
        return path

    def folder(self, network: str) -> Path:
        """Where a network's training is kept."""
        return self._out / "trials" / network

    def seed(self, network: str) -> int:
        """Of a network's training: the same whoever trains it, and when."""
        text = f"{self.settings.seed} {network}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:6], "big")

    def train(
        self,
        architecture: Architecture,
        *,
        on_step: Progress | None = None,
        on_curve: Callable[[Sequence[float]], None] | None = None,
    ) -> ProxyResult:
        """Trains a network, or goes on with its training.

        Args:
            architecture: The network.
            on_step: See `csr_deploy.train.train`.
            on_curve: Called after each epoch with the accuracies of all epochs so far; what it raises ends
                the training, whose files are kept.

        Raises:
            CsrError: See `csr_deploy.train.train`.
        """
        folder = self.folder(architecture.name)
        resume = (folder / "resume.pt").exists()

        def note(_record: EpochRecord) -> None:
            if on_curve:
                # Written before this is called, with the epochs of earlier starts in it.
                on_curve([r.test_top1 for r in read_curve(folder / "metrics.csv")])

        options = TrainOptions(
            folder,
            self.seed(architecture.name),
            str(self.device),
            self._bf16,
            resume=resume,
            init=Path(self.settings.init) if self.settings.init else None,
            teacher=self._teacher,
        )
        checkpoint = train(architecture, self.recipe, self.data, options, on_step=on_step, on_epoch=note)
        curve = [float(record["test_top1"]) for record in checkpoint.training["curve"]]
        return ProxyResult(curve, float(checkpoint.training["seconds"]))


def searched_checkpoint(path: Path, record: dict[str, Any]) -> Checkpoint:
    """A proxy's checkpoint that says what its accuracy was measured with.

    Args:
        path: `model.pt` of a proxy training.
        record: What the search knows of it; plain values.

    Raises:
        CheckpointError: If it cannot be read.
    """
    checkpoint = load_checkpoint(path)
    metrics = {k.replace("test_", "validation_", 1): v for k, v in checkpoint.metrics.items()}
    return replace(checkpoint, metrics=metrics, training={**checkpoint.training, "search": record})


def rungs(epochs: int) -> list[int]:
    """Epochs after which a training may be stopped: 1, 2, 4, … before the last."""
    return [2**i for i in range(max(1, math.ceil(math.log2(max(epochs, 2))))) if 2**i < epochs]
