"""csr-export --build as a user meets it, where networks are exported and on a device without torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csr_deploy.artifact import MANIFEST, read_artifact
from csr_deploy.checkpoint import Checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.models import architecture
from csr_deploy.runtimes.trt.device import local_device
from csr_deploy.runtimes.trt.engines import read_engine
from tests.onnx_artifact import make_artifact
from tests.trt_models import make_trt_artifact, rtx

NO_TORCH = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; "
NO_RTX = "import sys; sys.modules['tensorrt_rtx'] = sys.modules['tensorrt_rtx_bindings'] = None; "


def run(
    *arguments: str | Path, before: str = "", limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    code = f"{before}from csr_deploy.cli.export import main; main()"

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=restrict,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *says: str, code: int = 1) -> None:
    text = " ".join((done.stderr + done.stdout).replace("│", " ").split())
    assert done.returncode == code, text
    assert "Traceback" not in text
    for words in says:
        assert words in text, text


@pytest.fixture(autouse=True)
def _library() -> None:
    rtx()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    plan = architecture("resnet8", num_classes=3, modules=1, num_steps=2)
    path = tmp_path / "tiny.pt"
    preprocessing = Preprocessing(16, 16, (0.3, 0.3, 0.3), (0.2, 0.2, 0.2))
    classes = ("blue", "green", "red")
    save_checkpoint(path, Checkpoint(plan, plan.build().state_dict(), classes, preprocessing))
    return path


def test_exports_and_builds(checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    done = run(
        checkpoint, "-t", "tensorrt-int8", "-t", "onnx", "-c", image_folder, "-o", tmp_path, "--json",
        "--parity-images", "24", "--calibration-images", "32", "--agreement", "0",
        "--build", "--compute-capability", "8.6", "--compute-capability", "12.0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built, plain = json.loads(done.stdout)
    assert "engine" not in plain
    engine = built["engine"]
    artifact = read_artifact(built["artifact"])
    (record,) = artifact.engines
    assert (engine["file"], engine["bytes"], engine["sha256"]) == (
        record.file.name,
        record.file.size,
        record.file.sha256,
    )
    assert engine["compute_capabilities"] == ["8.6", "12.0"]
    assert engine["layers"] == record.report["layer_count"] > 0
    assert engine["precisions"]["int8"] > 0
    assert engine["seconds"] > 0
    assert read_engine(artifact, record)


def test_a_free_batch_size_reaches_the_engine(checkpoint: Path, tmp_path: Path) -> None:
    done = run(
        checkpoint, "-t", "tensorrt-fp32", "-o", tmp_path, "--parity-images", "16",
        "--batch-profile", "1:2:4", "--build", "--compute-capability", "8.6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    artifact = read_artifact(tmp_path / "tiny-tensorrt-fp32")
    assert artifact.input.shape == (2, 3, 16, 16)
    (record,) = artifact.engines
    assert record.identity["options"] == {"batch_profile": [1, 2, 4]}
    for wrong, says in (("1:2", "three sizes"), ("4:2:1", "makes no sense")):
        done = run(checkpoint, "-t", "tensorrt-fp32", "-o", tmp_path, "--batch-profile", wrong)
        refused(done, says, code=2 if wrong == "1:2" else 1)


def test_builds_on_a_device_without_torch(tmp_path: Path) -> None:
    artifact = make_trt_artifact(tmp_path / "colours-tensorrt-fp32")
    done = run(artifact.path, "--build", "--compute-capability", "8.6", before=NO_TORCH)
    assert done.returncode == 0, done.stderr
    (record,) = read_artifact(artifact.path).engines
    for words in (record.file.name, f"{record.file.size:,} bytes", "layers after fusion", "not known: GPU"):
        assert words in done.stdout
    again = run(artifact.path, "--build", "--compute-capability", "8.6", "--json", before=NO_TORCH)
    assert again.returncode == 0, again.stderr
    (row,) = json.loads(again.stdout)
    assert row["target"] == "tensorrt-fp32"
    assert row["engine"]["file"] == record.file.name


def test_what_cannot_be_built_is_said_before_anything_is_exported(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fp32 = (checkpoint, "-o", out, "--build", "-t", "tensorrt-fp32")
    refused(run(*fp32, "--compute-capability", "8.7"), "'8.7'", "7.5, 8.0, 8.6, 8.9, 12.0, 12.1")
    refused(
        run(checkpoint, "-o", out, "--build", "-t", "onnx", "--compute-capability", "8.6"),
        "--build builds TensorRT engines",
        "tensorrt-int8",
    )
    capable = (*fp32, "--compute-capability", "8.6")
    refused(run(*capable, "--builder-optimization-level", "6"), "from 0 to 5")
    refused(run(*capable, "--workspace", "0"), "Give at least 1")
    refused(run(*capable, "--timing-cache", tmp_path / "cache"), "no timing cache")
    refused(run(*capable, before=NO_RTX), "tensorrt-rtx", "not installed", "tensorrt_rtx_cu13_bindings")
    assert not out.exists()


@pytest.mark.skipif(local_device() is not None, reason="there is a gpu here to build for")
def test_without_a_gpu(tmp_path: Path) -> None:
    artifact = make_trt_artifact(tmp_path / "a")
    refused(run(artifact.path, "--build"), "no GPU here", "--compute-capability")
    refused(run(artifact.path, "--build", before=NO_RTX), "JetPack brings it")


def test_usage(checkpoint: Path, tmp_path: Path) -> None:
    artifact = make_trt_artifact(tmp_path / "a")
    refused(run(artifact.path), "is a folder", code=2)
    refused(run(artifact.path, "--build", "-t", "tensorrt-fp32"), "has its target", code=2)
    refused(run(checkpoint, "-t", "onnx", "--compute-capability", "8.6"), "need --build", code=2)


def test_folders_that_have_no_engine(tmp_path: Path) -> None:
    refused(run(tmp_path, "--build"), "is not an artifact")
    other = make_artifact(tmp_path / "onnx")
    refused(run(other.path, "--build", "--compute-capability", "8.6"), "'onnx' has no engine")


def test_a_full_disk_leaves_the_artifact_as_it_was(tmp_path: Path) -> None:
    artifact = make_trt_artifact(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in artifact.path.iterdir()}
    refused(run(artifact.path, "--build", "--compute-capability", "8.6", limit=100_000), "cannot be written")
    assert {p.name: p.read_bytes() for p in artifact.path.iterdir()} == before
    assert "engines" not in json.loads((artifact.path / MANIFEST).read_text())
