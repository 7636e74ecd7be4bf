"""The camera of a Raspberry Pi, through picamera2, which Raspberry Pi OS brings."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from csr_deploy.demo.errors import SourceError
from csr_deploy.demo.frames import Shot, to_picture
from csr_deploy.demo.sources.base import Source, SourceOptions
from csr_deploy.errors import MissingDependencyError

_PACKAGE = "picamera2"


def has_picamera() -> bool:
    """Whether picamera2 is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


class PicameraSource(Source):
    """A camera at the ribbon connector.

    Args:
        number: Of the camera, from 0.
        options: Size and rate.
    """

    def __init__(self, number: int, options: SourceOptions) -> None:
        self._number = number
        self._options = options
        self._camera: Any = None

    @property
    def name(self) -> str:
        return f"picamera:{self._number}"

    def open(self) -> None:
        # libcamera tells its life otherwise.
        os.environ.setdefault("LIBCAMERA_LOG_LEVELS", "*:ERROR")
        if not has_picamera():
            raise MissingDependencyError(
                _PACKAGE,
                "demo",
                "The Raspberry Pi camera",
                fix="Run: sudo apt install python3-picamera2, and make the virtual environment with "
                "--system-site-packages.",
            )
        module = importlib.import_module(_PACKAGE)
        found = module.Picamera2.global_camera_info()
        if self._number >= len(found):
            raise SourceError(
                f"there is no such camera ({len(found)} found)",
                where=self.name,
                fix="Switch the board off and see to the ribbon cable; rpicam-hello --list-cameras shows "
                "what is found.",
            )
        options = self._options
        try:
            self._camera = module.Picamera2(self._number)
            # libcamera's BGR888 is red first in memory.
            configuration = self._camera.create_video_configuration(
                main={"size": (options.width, options.height), "format": "BGR888"},
                controls={"FrameRate": options.fps},
            )
            self._camera.configure(configuration)
            self._camera.start()
        except (RuntimeError, OSError, IndexError) as error:
            busy = "busy" in str(error).lower() or "acquire" in str(error).lower()
            raise SourceError(
                "the camera is busy: another program uses it" if busy else f"cannot be started: {error}",
                where=self.name,
                fix="End the other program." if busy else None,
            ) from error

    def read(self) -> Shot:
        try:
            values = self._camera.capture_array("main")
        except (RuntimeError, OSError) as error:
            raise SourceError(f"the camera gives no more pictures: {error}", where=self.name) from error
        return Shot(to_picture(values))

    def close(self) -> None:
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.stop()
            camera.close()
