"""PyTorch, for checkpoints: the only runtime that imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import MissingDependencyError
from csr_deploy.runtimes.base import Runtime
from csr_deploy.types import TensorSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CheckpointSubject:
    """A checkpoint as a runtime sees it.

    Attributes:
        name: Name of the network.
        model_file: The checkpoint.
        input: NCHW float32 with the batch size asked for.
        output: Logits.
        preprocessing: From a picture to the input.
        labels: Class names.
    """

    name: str
    model_file: Path
    input: TensorSpec
    output: TensorSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...]

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Pictures at the network's size, [N, H, W, C] uint8, to the model's input."""
        return self.input.encode(self.preprocessing.normalize(images))


def read_checkpoint_subject(path: Path, batch: int = 1) -> CheckpointSubject:
    """Reads what a runtime must know of a checkpoint.

    Args:
        path: A model.pt or .safetensors file.
        batch: Batch size to run it with.

    Raises:
        CheckpointError: If the file is no checkpoint.
        MissingDependencyError: If torch is not installed.
    """
    _import_torch()
    from csr_deploy.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    shape = checkpoint.preprocessing
    return CheckpointSubject(
        checkpoint.architecture.name or checkpoint.architecture.backbone,
        path,
        TensorSpec("input", (batch, shape.channels, shape.height, shape.width), "float32", "NCHW"),
        TensorSpec("logits", (batch, len(checkpoint.labels)), "float32", "NC"),
        shape,
        checkpoint.labels,
    )


class TorchRuntime(Runtime):
    """Runs checkpoints in eager mode."""

    name = "torch"
    suffixes = (".pt", ".safetensors")

    def _package(self) -> str:
        return "torch"

    def _accepts(self) -> bool:
        return isinstance(self.subject, CheckpointSubject)

    def _import(self) -> None:
        self._torch = _import_torch()
        # Part of what the runtime needs, not of loading this model.
        import csr_deploy.checkpoint  # noqa: F401

    def _open(self) -> None:
        from csr_deploy.checkpoint import load_checkpoint

        self._threads_before: int = self._torch.get_num_threads()
        self._torch.set_num_threads(self.options.threads)
        self._model: nn.Module = load_checkpoint(self.subject.model_file).build()

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        with self._torch.inference_mode():
            return np.asarray(self._model(self._torch.from_numpy(inputs)).numpy())

    def _close(self) -> None:
        self._torch.set_num_threads(self._threads_before)
        del self._model


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch", "export", "Running a checkpoint", cause=error) from error
    return torch
