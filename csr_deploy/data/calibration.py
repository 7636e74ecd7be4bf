"""Calibration sets: seeded, from the training split only, with an identity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csr_deploy.data.dataset import Image, ImageDataset, fingerprint
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Decoded images at the network's size.

    Attributes:
        images: [N, H, W, C] uint8.
        labels: [N] int64, -1 where unknown.
        sha256: Hash of images and labels.
        source: Where they come from, for messages.
        damaged: Drawn but left out because they cannot be decoded, one message each.
    """

    images: Image
    labels: NDArray[np.int64]
    sha256: str
    source: str
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def sample(
    dataset: ImageDataset, preprocessing: Preprocessing, count: int, seed: int, *, disjoint_from: int = 0
) -> ImageSet:
    """Draws images without replacement.

    Args:
        dataset: Where from.
        preprocessing: Size and channels of the network.
        count: How many; fewer where the set is smaller.
        seed: Fixes the draw.
        disjoint_from: Skips that many images of the same seeded order, so that two draws with one seed
            never share an image.

    Raises:
        DataError: If no image is left to draw.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    chosen = np.sort(order[disjoint_from : disjoint_from + count])
    if not len(chosen):
        raise DataError(
            f"has {len(dataset)} images, too few to draw {count} beyond {disjoint_from}",
            where=dataset.name,
            fix="Give more images.",
        )
    images, labels = dataset.load(preprocessing, chosen)
    return ImageSet(images, labels, fingerprint(images, labels), dataset.name, dataset.damaged)
