"""What the demo tells of itself: times, rates, agreement. Its memory does not grow with the frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from csr_deploy.demo.classifier import Classifier

if TYPE_CHECKING:
    from csr_deploy.demo.pipeline import Result

STAGES = ("capture", "wait", "preprocess", "inference", "post", "output", "latency")
"""Of a frame: taking it, lying ready, preprocessing, the runtime, softmax and ranking, sinks; and from
capture to the result. Preprocessing to post add the networks up."""
_WINDOW = 120
_FPS_SECONDS = 2.0


@dataclass(frozen=True)
class Compared:
    """One network of the comparison.

    Attributes:
        name: Network.
        target: Its target.
        bytes: Size of the model file.
        private_bytes: Memory that loading it and one inference added, as far as it can be told in a process
            that does other things too.
        inference_ms: Median of the last frames.
        agreement: Share of frames with the first network's class; 1 for the first one.
        top1: Share of right answers where the class is known; None where it never was.
    """

    name: str
    target: str
    bytes: int
    private_bytes: int | None
    inference_ms: float
    agreement: float
    top1: float | None


@dataclass(frozen=True)
class Snapshot:
    """The statistics at one moment.

    Attributes:
        frames: Results so far.
        fps: Results a second, over the last two seconds.
        stages_ms: Median of each stage over the last frames.
        compared: One row a network.
        known: Frames whose class was known.
        seconds: Since the first result.
    """

    frames: int
    fps: float
    stages_ms: dict[str, float]
    compared: tuple[Compared, ...]
    known: int
    seconds: float


class Statistics:
    """Collects; read from any thread.

    Args:
        classifiers: Whose answers come.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        self._classifiers = classifiers
        self._lock = threading.Lock()
        self._stages = {stage: deque[int](maxlen=_WINDOW) for stage in STAGES}
        self._inference = [deque[int](maxlen=_WINDOW) for _ in classifiers]
        self._times: deque[int] = deque(maxlen=_WINDOW)
        self._agreed = [0] * len(classifiers)
        self._hits = [0] * len(classifiers)
        self._known = 0
        self._first_ns = 0
        self.frames = 0

    def add(self, result: Result, output_ns: int) -> None:
        """One more result.

        Args:
            result: The result.
            output_ns: What the sinks took.
        """
        classes = [int(answer.logits.argmax()) for answer in result.answers]
        names = [c.artifact.labels[k] for c, k in zip(self._classifiers, classes, strict=True)]
        values = {
            "capture": result.frame.capture_ns,
            "wait": result.waited_ns,
            "preprocess": sum(a.preprocess_ns for a in result.answers),
            "inference": sum(a.inference_ns for a in result.answers),
            "post": sum(a.post_ns for a in result.answers),
            "output": output_ns,
            "latency": result.shown_ns - result.frame.captured_ns,
        }
        truth = result.frame.shot.truth
        with self._lock:
            for stage, value in values.items():
                self._stages[stage].append(value)
            for index, answer in enumerate(result.answers):
                self._inference[index].append(answer.inference_ns)
                self._agreed[index] += names[index] == names[0]
                self._hits[index] += truth is not None and names[index] == truth
            self._known += truth is not None
            self._times.append(result.shown_ns)
            self._first_ns = self._first_ns or result.shown_ns
            self.frames += 1

    def snapshot(self) -> Snapshot:
        """The figures now."""
        with self._lock:
            stages = {stage: list(values) for stage, values in self._stages.items()}
            inference = [list(values) for values in self._inference]
            times, frames, known = list(self._times), self.frames, self._known
            agreed, hits, first = list(self._agreed), list(self._hits), self._first_ns
        rows = []
        for index, classifier in enumerate(self._classifiers):
            artifact = classifier.artifact
            rows.append(
                Compared(
                    artifact.name,
                    artifact.target,
                    artifact.files[0].size,
                    classifier.private_bytes,
                    _median_ms(inference[index]),
                    agreed[index] / frames if frames else 1.0,
                    hits[index] / known if known else None,
                )
            )
        seconds = (times[-1] - first) / 1e9 if times else 0.0
        medians = {stage: _median_ms(values) for stage, values in stages.items()}
        # So that the rows of the comparison add up to it.
        medians["inference"] = sum(row.inference_ms for row in rows)
        return Snapshot(
            frames,
            _rate(times),
            medians,
            tuple(rows),
            known,
            seconds,
        )


def _rate(times: list[int]) -> float:
    """Frames a second of the last two seconds; 0 when none came for that long."""
    now = time.monotonic_ns()
    recent = [t for t in times if now - t < _FPS_SECONDS * 1e9]
    if len(recent) < 2:
        return 0.0
    return (len(recent) - 1) * 1e9 / max(recent[-1] - recent[0], 1)


def _median_ms(values: list[int]) -> float:
    return float(np.median(values)) / 1e6 if values else 0.0
