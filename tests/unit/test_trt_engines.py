"""Engines beside their model: found by identity, refused when changed, replaced when stale."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csr_deploy.artifact import MANIFEST, Artifact, EngineRecord, read_artifact, record_file, write_manifest
from csr_deploy.errors import ArtifactError, ExportError, MissingDependencyError, OptionError
from csr_deploy.runtimes.trt.build import BuildOptions
from csr_deploy.runtimes.trt.device import DeviceInfo
from csr_deploy.runtimes.trt.engines import (
    EngineIdentity,
    build_engine_for,
    choose_library,
    engine_name,
    find_engine,
    identify,
    read_engine,
)
from csr_deploy.runtimes.trt.library import TensorRT
from tests.onnx_artifact import make_artifact, make_model, rewrite
from tests.trt_models import make_trt_artifact, rtx

ORIN = EngineIdentity("0" * 64, "tensorrt 10.3.0", ("8.7",), "Orin", "R36.4.3", {})


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return rtx()


@pytest.fixture(scope="module")
def built(library: TensorRT, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    artifact = make_trt_artifact(tmp_path_factory.mktemp("built") / "colours-tensorrt-fp32")
    return build_engine_for(artifact, library, identify(artifact, library, None, ["8.6"]))


@pytest.fixture
def own(built: Artifact, tmp_path: Path) -> Artifact:
    """A copy to change."""
    shutil.copytree(built.path, tmp_path / "own")
    return read_artifact(tmp_path / "own")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def with_engine(artifact: Artifact, identity: EngineIdentity, content: bytes = b"engine") -> Artifact:
    """Adds a file that only looks like an engine."""
    path = artifact.path / engine_name(artifact, identity)
    path.write_bytes(content)
    record = EngineRecord(record_file(path), identity.to_json(), {"layers": None})
    write_manifest(replace(artifact, engines=(*artifact.engines, record)))
    return read_artifact(artifact.path)


# The artifact


def test_building_adds_the_engine_and_nothing_else(built: Artifact, tmp_path: Path) -> None:
    before = make_trt_artifact(tmp_path / "before")
    assert "engines" not in json.loads((before.path / MANIFEST).read_text())
    assert replace(built, path=before.path, engines=()) == before
    (engine,) = built.engines
    name = f"colours-tensorrt-fp32-sm86-{engine.identity['library'].replace(' ', '-')}-{before.sha256[:8]}"
    assert engine.file.name == f"{name}.engine"
    assert sorted(contents(built.path)) == sorted([*contents(before.path), engine.file.name])
    assert read_engine(built, engine) == contents(built.path)[engine.file.name]
    assert engine.identity == {
        "model_sha256": before.sha256,
        "library": rtx().name,
        "compute_capabilities": ["8.6"],
        "gpu": None,
        "jetpack": None,
        "options": {},
    }
    assert engine.report["plan_bytes"] == engine.file.size
    assert str(tmp_path.parent) not in (built.path / MANIFEST).read_text()


def test_a_changed_engine_is_refused_but_the_model_is_still_good(own: Artifact) -> None:
    (engine,) = own.engines
    path = own.path / engine.file.name
    changed = bytearray(path.read_bytes())
    changed[1000] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ArtifactError, match="executable code") as caught:
        read_engine(read_artifact(own.path), engine)
    assert engine.file.name in str(caught.value.where)
    path.write_bytes(bytes(changed) + b"more")
    with pytest.raises(ArtifactError, match="executable code"):
        read_engine(own, engine)
    path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_engine(read_artifact(own.path), engine)


@pytest.mark.parametrize("name", ["../x.engine", "/etc/passwd", "", "manifest.json", "model.onnx"])
def test_engines_are_files_of_the_artifact(own: Artifact, name: str) -> None:
    manifest = json.loads((own.path / MANIFEST).read_text())
    manifest["engines"][0]["file"]["name"] = name
    (own.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError):
        read_artifact(own.path)


@pytest.mark.parametrize("engines", [[{}], 3, [{"file": {"name": "x", "size": 1}}]])
def test_a_damaged_record_is_refused(own: Artifact, engines: Any) -> None:
    manifest = {**json.loads((own.path / MANIFEST).read_text()), "engines": engines}
    (own.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="damaged"):
        read_artifact(own.path)


# Finding


@pytest.mark.parametrize(
    "difference",
    [
        {"model_sha256": "1" * 64},
        {"library": "tensorrt 10.7.0"},
        {"library": "tensorrt-rtx 10.3.0"},
        {"compute_capabilities": ("7.2",)},
        {"compute_capabilities": ()},
        {"compute_capabilities": ("8.7", "8.9")},
        {"gpu": "NVIDIA Thor"},
        {"jetpack": "R36.4.4"},
        {"jetpack": None},
        {"options": {"optimization_level": 5}},
    ],
)
def test_an_engine_of_another_identity_is_not_found(tmp_path: Path, difference: Mapping[str, Any]) -> None:
    artifact = with_engine(make_trt_artifact(tmp_path / "a"), ORIN)
    assert find_engine(artifact, ORIN) == artifact.engines[0]
    assert find_engine(artifact, replace(ORIN, **difference)) is None


def test_an_ahead_of_time_engine_serves_each_of_its_capabilities(tmp_path: Path) -> None:
    identity = replace(ORIN, compute_capabilities=("8.6", "8.9"), gpu=None, jetpack=None)
    artifact = with_engine(make_trt_artifact(tmp_path / "a"), identity)
    for wanted, found in ((("8.6",), True), (("8.9",), True), (("8.6", "8.9"), True), (("8.0",), False)):
        assert bool(find_engine(artifact, replace(identity, compute_capabilities=wanted))) == found


def test_options_that_somebody_chose_can_be_accepted(tmp_path: Path) -> None:
    chosen = replace(ORIN, options=BuildOptions(optimization_level=5, workspace_mib=64).identity())
    artifact = with_engine(make_trt_artifact(tmp_path / "a"), chosen)
    assert find_engine(artifact, ORIN) is None
    assert find_engine(artifact, ORIN, any_options=True) == artifact.engines[0]
    assert find_engine(artifact, replace(ORIN, library="tensorrt 10.4.0"), any_options=True) is None


def test_identity_of_a_jetson(tmp_path: Path) -> None:
    artifact = make_trt_artifact(tmp_path / "a")
    jetson = DeviceInfo("Orin (nvgpu)", "8.7", "R36.4.3", "6.2")
    library = TensorRT(rtx().module, "tensorrt", "10.3.0")
    identity = identify(artifact, library, BuildOptions(timing_cache=tmp_path / "cache"), (), jetson)
    assert identity == replace(ORIN, model_sha256=artifact.sha256, gpu="Orin (nvgpu)")
    name = engine_name(artifact, identity)
    assert name == f"colours-tensorrt-fp32-orin-nvgpu-sm87-tensorrt-10.3.0-{artifact.sha256[:8]}.engine"


def test_the_library_is_the_one_that_can(library: TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_library(["8.6"], None).name == library.name
    assert choose_library(["8.6"], DeviceInfo("Orin", "8.7")).name == library.name
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(MissingDependencyError, match="tensorrt_rtx"):
        choose_library(["8.6"], None)


# Replacing


def test_a_new_engine_replaces_the_stale_ones(built: Artifact, own: Artifact, library: TensorRT) -> None:
    (current,) = own.engines
    ahead = replace(ORIN, model_sha256=own.sha256, gpu=None, jetpack=None, compute_capabilities=("8.6",))
    old_version = replace(ahead, library="tensorrt-rtx 1.6.0.0")
    other_capability = replace(ahead, library=library.name, compute_capabilities=("8.9",))
    other_flavour = replace(ahead, library="tensorrt 10.3.0", gpu="RTX 3060")
    other_model = replace(other_capability, model_sha256="1" * 64, compute_capabilities=("12.0",))
    for identity in (old_version, other_capability, other_flavour, other_model):
        own = with_engine(own, identity, identity.library.encode())
    wanted = identify(own, library, None, ["8.6"])
    again = build_engine_for(own, library, wanted)
    kept = {(e.identity["library"], *e.identity["compute_capabilities"]) for e in again.engines}
    assert kept == {(library.name, "8.6"), (library.name, "8.9"), ("tensorrt 10.3.0", "8.6")}
    assert find_engine(again, wanted) is not None
    listed = {f.name for f in again.files} | {e.file.name for e in again.engines} | {MANIFEST}
    assert set(contents(again.path)) == listed
    # The same model gives the same engine.
    found = find_engine(again, wanted)
    assert found is not None
    assert found.file == current.file


def test_a_changed_engine_is_built_again(own: Artifact, library: TensorRT) -> None:
    (engine,) = own.engines
    (own.path / engine.file.name).write_bytes(b"something else")
    again = build_engine_for(own, library, identify(own, library, None, ["8.6"]))
    assert read_engine(again, again.engines[0])


def test_a_new_model_makes_every_engine_stale(own: Artifact, library: TensorRT) -> None:
    (old,) = own.engines
    make_model(own.model_file, extra_channels=2)
    own = rewrite(own)
    wanted = identify(own, library, None, ["8.9"])
    assert find_engine(own, wanted) is None
    again = build_engine_for(own, library, wanted)
    assert len(again.engines) == 1
    assert not (again.path / old.file.name).exists()


def test_other_options_make_another_engine(own: Artifact, library: TensorRT) -> None:
    options = BuildOptions(workspace_mib=64)
    wanted = identify(own, library, options, ["8.6"])
    assert find_engine(own, wanted) is None
    again = build_engine_for(own, library, wanted, options)
    assert find_engine(again, wanted) is not None
    assert len(again.engines) == 1


def test_an_interrupted_build_leaves_the_artifact_as_it_was(own: Artifact, library: TensorRT) -> None:
    before = contents(own.path)

    interrupted: list[str] = []

    def interrupt(phase: str, done: int, total: int) -> None:
        if not interrupted:
            interrupted.append(phase)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine_for(own, library, identify(own, library, None, ["8.0"]), None, interrupt)
    assert contents(own.path) == before


def test_a_failed_build_leaves_the_artifact_as_it_was(own: Artifact, library: TensorRT) -> None:
    own.model_file.write_bytes(own.model_file.read_bytes()[:-50])
    own = rewrite(own)
    before = contents(own.path)
    with pytest.raises(ExportError):
        build_engine_for(own, library, identify(own, library, None, ["8.6"]))
    assert contents(own.path) == before


def test_other_targets_have_no_engine(tmp_path: Path, library: TensorRT) -> None:
    artifact = make_artifact(tmp_path / "onnx")
    with pytest.raises(OptionError, match="'onnx' has no engine") as caught:
        build_engine_for(artifact, library, identify(artifact, library, None, ["8.6"]))
    assert "tensorrt-int8" in str(caught.value.fix)
