"""The emulated Raspberry Pi as a device of csr-bench, and csr-deploy installed on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from csr_deploy.artifact import GOLDEN, write_golden
from csr_deploy.bench.devices import DeviceError, open_device
from csr_deploy.bench.emulated_pi import BOARDS, Root
from csr_deploy.bench.emulated_pi.install import install
from csr_deploy.bench.groups import make_group
from csr_deploy.bench.plan import QUICK, make_plan
from csr_deploy.bench.results import BenchResult
from tests.onnx_artifact import make_artifact, rewrite

WORKER = "from csr_deploy.bench.worker import main; main()"


def test_instructions_memory_and_golden_outputs(root: Root, tmp_path: Path, image_folder: Path) -> None:
    first = make_artifact(tmp_path / "first", name="first")
    second = make_artifact(tmp_path / "second", name="second", extra_channels=9)
    wrong = make_artifact(tmp_path / "wrong", name="wrong")
    golden = wrong.golden()
    write_golden(wrong.path / GOLDEN, replace(golden, outputs=golden.outputs + 1))
    rewrite(wrong)
    options = replace(QUICK, data=str(image_folder), limit=9)
    plan = make_plan([first.path, second.path, wrong.path], options)
    said: list[tuple[str, str, int, int]] = []
    with open_device("pi-emulated:pi5", count_runs=3) as device:
        values = device.run(make_group(device.name, plan), lambda *event: said.append(event))
    result = BenchResult.from_json(json.loads(json.dumps(values)))
    one, two = result.measurements
    (failed,) = result.failures
    assert (failed.subject, failed.stage, failed.error) == ("wrong-onnx", "check", "ParityError")
    assert one.golden is not None and one.golden.images == 6
    assert one.latency is None and one.energy is None
    assert one.instructions is not None and two.instructions is not None
    assert one.instructions.board == "pi5"
    assert two.instructions.per_inference > one.instructions.per_inference > 10_000
    assert one.memory is not None and one.memory.source == "pi-emulated"
    assert one.accuracy is not None and (one.accuracy.images, one.accuracy.source) == (9, str(image_folder))
    assert one.accuracy.top1 == 1.0
    ratio = result.comparisons[0]
    assert (ratio.metric, ratio.confidence) == ("instructions", 1.0)
    assert ratio.ratio == two.instructions.per_inference / one.instructions.per_inference
    assert any("Latency: not measured" in note for note in result.notes)
    assert said[-1] == ("accuracy", plan.subjects[-1].label, 6, 6)


def test_not_prepared(tmp_path: Path) -> None:
    with (
        pytest.raises(DeviceError, match="not prepared") as caught,
        open_device("pi-emulated", cache=tmp_path),
    ):
        pass
    assert caught.value.stage == "setup"
    assert caught.value.fix == "Run: csr-device setup pi-emulated"


@pytest.mark.full
def test_csr_deploy_runs_on_arm64(root: Root, tmp_path: Path, own_wheel: Path) -> None:
    site = install(root, tmp_path / "site", wheel=own_wheel)
    assert "SUBJECT" in site.run(BOARDS["pi4"], ["-m", "csr_deploy.cli.bench", "--help"])
    artifact = make_artifact(tmp_path / "colours")
    requests = [
        {"do": "machine", "with": {}},
        {"do": "start", "with": {"path": str(artifact.path), "kind": "artifact", "runtime": None,
                                 "threads": 1, "kernels": None, "batch": 1}},
        {"do": "check", "with": {}},
    ]  # fmt: skip
    given = "".join(json.dumps(request) + "\n" for request in requests)
    said = site.run(BOARDS["pi4"], ["-c", WORKER], given=given)
    machine, _, checked = (json.loads(line)["value"] for line in said.splitlines())
    assert machine["machine"] == "aarch64"
    assert "torch" not in machine["versions"]
    assert checked["golden"]["images"] == 6
