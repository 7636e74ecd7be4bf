"""Knowledge distillation: a teacher's soft targets in the loss of a student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csr_deploy.augment import Augmenter
from csr_deploy.checkpoint import file_sha256, load_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.errors import CheckpointError
from csr_deploy.recipe import Recipe
from csr_deploy.soft_targets import SoftTargets, read_soft_targets

_BATCH = 256


def load_teacher(
    path: Path,
    images: np.ndarray,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    data_sha256: str,
    device: torch.device,
) -> SoftTargets:
    """What a teacher says of the training images: read from a file, or computed from its checkpoint.

    Args:
        path: `.npz` of `write_soft_targets`, or a checkpoint of any network of this project.
        images: Training images [N, H, W, C] uint8.
        classes: Class names of the training set.
        preprocessing: That of the training images.
        data_sha256: Their fingerprint.
        device: Where a checkpoint's network runs.

    Raises:
        DataError: If the soft targets are unreadable or belong to other images.
        CheckpointError: If the checkpoint cannot be read, has other classes or takes other images.
    """
    where = str(path)
    if path.suffix == ".npz":
        targets = read_soft_targets(path)
        targets.check(classes, data_sha256, where)
        return targets
    checkpoint = load_checkpoint(path)
    if checkpoint.labels != classes:
        raise CheckpointError(
            f"the teacher knows {len(checkpoint.labels)} classes ({', '.join(checkpoint.labels[:5])} …), "
            f"not those of the data",
            where=where,
            fix="Give a teacher that was trained on the same classes.",
        )
    own = checkpoint.preprocessing
    if (own.height, own.width, own.channels) != (
        preprocessing.height,
        preprocessing.width,
        preprocessing.channels,
    ):
        raise CheckpointError(
            f"the teacher takes images of {own.height}×{own.width}×{own.channels}, the data has "
            f"{preprocessing.height}×{preprocessing.width}×{preprocessing.channels}",
            where=where,
            fix="Give a teacher for this size, or soft targets as .npz.",
        )
    teacher = checkpoint.build().eval().to(device)
    augment = Augmenter(Recipe(epochs=1), own)
    logits = np.empty((len(images), 2, len(classes)), np.float16)
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            x = augment.normalize(torch.from_numpy(images[start : start + _BATCH]).to(device))
            for view, pictures in enumerate((x, x.flip(3))):
                logits[start : start + _BATCH, view] = teacher(pictures).float().cpu().numpy()
    name = f"{checkpoint.architecture.name}, sha256 {file_sha256(path)}"
    return SoftTargets(logits, classes, data_sha256, name)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(logits/T)), mean over images (Hinton et al. 2015).

    Args:
        logits: The student's, [N, classes].
        teacher: The teacher's, [N, classes].
        temperature: T.
    """
    own = nn.functional.log_softmax(logits / temperature, dim=1)
    goal = nn.functional.log_softmax(teacher / temperature, dim=1)
    divergence = nn.functional.kl_div(own, goal, reduction="batchmean", log_target=True)
    return divergence * temperature**2
