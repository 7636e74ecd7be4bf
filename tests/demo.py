"""What tests of the camera demo share: sources made by hand, videos, and a running web view."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csr_deploy.artifact import Artifact
from csr_deploy.demo.frames import Picture, Shot
from csr_deploy.demo.pipeline import Pipeline, Result
from csr_deploy.demo.sources.base import Source


class ScriptedSource(Source):
    """Does what a list of steps says, one a read: a picture, None for the end, or an error to raise."""

    def __init__(self, steps: Sequence[Any], *, live: bool = True, pause_s: float = 0.0) -> None:
        self._steps = list(steps)
        self._pause_s = pause_s
        self.live = live  # type: ignore[misc]
        self.closed = threading.Event()

    @property
    def name(self) -> str:
        return "scripted"

    def open(self) -> None:
        if self._steps and isinstance(self._steps[0], str):
            self._steps.pop(0)
            raise self._steps.pop(0)

    def read(self) -> Shot | None:
        if self._pause_s:
            time.sleep(self._pause_s)
        if not self._steps:
            return None
        step = self._steps.pop(0)
        if callable(step):
            step = step()
        if isinstance(step, BaseException):
            raise step
        return None if step is None else Shot(step)

    def close(self) -> None:
        self.closed.set()


class Collector:
    """A sink that keeps results."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def __call__(self, result: Result) -> None:
        self.results.append(result)


def run_to_end(pipeline: Pipeline, seconds: float = 60) -> None:
    """Runs a pipeline until its source ends."""
    with pipeline:
        assert pipeline.wait(seconds), "the pipeline did not end"


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Picture:
    """A picture of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def write_video(path: Path, pictures: Sequence[Picture], *, codec: str = "MJPG", fps: float = 30) -> None:
    """Writes RGB pictures of one size as a video."""
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
    writer.release()


def enlarged(image: Picture, factor: int) -> Picture:
    """Each pixel a square."""
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


@contextlib.contextmanager
def web_view(
    make_source: Callable[[], Source], artifacts: Sequence[Artifact], *, host: str = "127.0.0.1",
    token: str | None = None, **options: Any,
) -> Iterator[Any]:  # fmt: skip
    """The pipeline and the server of csr-demo, in this process; gives the server, with its hub as `hub`."""
    from csr_deploy.demo.classifier import Classifier
    from csr_deploy.demo.hub import Hub
    from csr_deploy.demo.pipeline import PipelineOptions
    from csr_deploy.demo.server import WebServer
    from csr_deploy.demo.system import SystemMonitor

    with contextlib.ExitStack() as stack:
        classifiers = [stack.enter_context(Classifier(a)) for a in artifacts]
        hub = stack.enter_context(Hub(stack.enter_context(SystemMonitor())))
        pipeline = hub.pipeline = Pipeline(make_source, classifiers, PipelineOptions(**options), [hub])
        server: Any = stack.enter_context(WebServer(hub, host, 0, token))
        server.hub = hub
        stack.enter_context(pipeline)
        yield server
