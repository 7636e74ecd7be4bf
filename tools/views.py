"""Views of training images, and what a teacher says of each: function matching (Beyer et al., CVPR 2022).

A teacher that has learnt its training images by heart says little of them. Of crops, and of mixtures of two
images (mixup, CutMix), it says what it has understood; and as the student sees the very view that the teacher
saw, there is nothing to contradict. The views are a pure function of a seed, so that a file holds only the
seed and the teacher's answers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csr_deploy.atomic import atomic_write
from csr_deploy.augment import reflect
from csr_deploy.errors import DataError

PAD = 4
"""Pixels that crops may move beyond the image, which is reflected there."""
_PLAIN_SHARE = 0.5
"""Share of views that are of one image; mixup and CutMix have half of the rest each."""

_MAKE = "Make it from the data the network is trained on, by distill_views.py targets."


@dataclass(frozen=True)
class Views:
    """One view of each of N images.

    Attributes:
        partner: [N] the image mixed in.
        first: [N] share of the image itself, 1 where nothing is mixed in.
        tops: [2, N] row of the padded image at which the crop of each of the two starts; `lefts` alike.
        lefts: See `tops`.
        mirrored: [N] whether the partner is mirrored.
        box: [N, 4] rows and columns (from, to) that CutMix fills with the partner; empty for the others.
    """

    partner: Tensor
    first: Tensor
    tops: Tensor
    lefts: Tensor
    mirrored: Tensor
    box: Tensor

    @classmethod
    def drawn(cls, seed: int, index: int, count: int, height: int, width: int) -> Views:
        """The view with a number of each image, of height × width."""
        draw = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, index)).generate_state(1)[0]))
        kind, first = (torch.rand(count, generator=draw) for _ in range(2))
        cut = kind >= (1 + _PLAIN_SHARE) / 2
        side = (1 - first).sqrt()
        box = torch.zeros(count, 4, dtype=torch.long)
        for axis, size in ((0, height), (2, width)):
            length = (side * size).round().long()
            start = (torch.rand(count, generator=draw) * (size - length + 1)).long()
            box[:, axis], box[:, axis + 1] = start, start + length
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        box[~cut | (area == 0)] = 0
        first = torch.where(cut, 1 - area / (height * width), first)
        first[kind < _PLAIN_SHARE] = 1
        return cls(
            torch.randint(0, count, (count,), generator=draw),
            first,
            torch.randint(0, 2 * PAD + 1, (2, count), generator=draw),
            torch.randint(0, 2 * PAD + 1, (2, count), generator=draw),
            torch.rand(count, generator=draw) < 0.5,
            box,
        )

    @classmethod
    def chosen(cls, views: Sequence[Views], which: Tensor) -> Views:
        """Of each image the view that `which` [N] names."""
        number = torch.arange(len(which))

        def pick(name: str) -> Tensor:
            every = torch.stack([getattr(v, name) for v in views])
            return every[which, :, number].T if name in ("tops", "lefts") else every[which, number]

        return cls(**{f.name: pick(f.name) for f in fields(cls)})

    def render(self, images: Tensor, chosen: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """Views of the chosen of the images.

        Args:
            images: All, [N, H, W, C] uint8.
            chosen: [n] which.
            draw: Where given, a crop moves by up to one pixel and the whole view is mirrored at random: a
                teacher's answer for a view and its mirror image holds for that too.

        Returns:
            [n, H, W, C] uint8.
        """
        n, (height, width) = len(chosen), images.shape[1:3]
        moved = torch.zeros(2, 2, n, dtype=torch.long)
        turned = torch.zeros(n, dtype=torch.bool)
        if draw is not None:
            moved = torch.randint(-1, 2, (2, 2, n), generator=draw)
            turned = torch.rand(n, generator=draw) < 0.5
        no = torch.zeros(n, dtype=torch.bool)
        x = _crop(images[chosen], self.tops[0, chosen] + moved[0, 0], self.lefts[0, chosen] + moved[0, 1], no)
        mixed = (self.first[chosen] < 1).nonzero().flatten()
        if len(mixed):
            rows = chosen[mixed]
            other = _crop(
                images[self.partner[rows]],
                self.tops[1, rows] + moved[1, 0, mixed],
                self.lefts[1, rows] + moved[1, 1, mixed],
                self.mirrored[rows],
            )
            y, x_axis = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
            top, bottom, left, right = (v[:, None, None] for v in self.box[rows].unbind(1))
            inside = (y >= top) & (y < bottom) & (x_axis >= left) & (x_axis < right)
            mixup = (self.box[rows].sum(1) == 0)[:, None, None]
            share = torch.where(mixup, self.first[rows][:, None, None], (~inside).float())[..., None]
            x[mixed] = (share * x[mixed] + (1 - share) * other).round().to(torch.uint8)
        return torch.where(turned[:, None, None, None], x.flip(2), x)


def _crop(images: Tensor, tops: Tensor, lefts: Tensor, mirrored: Tensor) -> Tensor:
    n, height, width, _ = images.shape
    rows = reflect(tops[:, None] + torch.arange(height) - PAD, height)
    cols = reflect(lefts[:, None] + torch.arange(width) - PAD, width)
    cols = torch.where(mirrored[:, None], cols.flip(1), cols)
    return images[torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :]]


@dataclass(frozen=True)
class ViewTargets:
    """What a teacher says of views.

    Attributes:
        logits: [views, N, classes] float16.
        seed: Of the views.
        data_sha256: `csr_deploy.data.fingerprint` of the images and labels.
        teacher: Who said it.
    """

    logits: NDArray[np.float16]
    seed: int
    data_sha256: str
    teacher: str

    def write(self, path: Path) -> None:
        """Writes a .npz, whole or not at all."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                logits=self.logits,
                seed=np.int64(self.seed),
                data_sha256=np.array(self.data_sha256),
                teacher=np.array(self.teacher),
            )

    @classmethod
    def read(cls, path: Path, data_sha256: str) -> ViewTargets:
        """Reads what `write` wrote.

        Raises:
            DataError: If it is none, or of other images.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                targets = cls(
                    file["logits"], int(file["seed"]), str(file["data_sha256"]), str(file["teacher"])
                )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"is no file of answers for views: {error}", where=str(path), fix=_MAKE
            ) from error
        if targets.data_sha256 != data_sha256:
            raise DataError("was made from other training images", where=str(path), fix=_MAKE)
        return targets
