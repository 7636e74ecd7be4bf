"""Random crops and flips."""

from __future__ import annotations

import torch
from torch import Tensor

from csr_deploy.data import Preprocessing
from csr_deploy.recipe import Recipe


class Augmenter:
    """Random crops and flips of uint8 batches, seeded by epoch."""

    def __init__(self, recipe: Recipe, preprocessing: Preprocessing) -> None:
        self.recipe = recipe
        self.mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
        self.std = torch.tensor(preprocessing.std).view(-1, 1, 1)

    def normalize(self, images: Tensor) -> Tensor:
        """[N, H, W, C] uint8 → [N, C, H, W] float32 in channels_last memory."""
        x = images.permute(0, 3, 1, 2).float().div_(255)
        return x.sub_(self.mean.to(x.device)).div_(self.std.to(x.device))

    def __call__(self, images: Tensor, epoch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augments and normalises a batch.

        Args:
            images: [N, H, W, C] uint8.
            epoch: Decides the size of the crops.
            generator: Of the draws.

        Returns:
            [N, C, h, w] float32, and which pictures were mirrored [N].
        """
        n, height, width, _ = images.shape
        pad = self.recipe.border(epoch)
        out_h, out_w = self.recipe.crop_size(epoch, height), self.recipe.crop_size(epoch, width)
        tops = torch.randint(0, height + 2 * pad - out_h + 1, (n,), generator=generator)
        lefts = torch.randint(0, width + 2 * pad - out_w + 1, (n,), generator=generator)
        rows = reflect(tops[:, None] + torch.arange(out_h) - pad, height)
        cols = reflect(lefts[:, None] + torch.arange(out_w) - pad, width)
        flipped = torch.zeros(n, dtype=torch.bool)
        if self.recipe.flip:
            flipped = torch.rand(n, generator=generator) < 0.5
            cols = torch.where(flipped[:, None], cols.flip(1), cols)
        # Drawn on the CPU whatever the device, so that a seed gives the same crops everywhere.
        index = (torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :])
        return self.normalize(images[tuple(i.to(images.device) for i in index)]), flipped


def reflect(index: Tensor, size: int) -> Tensor:
    """Rows or columns beyond an image of `size` of them, mirrored into it; int64 of any shape."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index).clamp_(0, size - 1)
