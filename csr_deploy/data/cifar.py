"""CIFAR-10 in its two distributed forms: the python and the binary version."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from csr_deploy.data.dataset import ArrayDataset, Image, Split
from csr_deploy.data.store import Store
from csr_deploy.errors import DataError, MissingPartError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_RECORD = 1 + 3 * 32 * 32
# What unpickling and indexing raise on bytes that are no batch.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


class _CodeFoundError(pickle.UnpicklingError):
    """A pickle that refers to something other than arrays."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles lists, strings and NumPy arrays, and refuses every other global."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise _CodeFoundError(f"{module}.{name}")
        if name == "_reconstruct":
            # Under its old or its new name; what an array's own reduction gives is this NumPy's.
            return np.empty(0).__reduce__()[0]
        return super().find_class(module, name)


def _parse_python(content: bytes, where: str) -> tuple[Image, list[int]]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], [int(v) for v in batch[b"labels"]]
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            raise DataError("its data are no array of bytes", where=where)
        pixels = pixels.reshape(-1, 3, 32, 32)
    except _CodeFoundError as error:
        raise DataError(
            f"contains pickled code ({error}); it was refused and nothing in it was run",
            where=where,
            fix="Take the batches from the original CIFAR-10 archive, or use its binary version.",
        ) from error
    except _DAMAGED as error:
        raise DataError(f"not a CIFAR-10 python batch, or damaged: {error!r}", where=where) from error
    return pixels.transpose(0, 2, 3, 1), labels


def _parse_binary(content: bytes, where: str) -> tuple[Image, list[int]]:
    if not content or len(content) % _RECORD:
        raise DataError(
            f"{len(content)} bytes are no whole number of {_RECORD}-byte CIFAR-10 records", where=where
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), [int(v) for v in records[:, 0]]


def find_cifar10(store: Store, split: Split) -> list[str] | None:
    """The batch files of a split, or None where the store holds no CIFAR-10 batches.

    Raises:
        MissingPartError: If only the other split is there.
        DataError: If some are missing, or there is more than one set of them.
    """
    where = str(store.path)
    for suffix in ("", ".bin"):
        known = {f + suffix for files in _FILES.values() for f in files}
        found = [PurePosixPath(n) for n in store.names() if n.rpartition("/")[2] in known]
        folders = sorted({str(p.parent) for p in found})
        if len(folders) > 1:
            raise DataError(
                f"holds more than one set of CIFAR-10 batches: {', '.join(folders)}",
                where=where,
                fix="Name one of these folders.",
            )
        names = {p.name: str(p) for p in found}
        if names:
            if missing := [f + suffix for f in _FILES[split] if f + suffix not in names]:
                error = MissingPartError if len(missing) == len(_FILES[split]) else DataError
                raise error(
                    f"batch files are missing: {', '.join(missing)}",
                    where=where,
                    fix="Put them beside the others.",
                )
            return [names[f + suffix] for f in _FILES[split]]
    return None


def open_cifar10(store: Store, files: list[str]) -> ArrayDataset:
    """Reads the batch files of a split.

    Raises:
        DataError: If one is damaged, or (python version) contains anything but arrays.
    """
    images: list[Image] = []
    labels: list[int] = []
    for name in files:
        parse = _parse_binary if name.endswith(".bin") else _parse_python
        part, part_labels = parse(store.read(name), store.where(name))
        if len(part) != len(part_labels) or not set(part_labels) <= set(range(10)):
            raise DataError("its labels do not fit", where=store.where(name))
        images.append(part)
        labels += part_labels
    pixels = np.ascontiguousarray(np.concatenate(images))
    return ArrayDataset(str(store.path), CIFAR10_CLASSES, pixels, np.asarray(labels, np.int64))
