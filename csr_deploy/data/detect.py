"""Finds out the size and the channels that a network for an image set should have."""

from __future__ import annotations

import numpy as np

from csr_deploy.data.dataset import ImageDataset
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import DataError, OptionError

_LOOKED_AT = 64


def natural_preprocessing(dataset: ImageDataset, image_size: tuple[int, int] | None = None) -> Preprocessing:
    """Size and channels after a look at images spread over the set; mean 0 and standard deviation 1.

    Args:
        dataset: The training split.
        image_size: (height, width) of the network's input; by default that of the images.

    Returns:
        One channel where every image looked at is gray, else three.

    Raises:
        OptionError: If the images have different sizes and `image_size` is not given.
        DataError: If none of the images looked at can be decoded.
    """
    shapes: set[tuple[int, ...]] = set()
    failure: DataError | None = None
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT)).astype(int)):
        try:
            shapes.add(dataset.image(int(index)).shape)
        except DataError as error:
            failure = error
    if not shapes:
        raise DataError(
            "none of its images can be decoded", where=dataset.name, fix="Name a folder that holds images."
        ) from failure
    sizes = sorted({shape[:2] for shape in shapes})
    if image_size is None and len(sizes) > 1:
        raise OptionError(
            f"its images have different sizes, from {_text(sizes[0])} to {_text(sizes[-1])}",
            where=dataset.name,
            fix="Say with --image-size which size the network takes.",
        )
    height, width = image_size or sizes[0][:2]
    channels = 1 if all(shape[2] == 1 for shape in shapes) else 3
    return Preprocessing(height, width, (0.0,) * channels, (1.0,) * channels)


def _text(size: tuple[int, ...]) -> str:
    return f"{size[0]}×{size[1]}"
