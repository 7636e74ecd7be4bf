"""What a program sees on an emulated board."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from csr_deploy.bench.emulated_pi.boards import Board
from csr_deploy.bench.emulated_pi.root import Root

# Of the packages whose versions matter for what is computed, in the order in which they are shown.
_PACKAGES = ("numpy", "ai-edge-litert", "onnxruntime")
_SCRIPT = """
import ctypes, importlib.metadata, json, os, platform
getauxval = ctypes.CDLL(None).getauxval
getauxval.restype = ctypes.c_ulong
print(json.dumps({
    "machine": platform.machine(),
    "python": platform.python_version(),
    "libc": " ".join(platform.libc_ver()),
    "cores": os.cpu_count(),
    "packages": {name: importlib.metadata.version(name) for name in %r},
    "hwcap": getauxval(16),
}))
"""
# Bits of AT_HWCAP on AArch64 that kernels of neural networks ask for.
_HWCAP = {1: "asimd", 8: "atomics", 10: "asimdhp", 20: "asimddp", 22: "sve"}


@dataclass(frozen=True)
class Inside:
    """What a program sees.

    Attributes:
        machine: Of uname.
        python: Version.
        libc: Name and version.
        cores: Number.
        packages: Versions.
        features: Of the emulated processor, those that kernels ask for, in the kernel's words.
    """

    machine: str
    python: str
    libc: str
    cores: int
    packages: Mapping[str, str]
    features: tuple[str, ...]


def look_inside(root: Root, board: Board) -> Inside:
    """Asks Python on a board.

    Raises:
        RuntimeUnavailableError: If it does not run.
    """
    said = json.loads(root.run(board, ["-c", _SCRIPT % (_PACKAGES,)]))
    hwcap = int(said["hwcap"])
    features = tuple(name for bit, name in _HWCAP.items() if hwcap >> bit & 1)
    return Inside(said["machine"], said["python"], said["libc"], said["cores"], said["packages"], features)
