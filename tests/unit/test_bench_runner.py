"""The runner: real groups on this machine with telemetry made by hand, and devices that fail."""

from __future__ import annotations

import ast
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csr_deploy.bench.devices import BenchDevice, DeviceError, open_device
from csr_deploy.bench.expand import ExpandedPlan, PlanRequest, expand
from csr_deploy.bench.groups import Group
from csr_deploy.bench.results import BenchResult
from csr_deploy.bench.runner import Outcome, Runner, RunOptions, lane_of, run_record
from csr_deploy.bench.store import Record, Store, read_store
from csr_deploy.bench.telemetry import PowerMode, TelemetrySample
from csr_deploy.errors import BenchError, CsrError, OptionError
from tests.bench_values import measurement, result
from tests.onnx_artifact import make_artifact, rewrite
from tests.unit.test_bench_schema import validate

FAST: dict[str, Any] = {
    "images": 9, "seconds": 0.0, "windows": 3, "warmup_runs": 1, "warmup_seconds": 0.0, "profile_runs": 2,
    "telemetry": "none", "profile": False,
}  # fmt: skip


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[tuple[str, str]] = []

    def progress(self, device: str, stage: str, subject: str, done: int, total: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def finished(self, outcome: Outcome) -> None:
        self.done.append((outcome.group.device, outcome.status))


class Nowhere:
    def append(self, record: Record) -> None:
        pass


class Fake:
    """A device that answers what a function says."""

    def __init__(self, name: str, answer: Callable[[Group], BenchResult]) -> None:
        self.name = name
        self._answer = answer

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, group: Group, on_progress: object) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(json.dumps(self._answer(group).to_json()))
        return values


def answer(group: Group) -> BenchResult:
    """A result with the group's labels."""
    has_data = group.plan.options.data is not None
    made = [
        replace(measurement(s.network, target=s.target, right=9 if has_data else None), subject=s.label)
        for s in group.plan.subjects
    ]
    return result(*made)


def run(
    plan: ExpandedPlan,
    opener: Callable[[str], Any],
    *,
    path: Path | None = None,
    repeats: int = 2,
) -> tuple[list[Outcome], Listener]:
    listener = Listener()
    options = RunOptions(repeats, cool_down=0.0)
    if path is None:
        return Runner(plan, {}, "ab", Nowhere(), opener, listener, options).run(), listener
    with Store(path) as store:
        record = run_record(plan, ["csr-bench"])
        store.append(record)
        previous = store.contents.attempts
        return Runner(plan, previous, record.run, store, opener, listener, options).run(), listener


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runner")
    for name in ("net", "csr"):
        for target in ("onnx", "onnx-int8"):
            source = {"checkpoint_sha256": name}
            rewrite(make_artifact(root / f"{name}-{target}", name=name), target=target, source=source)
    return root


def plan_of(folder: Path, *devices: str, threads: Sequence[int] = (1,), **settings: Any) -> ExpandedPlan:
    return expand(
        PlanRequest(
            (str(folder / "net"), str(folder / "csr")), ("onnx",), threads=tuple(threads),
            devices=devices or ("local",), quick=True, settings={**FAST, **settings},
        )
    )  # fmt: skip


# On this machine


class Telemetry:
    """A source whose machine is hot as often as it is told."""

    name = "sysfs"
    least_interval_s = 0.1
    tells_throttling = True
    malformed = 0
    notes = ()

    def __init__(self, is_hot: bool) -> None:
        self._hot = ("thermal limit",) if is_hot else ()

    def sample(self) -> TelemetrySample:
        return TelemetrySample(time.monotonic_ns(), throttled=self._hot)

    def power_mode(self) -> PowerMode | None:
        return None

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("hot", "status", "attempts"), [(1, "passed", 2), (9, "void", 2), (0, "passed", 1)])
def test_a_void_group_is_repeated_up_to_a_limit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hot: int, status: str, attempts: int
) -> None:
    opened: list[bool] = []

    def open_source(*_: object, **__: object) -> Telemetry:
        opened.append(len(opened) < hot)
        return Telemetry(opened[-1])

    monkeypatch.setattr("csr_deploy.bench.measure.open_source", open_source)
    path = tmp_path / "r.jsonl"
    plan = expand(PlanRequest((str(folder / "net-onnx"),), quick=True, settings=FAST))
    (outcome,), listener = run(plan, open_device, path=path, repeats=1)
    assert (outcome.status, outcome.attempts, len(opened)) == (status, attempts, attempts)
    assert len(listener.said) == attempts - 1
    assert all("is void (thermal limit" in text for text in listener.said)
    groups = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert [g["attempt"] for g in groups] == list(range(1, attempts + 1))
    assert [bool(g["void"]) for g in groups] == [True] * (attempts - 1) + [status == "void"]
    # It is measured again by the next run, and its attempts are counted on.
    if status == "void":
        (outcome,), _ = run(plan, open_device, path=path, repeats=0)
        assert (outcome.status, outcome.attempts) == ("void", 3)


def test_an_accuracy_is_measured_once_and_classes_are_compared_with_float(
    folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    request = PlanRequest(
        (str(folder / "net"), str(folder / "csr")), ("onnx", "onnx-int8"), threads=(1, 2), quick=True,
        settings={**FAST, "data": str(image_folder), "limit": 12},
    )  # fmt: skip
    outcomes, _ = run(expand(request), open_device, path=path)
    assert [o.status for o in outcomes] == ["passed"] * 4
    results = [o.read() for o in outcomes]
    one, two, int8, _ = results
    assert one is not None and two is not None and int8 is not None
    for first, second in zip(one.measurements, two.measurements, strict=True):
        assert first.accuracy is not None and first.accuracy.reused_from is None
        assert second.accuracy == replace(first.accuracy, reused_from=outcomes[0].group.id)
        assert second.threads == 2 and second.golden is not None and second.latency is not None
    assert any("in another group of this plan" in note for note in two.notes)
    assert two.options["data"] == str(image_folder)
    for measured in int8.measurements:
        assert measured.accuracy is not None and measured.accuracy.agreement_with_float is not None
        agreement = measured.accuracy.agreement_with_float
        assert (agreement.share, agreement.images, agreement.reference) == (
            1.0,
            12,
            f"{measured.network}-onnx",
        )
    for line in path.read_text().splitlines():
        validate(json.loads(line))


def test_a_subject_that_fails_is_a_row_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "bad-onnx", name="bad")
    artifact.model_file.write_bytes(b"no model")
    rewrite(artifact)
    models = (str(folder / "net-onnx"), str(tmp_path / "bad-onnx"), str(folder / "csr-onnx"))
    plan = expand(PlanRequest(models, quick=True, settings=FAST))
    path = tmp_path / "r.jsonl"
    (outcome,), _ = run(plan, open_device, path=path)
    measured = outcome.read()
    assert outcome.status == "incomplete" and measured is not None
    assert [m.subject for m in measured.measurements] == ["net-onnx", "csr-onnx"]
    (failure,) = measured.failures
    assert (failure.subject, failure.stage) == ("bad-onnx", "check")
    assert "cannot load it" in failure.reason and failure.error == "RuntimeUnavailableError"
    assert [c.subject for c in measured.comparisons] == ["csr-onnx"]
    validate(json.loads(path.read_text().splitlines()[1]))


def test_a_baseline_that_fails_leaves_the_others_without_a_ratio(folder: Path, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "bad-onnx", name="bad")
    artifact.model_file.write_bytes(b"no model")
    rewrite(artifact)
    plan = expand(
        PlanRequest(
            (str(artifact.path), str(folder / "net-onnx")), quick=True, settings={**FAST, "profile": True}
        )
    )
    (outcome,), _ = run(plan, open_device)
    measured = outcome.read()
    assert measured is not None and measured.comparisons == () and len(measured.measurements) == 1
    profile = measured.measurements[0].profile
    assert profile is not None and {p.op for p in profile} >= {"Conv", "Gemm"}
    assert sum(p.share for p in profile) == pytest.approx(1)


# Devices that fail


def test_a_device_that_is_not_there_fails_all_of_its_groups_and_no_others(
    folder: Path, tmp_path: Path
) -> None:
    def opener(name: str) -> Fake:
        if name == "ssh://pi@gone":
            raise DeviceError("no route to host", stage="connect", where=name, fix="Plug it in.")
        return Fake(name, answer)

    path = tmp_path / "r.jsonl"
    plan = plan_of(folder, "ssh://pi@gone", "ssh://pi@here", threads=(1, 2))
    outcomes, _ = run(plan, opener, path=path)
    assert [o.status for o in outcomes] == ["failed", "failed", "passed", "passed"]
    failure = outcomes[0].failure
    assert failure is not None
    assert (failure.stage, failure.reason, failure.fix) == ("connect", "no route to host", "Plug it in.")
    for line in path.read_text().splitlines():
        validate(json.loads(line))
    # The next run does what failed, and nothing else.
    asked: list[str] = []
    outcomes, _ = run(plan, lambda name: asked.append(name) or Fake(name, answer), path=path)
    assert asked == ["ssh://pi@gone"]
    assert [(o.status, o.attempts, o.is_new) for o in outcomes] == [
        ("passed", 2, True), ("passed", 2, True), ("passed", 1, False), ("passed", 1, False),
    ]  # fmt: skip


def test_a_device_is_opened_again_after_its_connection_broke(folder: Path) -> None:
    opened: list[str] = []

    def once(group: Group) -> BenchResult:
        if len(opened) == 1:
            raise DeviceError("the connection broke", stage="connect")
        return answer(group)

    def opener(name: str) -> Fake:
        opened.append(name)
        return Fake(name, once)

    outcomes, _ = run(plan_of(folder, "ssh://pi@here", threads=(1, 2, 3)), opener)
    assert [o.status for o in outcomes] == ["failed", "passed", "passed"] and len(opened) == 2


def test_a_group_that_cannot_run_is_reported_with_its_stage(folder: Path) -> None:
    def refuse(group: Group) -> BenchResult:
        raise OptionError("there is no telemetry from jtop here", fix="Use auto.")

    (outcome,), _ = run(plan_of(folder), lambda name: Fake(name, refuse))
    assert outcome.failure is not None
    assert (outcome.failure.stage, outcome.failure.error) == ("measure", "OptionError")


def test_a_device_that_gives_back_nonsense_fails(folder: Path) -> None:
    class Odd(Fake):
        def run(self, group: Group, on_progress: object) -> dict[str, Any]:
            return {"measurements": []}

    (outcome,), _ = run(plan_of(folder), lambda name: Odd(name, answer))
    assert outcome.status == "failed" and outcome.failure is not None
    assert "gave back a result without schema_version" in outcome.failure.reason


def test_another_version_of_the_runtime_is_measured_in_full(folder: Path, image_folder: Path) -> None:
    asked: list[str | None] = []

    def upgraded(group: Group) -> BenchResult:
        asked.append(group.plan.options.data)
        made = answer(group)
        if group.plan.options.threads == 1:
            return made
        changed = tuple(replace(m, runtime_version="new") for m in made.measurements)
        return replace(made, measurements=changed)

    plan = plan_of(folder, threads=(1, 2), data=str(image_folder))
    outcomes, listener = run(plan, lambda name: Fake(name, upgraded))
    assert asked == [str(image_folder), None, str(image_folder)]
    assert "accuracy is measured again" in listener.said[0]
    measured = outcomes[1].read()
    assert measured is not None and measured.measurements[0].accuracy is not None
    assert measured.measurements[0].accuracy.reused_from is None


def test_devices_work_at_the_same_time(folder: Path) -> None:
    meet = threading.Barrier(3, timeout=60)

    def together(group: Group) -> BenchResult:
        # Breaks unless all three are here at once.
        meet.wait()
        return answer(group)

    plan = plan_of(folder, "ssh://a", "ssh://b", "local")
    outcomes, listener = run(plan, lambda name: Fake(name, together))
    assert [o.status for o in outcomes] == ["passed"] * 3
    assert sorted(listener.done) == [("local", "passed"), ("ssh://a", "passed"), ("ssh://b", "passed")]


@pytest.mark.parametrize(
    ("device", "lane"),
    [
        ("local", "this machine"),
        ("pi-emulated:pi5", "this machine"),
        ("qemu:cortex-m4", "this machine"),
        ("ssh://me@127.0.0.1:2222", "this machine"),
        ("ssh://localhost", "this machine"),
        ("ssh://pi@raspberrypi", "ssh://pi@raspberrypi"),
    ],
)
def test_what_shares_this_processor_takes_turns(device: str, lane: str) -> None:
    assert lane_of(device) == lane


def test_a_disk_that_is_full_ends_the_run_on_all_devices(folder: Path) -> None:
    class Full:
        def append(self, record: Record) -> None:
            raise BenchError("cannot be written: No space left on device")

    plan = plan_of(folder, "ssh://a", "ssh://b")
    runner = Runner(
        plan, {}, "ab", Full(), lambda name: Fake(name, answer), Listener(), RunOptions(0, 0.0)
    )  # fmt: skip
    with pytest.raises(CsrError, match="No space left"):
        runner.run()


def test_a_thousand_cells_are_resumed_without_reading_their_samples(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, *(f"ssh://pi@board{n}" for n in range(50)), threads=range(1, 11), data=str(folder))
    assert plan.cells == 1000
    path = tmp_path / "r.jsonl"
    run(plan, lambda name: Fake(name, answer), path=path)
    line = path.read_bytes().splitlines()[-1]
    path.write_bytes(path.read_bytes()[: -len(line) // 2])
    asked: list[str] = []

    def opener(name: str) -> BenchDevice:
        asked.append(name)
        return Fake(name, answer)

    outcomes, _ = run(plan, opener, path=path)
    assert len(asked) == 1 and [o.is_new for o in outcomes].count(True) == 1
    assert all(o.status == "passed" for o in outcomes)
    assert len(read_store(path).attempts) == 500


# Clocks


def test_the_wall_clock_is_a_label_only() -> None:
    """Nothing in the harness asks for the time of day but the one function that makes labels."""
    root = Path(__file__).parents[2]
    found = []
    for path in sorted([*root.glob("csr_deploy/bench/**/*.py"), *root.glob("runtimes/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            name = f"{node.value.id}.{node.attr}"
            if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"):
                found.append((path.relative_to(root).as_posix(), name))
    assert [f for f in found if "devices/" not in f[0]] == [("csr_deploy/bench/runner.py", "datetime.now")]


def test_a_clock_that_jumps_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process and in every worker the time of day leaps back and forth by a day at every look.
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "_real, _jumps = time.time, itertools.cycle([0, -86400, 86400])\n"
        "time.time = lambda: _real() + next(_jumps)\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
        "open(__file__ + '.seen', 'a').write('x')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    real = time.time
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + 86400 * (-1) ** next(jumps))
    (outcome,), _ = run(plan_of(folder, seconds=0.3), open_device, path=tmp_path / "r.jsonl")
    measured = outcome.read()
    assert outcome.status == "passed" and measured is not None
    assert len((tmp_path / "sitecustomize.py.seen").read_text()) >= 5
    for each in measured.measurements:
        assert each.latency is not None
        times = [t for window in each.latency.windows_ns for t in window]
        # All of them together take about what was asked for: no sample is a day, or less than nothing.
        assert min(times) > 0 and 0.05e9 < sum(times) < 60e9
        assert 0 < each.latency.load_ns < 60e9
    (record,) = read_store(tmp_path / "r.jsonl").attempts.values()
    assert record.status == "passed"
