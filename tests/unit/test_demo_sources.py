"""Sources of the camera demo: what they give, and what they say when there is nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from csr_deploy.artifact import Artifact
from csr_deploy.demo.catalogue import open_model
from csr_deploy.demo.errors import DamagedFrameError, SourceError
from csr_deploy.demo.frames import Shot
from csr_deploy.demo.picture import encode_jpeg
from csr_deploy.demo.sources import Source, SourceOptions, choose_source
from csr_deploy.demo.sources.opencv import CameraSource, StreamSource, VideoSource
from csr_deploy.errors import CsrError, OptionError
from tests.demo import enlarged, noise, write_video

FAST = SourceOptions(realtime=False)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return open_model("resnet56-csr2")


def everything(source: Source) -> tuple[list[Shot], int]:
    """All pictures of a source that ends, and how many were damaged."""
    shots, damaged = [], 0
    with source:
        while True:
            try:
                shot = source.read()
            except DamagedFrameError:
                damaged += 1
                continue
            if shot is None:
                return shots, damaged
            shots.append(shot)


def assert_refused(artifact: Artifact, text: str, message: str) -> None:
    with pytest.raises(CsrError, match=message), choose_source(text, artifact, FAST)():
        pass


def save(path: Path, picture: np.ndarray) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path)


def test_a_folder_of_odd_pictures(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", noise(3, 1001))
    save(tmp_path / "cat" / "2.png", noise(40, 30, 4))
    save(tmp_path / "other" / "3.png", noise(7, 5, 1))
    save(tmp_path / "4.png", noise(1, 1))
    save(tmp_path / ".hidden" / "5.png", noise(4, 4))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.jpg").write_bytes(encode_jpeg(noise(32, 32))[:200])
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    shots, damaged = everything(choose_source(str(tmp_path), artifact, FAST)())
    assert [(s.name, s.truth) for s in shots] == [
        ("4.png", None),
        ("cat/1.png", "cat"),
        ("cat/2.png", "cat"),
        ("other/3.png", None),
    ]
    assert [s.picture.shape for s in shots] == [(1, 1, 3), (3, 1001, 3), (40, 30, 3), (7, 5, 1)]
    assert damaged == 2


def test_one_image_file_and_no_image_file(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(8, 8))
    shots, _ = everything(choose_source(str(tmp_path / "a.png"), artifact, FAST)())
    assert [s.name for s in shots] == ["a.png"]
    (tmp_path / "empty").mkdir()
    assert_refused(artifact, str(tmp_path / "empty"), "holds no image files")


def test_a_folder_begins_again_unless_all_of_it_is_damaged(artifact: Artifact, tmp_path: Path) -> None:
    options = SourceOptions(realtime=False, loop=True)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with choose_source(str(tmp_path), artifact, options)() as source:
        with pytest.raises(DamagedFrameError, match="not an image"):
            source.read()
        assert source.read() is None
    save(tmp_path / "2.png", noise(8, 8))
    with choose_source(str(tmp_path), artifact, options)() as source:
        names = []
        for _ in range(6):
            try:
                shot = source.read()
                names.append(shot.name if shot else None)
            except DamagedFrameError:
                names.append("damaged")
    assert names == ["damaged", "2.png"] * 3


def test_a_packaged_image_set(artifact: Artifact) -> None:
    with choose_source("fashion-mnist", artifact, FAST)() as source:
        shot = source.read()
    assert shot is not None
    assert shot.picture.shape == (28, 28, 1)
    assert shot.truth is not None


def test_the_synthetic_source_shows_the_golden_pictures(artifact: Artifact) -> None:
    with choose_source("synthetic", artifact, SourceOptions(200, 120, realtime=False))() as source:
        # Two seconds of 30 frames for each of the 16.
        shots = [source.read() for _ in range(1000)]
    known = {artifact.labels[label] if label >= 0 else None for label in artifact.golden().labels}
    assert {s.truth for s in shots if s} == known
    assert all(s is not None and s.picture.shape == (120, 200, 3) for s in shots)
    pairs = zip(shots, shots[1:], strict=False)
    assert all(a and b and not np.array_equal(a.picture, b.picture) for a, b in pairs)


def test_a_video_gives_all_its_frames(artifact: Artifact, tmp_path: Path) -> None:
    pictures = [enlarged(noise(6, 8, seed=i), 20) for i in range(12)]
    write_video(tmp_path / "v.avi", pictures)
    shots, damaged = everything(choose_source(str(tmp_path / "v.avi"), artifact, FAST)())
    assert (len(shots), damaged) == (12, 0)
    for shot, picture in zip(shots, pictures, strict=True):
        # JPEG, with colours at half the size; red and blue swapped would be far off.
        assert np.abs(shot.picture.astype(int) - picture).mean() < 25


def test_a_video_begins_again(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", [noise(32, 32, seed=i) for i in range(3)])
    with VideoSource(tmp_path / "v.avi", SourceOptions(realtime=False, loop=True)) as source:
        shots = [source.read() for _ in range(8)]
        assert source.fps == 30
    assert all(shot is not None for shot in shots)
    assert np.array_equal(shots[0].picture, shots[3].picture)  # type: ignore[union-attr]
    assert not np.array_equal(shots[0].picture, shots[1].picture)  # type: ignore[union-attr]


@pytest.mark.parametrize("codec", ["MJPG", "XVID"])
def test_damaged_frames_of_a_video_are_passed_over(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    write_video(path, [noise(64, 96, seed=i) for i in range(40)], codec=codec)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : third + 12_000] = bytes(12_000)
    path.write_bytes(content)
    shots, damaged = everything(VideoSource(path, FAST))
    assert damaged > 0
    assert len(shots) >= 20
    assert len(shots) + damaged == 40


def test_a_video_that_breaks_off_ends(tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    write_video(path, [noise(64, 96, seed=i) for i in range(40)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shots, damaged = everything(VideoSource(path, FAST))
    assert 10 < len(shots) < 30
    assert damaged > 0


def test_what_is_no_video(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(SourceError, match="is not a video"), choose_source(str(path), artifact, FAST)():
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.mp4", "is no source"),
        ("ftp://host/x", "'ftp' is no kind of stream"),
        ("picamera:x", "'x' is no number"),
        ("csi:one", "'one' is no number"),
        ("gst:", "no pipeline"),
        ("gst:'unclosed", "cannot be read"),
    ],
)
def test_texts_that_name_no_source(artifact: Artifact, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_source(text, artifact, FAST)


def test_no_camera(artifact: Artifact) -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    for text in ("977", "/dev/video977"):
        source = choose_source(text, artifact, FAST)()
        assert source.name == "/dev/video977"
        with pytest.raises(SourceError, match="there is no such camera"), source:
            pass


def test_a_busy_camera_names_who_uses_it(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    device = tmp_path / "video0"
    device.write_bytes(b"")
    with pytest.raises(SourceError, match="is not a camera"), CameraSource(device, FAST):
        pass
    code = f"import sys, time; f = open({str(device)!r}); print('open', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(SourceError, match=rf"busy: .*\(process {holder.pid}\)"),
            CameraSource(device, FAST),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_a_camera_that_this_user_may_not_use() -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    # Not in the folder of the tests, which other users may not enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        device = Path(folder, "video0")
        device.write_bytes(b"")
        device.chmod(0)
        code = (
            "import os, pathlib; from csr_deploy.demo.sources.opencv import CameraSource, import_opencv\n"
            "from csr_deploy.demo.sources import SourceOptions\n"
            "import_opencv('x')\n"
            # Root may use everything.
            "os.geteuid() or os.setuid(65534)\n"
            f"CameraSource(pathlib.Path({str(device)!r}), SourceOptions()).open()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "this user may not use the camera" in done.stderr
    assert "group video" in done.stderr


class _Mjpeg(BaseHTTPRequestHandler):
    """A network camera: MJPEG over HTTP, `frames` pictures of it."""

    frames: ClassVar[int] = 10

    def do_GET(self) -> None:  # noqa: N802
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
        self.end_headers()
        for number in range(self.frames):
            jpeg = encode_jpeg(enlarged(np.full((4, 4, 3), 20 * number, np.uint8), 16))
            self.wfile.write(b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
            self.wfile.write(jpeg + b"\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def network_camera() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mjpeg)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/stream"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_stream_that_stops(artifact: Artifact, network_camera: str) -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    with choose_source(network_camera, artifact, FAST)() as source:
        shots = []
        with pytest.raises(SourceError, match="the stream has stopped"):
            while True:
                shots.append(source.read())
    assert len(shots) >= 8
    assert all(shot is not None and shot.picture.shape == (64, 64, 3) for shot in shots)


def test_a_stream_that_does_not_answer_keeps_the_password() -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    source = StreamSource("rtsp://user:secret@127.0.0.1:9/cam")
    with pytest.raises(SourceError, match="cannot be opened") as caught, source:
        pass
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:9/cam" in str(caught.value)


# What GStreamer does with `fdsink`: raw frames on standard output. The program itself is not a part of CI's
# machine; it was run by hand with `videotestsrc`.
GST_LAUNCH = """#!{python}
import os, re, sys
words = sys.argv[1:]
print(" ".join(words), file=sys.stderr)
if "broken" in words:
    sys.exit("ERROR: pipeline could not be constructed: no element \\"broken\\".")
caps = next(w for w in words if w.startswith("video/x-raw,format=RGBA,width"))
width, height = map(int, re.findall(r"=(\\d+)", caps))
for number in range(3):
    # In pieces, as through a pipe.
    frame = bytes((number, 10, 20, 255)) * (width * height)
    for start in range(0, len(frame), 1000):
        os.write(1, frame[start : start + 1000])
"""


@pytest.fixture
def gst_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gst-launch-1.0"
    program.parent.mkdir()
    program.write_text(GST_LAUNCH.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


@pytest.mark.usefixtures("gst_launch")
def test_frames_through_a_pipe_from_gstreamer(artifact: Artifact) -> None:
    options = SourceOptions(63, 41)
    for text in ("gst:videotestsrc ! videorate", "csi:1"):
        with choose_source(text, artifact, options)() as source:
            shots = [source.read() for _ in range(3)]
            assert [s.picture[40, 62].tolist() for s in shots if s] == [[n, 10, 20] for n in range(3)]
            assert all(s and s.picture.shape == (41, 63, 3) for s in shots)
            with pytest.raises(SourceError, match="the pipeline ended") as caught:
                source.read()
    assert "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=63,height=41" in str(caught.value)
    assert "sensor-id=1" in str(caught.value)
    with (
        choose_source("gst:broken", artifact, options)() as source,
        pytest.raises(SourceError, match="no element"),
    ):
        source.read()


def test_gstreamer_is_not_installed(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(artifact, "csi", "apt install gstreamer1.0-tools")


# The calls of picamera2 that the demo makes, as its manual describes them: the real one exists on a Raspberry
# Pi alone.
PICAMERA2 = """
import numpy as np
class Picamera2:
    cameras = [{"Model": "imx708"}]
    busy, closed = False, 0
    @classmethod
    def global_camera_info(cls): return cls.cameras
    def __init__(self, number):
        self.number, self.frames, self.running = number, 0, False
    def create_video_configuration(self, main, controls):
        return {"main": main, "controls": controls}
    def configure(self, configuration):
        assert configuration["main"]["format"] == "BGR888"
        self.size = configuration["main"]["size"]
    def start(self):
        if Picamera2.busy:
            raise RuntimeError("Failed to acquire camera: Device or resource busy")
        self.running = True
    def capture_array(self, name):
        assert name == "main" and self.running
        self.frames += 1
        if self.frames > 2: raise RuntimeError("Camera frontend has timed out!")
        return np.full((self.size[1], self.size[0], 3), (200, 100, 50), np.uint8)
    def stop(self): self.running = False
    def close(self): Picamera2.closed += 1
"""


@pytest.fixture
def picamera2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "picamera2.py").write_text(PICAMERA2)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("picamera2", None)


@pytest.mark.usefixtures("picamera2")
def test_the_camera_of_a_raspberry_pi(artifact: Artifact) -> None:
    source = choose_source("auto", artifact, SourceOptions(64, 48))()
    assert source.name == "picamera:0"
    with source:
        shot = source.read()
        assert shot is not None
        assert shot.picture.shape == (48, 64, 3)
        assert shot.picture[0, 0].tolist() == [200, 100, 50]
        source.read()
        with pytest.raises(SourceError, match="gives no more pictures"):
            source.read()
    module = sys.modules["picamera2"]
    assert module.Picamera2.closed == 1
    module.Picamera2.busy = True
    assert_refused(artifact, "picamera", "the camera is busy")
    assert_refused(artifact, "picamera:1", r"no such camera \(1 found\)")


def test_picamera2_is_not_installed(artifact: Artifact) -> None:
    assert_refused(artifact, "picamera", "apt install python3-picamera2")
