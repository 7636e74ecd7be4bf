"""Accuracy: ranks, classes, and the agreement with float networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.artifact import read_artifact
from csr_deploy.bench.accuracy import (
    AT_EXPORT,
    is_float,
    measure_accuracy,
    rank_of,
    unpack_predictions,
    with_agreement,
)
from csr_deploy.bench.measure import _disturbed
from csr_deploy.bench.plan import BenchOptions
from csr_deploy.bench.results import Agreement, Measurement
from csr_deploy.runtimes import open_runtime
from tests.bench_values import latency, measurement
from tests.onnx_artifact import CLASSES, PREPROCESSING, make_artifact


def test_the_rank_of_the_right_class() -> None:
    outputs = np.asarray([[3, 1, 2], [5, 5, 5], [-128, 127, 127], [1, 2, 3]], np.int8)
    expected = np.asarray([0, 2, 2, 0])
    # Of equal outputs the first class leads, as in argmax.
    assert list(rank_of(outputs, expected)) == [0, 2, 1, 2]


def test_ranks_agree_with_a_sort() -> None:
    random = np.random.default_rng(0)
    outputs = random.integers(-8, 8, (200, 20)).astype(np.int8)
    expected = random.integers(0, 20, 200)
    order = np.argsort(-outputs.astype(int), axis=1, kind="stable")
    assert list(rank_of(outputs, expected)) == [
        int(np.flatnonzero(o == e)[0]) for o, e in zip(order, expected, strict=True)
    ]
    assert list(rank_of(outputs, outputs.argmax(1))) == [0] * 200


def test_classes_and_predictions_of_a_real_network(tmp_path: Path, image_folder: Path) -> None:
    artifact = read_artifact(make_artifact(tmp_path / "net-onnx").path)
    with open_runtime(None, artifact) as runtime:
        found = measure_accuracy(runtime, PREPROCESSING, CLASSES, str(image_folder), None, 0, lambda *_: None)
    assert [(c.name, c.images, c.top1) for c in found.per_class] == [(name, 8, 1.0) for name in CLASSES]
    assert found.predictions is not None
    assert np.bincount(unpack_predictions(found.predictions)).tolist() == [8, 8, 8]
    # Among three classes everything would be in the best five.
    assert found.top1 == 1.0 and found.top5 is None and found.reused_from is None


def agreement(measured: Measurement, *others: Measurement) -> Agreement | None:
    (found,) = with_agreement([measured], others)
    assert found.accuracy is not None
    return found.accuracy.agreement_with_float


FLOAT = measurement("net", target="onnx", predictions=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
NARROW = measurement("net", target="onnx-int8", predictions=[0, 1, 2, 3, 4, 5, 6, 7, 7, 7])


def test_classes_are_compared_with_the_float_form_of_the_same_network() -> None:
    assert is_float(FLOAT) and not is_float(NARROW) and is_float(replace(FLOAT, target="checkpoint"))
    assert agreement(NARROW, FLOAT) == Agreement(0.8, 10, "net-onnx")
    # Within one result too, in any order.
    narrow, wide = with_agreement([NARROW, FLOAT])
    assert narrow.accuracy is not None and narrow.accuracy.agreement_with_float == Agreement(
        0.8, 10, "net-onnx"
    )
    assert wide.accuracy is not None and wide.accuracy.agreement_with_float is None


@pytest.mark.parametrize(
    "other",
    [
        replace(FLOAT, checkpoint_sha256="00" * 32),
        replace(FLOAT, checkpoint_sha256=None),
        replace(FLOAT, accuracy=None),
        replace(FLOAT, accuracy=FLOAT.accuracy and replace(FLOAT.accuracy, images_sha256="00" * 32)),
        replace(FLOAT, accuracy=FLOAT.accuracy and replace(FLOAT.accuracy, predictions=None)),
        NARROW,
    ],
    ids=["another network", "unknown network", "not classified", "other images", "no classes", "not float"],
)
def test_without_a_float_form_the_export_s_own_figure_stands(other: Measurement) -> None:
    assert agreement(NARROW, other) == Agreement(0.985, 200, AT_EXPORT)


def test_a_later_float_form_takes_the_place_of_the_export_s_figure() -> None:
    (first,) = with_agreement([NARROW])
    assert agreement(first, FLOAT) == Agreement(0.8, 10, "net-onnx")
    (second,) = with_agreement([first], [FLOAT])
    assert agreement(second) == Agreement(0.8, 10, "net-onnx")


def test_c_made_from_a_file_has_no_float_network_to_agree_with() -> None:
    of_file = replace(NARROW, parity={**NARROW.parity, "threshold": {"equal_bytes": 1.0}})
    assert agreement(of_file) is None


def test_a_subject_that_had_to_share_its_processor_is_disturbed() -> None:
    good, shared = latency(1.0), replace(latency(1.0), cpu_per_wall=0.6)
    reasons = _disturbed(BenchOptions(), {"net": good, "csr": shared})
    assert reasons == (
        "other programs took the processor from csr for 40% of the time in half of its windows or more",
    )
    unknown = replace(good, cpu_per_wall=None)
    assert _disturbed(BenchOptions(), {"net": good, "csr": unknown}) == ()
    # A board on a wire has its own processor, and who waits for a GPU needs none.
    assert _disturbed(BenchOptions(device="serial:/dev/ttyACM0"), {"csr": shared}) == ()
