"""What is measured: subjects, names and options."""

from __future__ import annotations

from pathlib import Path

import pytest

from csr_deploy.bench.plan import QUICK, BenchOptions, make_plan
from csr_deploy.errors import ArtifactError, CheckpointError, OptionError
from tests.onnx_artifact import make_artifact, rewrite


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    make_artifact(root / "a", name="one")
    make_artifact(root / "b", name="one")
    make_artifact(root / "c", name="two")
    for name in ("net.pt", "run/model.pt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"read later, by the worker")
    return root


def labels(*paths: Path) -> list[str]:
    return [s.label for s in make_plan(paths, BenchOptions()).subjects]


def test_labels_are_short_and_unique(folder: Path) -> None:
    assert labels(folder / "a", folder / "c") == ["one-onnx", "two-onnx"]
    assert labels(folder / "a", folder / "b", folder / "c") == ["one-onnx#1", "one-onnx#2", "two-onnx"]
    assert labels(folder / "net.pt", folder / "run/model.pt") == ["net", "run"]


def test_kinds(folder: Path) -> None:
    plan = make_plan([folder / "a", folder / "net.pt"], BenchOptions())
    assert [s.kind for s in plan.subjects] == ["artifact", "checkpoint"]


def test_the_baseline_is_the_first_or_the_named(folder: Path) -> None:
    paths = [folder / "a", folder / "c"]
    assert make_plan(paths, BenchOptions()).baseline == "one-onnx"
    assert make_plan(paths, BenchOptions(), "two-onnx").baseline == "two-onnx"
    assert make_plan(paths, BenchOptions(), str(folder / "c")).baseline == "two-onnx"
    assert make_plan(paths, BenchOptions(), f"{folder}/c/").baseline == "two-onnx"
    with pytest.raises(OptionError, match=r"'three' is none of the subjects\nUse one of: one-onnx, two-onnx"):
        make_plan(paths, BenchOptions(), "three")


def test_what_cannot_be_measured_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to measure"):
        make_plan([], BenchOptions())
    with pytest.raises(CheckpointError, match="does not exist"):
        make_plan([folder / "nowhere"], BenchOptions())
    with pytest.raises(ArtifactError, match="is not an artifact"):
        make_plan([tmp_path], BenchOptions())
    with pytest.raises(CheckpointError, match=r"Name the checkpoint: .*model\.pt"):
        make_plan([folder / "run"], BenchOptions())
    for name in ("model.onnx", "manifest.json"):
        with pytest.raises(OptionError, match=f"Name the artifact itself: {folder / 'a'}"):
            make_plan([folder / "a" / name], BenchOptions())


def test_a_runtime_must_fit_every_subject(folder: Path) -> None:
    paths = [folder / "a", folder / "net.pt"]
    with pytest.raises(OptionError, match=r"net: the ort runtime runs \.onnx files, this is net\.pt"):
        make_plan(paths, BenchOptions(runtime="ort"))
    with pytest.raises(OptionError, match=r"one-onnx: the torch runtime runs \.pt and \.safetensors files"):
        make_plan(paths, BenchOptions(runtime="torch"))


def test_a_device_must_fit_every_subject(folder: Path) -> None:
    with pytest.raises(OptionError, match="one-onnx: the ort runtime has no choice of a device, host was"):
        make_plan([folder / "a"], BenchOptions(device="host"))
    with pytest.raises(OptionError, match="net: the torch runtime has no choice of a device"):
        make_plan([folder / "net.pt"], BenchOptions(device="qemu:cortex-m4"))


def test_an_accuracy_needs_the_names_of_the_classes(tmp_path: Path) -> None:
    artifact = rewrite(make_artifact(tmp_path / "a", name="one"), labels=())
    assert make_plan([artifact.path], BenchOptions()).subjects
    with pytest.raises(OptionError, match="one-onnx: has no class names"):
        make_plan([artifact.path], BenchOptions(data="somewhere"))


def test_an_emulator_is_never_timed() -> None:
    assert BenchOptions().is_timed and not BenchOptions(latency=False, data="x").is_timed
    assert BenchOptions(device="host").is_timed and BenchOptions(device="serial:/dev/ttyACM0").is_timed
    assert not BenchOptions(device="qemu:cortex-m7").is_timed


def test_a_changed_artifact_is_refused_before_anything_runs(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a")
    artifact.model_file.write_bytes(artifact.model_file.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="was changed"):
        make_plan([tmp_path / "a"], BenchOptions())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"kernels": "fast"}, "unknown kernels"),
        ({"runtime": "litrt"}, "Did you mean litert"),
        ({"images": 0}, "images is 0"),
        ({"windows": 0}, "windows is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"seconds": -1.0}, "seconds is -1"),
        ({"latency": False}, "nothing to measure"),
        ({"device": "qemu:cortex-m9"}, "unknown device 'qemu:cortex-m9'"),
        ({"device_images": 5, "data": "x"}, "no sign of a device that is not this machine\nGive --device"),
        ({"device_images": 5, "device": "qemu:m4"}, "no sign of images\nGive --data"),
        ({"device_images": 0, "device": "qemu:m4", "data": "x"}, "device_images is 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BenchOptions(**values)  # type: ignore[arg-type]


def test_quick_is_shorter_and_says_so() -> None:
    full = BenchOptions()
    assert QUICK.quick and not full.quick
    assert QUICK.seconds < full.seconds and QUICK.images < full.images and QUICK.windows < full.windows
    assert full.seconds >= 10 and full.windows == 5
