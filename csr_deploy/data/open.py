"""Opens whatever image set a path holds."""

from __future__ import annotations

import os
from pathlib import Path

from csr_deploy.data.builtin import BUILTIN, open_builtin
from csr_deploy.data.cifar import find_cifar10, open_cifar10
from csr_deploy.data.dataset import ImageDataset, Split
from csr_deploy.data.drawn import is_drawn, open_drawn
from csr_deploy.data.folder import open_folder
from csr_deploy.data.idx import find_idx, open_idx
from csr_deploy.data.store import open_store
from csr_deploy.errors import DataError


def open_dataset(path: str | os.PathLike[str], split: Split) -> ImageDataset:
    """Opens CIFAR-10 batches, IDX files or class folders, in a folder or a zip file.

    Args:
        path: The folder or zip file, or the name of a packaged set (`BUILTIN`) where no such path exists.
        split: The part wanted. Class folders without parts are divided by a hash of the file name.

    Raises:
        MissingPartError: If the set has no such part.
        DataError: If nothing usable is there.
    """
    if not Path(path).exists():
        name = os.fspath(path)
        if name in BUILTIN:
            return open_builtin(name, split)
        raise DataError(
            "does not exist",
            where=name,
            fix=f"Name a folder or zip file with images, or a packaged set: {', '.join(BUILTIN)}.",
        )
    store = open_store(Path(path))
    if is_drawn(store):
        return open_drawn(store, split)
    if batches := find_cifar10(store, split):
        return open_cifar10(store, batches)
    if idx := find_idx(store, split):
        return open_idx(store, idx)
    return open_folder(store, split)
