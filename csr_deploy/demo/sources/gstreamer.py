"""GStreamer pipelines, and with one the CSI cameras of a Jetson.

The pipeline runs in a process of its own, `gst-launch-1.0`, whose raw frames come through a pipe. OpenCV's
own bridge to GStreamer exists only in builds that were made with it, and the one on the registry was not.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import tempfile
from typing import IO, Any

import numpy as np

from csr_deploy.demo.errors import SourceError
from csr_deploy.demo.frames import Shot, to_picture
from csr_deploy.demo.sources.base import Source, SourceOptions
from csr_deploy.errors import OptionError

PROGRAM = "gst-launch-1.0"
_CHANNELS = 4
_MESSAGE_LINES = 3


class GStreamerSource(Source):
    """Frames of a pipeline.

    Args:
        elements: The pipeline, as on the command line of gst-launch-1.0, up to frames in main memory.
        options: Size and rate that the frames are brought to.
        label: For messages.
    """

    def __init__(self, elements: str, options: SourceOptions, label: str = "gst") -> None:
        try:
            words = shlex.split(elements)
        except ValueError as error:
            raise OptionError(f"the pipeline cannot be read: {error}", where=elements) from error
        if not words:
            raise OptionError(
                "there is no pipeline behind 'gst:'", fix="Give one, e.g. --source 'gst:v4l2src'."
            )
        # Four bytes a pixel: rows of three would be filled up to a multiple of four.
        size = f"width={options.width},height={options.height}"
        self._words = [
            *words,
            *("!", "videoconvert", "!", "videoscale", "!", f"video/x-raw,format=RGBA,{size}"),
            # What is late is dropped here, so that the newest frame is the next one.
            *("!", "queue", "leaky=downstream", "max-size-buffers=1", "!", "fdsink", "fd=1", "sync=false"),
        ]
        self._shape = (options.height, options.width, _CHANNELS)
        self._label = label
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    @property
    def name(self) -> str:
        return self._label

    def open(self) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise SourceError(
                f"needs {PROGRAM}, which is not installed",
                where=self.name,
                fix="Run: sudo apt install gstreamer1.0-tools gstreamer1.0-plugins-base "
                "gstreamer1.0-plugins-good",
            )
        # A file, not a pipe: nobody reads it meanwhile, and a full pipe would stop GStreamer.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [program, "--quiet", *self._words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._said,
            # Ctrl-C ends the demo, which then ends what it has started.
            start_new_session=True,
        )

    def read(self) -> Shot:
        assert self._process is not None and self._process.stdout is not None
        # bytearray: the array below can then be written to, as those of all other sources.
        content = bytearray(int(np.prod(self._shape)))
        view, done = memoryview(content), 0
        while done < len(content):
            count = self._process.stdout.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise SourceError(f"the pipeline ended: {self._reason()}", where=self.name)
            done += count
        pixels: Any = np.frombuffer(content, np.uint8).reshape(self._shape)
        return Shot(to_picture(pixels))

    def _reason(self) -> str:
        assert self._process is not None and self._said is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines()]
        errors = [line for line in lines if "ERROR" in line or "error" in line] or lines
        return "\n".join(errors[:_MESSAGE_LINES]) or f"exit status {self._process.returncode}"

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if self._said is not None:
            self._said.close()
            self._said = None


def jetson_camera(sensor: int, options: SourceOptions) -> GStreamerSource:
    """A camera at the CSI connector of a Jetson, through NVIDIA's image processor."""
    rate = f"{round(options.fps)}/1"
    wanted = f"width={options.width},height={options.height},framerate={rate},format=NV12"
    elements = (
        f"nvarguscamerasrc sensor-id={sensor} ! 'video/x-raw(memory:NVMM),{wanted}' "
        "! nvvidconv ! video/x-raw,format=RGBA"
    )
    return GStreamerSource(elements, options, f"csi:{sensor}")
