"""Small native artifacts for tests."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.artifact import Artifact, record_file, write_manifest
from csr_deploy.exporters.mcu.exporter import TfliteSource, export_tflite
from csr_deploy.exporters.mcu.options import McuOptions
from csr_deploy.exporters.native.exporter import NATIVE
from csr_deploy.runtimes.native.build import find_compiler
from csr_deploy.runtimes.native.platforms import Platform, Variant, this_platform
from tests.mcu_tflite import GraphBuilder

SIDE, CHANNELS, CLASSES = 8, 3, 4


def demand_compiler(platform: Platform) -> None:
    """Skips the test where there is no compiler for a platform."""
    if find_compiler(platform) is None:
        pytest.skip(f"needs a C compiler for {platform.key} ({platform.packages or 'gcc'})")


def small_tflite(path: Path, seed: int = 0) -> Path:
    """A strided convolution, a residual pair of them and a mean: [1, 8, 8, 3] to 4 classes."""
    random = np.random.default_rng(seed)
    graph = GraphBuilder()

    def weights(*shape: int) -> np.ndarray:
        return random.integers(-127, 128, shape).astype(np.int8)

    x = graph.input((1, SIDE, SIDE, CHANNELS), (0.02, -3))
    zeros = np.zeros(8, np.int32)
    front = graph.conv2d(x, weights(8, 3, 3, 3), [0.01] * 8, zeros, (0.05, -128), activation="RELU")
    inner = graph.conv2d(front, weights(8, 3, 3, 8), [0.004] * 8, zeros, (0.06, 4))
    total = graph.add(front, inner, (0.08, -10))
    last = graph.conv2d(total, weights(CLASSES, 1, 1, 8), [0.01] * CLASSES, zeros[:CLASSES], (0.1, 0))
    path.write_bytes(graph.build(graph.mean(last, (1, 2), (0.05, 0))))
    return path


def make_native(folder: Path, name: str = "small", *, seed: int = 0, prefix: str = "model") -> Artifact:
    """An artifact in `folder`/`name`-native."""
    folder.mkdir(parents=True, exist_ok=True)
    source = TfliteSource(small_tflite(folder / f"{name}.tflite", seed), name, tuple("abcd"))
    options: McuOptions = replace(NATIVE.options, prefix=prefix)
    return export_tflite(source, folder / f"{name}-native", options, target=NATIVE)


def without_libraries(artifact: Artifact, folder: Path) -> Artifact:
    """A copy of an artifact as it is where no compiler was found."""
    shutil.copytree(artifact.path, folder)
    shutil.rmtree(folder / "lib")
    files = tuple(record for record in artifact.files if not record.name.startswith("lib/"))
    copy = replace(artifact, path=folder, files=files)
    write_manifest(copy)
    return copy


def with_file(artifact: Artifact, name: str, content: bytes) -> Artifact:
    """The same artifact with another content of a file, and its record; changes it on the disk."""
    (artifact.path / name).write_bytes(content)
    files = tuple(
        record_file(artifact.path / name, artifact.path) if record.name == name else record
        for record in artifact.files
    )
    copy = replace(artifact, files=files)
    write_manifest(copy)
    return copy


_FLAGS = {"dotprod": "asimddp", "avx2": "avx2", "avxvnni": "avx_vnni", "avx512vnni": "avx512_vnni"}


def runnable(platform: Platform) -> tuple[Variant, ...]:
    """Variants of the kernels whose instructions this processor has, the one that all have first."""
    here = platform == this_platform()
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()) if here else set()
    base, *more = platform.variants
    return (base, *(v for v in more if _FLAGS[v.name] in words))
