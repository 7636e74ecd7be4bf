"""Which csr-deploy this is: figures of a device count only where it measures with the same code."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import csr_deploy

_LEFT_OUT = ("__pycache__", ".pyc")
# What runs on a device; exporters, training and the report may differ.
_DEVICE_SIDE = (
    "__init__.py",
    "artifact.py",
    "atomic.py",
    "bench",
    "data",
    "errors.py",
    "runtimes",
    "targets.py",
    "types.py",
)
_HOST_SIDE = ("bench/emulated_pi", "bench/html")


@functools.cache
def code_sha256() -> str:
    """SHA-256 over the names and bytes of the files that run on a device.

    It is the same in a checkout and where that was installed.
    """
    root = Path(csr_deploy.__file__).resolve().parent
    digest = hashlib.sha256()
    for name, path in sorted((file.relative_to(root).as_posix(), file) for file in package_files(root)):
        if name.startswith(_DEVICE_SIDE) and not name.startswith(_HOST_SIDE):
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def package_files(root: Path) -> list[Path]:
    """All files of a package but byte code; linked folders are followed."""
    files = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.endswith(_LEFT_OUT)]
    return files
