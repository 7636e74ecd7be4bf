"""One JSON object a frame, for programs that read the demo's output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from csr_deploy.demo.classifier import Classifier

if TYPE_CHECKING:
    from csr_deploy.demo.pipeline import Result


class LinePrinter:
    """A sink that writes lines.

    Args:
        classifiers: Whose answers come.
        stream: Where to; flushed after each line.
    """

    def __init__(self, classifiers: Sequence[Classifier], stream: TextIO) -> None:
        self._classifiers = classifiers
        self._stream = stream

    def __call__(self, result: Result) -> None:
        """Writes one line.

        Raises:
            BrokenPipeError: If nobody reads any more.
        """
        self._stream.write(json.dumps(describe(result, self._classifiers)) + "\n")
        self._stream.flush()


def describe(result: Result, classifiers: Sequence[Classifier]) -> dict[str, Any]:
    """A result as plain values; times in ms."""
    shot = result.frame.shot
    return {
        "frame": result.frame.number,
        "name": shot.name,
        "truth": shot.truth,
        "size": [shot.picture.shape[1], shot.picture.shape[0]],
        "capture_ms": _ms(result.frame.capture_ns),
        "latency_ms": _ms(result.shown_ns - result.frame.captured_ns),
        "models": [
            {
                "name": classifier.artifact.name,
                "target": classifier.artifact.target,
                "top": [
                    {"label": label, "share": round(share, 4)}
                    for label, share in zip(ranked.labels, ranked.shares, strict=True)
                ],
                "preprocess_ms": _ms(answer.preprocess_ns),
                "inference_ms": _ms(answer.inference_ns),
                "post_ms": _ms(answer.post_ns),
            }
            for classifier, ranked, answer in zip(classifiers, result.ranked, result.answers, strict=True)
        ],
    }


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
