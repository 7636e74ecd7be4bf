"""USB cameras, network streams and video files, through OpenCV."""

from __future__ import annotations

import importlib
import os
import re
import stat
from pathlib import Path
from typing import Any

import psutil

from csr_deploy.demo.errors import DamagedFrameError, SourceError
from csr_deploy.demo.frames import Shot, to_picture
from csr_deploy.demo.sources.base import Pace, Source, SourceOptions
from csr_deploy.errors import MissingDependencyError

STREAMS = ("rtsp", "rtsps", "http", "https")
_TIMEOUT_MS = 5000
# Frames of a video that may be lost in a row before the rest is given up.
_MOST_DAMAGED = 250


def import_opencv(purpose: str) -> Any:
    """OpenCV, quiet.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    # FFmpeg in OpenCV prints what it thinks of a damaged video; the demo says it itself.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise MissingDependencyError("opencv-python-headless", "demo", purpose, cause=error) from error


class _OpenCvSource(Source):
    """What the three have in common: a `VideoCapture`."""

    _cv2: Any = None
    _capture: Any = None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _next(self) -> Any | None:
        """The next frame in OpenCV's order of colours, or None."""
        cv2 = self._cv2
        try:
            good, values = self._capture.read()
        except cv2.error as error:
            raise DamagedFrameError(f"cannot be decoded: {error.err}", where=self.name) from error
        return values if good else None


class CameraSource(_OpenCvSource):
    """A camera that the kernel shows as /dev/video…, USB cameras above all."""

    def __init__(self, device: Path, options: SourceOptions) -> None:
        self._device = device
        self._options = options

    @property
    def name(self) -> str:
        return str(self._device)

    def open(self) -> None:
        self._cv2 = cv2 = import_opencv("Reading a camera")
        self._check()
        capture = self._capture = cv2.VideoCapture(str(self._device), cv2.CAP_V4L2)
        if not capture.isOpened():
            raise self._refused()
        options = self._options
        if options.width * options.height > 640 * 480:
            # More than this does not go through USB 2 uncompressed at 30 pictures a second.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.height)
        capture.set(cv2.CAP_PROP_FPS, options.fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> Shot:
        values = self._next()
        if values is None:
            raise SourceError("the camera gives no more pictures", where=self.name)
        return Shot(to_picture(values, blue_first=True))

    def _check(self) -> None:
        """Says why it cannot be opened, where the file alone tells."""
        if not self._device.exists():
            others = ", ".join(str(p) for p in cameras())
            raise SourceError(
                "there is no such camera",
                where=self.name,
                fix=f"Cameras here: {others}."
                if others
                else "There is no camera here. Plug one in, or use "
                "--source synthetic, a video file or a folder of images.",
            )
        if not os.access(self._device, os.R_OK | os.W_OK):
            raise SourceError(
                "this user may not use the camera",
                where=self.name,
                fix="Add the user to the group video: sudo usermod -aG video $USER, and log in again.",
            )

    def _refused(self) -> SourceError:
        if holder := holder_of(self._device):
            return SourceError(
                f"the camera is busy: {holder} uses it", where=self.name, fix="End that program."
            )
        if not stat.S_ISCHR(self._device.stat().st_mode):
            return SourceError("is not a camera", where=self.name, fix=None)
        return SourceError(
            "the camera cannot be opened; another program may use it, or this is not the one that pictures "
            "come from",
            where=self.name,
            fix="Try the others that v4l2-ctl --list-devices shows. A Raspberry Pi's is --source picamera.",
        )


def cameras() -> list[Path]:
    """The video devices of this machine, by number."""
    found = [p for p in Path("/dev").glob("video*") if re.fullmatch(r"video\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("video")))


def holder_of(device: Path) -> str | None:
    """Another process that has a device open, in words; only processes of the same user can be seen."""
    target = os.path.realpath(device)
    for process in psutil.process_iter(["name", "pid"]):
        if process.pid == os.getpid():
            continue
        try:
            links = Path(f"/proc/{process.pid}/fd").iterdir()
            if any(os.path.realpath(link) == target for link in links):
                return f"{process.info['name']} (process {process.pid})"
        except OSError:
            continue
    return None


class StreamSource(_OpenCvSource):
    """RTSP, or MJPEG and video over HTTP."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def name(self) -> str:
        # The password of a camera does not belong into a log.
        return re.sub(r"(://)[^/@]*@", r"\1…@", self._url)

    def open(self) -> None:
        self._cv2 = cv2 = import_opencv("Reading a stream")
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            _TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            _TIMEOUT_MS,
        ]
        self._capture = cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, limits)
        if not self._capture.isOpened():
            raise SourceError(
                "the stream cannot be opened",
                where=self.name,
                fix="See whether the address, the user and the password are right, and whether the camera "
                "answers.",
            )

    def read(self) -> Shot:
        values = self._next()
        if values is None:
            raise SourceError("the stream has stopped", where=self.name)
        return Shot(to_picture(values, blue_first=True))


class VideoSource(_OpenCvSource):
    """A video file."""

    live = False

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._path = path
        self._options = options

    @property
    def name(self) -> str:
        return str(self._path)

    def open(self) -> None:
        self._cv2 = cv2 = import_opencv("Reading a video")
        if not self._path.is_file():
            raise SourceError("is not a file", where=self.name)
        self._start()
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._fps = fps if 0 < fps <= 1000 else 30.0
        self._pace = Pace(self._fps if self._options.realtime else None)

    @property
    def fps(self) -> float:
        """Frames a second that the file was made with; once open."""
        return self._fps

    def _start(self) -> None:
        cv2 = self._cv2
        self.close()
        self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise SourceError(
                "is not a video that OpenCV reads",
                where=self.name,
                fix="Give an .mp4, .avi, .mkv or .mov file.",
            )
        # Of some files it is a guess, and of others negative.
        self._frames = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self._seen = self._lost = self._lost_in_a_row = 0

    def read(self) -> Shot | None:
        self._pace.wait()
        values = self._next()
        if values is None and self._options.loop and self._seen and self._at_end():
            self._start()
            values = self._next()
        if values is None:
            if self._at_end():
                return None
            self._lost += 1
            self._lost_in_a_row += 1
            raise DamagedFrameError("a frame of the video cannot be decoded", where=self.name)
        self._seen += 1
        self._lost_in_a_row = 0
        return Shot(to_picture(values, blue_first=True))

    def _at_end(self) -> bool:
        # OpenCV says the same of a frame that it cannot decode as of the end.
        return self._seen + self._lost >= self._frames or self._lost_in_a_row >= _MOST_DAMAGED
