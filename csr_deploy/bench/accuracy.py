"""Top-1 accuracy of an open runtime on a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csr_deploy.bench.results import Accuracy
from csr_deploy.data import Preprocessing, class_map, open_dataset, sample
from csr_deploy.runtimes import Runtime

_PART = 64


def measure_accuracy(
    runtime: Runtime,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    data: str,
    limit: int | None,
    seed: int,
    on_progress: Callable[[int, int], None],
    device: str | None = None,
) -> Accuracy:
    """Classifies the test part of an image set.

    Args:
        runtime: Open.
        preprocessing: Of its network.
        labels: Class names of its network.
        data: Path of an image set or the name of a built-in one.
        limit: Most images, a seeded draw; None for all.
        seed: Of the draw; the same images for every network of the same size.
        on_progress: Called with images done and images in all.
        device: What the runtime runs on, where it has a choice; for the record.

    Raises:
        DataError: If the set cannot be read, has no labels, or other classes than the network.
    """
    dataset = open_dataset(data, "test")
    to_network = class_map(dataset, labels)
    chosen = sample(dataset, preprocessing, len(dataset) if limit is None else limit, seed)
    expected = to_network[chosen.labels]
    hits = 0
    for start in range(0, len(chosen), _PART):
        outputs = runtime.logits(chosen.images[start : start + _PART])
        hits += int((outputs.argmax(axis=1) == expected[start : start + _PART]).sum())
        on_progress(min(start + _PART, len(chosen)), len(chosen))
    return Accuracy(data, len(chosen), chosen.sha256, len(dataset.damaged), hits / len(chosen), device)
