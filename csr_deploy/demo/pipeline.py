"""From frames to results: capture in one thread, inference in another, and what is done with a result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from csr_deploy.data import Preprocessing, fit_image
from csr_deploy.demo.capture import Capture, CaptureOptions, SourceState, raise_failure
from csr_deploy.demo.classifier import Answer, Classifier, Smoother
from csr_deploy.demo.errors import DamagedFrameError
from csr_deploy.demo.frames import Frame, Picture
from csr_deploy.demo.sources.choose import SourceMaker
from csr_deploy.demo.statistics import Statistics

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Ranked:
    """The classes that one network finds most likely.

    Attributes:
        labels: Most likely first.
        shares: Their probabilities, smoothed over frames.
    """

    labels: tuple[str, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """One frame with its answers.

    Attributes:
        frame: The frame.
        answers: Of each network, in the order they were given.
        ranked: The classes to show, likewise.
        waited_ns: From capture to the begin of preprocessing.
        shown_ns: When it was ready, by the monotonic clock.
    """

    frame: Frame
    answers: tuple[Answer, ...]
    ranked: tuple[Ranked, ...]
    waited_ns: int
    shown_ns: int


Sink = Callable[[Result], None]
"""Takes a result in the inference thread."""


@dataclass(frozen=True)
class PipelineOptions:
    """How frames are worked on.

    Attributes:
        top: How many classes are ranked.
        smooth_s: Time constant of smoothing in seconds; pictures that have names of their own, files of a
            folder, are never smoothed.
        frames: Ends after that many results; None for no end.
        capture: How the source is watched.
    """

    top: int = 5
    smooth_s: float = 0.3
    frames: int | None = None
    capture: CaptureOptions = field(default_factory=CaptureOptions)


class Pipeline:
    """Works from entering to leaving a with block.

    Args:
        make_source: Makes the source.
        classifiers: Open ones; the second one, if any, sees the same frames as the first.
        options: How.
        sinks: What is done with each result.
        on_state: Called when the source's state changes.
        on_damaged: Called with frames that cannot be decoded.
    """

    def __init__(
        self,
        make_source: SourceMaker,
        classifiers: Sequence[Classifier],
        options: PipelineOptions | None = None,
        sinks: Sequence[Sink] = (),
        on_state: Callable[[SourceState], None] | None = None,
        on_damaged: Callable[[DamagedFrameError], None] | None = None,
    ) -> None:
        self.classifiers = tuple(classifiers)
        self.options = options or PipelineOptions()
        self.statistics = Statistics(self.classifiers)
        self.capture = Capture(make_source, self.options.capture, on_state, on_damaged)
        self.done = threading.Event()
        self._sinks = tuple(sinks)
        self._smoothers = [Smoother(self.options.smooth_s) for _ in self.classifiers]
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)

    def __enter__(self) -> Self:
        self.capture.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.capture.stop()
        self._thread.join(timeout=10)

    @property
    def state(self) -> SourceState:
        """What the source does."""
        return self.capture.state

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of the source, or the number of frames.

        Returns:
            Whether it has ended.

        Raises:
            CsrError: What ended it, if an error did.
        """
        ended = self.done.wait(timeout_s)
        if ended:
            if self._failure is not None:
                raise self._failure
            raise_failure(self.capture)
        return ended

    def _work(self) -> None:
        try:
            while self.options.frames is None or self.statistics.frames < self.options.frames:
                frame = self.capture.slot.take()
                if frame is None:
                    return
                result = self._classify(frame)
                start = time.monotonic_ns()
                for sink in self._sinks:
                    sink(result)
                self.statistics.add(result, time.monotonic_ns() - start)
        except BaseException as error:
            # It belongs to the main thread, which waits for `done`.
            self._failure = error
        finally:
            self.done.set()
            self.capture.stop()

    def _classify(self, frame: Frame) -> Result:
        start = time.monotonic_ns()
        answers, ranked = [], []
        fitted: dict[Preprocessing, Picture] = {}
        for classifier, smoother in zip(self.classifiers, self._smoothers, strict=True):
            preprocessing = classifier.artifact.preprocessing
            begin = time.perf_counter_ns()
            if preprocessing not in fitted:
                # Two networks of one size share the most expensive step.
                fitted[preprocessing] = fit_image(frame.shot.picture, preprocessing)
            fit_ns = time.perf_counter_ns() - begin
            answer = classifier(fitted[preprocessing])
            answers.append(replace(answer, preprocess_ns=answer.preprocess_ns + fit_ns))
            shares = answer.probabilities
            if frame.shot.name is None:
                shares = smoother(shares, frame.captured_ns)
            ranked.append(rank(shares, classifier.artifact.labels, self.options.top))
        return Result(frame, tuple(answers), tuple(ranked), start - frame.captured_ns, time.monotonic_ns())


def rank(shares: NDArray[np.float32], labels: Sequence[str], top: int) -> Ranked:
    """The most likely classes; of equal ones the first."""
    order = np.argsort(-shares, kind="stable")[:top]
    return Ranked(tuple(labels[i] for i in order), tuple(float(shares[i]) for i in order))
