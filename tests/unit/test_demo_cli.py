"""csr-demo as a program."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.cli.demo import main
from csr_deploy.demo.catalogue import ARTIFACTS, open_model
from csr_deploy.errors import MissingDependencyError, OptionError
from tests.demo import noise, until, write_video
from tests.onnx_artifact import make_artifact

NOT_ON_A_DEVICE = ("torch", "cv2", "starlette", "uvicorn", "csr_deploy.exporters", "csr_deploy.export")


def demo(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "csr_deploy.cli.demo", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Golden pictures of the shipped network in folders of their classes."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    artifact = open_model("resnet56-csr2")
    golden = artifact.golden()
    root = tmp_path_factory.mktemp("photos")
    for index in range(6):
        folder = root / artifact.labels[golden.labels[index]]
        folder.mkdir(exist_ok=True)
        image.fromarray(golden.images[index]).save(folder / f"{index}.png")
    return root


def test_a_folder_without_a_screen(photos: Path) -> None:
    done = demo("--headless", "--source", photos)
    assert done.returncode == 0, done.stderr
    found = lines(done)
    assert [line["name"] for line in found] == sorted(line["name"] for line in found)  # type: ignore[type-var]
    assert len(found) == 6
    assert [m["name"] for m in found[0]["models"]] == ["resnet56-csr2", "resnet56"]  # type: ignore[attr-defined]
    assert "6 frames" in done.stderr
    assert "Right" in done.stderr


def test_device_side_imports(photos: Path) -> None:
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_ON_A_DEVICE}))\n"
        "from csr_deploy.cli.demo import main; main()"
    )
    command = [sys.executable, "-c", script, "--headless", "--source", str(photos), "--model", "resnet56"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6


def test_a_video_to_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "in.avi", [noise(48, 64, seed=n) for n in range(10)], fps=20)
    out = tmp_path / "out.mp4"
    done = demo("--source", tmp_path / "in.avi", "--record", out, "--model", "resnet56-csr2")
    assert done.returncode == 0, done.stderr
    import cv2

    video = cv2.VideoCapture(str(out))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (10, 20)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere", "--headless"], 1, "there is no such artifact or network"),
        (["--model", "resnet55", "--headless"], 1, "Did you mean resnet56?"),
        (["--headless", "--source", "977"], 1, "there is no such camera"),
        (["--headless", "--source", "nowhere.mp4"], 1, "is no source"),
        (["--headless", "--size", "640"], 2, "is no size"),
        (["--headless", "--size", "1x1"], 1, "16x16 to"),
        (["x", "--model", "resnet56"], 2, "not both"),
        (["--source", "synthetic", "--record", "x.txt"], 1, "no kind of video"),
        (["--source", "synthetic", "--host", "no.such.host.invalid"], 1, "is no address of this machine"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["csr-demo", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    assert caught.value.code == status, said.err
    assert message in " ".join(said.err.replace("│", " ").split())
    assert said.out == ""


def test_an_artifact_that_was_changed(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "changed"
    shutil.copytree(ARTIFACTS / "resnet56-tflite-int8", path)
    content = bytearray((path / "resnet56.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "resnet56.tflite").write_bytes(content)
    done = demo(path, "--headless", "--source", photos)
    assert done.returncode == 1
    assert "was changed after the manifest was written" in done.stderr
    assert "Traceback" not in done.stderr
    again = demo("--model", "resnet56-csr2", "--against", path, "--headless", "--source", photos)
    assert again.returncode == 1


def test_networks_of_different_classes_are_compared_with_a_warning(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    artifact = make_artifact(tmp_path / "colours")
    done = demo(artifact.path, "--against", "resnet56", "--headless", "--source", photos)
    assert done.returncode == 0, done.stderr
    assert "know different classes" in done.stderr
    assert len(done.stdout.splitlines()) == 6


def test_pictures_that_are_all_damaged(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"no picture")
    done = demo("--headless", "--source", tmp_path)
    assert done.returncode == 1
    assert "not one of 5 pictures can be decoded" in done.stderr
    assert done.stderr.count("left out") == 3


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """csr-demo with a page, and its address."""
    command = [sys.executable, "-m", "csr_deploy.cli.demo", "--source", "synthetic", "--port", "0"]
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([*command, "--size", "96x64"], stderr=log, text=True)
    try:
        until(lambda: "Open http" in (tmp_path / "log").read_text() or process.poll() is not None)
        text = (tmp_path / "log").read_text()
        yield process, next(w for w in text.split() if w.startswith("http://127.0.0.1:"))
    finally:
        process.kill()
        process.wait()
        log.close()


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_with_a_summary(
    served: tuple[subprocess.Popen[str], str], number: int, tmp_path: Path
) -> None:
    process, address = served
    until(lambda: json.loads(get(address + "status.json"))["frames"] > 3)
    assert get(address).startswith(b"<!doctype html>")
    process.send_signal(number)
    assert process.wait(20) == 0
    text = (tmp_path / "log").read_text()
    assert "Medians in ms" in text
    assert "Traceback" not in text
    with pytest.raises(urllib.error.URLError):
        get(address)


def test_a_port_in_use(served: tuple[subprocess.Popen[str], str]) -> None:
    port = served[1].rstrip("/").rpartition(":")[2]
    done = demo("--source", "synthetic", "--port", port)
    assert done.returncode == 1
    assert "in use by another program" in done.stderr


def test_others_need_the_token_that_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "csr_deploy.cli.demo", "--source", "synthetic", "--port", "0"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--host", "0.0.0.0", "--frames", "100000"], stderr=stream)
    try:
        until(lambda: "is not encrypted" in log.read_text() or process.poll() is not None)
        address = next(w for w in log.read_text().split() if w.startswith("http://"))
        port, _, token = address.rpartition(":")[2].partition("/?token=")
        assert len(token) >= 22
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"http://127.0.0.1:{port}/")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/", headers={"Authorization": f"Bearer {token}"}
        )
        assert get_request(request).startswith(b"<!doctype html>")
    finally:
        process.kill()
        process.wait()


def get_request(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


def test_a_reader_that_has_seen_enough(photos: Path) -> None:
    command = [sys.executable, "-m", "csr_deploy.cli.demo", "--headless", "--source", "synthetic"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.stdout.close()
    text = process.stderr.read()
    assert process.wait(20) == 0
    assert "Traceback" not in text
    assert "BrokenPipe" not in text
    process.stderr.close()


def test_without_a_screen_a_window_says_so(photos: Path) -> None:
    pytest.importorskip("tkinter", reason="needs tkinter")
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = demo("--display", "--source", photos, env=environment)
    assert done.returncode == 1
    assert "there is no screen to open a window on" in done.stderr


def test_the_synthetic_source_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    if any(Path("/dev").glob("video*")):
        pytest.skip("this machine has a camera, which would be used")
    done = demo("--headless", "--frames", "2")
    assert done.returncode == 0, done.stderr
    assert "No camera was found" in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_efficientnet_on_a_device_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="Then copy the folder ~/.cache/csr-deploy/eff"):
        open_model("efficientnet-lite0")
    with pytest.raises(OptionError, match="Did you mean efficientnet-lite0"):
        open_model("efficientnet-lite")


def test_times_are_of_this_clock(photos: Path) -> None:
    start = time.monotonic()
    (first, *_) = lines(demo("--headless", "--source", photos, "--frames", "1"))
    passed = 1000 * (time.monotonic() - start)
    assert 0 < float(str(first["latency_ms"])) < passed
    assert np.isfinite(float(str(first["capture_ms"])))


@pytest.mark.full
def test_a_window(tmp_path: Path) -> None:
    """Tk on a virtual screen; Ctrl-C ends it."""
    pytest.importorskip("tkinter", reason="needs tkinter")
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb: apt-get install xvfb")
    screen = subprocess.Popen(["Xvfb", ":178", "-screen", "0", "800x600x24"], stderr=subprocess.DEVNULL)
    log = tmp_path / "log"
    try:
        until(lambda: Path("/tmp/.X11-unix/X178").exists())
        environment = {**os.environ, "DISPLAY": ":178"}
        done = demo("--display", "--source", "synthetic", "--frames", "20", env=environment)
        assert done.returncode == 0, done.stderr
        command = [sys.executable, "-m", "csr_deploy.cli.demo", "--display", "--source", "synthetic"]
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream, env=environment)
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Medians in ms" in log.read_text()
    finally:
        screen.terminate()
        screen.wait()
