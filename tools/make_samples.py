"""Makes the packaged Fashion-MNIST sample: 200 calibration and 1,000 test images.

Reads the IDX files of Debian's package dataset-fashion-mnist. Calibration images come from its training
split and test images from its test split, so the two never share an image. Each class has the same number
of images, drawn without replacement with a fixed seed and kept in the order of the source. Same input, same
bytes.

Run with csr-deploy installed: .venv/bin/python tools/make_samples.py [--source DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
import gzip
import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csr_deploy.data.builtin import BUILTIN
from csr_deploy.data.dataset import Split
from csr_deploy.data.idx import parse_idx

SOURCE = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).parents[1] / "csr_deploy" / "data" / "samples" / "fashion-mnist"
PER_CLASS: dict[Split, int] = {"train": 20, "test": 100}
SEED = 0


def balanced(labels: NDArray[np.uint8], per_class: int, seed: int) -> NDArray[np.int64]:
    """Sorted indices of `per_class` random images of each class."""
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [random.choice(indices, per_class, replace=False) for indices in members]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def idx_gz(values: NDArray[np.uint8]) -> bytes:
    """An IDX file of unsigned bytes, gzip-compressed without a name or a time."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 0x08, values.ndim, *values.shape)
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as file:
        file.write(header + np.ascontiguousarray(values).tobytes())
    return out.getvalue()


def make(source: Path, out: Path) -> None:
    """Writes the four files of the sample."""
    out.mkdir(parents=True, exist_ok=True)
    for split, files in BUILTIN["fashion-mnist"].files.items():
        images, labels = (parse_idx((source / name).read_bytes(), str(source / name)) for name in files)
        chosen = balanced(labels, PER_CLASS[split], SEED)
        for name, values in zip(files, (images, labels), strict=True):
            (out / name).write_bytes(idx_gz(values[chosen]))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Makes the packaged Fashion-MNIST sample.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    arguments = parser.parse_args()
    make(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
