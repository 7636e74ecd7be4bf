"""Image files, image sets and made pictures: sources that need no camera, and nothing but Pillow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from csr_deploy.artifact import Artifact
from csr_deploy.data import ImageDataset, open_dataset
from csr_deploy.data.folder import SUFFIXES, decode_image
from csr_deploy.demo.errors import DamagedFrameError
from csr_deploy.demo.frames import Picture, Shot
from csr_deploy.demo.sources.base import Pace, Source, SourceOptions
from csr_deploy.errors import DataError, MissingDependencyError


class FolderSource(Source):
    """Every image file of a folder and the folders in it, by name; or one file.

    The folder that a file lies in is taken for its class where the network has one of that name.
    """

    live = False

    def __init__(self, path: Path, labels: tuple[str, ...], options: SourceOptions) -> None:
        self._path = path
        self._labels = frozenset(labels)
        self._options = options
        self._files: list[Path] = []
        self._next = self._good = 0

    @property
    def name(self) -> str:
        return str(self._path)

    def open(self) -> None:
        self._files = [self._path] if self._path.is_file() else sorted(_image_files(self._path))
        if not self._files:
            raise DataError(
                "holds no image files", where=self.name, fix=f"Known: {', '.join(sorted(SUFFIXES))}."
            )
        self._pace = Pace(1 / self._options.seconds if self._options.realtime else None)
        self._next = self._good = 0

    def read(self) -> Shot | None:
        if self._next == len(self._files):
            if not (self._options.loop and self._good):
                return None
            self._next = self._good = 0
        self._pace.wait()
        file = self._files[self._next]
        self._next += 1
        # The reader of the evaluation: the same file gives the same pixels here and there.
        try:
            picture = decode_image(file.read_bytes(), str(file))
        except OSError as error:
            raise DamagedFrameError(f"cannot be read: {error.strerror}", where=str(file)) from error
        except DataError as error:
            raise DamagedFrameError(error.what, where=error.where) from error
        self._good += 1
        folder = file.parent.name
        return Shot(picture, self._shown(file), folder if folder in self._labels else None)

    def _shown(self, file: Path) -> str:
        return file.name if file == self._path else file.relative_to(self._path).as_posix()


def _image_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(parent, name)


class DatasetSource(Source):
    """The test part of an image set, with its classes."""

    live = False

    def __init__(self, path: str, options: SourceOptions) -> None:
        self._path = path
        self._options = options
        self._dataset: ImageDataset | None = None
        self._next = 0

    @property
    def name(self) -> str:
        return self._path

    def open(self) -> None:
        self._dataset = open_dataset(self._path, "test")
        self._pace = Pace(1 / self._options.seconds if self._options.realtime else None)
        self._next = 0

    def read(self) -> Shot | None:
        assert self._dataset is not None
        if self._next == len(self._dataset):
            if not self._options.loop:
                return None
            self._next = 0
        self._pace.wait()
        index = self._next
        self._next += 1
        try:
            picture = self._dataset.image(index)
        except DataError as error:
            raise DamagedFrameError(error.what, where=error.where) from error
        label = int(self._dataset.labels[index])
        truth = self._dataset.classes[label] if label >= 0 and self._dataset.classes else None
        return Shot(picture, f"test picture {index}", truth)

    def close(self) -> None:
        self._dataset = None


class SyntheticSource(Source):
    """Pictures that the network knows, swaying in front of a gray wall: a camera for machines without one.

    They are the golden pictures of the artifact: some of its test images, or those of `--golden`.
    """

    live = True

    def __init__(self, artifact: Artifact, options: SourceOptions) -> None:
        self._artifact = artifact
        self._options = options

    @property
    def name(self) -> str:
        return "synthetic"

    def open(self) -> None:
        try:
            from PIL import Image as PillowImage
        except ImportError as error:
            raise MissingDependencyError("pillow", "demo", "The synthetic source") from error
        golden = self._artifact.golden()
        width, height = self._options.width, self._options.height
        side = min(width, height)
        self._pictures: list[tuple[Picture, str | None]] = []
        for image, label in zip(golden.images, golden.labels, strict=True):
            pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
            large = PillowImage.fromarray(pixels).resize((side, side), PillowImage.Resampling.LANCZOS)
            known = 0 <= label < len(self._artifact.labels)
            self._pictures.append((np.asarray(large), self._artifact.labels[label] if known else None))
        # Brighter towards the top, as a wall under a lamp.
        shade = np.linspace(96, 40, height).astype(np.uint8)
        self._wall = np.repeat(np.repeat(shade[:, None, None], width, axis=1), 3, axis=2)
        self._pace = Pace(self._options.fps if self._options.realtime else None)
        self._count = 0

    def read(self) -> Shot:
        self._pace.wait()
        seconds = self._count / self._options.fps
        self._count += 1
        # At two seconds a picture.
        picture, truth = self._pictures[int(seconds / 2) % len(self._pictures)]
        scene = self._wall.copy()
        side = picture.shape[0]
        sway = round(0.03 * side * math.sin(2 * math.pi * seconds / 3))
        left = (scene.shape[1] - side) // 2 + sway
        top = (scene.shape[0] - side) // 2
        start = max(left, 0)
        part = picture[:, start - left : start - left + scene.shape[1] - start]
        scene[top : top + side, start : start + part.shape[1]] = part
        # A point that walks along the bottom: two frames are never alike.
        walked = self._count * 4 % max(scene.shape[1] - 8, 1)
        scene[-6:-2, walked : walked + 8] = 255
        return Shot(scene, None, truth)
