"""csr-export as a user meets it: results, and every bad input with its message and exit code."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from csr_deploy.artifact import read_artifact
from csr_deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.errors import MissingDependencyError
from csr_deploy.export import Network
from csr_deploy.models import architecture
from csr_deploy.targets import TARGETS

CLASSES = ("blue", "green", "red")


def run(*arguments: str | Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from csr_deploy.cli.export import main; main()", *map(str, arguments)]

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(command, capture_output=True, text=True, preexec_fn=restrict, check=False)


def refused(done: subprocess.CompletedProcess[str], *says: str, code: int = 1) -> None:
    text = " ".join((done.stderr + done.stdout).split())
    assert done.returncode == code, text
    assert "Traceback" not in text
    for words in says:
        assert words in text, text


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CSR network for 16×16 colour pictures of three classes that are told apart by colour alone."""
    torch.manual_seed(0)
    plan = architecture("resnet8", num_classes=3, modules=1, num_steps=2)
    model = plan.build()
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    preprocessing = Preprocessing(16, 16, (0.3, 0.3, 0.3), (0.2, 0.2, 0.2))
    save_checkpoint(path, Checkpoint(plan, model.state_dict(), CLASSES, preprocessing))
    return path


@pytest.fixture(scope="module")
def tiny_options() -> list[str]:
    # An untrained network's ranking means nothing: these tests are about everything else.
    return ["--parity-images", "24", "--calibration-images", "32", "--agreement", "0"]


def test_exports_to_several_targets(
    checkpoint: Path, image_folder: Path, tmp_path: Path, tiny_options: Sequence[str]
) -> None:
    done = run(
        checkpoint,
        "-t",
        "tflite-int8",
        "-t",
        "onnx",
        "-c",
        image_folder,
        "-o",
        tmp_path,
        "--json",
        *tiny_options,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [r["target"] for r in rows] == ["tflite-int8", "onnx"]
    for row in rows:
        folder = Path(row["artifact"])
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["files"][0]["sha256"] == row["sha256"]
        assert manifest["parity"]["images"] == 24
    assert manifest["labels"] == list(CLASSES)
    calibration = json.loads((tmp_path / "tiny-tflite-int8" / "manifest.json").read_text())["options"][
        "calibration"
    ]
    assert calibration["images"] == 32
    assert len(calibration["sha256"]) == 64

    again = run(checkpoint, "-t", "onnx", "-c", image_folder, "-o", tmp_path, *tiny_options)
    refused(again, "tiny-onnx", "already exists", "--force")
    forced = run(checkpoint, "-t", "onnx", "-c", image_folder, "-o", tmp_path, "--force", *tiny_options)
    assert forced.returncode == 0, forced.stderr
    assert leftovers(tmp_path / "tiny-onnx") == ["golden.npz", "manifest.json", "tiny.onnx"]


def test_a_target_that_fails_does_not_hide_those_before_it(
    checkpoint: Path, image_folder: Path, tmp_path: Path, tiny_options: Sequence[str]
) -> None:
    done = run(
        checkpoint, "-t", "onnx", "-t", "mcu", "--flash", "1K", "-c", image_folder, "-o", tmp_path, "--json",
        *tiny_options,
    )  # fmt: skip
    assert done.returncode == 1
    assert [row["target"] for row in json.loads(done.stdout)] == ["onnx"]
    assert "1,024" in done.stderr or "flash" in done.stderr, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-onnx"]


def test_float_targets_need_no_data(checkpoint: Path, tmp_path: Path) -> None:
    done = run(checkpoint, "-t", "tflite-fp32", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert leftovers(tmp_path / "tiny-tflite-fp32") == ["golden.npz", "manifest.json", "tiny.tflite"]


def test_golden_vectors_from_pictures_of_ones_own(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name, colour in (("green", (20, 200, 30)), ("violet", (150, 30, 200))):
        (folder / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (20, 20), colour).save(folder / name / f"{index}.png")
    done = run(checkpoint, "--target", "onnx", "--golden", folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    golden = read_artifact(tmp_path / "out" / "tiny-onnx").golden()
    assert golden.images.shape == (6, 16, 16, 3)
    # One class is the network's, the other is not.
    assert sorted(golden.labels.tolist()) == [-1, -1, -1, 1, 1, 1]
    for image, label in zip(golden.images, golden.labels, strict=True):
        assert np.abs(image.astype(int) - ((20, 200, 30) if label == 1 else (150, 30, 200))).max() <= 1
    network = Network.from_checkpoint(checkpoint)
    assert np.array_equal(golden.float_logits, network.logits(golden.images))
    assert np.allclose(golden.outputs, golden.float_logits, atol=1e-4)


def test_golden_vectors_from_nowhere(checkpoint: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    done = run(checkpoint, "--target", "onnx", "--golden", missing, "--out", tmp_path / "out")
    refused(done, str(missing))
    assert leftovers(tmp_path / "out") == []


def test_list_targets() -> None:
    done = run("--list-targets", "--json")
    assert done.returncode == 0
    assert [r["target"] for r in json.loads(done.stdout)] == list(TARGETS)
    table = run("--list-targets")
    assert all(name in table.stdout for name in TARGETS)


def test_usage_errors_exit_with_2(checkpoint: Path) -> None:
    refused(run(), "checkpoint", code=2)
    refused(run(checkpoint), "--target", code=2)
    refused(run("--no-such-option"), "No such option", code=2)
    refused(run(checkpoint, "-t", "onnx", "--seed", "-1"), "--seed", code=2)


def test_a_mistyped_target_gets_a_suggestion(checkpoint: Path) -> None:
    refused(run(checkpoint, "-t", "tflite-int-8"), "unknown target 'tflite-int-8'", "tflite-int8")


def test_int8_without_calibration_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    refused(
        run(checkpoint, "-t", "tflite-int8", "-o", tmp_path / "o"), "needs calibration data", "--calibration"
    )
    assert leftovers(tmp_path) == []


def test_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("not a network")
    refused(run(path, "-t", "onnx"), str(path), "checkpoint")
    refused(run(tmp_path / "none.pt", "-t", "onnx"), "does not exist")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {trace}",))

    path = tmp_path / "model.pt"
    torch.save({"format": "csr-deploy-checkpoint", "state": Code()}, path)
    refused(run(path, "-t", "onnx"), "code", "refused")
    assert not trace.exists()


def test_a_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    path = tmp_path / "model.pt"
    path.write_bytes(content[: len(content) // 2])
    refused(run(path, "-t", "onnx"), str(path), "damaged")


def test_a_checkpoint_of_another_version_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["version"] = 99
    path = tmp_path / "model.pt"
    torch.save(content, path)
    refused(run(path, "-t", "onnx"), "version 99")


def test_calibration_data_that_does_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run(checkpoint, "-t", "tflite-int8", "-c", empty), str(empty), "no image")
    refused(run(checkpoint, "-t", "tflite-int8", "-c", tmp_path / "gone"), "does not exist")
    # 28×28×1 arrays for a 16×16×3 network.
    refused(run(checkpoint, "-t", "tflite-int8", "-c", "fashion-mnist"), "[28, 28, 1]", "[16, 16, 3]")
    other = tmp_path / "other"
    for name in ("cat", "dog"):
        for split in ("train", "test"):
            (other / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(other / split / name / "0.png")
    refused(run(checkpoint, "-t", "tflite-int8", "-c", other), "classes are not the network's")


def test_too_few_images_for_parity(checkpoint: Path, image_folder: Path) -> None:
    refused(run(checkpoint, "-t", "tflite-int8", "-c", image_folder), "only 24 images", "--parity-images 24")


def test_damaged_pictures_are_named_and_refused_above_a_share(
    checkpoint: Path, image_folder: Path, tmp_path: Path, tiny_options: Sequence[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(image_folder, damaged)
    victim = damaged / "train" / "red" / "00.png"
    victim.write_bytes(victim.read_bytes()[:60])
    options = ["--parity-images", "24", "--calibration-images", "72", "--agreement", "0"]
    done = run(checkpoint, "-t", "tflite-int8", "-c", damaged, "-o", tmp_path / "o", *options)
    refused(done, "1 of 72 images cannot be decoded", "red/00.png")
    assert leftovers(tmp_path / "o") == []


def test_a_damaged_test_part_is_no_missing_one(tmp_path: Path) -> None:
    plan = architecture("resnet8", num_classes=2, in_channels=1)
    network = Checkpoint(plan, plan.build().state_dict(), ("0", "1"), Preprocessing(16, 16, (0.5,), (0.2,)))
    save_checkpoint(tmp_path / "tiny.pt", network)
    data = tmp_path / "data"
    data.mkdir()
    for part, count in (("train", 80), ("t10k", 30)):
        pictures = np.random.default_rng(0).integers(0, 256, (count, 16, 16), np.uint8)
        head = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in pictures.shape)
        (data / f"{part}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
        labels = bytes((0, 0, 8, 1)) + count.to_bytes(4, "big") + bytes(i % 2 for i in range(count))
        (data / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    images = data / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    options = ["-t", "tflite-int8", "-c", data, "--parity-images", "24", "--calibration-images", "32"]
    options += ["--agreement", "0", "-o", tmp_path / "out"]
    # Quietly judged by training images otherwise, as a set without a test part is.
    refused(run(tmp_path / "tiny.pt", *options), "t10k-images-idx3-ubyte")
    assert leftovers(tmp_path / "out") == []
    for file in data.glob("t10k-*"):
        file.unlink()
    done = run(tmp_path / "tiny.pt", *options)
    assert done.returncode == 0, done.stderr


def test_a_network_that_loses_parity_leaves_nothing(
    checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    # 8 pictures of noise calibrate nothing; full agreement is demanded of an untrained network's logits.
    plan = architecture("resnet8", num_classes=3, modules=1, num_steps=2)
    torch.manual_seed(1)
    model = plan.build()
    with torch.no_grad():
        model.fc.weight.mul_(1e-3)
        model.fc.weight[0].mul_(1e6)
        model.fc.bias.copy_(torch.tensor([0.0, 0.01, 0.011]))
        model.fc.weight[0] = 0
        model.fc.bias[0] = -1e4
    path = tmp_path / "flat.pt"
    save_checkpoint(
        path, Checkpoint(plan, model.state_dict(), CLASSES, load_checkpoint(checkpoint).preprocessing)
    )
    options = ["--parity-images", "24", "--calibration-images", "8", "--agreement", "1"]
    done = run(path, "-t", "tflite-int8", "-c", image_folder, "-o", tmp_path / "o", *options)
    refused(done, "differs from the checkpoint on 24 images", "Nothing was written")
    assert leftovers(tmp_path / "o") == []


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    # A limit on file size is what a process meets on a full disk: a write that fails half way.
    done = run(checkpoint, "-t", "onnx", "-o", tmp_path / "o", limit=100_000)
    refused(done, "tiny-onnx", "cannot be written")
    assert leftovers(tmp_path / "o") == []


def test_an_interrupt_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    code = "from csr_deploy.cli.export import main; main()"
    command = [sys.executable, "-c", code, str(checkpoint), "-o", str(tmp_path / "o")]
    for name in TARGETS:
        if not TARGETS[name].quantized:
            command += ["-t", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not leftovers(tmp_path / "o") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    for folder in (tmp_path / "o").iterdir():
        assert not folder.name.startswith("."), "a half artifact was left"
        assert (folder / "manifest.json").exists()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from csr_deploy import targets
    from csr_deploy.export import find_exporter

    found = targets.importlib.util.find_spec
    monkeypatch.setattr(
        targets.importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name)
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'csr-deploy\[export\]'"):
        find_exporter(TARGETS["onnx"])


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            ImportError("libz.so.9: not found", name="onnx.c"),
            "'onnx', which is there but .*libz.so.9",
        ),
        (ImportError("libz.so.9: not found"), "'torch, onnx, onnxruntime', which is there but .*libz.so.9"),
        (ImportError("no such name", name="csr_deploy.ledger"), "^no such name"),
    ],
)
def test_a_package_that_does_not_load_is_named(
    monkeypatch: pytest.MonkeyPatch, raised: ImportError, says: str
) -> None:
    from csr_deploy import export

    def fail(name: str) -> None:
        raise raised

    monkeypatch.setattr("csr_deploy.export.importlib.import_module", fail)
    with pytest.raises((MissingDependencyError, ImportError), match=says):
        export.find_exporter(TARGETS["onnx"])


def test_a_zip_of_pictures_calibrates(
    checkpoint: Path, image_folder: Path, tmp_path: Path, tiny_options: Sequence[str]
) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as file:
        for picture in sorted(image_folder.rglob("*.png")):
            file.write(picture, picture.relative_to(image_folder))
    done = run(checkpoint, "-t", "onnx-int8", "-c", path, "-o", tmp_path / "o", *tiny_options)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def mixed(
    checkpoint: Path, image_folder: Path, tiny_options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """What csr-export says with --drift and --keep-worst 2, and the artifact."""
    out = tmp_path_factory.mktemp("mixed")
    options = ["-t", "tflite-int8", "-c", image_folder, "-o", out, "--drift", "--keep-worst", "2"]
    done = run(checkpoint, *options, *tiny_options)
    assert done.returncode == 0, done.stderr
    return done.stdout, out / "tiny-tflite-int8"


def test_the_worst_layers_stay_in_float(mixed: tuple[str, Path]) -> None:
    said, folder = mixed
    artifact = read_artifact(folder)
    kept = artifact.model["float_layers"]
    assert len(set(kept)) == 2
    assert f"in float: {', '.join(kept)}" in " ".join(said.split())
    kernels = {
        t["name"]: t["dtype"] for t in Interpreter(str(artifact.model_file)).get_tensor_details() if t["name"]
    }
    for name, dtype in kernels.items():
        if name not in ("image", "logits"):
            assert dtype == (np.float32 if name.startswith(tuple(kept)) else np.int8), name
    assert {np.float32, np.int8} == set(kernels.values())
    assert artifact.input.dtype == artifact.output.dtype == "int8"


def test_layers_to_keep_in_float_must_exist(
    checkpoint: Path, image_folder: Path, tmp_path: Path, tiny_options: Sequence[str]
) -> None:
    command = [checkpoint, "-t", "tflite-int8", "-c", image_folder, "-o", tmp_path / "o", *tiny_options]
    refused(run(*command, "--float-layers", "conv9"), "no layer 'conv9' with weights")
    refused(run(*command, "--keep-worst", "-1"), "-1 layers cannot be kept in float", "Give 0 or more")
    assert leftovers(tmp_path / "o") == []


def test_drift_is_shown_for_every_step(mixed: tuple[str, Path]) -> None:
    said, folder = mixed
    drift = json.loads((folder / "manifest.json").read_text())["parity"]["drift"]
    assert drift["layers"]
    assert f"Drift of h_t in tiny-tflite-int8, {drift['images']} images" in " ".join(said.split())
    rows = [line for line in said.splitlines() if "│" in line]
    for layer, steps in drift["layers"].items():
        assert len(steps["quantization"]) == len(steps["sqnr_db"]) == 2
        row = next(line for line in rows if layer in line)
        shown = " ".join("–" if v is None else f"{v:.1%}" for v in steps["quantization"])
        assert shown in row
        assert " ".join("–" if v is None else f"{v:.0f}" for v in steps["sqnr_db"]) in row


def test_drift_is_shown_when_asked_for_only(checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    done = run(checkpoint, "-t", "tflite-fp32", "-o", tmp_path / "o", "--parity-images", "24")
    assert done.returncode == 0, done.stderr
    assert "Drift" not in done.stdout
    assert (
        "drift" in json.loads((tmp_path / "o" / "tiny-tflite-fp32" / "manifest.json").read_text())["parity"]
    )
