"""Labelled image sets, read lazily and without torch."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from csr_deploy.data.preprocess import Preprocessing, fit_image
from csr_deploy.errors import DataError

Split = Literal["train", "test"]
Image = NDArray[np.uint8]


class ImageDataset(abc.ABC):
    """Images with class indices.

    Attributes:
        name: Where the images come from, for messages.
        classes: Class names; the index of a name is its label. Empty where the images have no labels.
        labels: [N] int64, -1 where an image has no label.
    """

    def __init__(self, name: str, classes: Sequence[str], labels: NDArray[np.int64]) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def image(self, index: int) -> Image:
        """One image, [H, W, C] uint8 with C = 1 or 3.

        Raises:
            DataError: If it cannot be decoded.
        """

    def load(
        self,
        preprocessing: Preprocessing,
        indices: Iterable[int] | None = None,
        *,
        max_damaged: float = 0.01,
        on_image: Callable[[int, int], None] | None = None,
    ) -> tuple[Image, NDArray[np.int64]]:
        """Decodes images to the network's size and channels, leaving out damaged ones.

        Args:
            preprocessing: Gives size and channels; normalisation is not applied here.
            indices: Which images, in this order; all by default.
            max_damaged: Share of images that may be undecodable before the whole set is refused.
            on_image: Called before each image with (images done, images wanted).

        Returns:
            (images [N, H, W, C] uint8, labels [N]). Damaged images are left out of both.

        Raises:
            DataError: If nothing is left, more than `max_damaged` of the images are damaged (the first few
                are named), or they do not fit into memory.
        """
        wanted = list(range(len(self))) if indices is None else [int(i) for i in indices]
        height, width, channels = preprocessing.height, preprocessing.width, preprocessing.channels
        needed, free = len(wanted) * height * width * channels, psutil.virtual_memory().available
        if needed > free:
            raise DataError(
                f"{len(wanted)} images of {height}×{width} need {needed / 2**30:.1f} GiB of memory, "
                f"{free / 2**30:.1f} GiB are free",
                where=self.name,
                fix="Use a smaller image size or fewer images.",
            )
        images = np.empty((len(wanted), height, width, channels), np.uint8)
        kept: list[int] = []
        damaged: list[str] = []
        for done, index in enumerate(wanted):
            if on_image:
                on_image(done, len(wanted))
            try:
                images[len(kept)] = fit_image(self.image(index), preprocessing)
            except DataError as error:
                damaged.append(f"{error.where}: {error.what}")
                continue
            kept.append(index)
        if damaged and (not kept or len(damaged) > max_damaged * len(wanted)):
            shown = "\n  ".join(damaged[:5]) + ("\n  …" if len(damaged) > 5 else "")
            raise DataError(
                f"{len(damaged)} of {len(wanted)} images cannot be decoded:\n  {shown}",
                where=self.name,
                fix=f"Replace or remove them; up to {max_damaged:.0%} may be damaged.",
            )
        if not kept:
            raise DataError("the set has no images", where=self.name, fix="Name a folder that holds images.")
        self.damaged = tuple(damaged)
        return images[: len(kept)], self.labels[kept]

    damaged: tuple[str, ...] = ()
    """What the last `load` left out, one message an image."""


class ArrayDataset(ImageDataset):
    """Images held in one array, [N, H, W, C] uint8."""

    def __init__(self, name: str, classes: Sequence[str], images: Image, labels: NDArray[np.int64]) -> None:
        super().__init__(name, classes, labels)
        if images.ndim != 4 or len(images) != len(labels):
            raise DataError(f"{images.shape} images with {len(labels)} labels", where=name)
        self.images = images

    def image(self, index: int) -> Image:
        picture: Image = self.images[index]
        return picture


def fingerprint(images: Image, labels: NDArray[np.int64]) -> str:
    """SHA-256 of decoded images and labels: the identity of a calibration or test set."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()
