"""Accuracy of an open runtime on a test set, and how often it agrees with the float network."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from csr_deploy.bench.results import Accuracy, Agreement, ClassAccuracy, Measurement
from csr_deploy.data import Preprocessing, class_map, open_dataset, sample
from csr_deploy.errors import BenchError
from csr_deploy.runtimes import Runtime
from csr_deploy.targets import TARGETS

AT_EXPORT = "checkpoint, at export"
_PART = 64
_BEST = 5
_FLOAT_BITS = 32
_CHECKPOINT = "checkpoint"


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
    predicted = np.empty(len(chosen), np.int64)
    ranks = np.empty(len(chosen), np.int64)
    for start in range(0, len(chosen), _PART):
        part = slice(start, start + _PART)
        outputs = runtime.logits(chosen.images[part])
        predicted[part] = outputs.argmax(axis=1)
        ranks[part] = rank_of(outputs, expected[part])
        on_progress(min(start + _PART, len(chosen)), len(chosen))
    return Accuracy(
        data,
        len(chosen),
        chosen.sha256,
        len(dataset.damaged),
        float((predicted == expected).mean()),
        device,
        float((ranks < _BEST).mean()) if len(labels) > _BEST else None,
        per_class=_per_class(labels, expected, predicted),
        predictions=pack_predictions(predicted),
    )


def rank_of(outputs: NDArray[np.generic], expected: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of the right class in each row, 0 for the best; of equal outputs the first class leads.

    Args:
        outputs: [N, classes].
        expected: [N].
    """
    own = np.take_along_axis(outputs, expected[:, None], axis=1)
    ahead = (outputs > own).sum(axis=1)  # type: ignore[operator]
    classes = np.arange(outputs.shape[1])
    ties = ((outputs == own) & (classes < expected[:, None])).sum(axis=1)
    ranks: NDArray[np.int64] = ahead + ties
    return ranks


def _per_class(
    labels: Sequence[str], expected: NDArray[np.int64], predicted: NDArray[np.int64]
) -> tuple[ClassAccuracy, ...]:
    counts = np.bincount(expected, minlength=len(labels))
    hits = np.bincount(expected[predicted == expected], minlength=len(labels))
    return tuple(
        ClassAccuracy(name, int(count), float(hit / count))
        for name, count, hit in zip(labels, counts, hits, strict=True)
        if count
    )


def pack_predictions(predicted: NDArray[np.int64]) -> str:
    """Classes of images as a short string, see `Accuracy.predictions`."""
    return base64.b64encode(zlib.compress(predicted.astype("<u2").tobytes(), 9)).decode()


def unpack_predictions(text: str) -> NDArray[np.int64]:
    """Inverse of `pack_predictions`.

    Raises:
        BenchError: If the text is damaged.
    """
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<u2").astype(np.int64)
    except (ValueError, zlib.error) as error:
        raise BenchError(f"the predictions of a result are damaged: {error}") from error


def is_float(measurement: Measurement) -> bool:
    """Whether a subject computes in float32: what others of its network are compared with."""
    return is_float_target(measurement.target)


def is_float_target(name: str) -> bool:
    """Whether artifacts of a target compute in float32, or it is "checkpoint"."""
    target = TARGETS.get(name)
    return name == _CHECKPOINT or (target is not None and target.weight_bits == _FLOAT_BITS)


def with_agreement(
    measurements: Iterable[Measurement], others: Iterable[Measurement] = ()
) -> tuple[Measurement, ...]:
    """Fills in how often each subject agrees with the float form of its network.

    Compared is with a float subject of the same checkpoint on the same test images; where there is none, the
    agreement stands that the export found on other images.

    Args:
        measurements: What to fill in; what has an agreement from a float subject keeps it.
        others: Further float subjects, after those of `measurements` itself.
    """
    measurements = tuple(measurements)
    references = [m for m in (*measurements, *others) if is_float(m)]
    return tuple(_with_agreement(m, references) for m in measurements)


def _with_agreement(measurement: Measurement, references: Sequence[Measurement]) -> Measurement:
    own = measurement.accuracy
    if own is None or is_float(measurement):
        return measurement
    known = own.agreement_with_float
    if known is not None and known.reference != AT_EXPORT:
        return measurement
    found = next((a for r in references if (a := _agreement(measurement, r)) is not None), None)
    found = found or known or _exported(measurement)
    return replace(measurement, accuracy=replace(own, agreement_with_float=found))


def _agreement(measurement: Measurement, reference: Measurement) -> Agreement | None:
    own, other = measurement.accuracy, reference.accuracy
    if own is None or other is None or own.predictions is None or other.predictions is None:
        return None
    if measurement.checkpoint_sha256 is None or measurement.checkpoint_sha256 != reference.checkpoint_sha256:
        return None
    if own.images_sha256 != other.images_sha256 or own.images != other.images:
        return None
    mine, theirs = unpack_predictions(own.predictions), unpack_predictions(other.predictions)
    if not len(mine) == len(theirs) == own.images:
        return None
    return Agreement(float((mine == theirs).mean()), own.images, reference.subject)


def _exported(measurement: Measurement) -> Agreement | None:
    share, images = measurement.parity.get("top1_agreement"), measurement.parity.get("images")
    # C made from a .tflite file was compared with that file, for equal bytes, not with a network in float.
    if "equal_bytes" in measurement.parity.get("threshold", {}):
        return None
    if not isinstance(share, float) or not isinstance(images, int):
        return None
    return Agreement(share, images, AT_EXPORT)
