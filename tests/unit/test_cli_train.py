"""csr-train as a user runs it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from csr_deploy import __version__
from csr_deploy.checkpoint import load_checkpoint
from csr_deploy.cli import common
from csr_deploy.cli.train import main
from csr_deploy.curve import read_curve
from csr_deploy.data import open_dataset
from csr_deploy.errors import CsrError, MissingDependencyError

MODULE = [sys.executable, "-m", "csr_deploy.cli.train"]
TINY = [
    "--recipe",
    "short",
    "--batch-size",
    "16",
    "--lr",
    "0.1",
    "--no-bf16",
    "--threads",
    "1",
    "--device",
    "cpu",
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def csr_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["csr-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    # So that tables and lines are not broken.
    monkeypatch.setenv("COLUMNS", "200")
    return run


def loss_of(path: Path, images: Path) -> float:
    checkpoint = load_checkpoint(path)
    pictures, labels = open_dataset(images, "test").load(checkpoint.preprocessing)
    with torch.no_grad():
        logits = checkpoint.build()(torch.from_numpy(checkpoint.preprocessing.normalize(pictures)))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


def test_a_run_from_start_to_end(csr_train: Run, tmp_path: Path, image_folder: Path) -> None:
    out = tmp_path / "run"
    arguments = ["-n", "resnet8", "-d", image_folder, "-o", out, *TINY, "--epochs", 3]
    arguments += ["--csr-modules", 2, "--csr-steps", 2, "--ema", 0.5, "--no-flip", "--weight-decay", 1e-4]
    code, stdout, stderr = csr_train(*arguments)
    assert code == 0, stderr
    assert sorted(p.name for p in out.iterdir()) == ["curves.png", "metrics.csv", "model.pt", "resume.pt"]
    checkpoint = load_checkpoint(out / "model.pt")
    assert checkpoint.architecture.name == "resnet8-m2t2"
    assert checkpoint.preprocessing.channels == 3
    recipe = checkpoint.training["recipe"]
    assert [recipe[k] for k in ("epochs", "ema_decay", "flip", "weight_decay")] == [3, 0.5, False, 1e-4]
    assert "72 training and 24 test images, 16×16 RGB, 3 classes" in stderr
    assert stderr.count("train loss") == 3
    assert f"{checkpoint.metrics['test_top1']:.2%} (24 images)" in stdout
    assert str(out / "model.pt") in stdout
    with Image.open(out / "curves.png") as picture:
        assert picture.format == "PNG"

    code, stdout, stderr = csr_train(*arguments)
    assert code == 1
    assert f"Error: {out}: already holds a run" in stderr
    code, stdout, stderr = csr_train(*arguments, "--resume", "--lr", 0.2)
    assert code == 1
    assert "recipe.learning_rate was 0.1, is 0.2" in stderr
    assert csr_train(*arguments, "--resume")[0] == 0


def test_gray_images_of_several_sizes(csr_train: Run, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(40):
        folder = tmp_path / "images" / ("dark" if index % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 100, (12 + index % 3, 14)) + (0 if index % 2 else 150)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    arguments = ["-n", "resnet8", "-d", tmp_path / "images", "-o", tmp_path / "run", *TINY, "--epochs", 1]
    code, _, stderr = csr_train(*arguments)
    assert code == 1
    assert "different sizes, from 12×14 to 14×14" in stderr
    code, _, stderr = csr_train(*arguments, "--image-size", "12x16", "--no-plot")
    assert code == 0, stderr
    assert "12×16 gray, 2 classes" in stderr
    assert load_checkpoint(tmp_path / "run" / "model.pt").preprocessing.channels == 1
    assert not (tmp_path / "run" / "curves.png").exists()


def test_damaged_images_are_named(csr_train: Run, tmp_path: Path, image_folder: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    cut = tmp_path / "images" / "train" / "red" / "03.png"
    cut.write_bytes(cut.read_bytes()[:60])
    for index in range(110):
        shutil.copy(cut.with_name("04.png"), cut.with_name(f"x{index}.png"))
    arguments = ["-n", "resnet8", "-d", tmp_path / "images", *TINY, "--epochs", 1, "--no-plot"]
    code, _, stderr = csr_train(*arguments, "-o", tmp_path / "one")
    assert code == 0, stderr
    assert f"Warning: {cut}: damaged" in stderr
    assert "1 images cannot be decoded" in stderr
    assert load_checkpoint(tmp_path / "one" / "model.pt").training["damaged_images"] == 1
    for index in range(20):
        cut.with_name(f"x{index}.png").write_bytes(b"")
    code, _, stderr = csr_train(*arguments, "-o", tmp_path / "many")
    assert code == 1
    assert "21 of 182 images cannot be decoded" in stderr
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-n", "resnet65"], 1, "Did you mean resnet56"),
        (["-n", "resnet8", "--csr-modules", "2"], 1, "needs both"),
        (["-n", "resnet20-csr", "--csr-modules", "2", "--csr-steps", "2"], 1, "already says"),
        (["-n", "resnet8", "--csr-modules", "2", "--csr-steps", "99"], 1, "larger than the channels"),
        (["-n", "resnet8", "--device", "cuda:7"], 1, "--device: device 'cuda:7' asked for"),
        (["-n", "resnet8", "--lr", "-1"], 1, "learning_rate = -1.0 makes no sense"),
        (["-n", "resnet8", "--resume"], 1, "holds no run to resume"),
        (["-n", "vgg16", "--progressive"], 1, "vgg16 cannot take training crops of 12×12"),
        (["-n", "resnet8", "--recipe", "long"], 2, "'long' is not one of"),
        (["-n", "resnet8", "--image-size", "0x3"], 2, "'0x3' is no size"),
        (["-n", "resnet8", "--epochs", "0"], 2, "--epochs"),
        ([], 2, "--network"),
    ],
)
def test_wrong_options(
    csr_train: Run, tmp_path: Path, image_folder: Path, arguments: list[str], code: int, message: str
) -> None:
    ended, stdout, stderr = csr_train("-d", image_folder, "-o", tmp_path / "run", *TINY, *arguments)
    assert ended == code
    assert message in stderr
    assert "Traceback" not in stderr
    assert not stdout
    assert not list((tmp_path / "run").glob("*"))


def test_missing_data(csr_train: Run, tmp_path: Path) -> None:
    code, _, stderr = csr_train("-n", "resnet8", "-d", tmp_path / "none", "-o", tmp_path / "run")
    assert code == 1
    assert f"Error: {tmp_path / 'none'}: does not exist" in stderr


def test_version_and_help(csr_train: Run) -> None:
    assert csr_train("--version")[:2] == (0, f"csr-deploy {__version__}\n")
    code, stdout, _ = csr_train("--help")
    assert code == 0
    for option in ("--network", "--data", "--recipe", "--resume", "--no-bf16", "--csr-steps", "--image-size"):
        assert option in stdout


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; import csr_deploy.cli.train\n"
        "print(*[m for m in ('torch', 'numpy', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def interruptible() -> None:
    # A shell that starts its jobs in the background makes them ignore Ctrl-C, and children inherit it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on(tmp_path: Path, image_folder: Path) -> None:
    out = tmp_path / "a run"
    arguments = ["-n", "resnet8", "-d", str(image_folder), "-o", str(out), *TINY, "--epochs", "9999"]
    process = subprocess.Popen(
        [*MODULE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        preexec_fn=interruptible,
    )
    try:
        until = time.monotonic() + 120
        while not (out / "metrics.csv").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert sorted(p.name for p in out.iterdir()) == ["curves.png", "metrics.csv", "model.pt", "resume.pt"]
    checkpoint = load_checkpoint(out / "model.pt")
    assert checkpoint.training["epochs_done"] == len(read_curve(out / "metrics.csv")) >= 1
    command = shlex.split(stderr.strip().splitlines()[-1])
    assert command == ["python", "-m", "csr_deploy.cli.train", *arguments, "--resume"]


def test_ctrl_c_before_the_first_checkpoint(
    csr_train: Run, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("csr_deploy.train._Run._epoch", interrupted)
    code, _, stderr = csr_train("-n", "resnet8", "-d", image_folder, "-o", tmp_path / "run", *TINY)
    assert code == 130
    assert "before the first epoch was finished" in stderr
    monkeypatch.setattr("csr_deploy.train.prepare_data", interrupted)
    code, _, stderr = csr_train("-n", "resnet8", "-d", image_folder, "-o", tmp_path / "run", *TINY)
    assert (code, stderr) == (130, "Interrupted.\n")


def test_two_processes(csr_train: Run, tmp_path: Path, image_folder: Path) -> None:
    out = tmp_path / "run"
    arguments = [
        "-n",
        "resnet8",
        "-d",
        image_folder,
        "-o",
        out,
        *TINY,
        "--epochs",
        2,
        "--ema",
        0.5,
        "--no-plot",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + ["-m", "csr_deploy.cli.train", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test top-1") == 1
    assert done.stderr.count("epoch 1/2") == 1
    checkpoint = load_checkpoint(out / "model.pt")
    assert checkpoint.training["processes"] == 2
    # Both processes must have tested what was saved, the main one's BatchNorm statistics included.
    assert loss_of(out / "model.pt", image_folder) == pytest.approx(checkpoint.metrics["test_loss"], rel=1e-4)
    code, _, stderr = csr_train(*arguments, "--resume")
    assert code == 1
    assert "processes was 2, is 1" in stderr


# What all commands share


def test_common_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    @common.guarded
    def command(kind: str) -> str:
        if kind == "error":
            raise CsrError("is [red]", where="a/[b]", fix="Do this.")
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "defect":
            raise ZeroDivisionError
        return kind

    assert command("fine") == "fine"
    for kind, code, text in (
        ("error", 1, "Error: a/[b]: is [red]\nDo this.\n"),
        ("interrupt", 130, "Interrupted.\n"),
    ):
        with pytest.raises(typer.Exit) as ended:
            command(kind)
        assert ended.value.exit_code == code
        assert capsys.readouterr().err == text
    with pytest.raises(ZeroDivisionError):
        command("defect")


def test_a_missing_package_names_its_extra() -> None:
    common.require("numpy", "train", "Training")
    with pytest.raises(
        MissingDependencyError, match=r"Training needs the package 'no-such'(.|\n)*csr-deploy\[train\]"
    ):
        common.require("no_such", "train", "Training", package="no-such")
