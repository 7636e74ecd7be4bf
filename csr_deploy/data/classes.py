"""Class names of an image set and of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from csr_deploy.data.dataset import ImageDataset
from csr_deploy.errors import DataError


def class_map(dataset: ImageDataset, labels: Sequence[str]) -> NDArray[np.int64]:
    """From a label of the set to the network's class of the same name, [classes].

    Args:
        dataset: A labelled set.
        labels: Class names of the network, by logit.

    Raises:
        DataError: If the set has no labels, or other classes than the network.
    """
    if not dataset.classes or np.any(dataset.labels < 0):
        raise DataError(
            "has no labels, so there is no accuracy to measure",
            where=dataset.name,
            fix="Give labelled images.",
        )
    if set(dataset.classes) != set(labels):
        raise DataError(
            f"has the classes {_listed(dataset.classes)}; the network knows {_listed(labels)}",
            where=dataset.name,
            fix="Give images of the classes that the network was trained on.",
        )
    index = {name: number for number, name in enumerate(labels)}
    return np.asarray([index[name] for name in dataset.classes], np.int64)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
