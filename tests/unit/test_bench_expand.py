"""Plans: from flags or a TOML file to groups."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import pytest

from csr_deploy.artifact import read_artifact
from csr_deploy.bench import expand as expand_module
from csr_deploy.bench.expand import ExpandedPlan, PlanRequest, expand
from csr_deploy.bench.gates import METRICS, parse_gate
from csr_deploy.bench.plan_file import KEYS, read_plan_file
from csr_deploy.errors import ArtifactError, DataError, OptionError
from csr_deploy.targets import TARGETS
from tests.onnx_artifact import make_artifact, rewrite


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks as onnx and, by name, as onnx-int8, and a file for a checkpoint."""
    root = tmp_path_factory.mktemp("expand")
    for name in ("net", "csr"):
        for target in ("onnx", "onnx-int8"):
            rewrite(make_artifact(root / f"{name}-{target}", name=name), target=target)
    (root / "float.pt").write_bytes(b"read by the worker")
    return root


def titles(plan: ExpandedPlan) -> list[str]:
    return [f"{' '.join(s.label for s in g.plan.subjects)}: {g.title}" for g in plan.groups]


def names(folder: Path, *models: str) -> tuple[str, ...]:
    return tuple(str(folder / model) for model in models)


def test_models_times_targets_times_threads_times_devices(folder: Path) -> None:
    plan = expand(
        PlanRequest(
            names(folder, "net", "csr"),
            targets=("onnx-int8", "onnx"),
            threads=(1, 2),
            devices=("local", "pi-emulated:pi5"),
        )
    )
    # Float first: the others are compared with it.
    assert titles(plan) == [
        f"net-{target} csr-{target}: {target}, {threads} on {device}"
        for device in ("local", "pi-emulated:pi5")
        for target in ("onnx", "onnx-int8")
        for threads in ("1 thread", "2 threads")
    ]
    assert plan.cells == 16 and plan.left_out == ()
    assert {g.plan.baseline for g in plan.groups} == {"net-onnx", "net-onnx-int8"}
    assert len({g.id for g in plan.groups}) == 8


def test_subjects_of_different_targets_are_compared_together_where_that_is_asked_for(folder: Path) -> None:
    models = names(folder, "net-onnx", "csr-onnx-int8")
    assert titles(expand(PlanRequest(models, together=True))) == [
        "net-onnx csr-onnx-int8: onnx + onnx-int8, 1 thread on local"
    ]
    assert len(expand(PlanRequest(models)).groups) == 2
    with pytest.raises(OptionError, match="Leave --together out"):
        expand(PlanRequest(models, threads=(1, 2), together=True))


def test_the_baseline_is_a_network_in_every_target(folder: Path) -> None:
    models, targets = names(folder, "net", "csr"), ("onnx", "onnx-int8")
    for baseline in ("csr", "csr-onnx", *names(folder, "csr")):
        plan = expand(PlanRequest(models, targets, baseline=baseline))
        assert [g.plan.baseline for g in plan.groups] == ["csr-onnx", "csr-onnx-int8"]
    with pytest.raises(OptionError, match=r"'third' is none of the models\nUse one of: csr, net"):
        expand(PlanRequest(models, targets, baseline="third"))


def test_a_group_has_the_same_id_in_every_run_and_another_one_for_other_content(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "net-onnx"
    make_artifact(path, name="net")
    request = PlanRequest((str(path),))
    (group,) = expand(request).groups
    assert group.id == expand(request).groups[0].id and len(group.id) == 16
    # An engine that a benchmark adds to the manifest does not change what was measured.
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "engine").write_bytes(b"engine")
    record = {"name": "engine", "size": 6, "sha256": hashlib.sha256(b"engine").hexdigest()}
    manifest["engines"] = [{"file": record, "identity": {}, "report": {}}]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert read_artifact(path).engines and expand(request).groups[0].id == group.id
    ids = {group.id, expand(PlanRequest((str(path),), settings={"images": 7})).groups[0].id}
    ids.add(expand(PlanRequest((str(path),), threads=(2,))).groups[0].id)
    (path / "model.onnx").write_bytes(b"another model")
    rewrite(read_or_old(path))
    ids.add(expand(request).groups[0].id)
    assert len(ids) == 4


def read_or_old(path: Path):  # type: ignore[no-untyped-def]
    """The artifact's record, without the check of hashes that its changed model fails."""
    from csr_deploy.artifact import _from_manifest

    return _from_manifest(path, json.loads((path / "manifest.json").read_text()))


def test_what_cannot_be_is_left_out_and_said(folder: Path) -> None:
    models = names(folder, "net-onnx", "float.pt")
    plan = expand(PlanRequest(models, devices=("local", "pi-emulated:pi4")))
    assert titles(plan) == [
        "float: checkpoint, 1 thread on local",
        "net-onnx: onnx, 1 thread on local",
        "net-onnx: onnx, 1 thread on pi-emulated:pi4",
    ]
    assert plan.left_out == (
        "float: an emulated Raspberry Pi runs .onnx and .tflite files and native libraries, "
        "this is checkpoint",
    )
    over_ssh = expand(PlanRequest(models, devices=("local", "ssh://pi@board")))
    assert over_ssh.left_out == ("float: a checkpoint needs torch, which is not installed on a device",)


def test_a_subject_or_device_that_is_left_with_nothing_is_an_error(folder: Path) -> None:
    models = names(folder, "net-onnx", "float.pt")
    with pytest.raises(OptionError, match="float: the ort runtime runs .onnx files, this is float.pt"):
        expand(PlanRequest(models, runtimes=("ort",)))
    with pytest.raises(OptionError, match="nothing of this plan runs on qemu:cortex-m4"):
        expand(PlanRequest(models, devices=("local", "qemu:m4")))
    with pytest.raises(OptionError, match="nothing to measure"):
        expand(PlanRequest(()))


def test_several_runtimes_take_what_they_can_run(folder: Path) -> None:
    plan = expand(PlanRequest(names(folder, "net-onnx", "float.pt"), runtimes=("ort", "torch")))
    assert titles(plan) == [
        "float: checkpoint, torch, 1 thread on local",
        "net-onnx: onnx, ort, 1 thread on local",
    ]
    assert len(plan.left_out) == 2


def test_an_artifact_has_its_own_batch(folder: Path, tmp_path: Path) -> None:
    wide = str(make_artifact(tmp_path / "wide-onnx", name="wide", batch=4).path)
    with pytest.raises(OptionError, match=r"net-onnx: takes 1 image .*\n.*csr-export --batch 4"):
        expand(PlanRequest(names(folder, "net-onnx"), batches=(4,)))
    plan = expand(PlanRequest((wide, *names(folder, "net-onnx")), batches=(1, 4)))
    assert titles(plan) == [
        "net-onnx: onnx, 1 thread, batch 1 on local",
        "wide-onnx: onnx, 1 thread, batch 4 on local",
    ]
    assert any("csr-export --batch 4" in reason for reason in plan.left_out)


def test_the_data_and_every_artifact_must_be_there(folder: Path) -> None:
    with pytest.raises(DataError, match="nowhere: does not exist"):
        expand(PlanRequest(names(folder, "net-onnx"), settings={"data": "nowhere"}))
    with pytest.raises(ArtifactError, match="there is no artifact of net for the target tflite-int8"):
        expand(PlanRequest(names(folder, "net"), ("onnx", "tflite-int8")))


def test_a_thousand_cells_are_planned_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    find = expand_module.find_subject
    monkeypatch.setattr(expand_module, "find_subject", lambda path: read.append(path) or find(path))
    devices = tuple(f"ssh://pi@board{n}" for n in range(25))
    request = PlanRequest(
        names(folder, "net", "csr"),
        ("onnx", "onnx-int8"),
        threads=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        devices=devices,
    )
    start = time.monotonic()
    plan = expand(request)
    seconds = time.monotonic() - start
    assert plan.cells == 1000 and len(plan.groups) == 500 and len({g.id for g in plan.groups}) == 500
    # Each artifact is read, and so hashed, once; the time is in docs/benchmarks.md, not judged here.
    assert len(read) == len(set(read)) == 4 and seconds > 0


# TOML


def plan_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bench.toml"
    path.write_text(text)
    return path


def test_a_plan_in_toml(tmp_path: Path) -> None:
    path = plan_file(
        tmp_path,
        'models = ["artifacts/net", "/csr"]\ntargets = "onnx"\nthreads = [1, 2]\ndevices = ["local"]\n'
        'data = "fashion-mnist"\nseconds = 2\nquick = true\nresults = "r.jsonl"\nfail_if = ["top1<90"]\n',
    )
    assert read_plan_file(path).values == {
        # Paths lead from the file's folder; built-in sets are no paths.
        "models": (f"{tmp_path}/artifacts/net", "/csr"),
        "targets": ("onnx",),
        "threads": (1, 2),
        "devices": ("local",),
        "data": "fashion-mnist",
        "seconds": 2,
        "quick": True,
        "results": f"{tmp_path}/r.jsonl",
        "fail_if": ("top1<90",),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = [", "is no TOML: "),
        ('model = "a"', r"unknown key 'model'\nDid you mean models"),
        ('colour = "red"', r"unknown key 'colour'\nKeys: models, targets"),
        ("models = 3", r"models must be a list of which every entry is a string, 3 was given\n.*models = \["),
        ('models = ["a", 3]', "models must be a list"),
        ("models = []", "models is empty"),
        ('threads = "two"', "threads must be a list of which every entry is a whole number"),
        ("threads = [true]", "threads must be a list"),
        ("threads = [1, 0]", r"threads is 0\nGive at least 1"),
        ("seconds = -1", r"seconds is -1\nGive at least 0"),
        ("seconds = nan", "seconds is nan"),
        ("quick = 1", r"quick must be true or false, 1 was given\nWrite for example: quick = true"),
        ('[plan]\nmodels = "a"', "unknown key 'plan'"),
        ("limit = 2.5", "limit must be a whole number"),
    ],
)
def test_errors_in_toml_say_what_and_how(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read_plan_file(plan_file(tmp_path, text))
    assert caught.value.where == str(tmp_path / "bench.toml")


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read: Is a directory"):
        read_plan_file(tmp_path)
    (tmp_path / "latin").write_bytes(b'data = "caf\xe9"')
    with pytest.raises(OptionError, match="is no text in UTF-8"):
        read_plan_file(tmp_path / "latin")


def test_every_key_and_every_figure_of_a_gate_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in (*KEYS, *METRICS):
        assert f"`{name}`" in page, name


def test_the_plan_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, flags=re.M | re.S)
    values = read_plan_file(plan_file(tmp_path, text)).values
    assert set(values["targets"]) <= set(TARGETS)
    assert [parse_gate(gate).name for gate in values["fail_if"]] == ["accuracy_drop", "latency_ratio"]
