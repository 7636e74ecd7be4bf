"""Annotated video files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from csr_deploy.demo.frames import Picture
from csr_deploy.demo.picture import annotate
from csr_deploy.demo.sources.opencv import import_opencv
from csr_deploy.errors import ExportError, OptionError

if TYPE_CHECKING:
    from typing_extensions import Self

    from csr_deploy.demo.pipeline import Result

_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
# A camera that was away for long would fill the disk with one picture.
_MOST_REPEATS = 300


class Recorder:
    """A sink that writes a video; it appears whole when the block ends.

    Args:
        path: An .mp4, .avi or .mkv file.
        names: Of the networks.
        fps: Frames a second of the video.
        rate: Gives the frames a second to be shown in it.
        realtime: Whether frames are repeated or left out so that the video plays as fast as it was taken;
            otherwise each result is one frame.

    Raises:
        OptionError: If the file has another suffix, or its folder does not exist.
    """

    def __init__(
        self, path: Path, names: Sequence[str], fps: float, rate: Callable[[], float], *, realtime: bool
    ) -> None:
        if path.suffix.lower() not in _CODECS:
            raise OptionError(
                f"'{path.suffix}' is no kind of video that can be written",
                where=str(path),
                fix=f"Use {', '.join(_CODECS)}.",
            )
        if not path.parent.is_dir():
            raise OptionError("there is no such folder", where=str(path.parent), fix="Make it first.")
        self._path = path
        self._names = names
        self._fps = fps
        self._rate = rate
        self._realtime = realtime
        self._cv2 = import_opencv("Writing a video")
        self._writer: Any = None
        self._temporary: Path | None = None
        self.written = 0

    def __enter__(self) -> Self:
        handle, name = tempfile.mkstemp(
            prefix=f".{self._path.stem}.", suffix=self._path.suffix, dir=self._path.parent
        )
        os.close(handle)
        self._temporary = Path(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        assert self._temporary is not None
        if self.written:
            mask = os.umask(0)
            os.umask(mask)
            self._temporary.chmod(0o666 & ~mask)
            self._temporary.replace(self._path)
        self._temporary.unlink(missing_ok=True)

    def __call__(self, result: Result) -> None:
        """Adds one result.

        Raises:
            ExportError: If OpenCV cannot write such a video.
        """
        if self._writer is None:
            self._start_ns = result.frame.captured_ns
        picture = annotate(result, self._names, self._rate())
        if self._writer is None:
            self._open(picture)
        picture = self._fit(picture)
        for _ in range(self._repeats(result)):
            self._writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
            self.written += 1

    def _open(self, picture: Picture) -> None:
        # MPEG-4 has even sizes only.
        self._size = (picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2)
        codec = self._cv2.VideoWriter.fourcc(*_CODECS[self._path.suffix.lower()])
        self._writer = self._cv2.VideoWriter(str(self._temporary), codec, self._fps, self._size)
        if not self._writer.isOpened():
            raise ExportError("OpenCV cannot write such a video", where=str(self._path), fix="Try .avi.")

    def _fit(self, picture: Picture) -> Picture:
        """Brings a frame to the video's size: as large as it fits, in the middle, on black."""
        width, height = self._size
        if picture.shape[0] // 2 * 2 == height and picture.shape[1] // 2 * 2 == width:
            return picture[:height, :width]
        scale = min(width / picture.shape[1], height / picture.shape[0])
        size = (max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1))
        fitted = self._cv2.resize(picture, size, interpolation=self._cv2.INTER_AREA)
        framed = np.zeros((height, width, 3), np.uint8)
        top, left = (height - size[1]) // 2, (width - size[0]) // 2
        framed[top : top + size[1], left : left + size[0]] = fitted
        return framed

    def _repeats(self, result: Result) -> int:
        if not self._realtime:
            return 1
        due = int((result.frame.captured_ns - self._start_ns) / 1e9 * self._fps) + 1
        return min(max(due - self.written, 0), _MOST_REPEATS)
