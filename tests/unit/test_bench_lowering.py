"""The table of CSR networks against their backbones: what is planned, made, kept, judged and printed.

Nothing is counted or timed here: the emulator and csr-bench are stood in for.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csr_deploy.artifact import read_artifact
from csr_deploy.bench.emulated_pi import Count, Job
from csr_deploy.checkpoint import Checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.errors import BenchError, CsrError, OptionError, RuntimeUnavailableError
from csr_deploy.export import Network
from csr_deploy.models import architecture
from csr_deploy.runtimes import open_runtime
from csr_deploy.runtimes.golden import verify_golden
from csr_deploy.targets import find_target
from tests.bench_values import measurement, result
from tests.onnx_artifact import make_artifact

TOOLS = Path(__file__).resolve().parents[2] / "tools"
Part = Callable[[str], Any]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Part:
    """Imports a part of the tool as it is imported when it runs."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda name: importlib.import_module(f"lowering_bench.{name}" if name else "bench_lowering")


@pytest.fixture
def group(part: Part) -> list[Any]:
    """Variants of ResNet-56, T = 4, in ONNX Runtime int8, and of its backbone."""
    subjects = part("subjects")
    form = next(f for f in subjects.FORMATS if f.label == "ort int8")
    (found,) = subjects.groups(subjects.plan_variants(["resnet56-t4"], [form], ["pi4", "pi5"], stock=True))
    return list(found)


@pytest.fixture
def models(part: Part, group: list[Any], tmp_path: Path) -> dict[Any, Any]:
    """Each variant as a small artifact of its own."""
    made = {}
    for extra, variant in enumerate(group):
        artifact = make_artifact(tmp_path / "models" / str(extra), extra_channels=extra)
        made[variant] = part("subjects").Model.read(
            variant, artifact.path, artifact.model_file, 1000 - 100 * variant.is_csr, 100 + extra
        )
    return made


def _counted(job: Job, millions: int = 3) -> Count:
    outputs = read_artifact(job.model.parent).golden().outputs
    return Count(job.name, millions * 10**6, millions * 10**6, 1, 1, outputs, 2 * 10**6, 10**6)


# --- what is planned ---


def test_variants_of_a_network_and_its_backbone(part: Part, group: list[Any]) -> None:
    assert [(v.network, v.shown_way, v.boards) for v in group] == [
        ("resnet56-projections", "step by step", ("pi4", "pi5")),
        ("resnet56-projections", "stock", ("pi4", "pi5")),
        ("resnet56-t4", "step by step", ("pi4", "pi5")),
        ("resnet56-t4", "lowered for Pi 4", ("pi4",)),
        ("resnet56-t4", "lowered for Pi 5", ("pi5",)),
        ("resnet56-t4", "stock", ("pi4", "pi5")),
    ]
    assert len({v.folder for v in group}) == len({v.name for v in group}) == len(group)


def test_a_runtime_without_costs_has_only_what_it_can(part: Part) -> None:
    subjects = part("subjects")
    native = next(f for f in subjects.FORMATS if f.runtime == "native")
    variants = subjects.plan_variants(["vgg16-csr4"], [native], ["pi4"], stock=True)
    assert [v.shown_way for v in variants] == ["step by step", "step by step"]


def test_every_network_has_its_architecture(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    known = importlib.import_module("networks").ARCHITECTURES
    backbones = part("subjects").BACKBONES
    assert {*backbones, *backbones.values()} <= set(known)
    for form in part("subjects").FORMATS:
        assert find_target(form.target).runtime == form.runtime


def test_the_plan_says_what_is_left_and_how_long_it_takes(
    part: Part, group: list[Any], models: dict[Any, Any], tmp_path: Path
) -> None:
    kept = part("kept").Kept(tmp_path / "measured.json")
    measuring, schedule = part("measuring"), part("schedule")
    there = {group[0]: models[group[0]]}
    kept.put(measuring.Counting(models[group[0]], "pi4", 1).key, {"instructions": 7})
    kept.took(group[0].work("count"), 30.0)
    kept.took(group[-1].work("count"), 60.0)
    parts = schedule.plan(group, there.get, kept, threads=[1], seconds=2.0, counts=True, times=True)
    assert [(p.kind, p.done, p.todo) for p in parts] == [
        ("export", 1, 3), ("convert", 0, 2), ("count", 1, 9), ("time", 0, 1),
    ]  # fmt: skip
    # Three of the backbone are left, and six of the CSR network.
    assert parts[2].seconds == 3 * 30 + 6 * 60
    assert "9 counts on emulated boards to do (about 8 min), 1 there already" in schedule.show(parts)


# --- what is kept ---


def test_measurements_stay(part: Part, tmp_path: Path) -> None:
    path = tmp_path / "out" / "measured.json"
    kept = part("kept").Kept(path)
    kept.put("a", {"instructions": 1})
    kept.took("count:x", 2.3501)
    again = part("kept").Kept(path)
    assert "a" in again and again.get("a") == {"instructions": 1} and again.get("b") is None
    assert again.seconds("count:x") == 2.35


def test_two_runs_keep_what_both_measure(part: Part, tmp_path: Path) -> None:
    first, second = (part("kept").Kept(tmp_path / "measured.json") for _ in range(2))
    first.put("a", {"instructions": 1})
    second.put("b", {"instructions": 2})
    first.took("count:x", 1.0)
    again = part("kept").Kept(tmp_path / "measured.json")
    assert "a" in again and "b" in again and again.seconds("count:x") == 1.0


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 0, "measured": {}, "seconds": {}}'])
def test_another_file_is_not_taken_for_measurements(part: Part, tmp_path: Path, text: str) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=r"measured\.json"):
        part("kept").Kept(path)


def test_counting_goes_on_where_it_was_and_past_what_fails(
    part: Part, models: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = part("measuring")
    kept = part("kept").Kept(tmp_path / "measured.json")
    wanted = [measuring.Counting(m, "pi4", 1) for m in models.values()]
    started: list[list[str]] = []

    def count(jobs: list[Job], board: str, *, on_done: Callable[[Count], None]) -> None:
        started.append([j.name for j in jobs])
        for job in jobs:
            assert job.inputs is not None and len(np.load(job.inputs)) == 6
            if job.name == wanted[2].name:
                raise BenchError("the emulated board's process ended by itself")
            if job.name == wanted[1].name:
                on_done(Count(job.name, 0, error="the process died with signal 11"))
            else:
                on_done(_counted(job))

    monkeypatch.setattr(measuring, "count", count)
    said: list[str] = []
    failures = measuring.count_all(wanted, kept, said.append)
    assert failures == {
        wanted[1].key: "the process died with signal 11",
        wanted[2].key: "the emulated board's process ended by itself",
    }
    assert len(said) == len(wanted) and said[-1].startswith(f"[{len(wanted)}/{len(wanted)}] ")
    assert kept.get(wanted[0].key)["instructions"] == 3_000_000
    # The board was started again behind the model at which it ended.
    assert [len(names) for names in started] == [6, 3]
    # Only what failed is tried again.
    started.clear()
    measuring.count_all(wanted, kept, said.append)
    assert started == [[wanted[1].name, wanted[2].name]]


def test_without_an_emulator_everything_says_so(
    part: Part, models: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = part("measuring")

    def count(*_: Any, **__: Any) -> None:
        raise RuntimeUnavailableError("there is no QEMU")

    monkeypatch.setattr(measuring, "count", count)
    wanted = [measuring.Counting(m, b, 1) for m in models.values() for b in ("pi4", "pi5")]
    failures = measuring.count_all(wanted, part("kept").Kept(tmp_path / "m.json"), lambda _: None)
    assert failures == {c.key: "there is no QEMU" for c in wanted}


def test_outputs_that_are_not_golden_fail_a_network_and_are_noted_of_a_stock_one(
    part: Part, models: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = part("measuring")

    def count(jobs: list[Job], board: str, *, on_done: Callable[[Count], None]) -> None:
        for job in jobs:
            good = _counted(job)
            assert good.outputs is not None
            on_done(replace(good, outputs=good.outputs[:, ::-1].copy()))

    monkeypatch.setattr(measuring, "count", count)
    monkeypatch.setattr(measuring, "prepare_root", lambda: None)
    monkeypatch.setattr(measuring, "package_version", lambda *_: "onnxruntime 1")
    kept = part("kept").Kept(tmp_path / "m.json")
    wanted = [measuring.Counting(m, "pi5", 1) for m in models.values()]
    failures = measuring.count_all(wanted, kept, lambda _: None)
    stock = [c for c in wanted if c.model.variant.way == "stock"]
    assert set(failures) == {c.key for c in wanted} - {c.key for c in stock}
    assert all("differs by" in kept.get(c.key)["golden"] for c in stock)


def test_a_disturbed_timing_is_kept_and_repeated(part: Part, models: dict[Any, Any], tmp_path: Path) -> None:
    measuring = part("measuring")
    base, other, *_ = models.values()
    timing = measuring.Timing((base, other), 1, 2.0)
    slow = measurement("b", milliseconds=3.0)
    kept = part("kept").Kept(tmp_path / "m.json")
    for void in (("other programs ran",), ()):
        both = result(measurement("a", milliseconds=2.0), slow, void=void)
        kept.put(timing.key, measuring.timed_values(timing, ["a-tflite-int8", "b-tflite-int8"], both))
        assert measuring.is_done(timing, kept) is not bool(void)
    value = kept.get(timing.key)["models"][other.digest]
    assert value["ns"] == 3_000_000
    assert value["ratio"] == value["low"] == value["high"] == 1.5
    assert value["memory"]["private_bytes"] == 3 * 2**20


# --- what is judged and printed ---


def test_goals(part: Part) -> None:
    goals = part("goals")
    by_figure = {g.figure: g for g in goals.goals_of("resnet56-csr2", "litert int8")}
    assert by_figure["pi5"].most(0.871) == 1.12
    assert goals.goals_of("mobilenetv2-csr2", "litert int8") == ()
    assert goals.verdict(0.62, 0.62) == "reached"
    assert goals.verdict(0.6201, 0.62) == "missed by 0.01"
    assert goals.verdict(0.95, 0.9) == "missed by 0.05"
    assert goals.verdict(None, 0.9) == "not measured"


@pytest.fixture
def measured(part: Part, group: list[Any], models: dict[Any, Any], tmp_path: Path) -> Any:
    """Counts of all but one, timings, a model that is not there."""
    kept = part("kept").Kept(tmp_path / "measured.json")
    counting = part("measuring").Counting
    millions = {group[0]: 100, group[1]: 101, group[2]: 113, group[3]: 75, group[4]: 104}
    for variant, number in millions.items():
        for board in variant.boards:
            values = {"instructions": number * 10**6, "busiest_thread": number * 10**6}
            values |= {"private_bytes": 10**6, "mapped_bytes": 2 * 10**6}
            kept.put(counting(models[variant], board, 1).key, {**values, "golden": ""})
    there = {v: m for v, m in models.items() if v is not group[5]}
    timing = part("measuring").Timing(tuple(there.values()), 1, 2.0)
    figures = {m.digest: {"ns": 2e6, "ratio": 1.1, "low": 1.05, "high": 1.15} for m in there.values()}
    kept.put(timing.key, {"void": [], "failures": {}, "models": figures})
    failed = {counting(models[group[2]], "pi5", 1).key: "the process died"}
    return part("records").Measured(there, {group[5]: "the stock converter failed"}, kept, failed, 2.0)


def test_rows_have_ratios_goals_and_failures(part: Part, group: list[Any], measured: Any) -> None:
    base, _, plain, pi4, pi5, stock = part("records").records_of(group, 1, measured)
    assert base.macs_ratio == 1 and pi4.macs_ratio == 0.9
    assert base.goals == plain.goals == ()
    assert pi4.boards["pi4"]["instructions_ratio"] == 0.75
    assert [(g.figure, g.verdict) for g in pi4.goals] == [("pi4", "reached"), ("x86", "reached")]
    assert [(g.figure, g.verdict) for g in pi5.goals] == [("pi5", "missed by 0.04"), ("x86", "reached")]
    assert plain.boards["pi5"] == {"error": "the process died"}
    assert stock.error == "the stock converter failed"


def test_another_runtime_is_compared_with_litert_too(part: Part, group: list[Any], measured: Any) -> None:
    base = group[0]
    litert = replace(base, format=part("subjects").litert_of(base.format))
    model = replace(measured.models[base], variant=litert)
    measured.models[litert] = model
    key = part("measuring").Counting(model, "pi4", 1).key
    assert key not in measured.kept
    measured.kept.put(key, {"instructions": 50 * 10**6})
    records = part("records").records_of(group, 1, measured)
    assert records[3].boards["pi4"]["to_litert"] == 1.5
    assert part("report").cells(records[3], ["pi4", "pi5"])[7] == "1.50 / –"


def test_the_table(part: Part, group: list[Any], measured: Any) -> None:
    report = part("report")
    records = part("records").records_of(group, 1, measured)
    text = report.markdown(records, ["pi4", "pi5"], {"onnxruntime": "1.31.1"}, "make bench")
    lines = text.splitlines()
    assert lines[0] == "`make bench`, onnxruntime 1.31.1."
    row = next(line for line in lines if "lowered for Pi 5" in line)
    for cell in ("104.00 M, 1.04", "1.00 MB, 1.00", "2.000 ms, 1.10 [1.05, 1.15]"):
        assert f"| {cell} |" in row
    assert "Pi 5 ≤ 1 missed by 0.04; time ≤ 1.2 reached" in row
    assert any(line.startswith("| resnet56-t4 | ort int8 | Pi 4 | ≤ 0.8 | 0.75 |") for line in lines)
    assert "- resnet56-t4 ort int8, stock: the stock converter failed" in lines
    assert "- resnet56-t4 ort int8, step by step: the process died" in lines
    columns = {line.count(" | ") for line in lines if line.startswith("| resnet56-t4 | ort int8 | 1 |")}
    assert columns == {13}
    values = json.loads(json.dumps(report.plain(records, {}, "make bench")))
    assert len(values["rows"]) == 6 and values["rows"][3]["way"] == "lowered for pi4"
    assert {g["figure"]: g["verdict"] for g in values["goals"]}["Pi 5"] == "missed by 0.04"
    assert report.table(records, ["pi4", "pi5"]).row_count == 6


def test_void_times_are_not_shown(
    part: Part, group: list[Any], models: dict[Any, Any], measured: Any
) -> None:
    timing = part("measuring").Timing(tuple(measured.models.values()), 1, 2.0)
    measured.kept.put(timing.key, {**measured.kept.get(timing.key), "void": ["other programs ran"]})
    records = part("records").records_of(group, 1, measured)
    assert [(g.figure, g.verdict) for g in records[3].goals] == [("pi4", "reached"), ("x86", "not measured")]
    assert part("report").cells(records[3], ["pi4"])[9] == "void"
    assert any("timed here: other programs ran" in t for t in part("report").failures(records))


def test_the_command_only_plans(part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = part("")
    assert tool.main(["--out", str(tmp_path), "--numbers", "int8", "--no-stock", "--plan"]) == 0
    said = capsys.readouterr().err
    # Four networks with three ways and their backbones in LiteRT and ONNX Runtime, one of each in C.
    assert f"{4 * (2 * 4 + 2)} exports to do" in said
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--seconds", "0"], ["--networks", "lenet"]])
def test_wrong_options_are_refused(part: Part, tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        part("").parse(["--out", str(tmp_path), *wrong])
    assert stopped.value.code == 2


# --- what is made ---


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A small checkpoint under the name of a large one."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    _save(folder / "resnet56-t4.pt", 0)
    return folder


def _save(path: Path, seed: int) -> None:
    plan = architecture("resnet8", num_classes=3, modules=1, num_steps=2)
    torch.manual_seed(seed)
    state = plan.build().state_dict()
    save_checkpoint(
        path, Checkpoint(plan, state, ("a", "b", "c"), Preprocessing(16, 16, (0.5,) * 3, (0.25,) * 3))
    )


def test_models_are_made_anew_when_what_they_are_made_from_changes(
    part: Part, tmp_path: Path, shipped: Path
) -> None:
    subjects, making = part("subjects"), part("making")
    form = next(f for f in subjects.FORMATS if f.label == "ort float32")
    variant = subjects.Variant("resnet56-t4", form, subjects.STEPWISE, ("pi5",))
    kept = part("kept").Kept(tmp_path / "measured.json")
    maker = making.Maker(tmp_path / "out", kept, "python", shipped)
    assert maker.found(variant) is None
    model = maker.make(variant)
    assert maker.found(variant) == model
    assert model.macs > model.parameters > 0 and model.size == model.file.stat().st_size
    assert kept.seconds(variant.work("export"))
    _save(shipped / "resnet56-t4.pt", 1)
    assert maker.found(variant) is None
    assert making.Maker(tmp_path / "out", kept, "python", shipped, anyhow=True).found(variant) is not None
    assert maker.make(variant).digest != model.digest


def test_without_stock_converters_a_variant_fails_with_the_reason(
    part: Part, tmp_path: Path, shipped: Path
) -> None:
    subjects = part("subjects")
    variant = subjects.Variant("resnet56-t4", subjects.FORMATS[0], subjects.STOCK, ("pi5",))
    kept = part("kept").Kept(tmp_path / "measured.json")
    maker = part("making").Maker(tmp_path / "out", kept, str(tmp_path / "no-python"), shipped)
    models, errors = part("").make_all([variant], maker, lambda _: None)
    assert not models and "Comparing with stock converters" in errors[variant]
    assert "make bench-peers" in errors[variant]


@pytest.mark.parametrize(("name", "target"), [("tflite-int8", "tflite-int8"), ("onnx", "onnx")])
def test_a_stock_file_becomes_an_artifact_that_holds(
    part: Part, tmp_path: Path, shipped: Path, name: str, target: str
) -> None:
    export, data = importlib.import_module("csr_deploy.export"), part("making")._pictures
    network = Network.from_checkpoint(shipped / "resnet56-t4.pt")
    options = export.ExportOptions(agreement=0.0, lowering="stepwise")
    made = export.export(network, find_target(target), data(network), tmp_path / "made", options)
    folder = tmp_path / "stock"
    folder.mkdir()
    part("stock").wrap(made.model_file, find_target(target), network, made.golden().images, folder)
    artifact = read_artifact(folder)
    assert artifact.model["macs"] == made.model["macs"]
    assert artifact.input == replace(made.input, name=artifact.input.name)
    with open_runtime(None, artifact) as runtime:
        assert verify_golden(runtime).exact


def test_an_error_is_brief(part: Part) -> None:
    error = CsrError("is wrong", where="a.pt", fix="Do this.\nAnd that.")
    assert part("measuring").brief(error) == "a.pt: is wrong Do this."
