"""An artifact that classifies one picture after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact
from csr_deploy.bench.metrics import read_memory, release_free_memory
from csr_deploy.data import fit_image
from csr_deploy.demo.frames import Picture
from csr_deploy.errors import OptionError
from csr_deploy.runtimes import Runtime, RuntimeOptions, open_runtime
from csr_deploy.targets import find_target

if TYPE_CHECKING:
    from typing_extensions import Self

RUNTIMES = ("litert", "native", "ort", "trt")
"""Of the targets that the demo runs; the others are for microcontrollers."""


@dataclass(frozen=True)
class Answer:
    """What one network says of one picture.

    Attributes:
        logits: [classes] float32.
        probabilities: Their softmax, [classes] float32.
        preprocess_ns: Resizing, cutting, normalising, quantising.
        inference_ns: The runtime's time, copies included.
        post_ns: Logits and softmax.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    preprocess_ns: int
    inference_ns: int
    post_ns: int


class Classifier:
    """Runs an artifact; open from entering to leaving a with block.

    What happens to a picture is what the evaluation does: `fit_image`, the artifact's `encode`, the runtime,
    the output's `decode`. Nothing is said here a second time.

    Args:
        artifact: Of a target that runs under an operating system.
        threads: Of the runtime.

    Raises:
        OptionError: If the artifact is for something else.
    """

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        target = find_target(artifact.target)
        if target.runtime not in RUNTIMES:
            raise OptionError(
                f"is for the target '{target.name}', which the demo cannot run",
                where=str(artifact.path),
                fix="Export the network as tflite-int8, native, onnx, tensorrt-fp16 or one of these kinds.",
            )
        self.artifact = artifact
        self._runtime: Runtime = open_runtime(None, artifact, RuntimeOptions(threads=threads))
        self.private_bytes: int | None = None

    @property
    def name(self) -> str:
        """Network and target."""
        return f"{self.artifact.name} ({self.artifact.target})"

    @property
    def runtime(self) -> str:
        """Runtime, package and version."""
        return f"{self._runtime.name} {self._runtime.version}"

    def __enter__(self) -> Self:
        self._runtime.build()
        release_free_memory()
        before = read_memory().private_bytes
        self._runtime.__enter__()
        try:
            p = self.artifact.preprocessing
            self(np.zeros((p.height, p.width, p.channels), np.uint8))
        except BaseException:
            self._runtime.__exit__(None, None, None)
            raise
        self.private_bytes = max(read_memory().private_bytes - before, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runtime.__exit__(kind, error, trace)

    def __call__(self, picture: Picture) -> Answer:
        """Classifies a picture of any size, gray or RGB; one at the network's size costs least."""
        start = time.perf_counter_ns()
        inputs = self._encode(picture)
        encoded = time.perf_counter_ns()
        run = self._runtime.run(inputs)
        ran = time.perf_counter_ns()
        logits = self.artifact.output.decode(run.output[:1])[0]
        probabilities = softmax(logits)
        return Answer(logits, probabilities, encoded - start, ran - encoded, time.perf_counter_ns() - ran)

    def _encode(self, picture: Picture) -> NDArray[Any]:
        encoded = self.artifact.encode(fit_image(picture, self.artifact.preprocessing)[None])
        batch = self.artifact.input.shape[0]
        return encoded if batch == 1 else np.repeat(encoded, batch, axis=0)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits, [classes] float32."""
    powers = np.exp(logits - logits.max())
    probabilities: NDArray[np.float32] = (powers / powers.sum()).astype(np.float32)
    return probabilities


class Smoother:
    """Averages probabilities over frames, so that the shown class does not flicker.

    An exponential average whose weight follows the time between frames and not their number: a fast and a
    slow device settle in the same time.

    Args:
        seconds: Time constant; 0 for no smoothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._mean: NDArray[np.float32] | None = None
        self._last_ns = 0

    def __call__(self, probabilities: NDArray[np.float32], now_ns: int) -> NDArray[np.float32]:
        """The average after one more frame.

        Args:
            probabilities: Of the frame.
            now_ns: When it was captured.
        """
        if self._mean is None or not self._seconds:
            self._mean = probabilities
        else:
            passed = max(now_ns - self._last_ns, 0) / 1e9
            keep = np.float32(np.exp(-passed / self._seconds))
            self._mean = keep * self._mean + (1 - keep) * probabilities
        self._last_ns = now_ns
        return self._mean
