"""Soft targets: a teacher's logits of every training image, for knowledge distillation. Without torch."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csr_deploy.atomic import atomic_write
from csr_deploy.errors import DataError

_VERSION = 1


@dataclass(frozen=True)
class SoftTargets:
    """What a teacher says of the images of a training split.

    Attributes:
        logits: [N, 2, classes] float16: of each image as it is, and mirrored.
        classes: Names, in the order of the logits.
        data_sha256: `csr_deploy.data.fingerprint` of the images and labels they belong to.
        teacher: Who said it, for the training record.
    """

    logits: NDArray[np.float16]
    classes: tuple[str, ...]
    data_sha256: str
    teacher: str

    def check(self, classes: tuple[str, ...], data_sha256: str, where: str) -> None:
        """Checks that these targets belong to a training set.

        Raises:
            DataError: If they are another one's.
        """
        if self.classes != classes:
            raise DataError(
                f"its classes are {', '.join(self.classes)}, those of the data {', '.join(classes)}",
                where=where,
                fix="Make the soft targets from the data the network is trained on.",
            )
        if self.data_sha256 != data_sha256:
            raise DataError(
                "was made from other training images, or from the same in another order or size",
                where=where,
                fix="Make the soft targets from the data the network is trained on.",
            )


def write_soft_targets(path: Path, targets: SoftTargets) -> None:
    """Writes a compressed .npz, whole or not at all.

    Raises:
        ExportError: If it cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            version=np.int64(_VERSION),
            logits=targets.logits.astype(np.float16),
            classes=np.array(targets.classes),
            data_sha256=np.array(targets.data_sha256),
            teacher=np.array(targets.teacher),
        )


def read_soft_targets(path: Path) -> SoftTargets:
    """Reads what `write_soft_targets` wrote.

    Raises:
        DataError: If the file cannot be read, or is none.
    """
    where = str(path)
    fix = "Write it with csr_deploy.soft_targets.write_soft_targets, or give a checkpoint."
    try:
        with np.load(path, allow_pickle=False) as file:
            version = int(file["version"])
            if version != _VERSION:
                raise DataError(f"has format version {version}, known is {_VERSION}", where=where, fix=fix)
            logits, classes = file["logits"], tuple(str(c) for c in file["classes"])
            targets = SoftTargets(logits, classes, str(file["data_sha256"]), str(file["teacher"]))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=where) from error
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"is no file of soft targets: {error}", where=where, fix=fix) from error
    if logits.dtype != np.float16 or logits.ndim != 3 or logits.shape[1:] != (2, len(classes)):
        raise DataError(
            f"its logits are {logits.dtype} {list(logits.shape)}, not float16 [N, 2, {len(classes)}]",
            where=where,
            fix=fix,
        )
    if not np.isfinite(logits).all():
        raise DataError("its logits are not all finite", where=where, fix=fix)
    return targets
