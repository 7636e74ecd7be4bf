"""Runtimes: what runs an artifact or a checkpoint. Their packages are imported only when one is opened."""

from __future__ import annotations

import difflib
import importlib

from csr_deploy.artifact import Artifact
from csr_deploy.errors import OptionError
from csr_deploy.runtimes.base import Runtime, RuntimeOptions, Subject
from csr_deploy.targets import find_target

RUNTIMES: dict[str, str] = {
    "litert": "csr_deploy.runtimes.litert:LitertRuntime",
    "mcu": "csr_deploy.runtimes.mcu.runtime:McuRuntime",
    "native": "csr_deploy.runtimes.native.runtime:NativeRuntime",
    "ort": "csr_deploy.runtimes.ort:OrtRuntime",
    "tflm": "csr_deploy.runtimes.tflm:TflmRuntime",
    "torch": "csr_deploy.runtimes.torch:TorchRuntime",
    "trt": "csr_deploy.runtimes.trt.runtime:TrtRuntime",
}

__all__ = ["RUNTIMES", "Runtime", "RuntimeOptions", "Subject", "find_runtime", "open_runtime"]


def find_runtime(name: str) -> type[Runtime]:
    """The runtime of that name, a key of `RUNTIMES`.

    Raises:
        OptionError: If there is none, with the closest names.
    """
    if name not in RUNTIMES:
        close = difflib.get_close_matches(name, RUNTIMES, n=2)
        raise OptionError(
            f"unknown runtime '{name}'",
            fix=f"Did you mean {' or '.join(close)}?" if close else f"Runtimes: {', '.join(RUNTIMES)}.",
        )
    module, _, attribute = RUNTIMES[name].partition(":")
    found: type[Runtime] = getattr(importlib.import_module(module), attribute)
    return found


def open_runtime(name: str | None, subject: Subject, options: RuntimeOptions | None = None) -> Runtime:
    """The runtime for a subject, to be entered with `with`.

    Args:
        name: A key of `RUNTIMES`; None for the one that an artifact's target names, torch for a checkpoint.
        subject: An artifact, or a `CheckpointSubject`.
        options: Threads and kernels.

    Raises:
        OptionError: If the name is unknown, or the runtime cannot run this subject with these options.
    """
    if name is None:
        name = find_target(subject.target).runtime if isinstance(subject, Artifact) else "torch"
    return find_runtime(name)(subject, options)
