"""A drawn set: images that were chosen and decoded on one machine for another one.

A zip file that holds no more than is needed, at the sizes that the networks take: a device needs no
decoder, and no whole image set for the accuracy on a part of it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.data.calibration import ImageSet
from csr_deploy.data.dataset import ArrayDataset, Image, Split
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.data.store import Store
from csr_deploy.errors import DataError, MissingPartError

_INDEX = "drawn.json"
_LABELS = "labels.npy"
_VERSION = 1
# The same images give the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class DrawnDataset(ArrayDataset):
    """Images at one or more sizes.

    Args:
        name: For messages.
        classes: See `ImageDataset`.
        images: (height, width, channels) → [N, height, width, channels] uint8.
        labels: [N].
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        images: Mapping[tuple[int, int, int], Image],
        labels: NDArray[np.int64],
    ) -> None:
        super().__init__(name, classes, next(iter(images.values())), labels)
        self._sizes = images

    def load(
        self, preprocessing: Preprocessing, indices: Iterable[int] | None = None, **options: Any
    ) -> tuple[Image, NDArray[np.int64]]:
        size = (preprocessing.height, preprocessing.width, preprocessing.channels)
        if size not in self._sizes:
            known = ", ".join("×".join(map(str, each)) for each in self._sizes)
            raise DataError(
                f"holds images of {known}, the network takes {'×'.join(map(str, size))}",
                where=self.name,
                fix="Draw them again for this network.",
            )
        self.images = self._sizes[size]
        return super().load(preprocessing, indices, **options)


def write_drawn(path: Path, sets: Sequence[tuple[Preprocessing, ImageSet]], classes: Sequence[str]) -> None:
    """Writes a drawn set. The same images give the same bytes.

    Args:
        path: The zip file.
        sets: The same images for each network's size.
        classes: Class names.

    Raises:
        DataError: If there are not the same images for every size.
    """
    labels = sets[0][1].labels
    arrays: dict[str, NDArray[Any]] = {_LABELS: labels}
    for preprocessing, drawn in sets:
        if not np.array_equal(drawn.labels, labels):
            raise DataError("not the same images can be decoded at every size", where=drawn.source)
        size = f"{preprocessing.height}x{preprocessing.width}x{preprocessing.channels}"
        arrays[f"{size}.npy"] = drawn.images
    index = {"version": _VERSION, "classes": list(classes)}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo(_INDEX, _EPOCH), json.dumps(index, ensure_ascii=False))
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(name, _EPOCH), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def is_drawn(store: Store) -> bool:
    """Whether that is a drawn set."""
    return _INDEX in store.names()


def open_drawn(store: Store, split: Split) -> DrawnDataset:
    """Opens a drawn set.

    Raises:
        MissingPartError: If another part than "test" is wanted.
        DataError: If it is damaged or of another version.
    """
    if split != "test":
        raise MissingPartError(
            "is a drawn set, which has a test part only", where=str(store.path), fix="Name another set."
        )
    try:
        index = json.loads(store.read(_INDEX))
        if index["version"] != _VERSION:
            raise DataError(
                f"has version {index['version']!r}, this csr-deploy reads {_VERSION}", where=str(store.path)
            )
        arrays = {
            name: np.load(io.BytesIO(store.read(name)), allow_pickle=False)
            for name in store.names()
            if name != _INDEX
        }
        labels = arrays.pop(_LABELS)
        images = {_size(name): array for name, array in arrays.items()}
        classes = [str(name) for name in index["classes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"is damaged: {error!r}", where=str(store.path)) from error
    whole = all(a.dtype == np.uint8 and a.shape == (len(labels), *size) for size, a in images.items())
    if not images or not whole:
        raise DataError("its arrays do not fit together", where=str(store.path))
    return DrawnDataset(str(store.path), classes, images, labels.astype(np.int64))


def _size(name: str) -> tuple[int, int, int]:
    height, width, channels = (int(part) for part in name.removesuffix(".npy").split("x"))
    return height, width, channels
