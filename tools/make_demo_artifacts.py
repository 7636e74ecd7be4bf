"""Makes the artifacts that the camera demo brings along.

    pip download --no-deps scikit-image==0.26.0 && unzip scikit_image-*.whl 'skimage/data/*'
    python tools/make_demo_artifacts.py --data cifar10.zip --pictures skimage/data

It exports the shipped CIFAR-10 checkpoints to tflite-int8, as csr-export does, into
csr_deploy/demo/artifacts. To be run again when the exporter or a checkpoint has changed; the same input
gives the same bytes.

CIFAR-10 states no licence, so its pictures are not passed on: the golden vectors, which the demo also shows
where there is no camera, are cuts of photos in scikit-image that their authors gave to the public (CC0):
chelsea.png, a cat, by Stefan van der Walt; coffee.png, by Rachel Michetti; rocket.jpg, by SpaceX.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from csr_deploy.data.preprocess import fit_image
from csr_deploy.demo.catalogue import ARTIFACTS, SHIPPED
from csr_deploy.export import ExportOptions, Network, artifact_directory, export, load_export_data
from csr_deploy.targets import find_target

ROOT = Path(__file__).parents[1]
# File, class among CIFAR-10's, and square cuts as (left, top, side) in pixels.
CUTS: tuple[tuple[str, str | None, tuple[tuple[int, int, int], ...]], ...] = (
    (
        "chelsea.png",
        "cat",
        (
            (40, 0, 300),
            (60, 10, 260),
            (80, 0, 240),
            (90, 20, 220),
            (20, 0, 280),
            (70, 40, 250),
            (100, 0, 260),
            (110, 30, 200),
            (0, 0, 300),
            (151, 0, 300),
            (130, 0, 280),
            (120, 20, 230),
        ),
    ),
    ("rocket.jpg", None, ((106, 0, 427), (200, 60, 300))),
    ("coffee.png", None, ((100, 0, 400), (60, 40, 320))),
)


def golden_pictures(folder: Path, network: Network) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Cuts of the photos: [N, H, W, C] uint8 at the network's size, and classes, -1 where it knows none."""
    pictures, labels = [], []
    for file, name, cuts in CUTS:
        with PillowImage.open(folder / file) as photo:
            pixels = np.asarray(photo.convert("RGB"))
        for left, top, side in cuts:
            pictures.append(fit_image(pixels[top : top + side, left : left + side], network.preprocessing))
            labels.append(network.labels.index(name) if name else -1)
    return np.stack(pictures), np.asarray(labels, np.int64)


def main() -> None:
    """Exports them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="CIFAR-10, a folder or zip file")
    parser.add_argument("--pictures", type=Path, required=True, help="folder skimage/data of scikit-image")
    parser.add_argument("--out", type=Path, default=ARTIFACTS)
    arguments = parser.parse_args()
    target, options = find_target("tflite-int8"), ExportOptions()
    for name in SHIPPED:
        network = Network.from_checkpoint(ROOT / "demos" / "models" / f"{name}.pt")
        data = load_export_data(network, arguments.data, options, quantized=True)
        data = replace(data, golden=golden_pictures(arguments.pictures, network))
        out = artifact_directory(arguments.out, network, target)
        artifact = export(network, target, data, out, options, force=True)
        print(f"{artifact.path.name}: {sum(f.size for f in artifact.files):,} bytes")


if __name__ == "__main__":
    main()
