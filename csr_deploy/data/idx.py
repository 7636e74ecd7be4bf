"""IDX files, as MNIST and Fashion-MNIST are distributed."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from csr_deploy.data.dataset import ArrayDataset, Split
from csr_deploy.data.store import Store
from csr_deploy.errors import DataError, MissingPartError

_PREFIXES: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("t10k", "test")}
_RANKS = {"images": 3, "labels": 1}
_UBYTE = 0x08

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


# SHA-256 of the labels of both parts, which tell Fashion-MNIST from MNIST: the files are named alike.
_FASHION_MNIST_LABELS = frozenset(
    {
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    }
)


def parse_idx(content: bytes, where: str) -> NDArray[np.uint8]:
    """Parses one IDX file of unsigned bytes, gzip-compressed or not.

    Raises:
        DataError: If it is damaged or of another element type.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"damaged gzip file: {error}", where=where) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UBYTE:
        raise DataError("not an IDX file of unsigned bytes", where=where)
    rank = content[3]
    if len(content) < 4 + 4 * rank:
        raise DataError("truncated IDX header", where=where)
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    found, expected = len(content) - 4 - 4 * rank, math.prod(shape)
    if found != expected:
        state = "truncated" if found < expected else "overlong"
        raise DataError(f"{state} IDX file: {found} bytes of data instead of {expected}", where=where)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _pairs(store: Store, split: Split) -> dict[str, dict[str, str]]:
    """Folder → kind ("images", "labels") → file name, of one split."""
    kinds = {
        f"{prefix}-{kind}{mark}idx{rank}-ubyte{end}": kind
        for prefix in _PREFIXES[split]
        for kind, rank in _RANKS.items()
        for mark in "-."
        for end in ("", ".gz")
    }
    found: dict[str, dict[str, str]] = {}
    for name in store.names():
        if kind := kinds.get(name.rpartition("/")[2]):
            found.setdefault(str(PurePosixPath(name).parent), {}).setdefault(kind, name)
    return found


def find_idx(store: Store, split: Split) -> tuple[str, str] | None:
    """Names of the image and label files of a split, or None where the store has no IDX files.

    Raises:
        MissingPartError: If only the other split is there.
        DataError: If half a pair or more than one set is there.
    """
    found = _pairs(store, split)
    where = str(store.path)
    if not found:
        if _pairs(store, "test" if split == "train" else "train"):
            names = " or ".join(f"{p}-images-idx3-ubyte" for p in _PREFIXES[split])
            raise MissingPartError(f"has no '{split}' part: no file {names}, .gz or not", where=where)
        return None
    if len(found) > 1:
        raise DataError(
            f"holds more than one IDX set: {', '.join(sorted(found))}",
            where=where,
            fix="Name one of these folders.",
        )
    pair = next(iter(found.values()))
    if missing := _RANKS.keys() - pair.keys():
        raise DataError(f"its '{split}' part has no file of {missing.pop()}", where=where)
    return pair["images"], pair["labels"]


def open_idx(store: Store, files: tuple[str, str]) -> ArrayDataset:
    """Opens an image and a label file.

    Raises:
        DataError: If they are damaged or do not fit each other.
    """
    images = parse_idx(store.read(files[0]), store.where(files[0]))
    labels = parse_idx(store.read(files[1]), store.where(files[1]))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"images {images.shape} and labels {labels.shape} do not fit", where=store.where(files[0])
        )
    if not images.size:
        raise DataError("holds no images", where=store.where(files[0]))
    classes = _classes(store, files[1], labels)
    return ArrayDataset(str(store.path), classes, images[:, :, :, None], labels.astype(np.int64))


def _classes(store: Store, label_file: str, labels: NDArray[np.uint8]) -> tuple[str, ...]:
    if hashlib.sha256(labels.tobytes()).hexdigest() in _FASHION_MNIST_LABELS:
        return FASHION_MNIST_CLASSES
    # The files name no classes. Both parts are counted, so that they agree where one lacks the last class.
    count = int(labels.max()) + 1
    folder = PurePosixPath(label_file).parent
    for split in _PREFIXES:
        other = _pairs(store, split).get(str(folder), {}).get("labels")
        if other and other != label_file:
            count = max(count, int(parse_idx(store.read(other), store.where(other)).max(initial=0)) + 1)
    named = "fashion" in f"{store.path.resolve().name}/{label_file}".lower()
    return FASHION_MNIST_CLASSES if named and count == 10 else tuple(str(i) for i in range(count))
