"""The packaged Fashion-MNIST sample and the names under which data opens."""

from __future__ import annotations

import gzip
import runpy
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.data import BUILTIN, ImageDataset, Split, open_dataset
from csr_deploy.data.idx import FASHION_MNIST_CLASSES
from csr_deploy.errors import DataError

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "csr_deploy" / "data" / "samples" / "fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def pictures(dataset: ImageDataset) -> set[bytes]:
    return {dataset.image(i).tobytes() for i in range(len(dataset))}


@pytest.mark.parametrize(("split", "per_class"), [("train", 20), ("test", 100)])
def test_the_sample_is_balanced(split: Split, per_class: int) -> None:
    dataset = open_dataset("fashion-mnist", split)
    assert dataset.name == "fashion-mnist (packaged sample)"
    assert dataset.classes == FASHION_MNIST_CLASSES
    assert np.bincount(dataset.labels).tolist() == [per_class] * 10
    assert dataset.image(0).shape == (28, 28, 1)
    # No class comes in one piece: the first images of the set are a fair draw too.
    assert len(set(dataset.labels[:50].tolist())) == 10


def test_calibration_and_test_images_are_disjoint() -> None:
    calibration = pictures(open_dataset("fashion-mnist", "train"))
    assert not calibration & pictures(open_dataset("fashion-mnist", "test"))


def test_the_script_makes_the_sample_again(tmp_path: Path) -> None:
    if not DEBIAN.is_dir():
        pytest.skip("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
    make = runpy.run_path(str(ROOT / "tools" / "make_samples.py"))["make"]
    make(DEBIAN, tmp_path)
    made = sorted(p.name for p in tmp_path.iterdir())
    assert made == sorted(p.name for p in SAMPLES.glob("*.gz"))
    for name in made:
        again, packaged = (tmp_path / name).read_bytes(), (SAMPLES / name).read_bytes()
        # Compared unpacked: another zlib may pack the same bytes differently.
        assert gzip.decompress(again) == gzip.decompress(packaged)
        assert packaged[4:8] == bytes(4), "the gzip header holds a time"


def test_a_path_comes_before_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion-mnist").mkdir()
    with pytest.raises(DataError, match="holds no image files"):
        open_dataset("fashion-mnist", "test")


def test_an_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        open_dataset("fashion-mnst", "test")
    assert all(name in str(caught.value) for name in BUILTIN)
