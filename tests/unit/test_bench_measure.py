"""Real worker processes on a small ONNX network."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from csr_deploy.artifact import GOLDEN, write_golden
from csr_deploy.bench.measure import WorkerProcess, run_plan
from csr_deploy.bench.plan import QUICK, BenchOptions, make_plan
from csr_deploy.bench.results import SCHEMA_VERSION, BenchResult
from csr_deploy.errors import BenchError, CheckpointError, DataError, OptionError, ParityError
from tests.onnx_artifact import PREPROCESSING, make_artifact, pictures, rewrite
from tests.tflite_artifact import make_int8

FAST = replace(QUICK, images=9, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)


def silent(stage: str, subject: str, done: int, total: int) -> None:
    pass


def measure(*paths: Path, options: BenchOptions = FAST, baseline: str | None = None) -> BenchResult:
    return run_plan(make_plan(paths, options, baseline), silent).demand_complete()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> BenchResult:
    root = tmp_path_factory.mktemp("measure")
    make_artifact(root / "a", name="backbone", extra_channels=30)
    make_artifact(root / "b", name="csr")
    return measure(root / "a", root / "b", options=replace(FAST, data=str(image_folder), limit=20))


def test_every_subject_is_measured(result: BenchResult) -> None:
    backbone, csr = result.measurements
    assert [m.subject for m in result.measurements] == ["backbone-onnx", "csr-onnx"]
    assert (csr.network, csr.target, csr.file, csr.runtime) == ("csr", "onnx", "model.onnx", "ort")
    assert csr.runtime_version.startswith("onnxruntime ")
    assert (csr.threads, csr.kernels, csr.batch) == (1, "optimized", 1)
    assert (backbone.sizes.parameters, csr.sizes.parameters) == (990, 90)
    assert csr.sizes.macs == 20_745 and csr.sizes.weight_bytes == 360 and csr.sizes.arena_bytes is None
    assert csr.sizes.file_bytes < backbone.sizes.file_bytes
    assert csr.parity == {"images": 6, "top1_agreement": 1.0}


def test_golden_outputs_are_checked(result: BenchResult) -> None:
    for measurement in result.measurements:
        assert measurement.golden is not None
        assert measurement.golden.images == 6 and measurement.golden.float_agreement == 1


def test_accuracy_is_that_of_the_test_images(result: BenchResult) -> None:
    one, other = (m.accuracy for m in result.measurements)
    assert one is not None and other is not None
    assert (one.images, one.top1, one.damaged) == (20, 1.0, 0)
    assert one.images_sha256 == other.images_sha256


def test_latencies_come_in_windows(result: BenchResult) -> None:
    for measurement in result.measurements:
        latency = measurement.latency
        assert latency is not None
        assert [len(w) for w in latency.windows_ns] == [3, 3, 3]
        assert latency.load_ns > 0 and latency.first_ns > 0 and latency.warmup_runs == 2
        assert latency.min_ns <= latency.p50_ns <= latency.p90_ns <= latency.p95_ns <= latency.p99_ns
        assert latency.p99_ns <= latency.max_ns


def test_memory_is_measured(result: BenchResult) -> None:
    for measurement in result.measurements:
        memory = measurement.memory
        assert memory is not None
        assert memory.source == "smaps_rollup" and memory.inferences == FAST.memory_runs
        assert 0 < memory.baseline_private_bytes < memory.peak_rss_bytes
        assert memory.mapped_bytes is not None


def test_others_are_compared_with_the_baseline(result: BenchResult) -> None:
    (comparison,) = result.comparisons
    assert (comparison.subject, comparison.baseline) == ("csr-onnx", "backbone-onnx")
    assert 0 < comparison.low <= comparison.high
    one, other = (m.latency for m in result.measurements)
    assert one is not None and other is not None
    assert comparison.ratio == other.median_ns / one.median_ns


def test_the_record_says_where_and_how(result: BenchResult) -> None:
    assert result.quick and any("--quick" in note for note in result.notes)
    assert result.environment.cpu and result.environment.cpus >= 1
    assert "onnxruntime" in result.environment.versions
    assert result.before.load_average >= 0
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["schema_version"] == SCHEMA_VERSION
    assert "array" in values["timed_region"]["latency"]
    assert values["options"]["windows"] == 3
    assert len(values["measurements"][0]["latency"]["windows_ns"]) == 3


def test_a_large_arena_of_weights_shows_in_the_memory(tmp_path: Path) -> None:
    small = make_artifact(tmp_path / "small", name="small")
    large = make_artifact(tmp_path / "large", name="large", extra_channels=3000)
    measured = measure(small.path, large.path)
    one, other = (m.memory for m in measured.measurements)
    assert one is not None and other is not None
    # Activations alone: two tensors of 3003 channels of 16×16 floats, one of them reused at best.
    assert other.private_bytes - one.private_bytes > 3000 * 16 * 16 * 4


def test_subjects_take_turns(tmp_path: Path) -> None:
    paths = [make_artifact(tmp_path / n, name=n).path for n in ("a", "b", "c")]
    seen: list[tuple[str, str, int, int]] = []
    run_plan(make_plan(paths, FAST), lambda *event: seen.append(event))
    turns = [(subject, done) for stage, subject, done, _ in seen if stage == "latency"]
    assert turns == [(f"{n}-onnx", turn) for turn in (1, 2, 3) for n in ("a", "b", "c")]
    stages = list(dict.fromkeys(stage for stage, *_ in seen))
    assert stages == ["check", "load", "latency", "memory", "profile"]


def test_accuracy_alone(tmp_path: Path, image_folder: Path) -> None:
    path = make_artifact(tmp_path / "a", batch=4).path
    options = replace(FAST, data=str(image_folder), limit=None, latency=False)
    (measurement,) = measure(path, options=options).measurements
    assert measurement.latency is None and measurement.memory is None
    assert measurement.accuracy is not None and measurement.accuracy.images == 24
    assert measurement.batch == 4


def test_records_that_are_absent_are_none(tmp_path: Path) -> None:
    artifact = rewrite(make_artifact(tmp_path / "a"), model={}, ledger={}, parity={})
    (measurement,) = measure(artifact.path).measurements
    assert measurement.sizes.parameters is None and measurement.sizes.macs is None
    assert measurement.sizes.weight_bytes is None and measurement.parity == {}


def test_nothing_is_timed_where_golden_outputs_differ(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a")
    golden = artifact.golden()
    write_golden(artifact.path / GOLDEN, replace(golden, outputs=golden.outputs + np.float32(1)))
    rewrite(artifact)
    seen: list[str] = []
    with pytest.raises(ParityError, match="differs by"):
        run_plan(make_plan([artifact.path], FAST), lambda stage, *_: seen.append(stage)).demand_complete()
    assert set(seen) == {"check"}


def test_checkpoints_run_beside_artifacts(tmp_path: Path, image_folder: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from csr_deploy.checkpoint import Checkpoint, file_sha256, save_checkpoint
    from csr_deploy.models import architecture, count_parameters

    plan = architecture("resnet20", num_classes=3)
    model = plan.build()
    checkpoint = Checkpoint(plan, model.state_dict(), ("red", "green", "blue"), PREPROCESSING)
    save_checkpoint(tmp_path / "net.pt", checkpoint)
    artifact = make_artifact(tmp_path / "a")
    options = replace(FAST, data=str(image_folder), limit=9)
    measured = measure(tmp_path / "net.pt", artifact.path, options=options, baseline="colours-onnx")
    assert measured.baseline == "colours-onnx"
    net, _ = measured.measurements
    assert (net.target, net.runtime, net.batch, net.golden) == ("checkpoint", "torch", 1, None)
    assert net.sha256 == file_sha256(tmp_path / "net.pt")
    assert net.sizes.parameters == count_parameters(model)
    assert net.sizes.weight_bytes == 4 * count_parameters(model)
    assert net.sizes.macs is not None and net.sizes.macs > 10_000_000 // 4
    assert net.latency is not None and net.memory is not None


def test_tflite_micro_tells_its_arena(tmp_path: Path, image_folder: Path) -> None:
    pytest.importorskip("tflite_micro", reason="needs tflite-micro")
    artifact = make_int8(tmp_path / "net", image_folder)
    measured = measure(artifact.path, options=replace(FAST, runtime="tflm", images=3))
    (measurement,) = measured.measurements
    assert (measurement.runtime, measurement.kernels) == ("tflm", "reference")
    assert measurement.sizes.arena_bytes is not None and measurement.sizes.arena_bytes > 10_000
    assert measurement.sizes.parameters is not None and measurement.sizes.weight_bytes is not None
    assert measurement.golden is not None and measurement.golden.tolerance == 8
    assert any("TFLite Micro" in note for note in measured.notes)


def test_classes_are_told_by_name_not_by_number(tmp_path: Path, image_folder: Path) -> None:
    artifact = rewrite(make_artifact(tmp_path / "a"), labels=("red", "green", "blue"))
    options = replace(FAST, data=str(image_folder), limit=None, latency=False)
    (measurement,) = measure(artifact.path, options=options).measurements
    # Red and blue are swapped, green is not.
    assert measurement.accuracy is not None and abs(measurement.accuracy.top1 - 1 / 3) < 1e-9


def test_images_of_other_classes_are_refused(tmp_path: Path, image_folder: Path) -> None:
    artifact = rewrite(make_artifact(tmp_path / "a"), labels=("cat", "dog", "frog"))
    with pytest.raises(DataError, match="the network knows cat, dog, frog"):
        measure(artifact.path, options=replace(FAST, data=str(image_folder)))


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow to make pictures")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(pictures(40)[0]):
        image.fromarray(picture).save(folder / f"{index}.png")
    path = make_artifact(tmp_path / "a").path
    with pytest.raises(DataError, match="has no labels"):
        measure(path, options=replace(FAST, data=str(folder)))


def test_errors_of_a_worker_keep_their_kind(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"net\.pt: is not a csr-deploy checkpoint"):
        measure(tmp_path / "net.pt")
    path = make_artifact(tmp_path / "a").path
    with pytest.raises(OptionError, match=r"the litert runtime runs \.tflite files"):
        measure(path, options=replace(FAST, runtime="litert"))
    with pytest.raises(DataError, match="does not exist"):
        measure(path, options=replace(FAST, data=str(tmp_path / "nowhere")))


def start(worker: WorkerProcess, path: Path) -> None:
    worker.ask(
        "start", "reading", path=str(path), kind="artifact", runtime=None, threads=1, kernels=None, batch=1
    )
    worker.ask("load", "loading")


def test_a_killed_worker_is_reported_not_waited_for(tmp_path: Path) -> None:
    path = make_artifact(tmp_path / "a").path
    with pytest.raises(BenchError) as caught, WorkerProcess("colours") as worker:
        start(worker, path)
        timer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL))
        timer.start()
        worker.ask("window", "being timed", runs=1, seconds=600.0, settle=0)
    assert "colours: the process was killed by SIGKILL, as when memory runs out while being timed" in str(
        caught.value
    )


def test_a_segmentation_fault_is_reported_with_its_stage(tmp_path: Path) -> None:
    path = make_artifact(tmp_path / "a").path
    with pytest.raises(BenchError, match="killed by SIGSEGV while warming up"), WorkerProcess("a") as worker:
        start(worker, path)
        os.kill(worker.pid, signal.SIGSEGV)
        worker.ask("warm_up", "warming up", runs=1, seconds=0.0)


def test_a_defect_in_a_worker_shows_its_traceback() -> None:
    with pytest.raises(BenchError) as caught, WorkerProcess("a") as worker:
        worker.ask("no_such_thing", "doing nothing")
    assert "ended with status 1 while doing nothing" in str(caught.value)
    assert "AttributeError" in str(caught.value)


def test_nothing_is_left_running_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="stop"), WorkerProcess("a") as worker:
        worker.ask("state", "reading")
        pid = worker.pid
        raise RuntimeError("stop")
    assert not psutil.pid_exists(pid)


def test_a_worker_ends_when_its_input_does() -> None:
    with WorkerProcess("a") as worker:
        worker.ask("state", "reading")
        pid = worker.pid
    assert not psutil.pid_exists(pid)
