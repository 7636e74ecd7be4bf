"""Small image sets that come with the package, for a first export and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np

from csr_deploy.data.dataset import ArrayDataset, Split
from csr_deploy.data.idx import FASHION_MNIST_CLASSES, parse_idx


@dataclass(frozen=True)
class BuiltinSet:
    """A packaged image set in IDX files.

    Attributes:
        classes: Class names; the index of a name is its label.
        files: Names of the image and the label file of each split.
    """

    classes: tuple[str, ...]
    files: Mapping[Split, tuple[str, str]]


BUILTIN: Mapping[str, BuiltinSet] = {
    "fashion-mnist": BuiltinSet(
        FASHION_MNIST_CLASSES,
        {
            "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
            "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        },
    )
}
"""By the name that stands where a path could: `--calibration fashion-mnist`."""


def open_builtin(name: str, split: Split) -> ArrayDataset:
    """Opens a packaged image set.

    Args:
        name: A key of `BUILTIN`.
        split: "train" holds the calibration images, "test" the test images.

    Raises:
        DataError: If the installed files are damaged.
    """
    # Read through importlib.resources, not by path: the package may be imported from a zip file.
    folder = resources.files("csr_deploy.data") / "samples" / name
    known = BUILTIN[name]
    images, labels = (
        parse_idx((folder / file).read_bytes(), f"{name} (packaged sample): {file}")
        for file in known.files[split]
    )
    return ArrayDataset(
        f"{name} (packaged sample)", known.classes, images[:, :, :, None], labels.astype(np.int64)
    )
