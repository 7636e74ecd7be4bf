"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

# Before torch is imported, here and in the processes that tests start: one thread is enough for tiny
# networks, and it fixes the order of sums.
os.environ["OMP_NUM_THREADS"] = "1"
# ONNX Runtime reports its import otherwise.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A shell starts background jobs with SIGINT ignored, which every process below would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parents[1]


def _dataset(variable: str, usual: Path, what: str) -> Path:
    named = os.environ.get(variable)
    path = Path(named) if named else usual
    if not path.exists():
        message = f"{what}: ${variable} is {named or 'not set'} and {path} does not exist"
        if named:
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def cifar10_path() -> Path:
    """CIFAR-10 in any form that csr-deploy reads: $CSR_DATA, or beside the repository."""
    return _dataset("CSR_DATA", REPOSITORY.parent / "shared" / "data" / "cifar10.zip", "needs CIFAR-10")


@pytest.fixture(scope="session")
def fashion_mnist_path() -> Path:
    """Fashion-MNIST's IDX files: $CSR_FASHION_MNIST, or where Debian's dataset-fashion-mnist puts them."""
    return _dataset("CSR_FASHION_MNIST", Path("/usr/share/datasets/fashion-mnist"), "needs Fashion-MNIST")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy 16×16 pictures told apart by their colour: 24 each to train, 8 to test."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to make pictures")
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (16, 16, 3))
                pixels[:, :, 2 - channel] += 100
                image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02}.png")
    return root
