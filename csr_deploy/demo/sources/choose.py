"""From the text after --source to a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from csr_deploy.artifact import Artifact
from csr_deploy.data import BUILTIN
from csr_deploy.data.folder import SUFFIXES
from csr_deploy.demo.sources.base import Source, SourceOptions
from csr_deploy.errors import OptionError

AUTO = "auto"
SourceMaker = Callable[[], Source]
"""Makes the source anew, for each time that it is opened."""


def choose_source(text: str, artifact: Artifact, options: SourceOptions) -> SourceMaker:
    """The source that a text names.

    Args:
        text: "auto" (a camera of this machine, else "synthetic"); "0" or "/dev/video0"; "picamera" or
            "picamera:1"; "csi" or "csi:1"; "gst:PIPELINE"; an rtsp://, rtsps://, http:// or https:// address;
            a video or image file; a folder of images; a zip file with an image set, or the name of a packaged
            one; "synthetic".
        artifact: Whose classes are looked for.
        options: How pictures are taken.

    Raises:
        OptionError: If it names nothing of this kind.
    """
    kind, _, rest = text.partition(":")
    if text == AUTO:
        return _first_camera(artifact, options)
    if text == "synthetic":
        from csr_deploy.demo.sources.pictures import SyntheticSource

        return lambda: SyntheticSource(artifact, options)
    if kind in ("picamera", "csi"):
        return _ribbon_camera(kind, _number(rest, text), options)
    if kind == "gst":
        from csr_deploy.demo.sources.gstreamer import GStreamerSource

        GStreamerSource(rest, options)
        return lambda: GStreamerSource(rest, options)
    if "://" in text:
        from csr_deploy.demo.sources.opencv import STREAMS, StreamSource

        if kind.lower() not in STREAMS:
            raise OptionError(
                f"'{kind}' is no kind of stream", where=text, fix=f"Known: {', '.join(STREAMS)}."
            )
        return lambda: StreamSource(text)
    return _from_path(text, artifact, options)


def _from_path(text: str, artifact: Artifact, options: SourceOptions) -> SourceMaker:
    path = Path(text)
    if text.isdecimal() and not path.exists():
        path = Path(f"/dev/video{int(text)}")
    if path.parts[:2] == ("/", "dev"):
        from csr_deploy.demo.sources.opencv import CameraSource

        return lambda: CameraSource(path, options)
    from csr_deploy.demo.sources.pictures import DatasetSource, FolderSource

    if path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES):
        return lambda: FolderSource(path, artifact.labels, options)
    if (path.is_file() and path.suffix.lower() == ".zip") or (text in BUILTIN and not path.exists()):
        return lambda: DatasetSource(text, options)
    if path.is_file():
        from csr_deploy.demo.sources.opencv import VideoSource

        return lambda: VideoSource(path, options)
    raise OptionError(
        "is no source: there is no such file",
        where=text,
        fix="Give a camera (0, /dev/video0, picamera, csi), a stream (rtsp://…, http://…), a video file, an "
        "image file or folder, an image set, or 'synthetic'.",
    )


def _first_camera(artifact: Artifact, options: SourceOptions) -> SourceMaker:
    from csr_deploy.demo.sources.opencv import CameraSource, cameras
    from csr_deploy.demo.sources.picamera import has_picamera

    # picamera2 first: on a Raspberry Pi the first /dev/video are parts of the image processor.
    if has_picamera():
        return _ribbon_camera("picamera", 0, options)
    found = cameras()
    if found:
        return lambda: CameraSource(found[0], options)
    from csr_deploy.demo.sources.pictures import SyntheticSource

    return lambda: SyntheticSource(artifact, options)


def _ribbon_camera(kind: str, number: int, options: SourceOptions) -> SourceMaker:
    if kind == "csi":
        from csr_deploy.demo.sources.gstreamer import jetson_camera

        return lambda: jetson_camera(number, options)
    from csr_deploy.demo.sources.picamera import PicameraSource

    return lambda: PicameraSource(number, options)


def _number(text: str, whole: str) -> int:
    if text and not text.isdecimal():
        raise OptionError(f"'{text}' is no number of a camera", where=whole, fix="Give 0, 1, ….")
    return int(text or 0)
