"""Every network × TensorRT target goes through NVIDIA's parser and builder, for four generations of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from csr_deploy.export import export
from csr_deploy.runtimes.trt.build import BuildOptions
from csr_deploy.runtimes.trt.engines import build_engine_for, find_engine, has_engine, identify
from csr_deploy.targets import TARGETS
from tests.parity.test_targets import SLOW, SUBJECTS
from tests.trt_models import rtx

GENERATIONS = ("8.0", "8.6", "8.9", "12.0")
NARROWEST = {"tensorrt-fp32": "float32", "tensorrt-fp16": "float16", "tensorrt-int8": "int8"}


@pytest.mark.parametrize("target_name", [t.name for t in TARGETS.values() if has_engine(t)])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n in SLOW)) for n in SUBJECTS])
def test_builds(name: str, target_name: str, tmp_path: Path) -> None:
    library = rtx()
    make, argument = SUBJECTS[name]
    network, data, options = make(argument)  # type: ignore[arg-type]
    artifact = export(network, TARGETS[target_name], data, tmp_path / name, options)
    identity = identify(artifact, library, BuildOptions(), GENERATIONS)
    built = build_engine_for(artifact, library, identity)
    for capability in GENERATIONS:
        record = find_engine(built, identify(artifact, library, None, [capability]))
        assert record is not None
    report = record.report
    assert not report["warnings"]
    assert report["weights_several"] == 0
    kinds = ("convolution", "fully_connected")
    weighted = [layer["precision"] for layer in report["layers"] if layer["kind"] in kinds]
    assert set(weighted) == {NARROWEST[target_name]}
    # What the T steps of a recurrence share is in the engine once; it may merge calls, but not copy weights.
    shared = sum(uses - 1 for uses in artifact.ledger["shared"].values())
    calls = sum(artifact.model["operations"].get(op, 0) for op in ("conv2d", "linear"))
    assert report["distinct_weights"] <= calls - shared
