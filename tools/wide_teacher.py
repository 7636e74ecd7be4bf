"""Makes soft targets from a wide network that learns small pictures fast, mixed with what checkpoints say.

    python tools/wide_teacher.py --data cifar10.zip --out targets.npz [--mix vgg16.pt=0.2 resnet56.pt=0.2]

The network is three pairs of 3×3 convolutions of 64, 256 and 256 channels behind fixed 2×2 filters that
whiten their pixels (after Jordan, "94 % on CIFAR-10 in 3.29 seconds on a single GPU", 2024), trained for some
epochs by Muon with one cycle. Its probabilities of every training image, mean of the plain and the mirrored
picture, mixed with those of checkpoints, go into the file that `csr-train --teacher` reads. Test images are
only used to print top-1.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from csr_deploy.atomic import atomic_write
from csr_deploy.augment import Augmenter
from csr_deploy.checkpoint import load_checkpoint
from csr_deploy.data import fingerprint, natural_preprocessing, open_dataset
from csr_deploy.optimizer import RecipeOptimizer
from csr_deploy.recipe import Recipe
from csr_deploy.soft_targets import SoftTargets, write_soft_targets
from csr_deploy.train import TrainingData, prepare_data

_WIDTHS = (64, 256, 256)
_BATCH = 256
_LEAST = 1e-6
"""Probabilities below are taken for this, so that their logarithms are float16."""


class Pair(nn.Module):
    """Two convolutions, with a maximum over 2×2 pixels behind the first."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(filters)
        self.second = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, filters, H/2, W/2]."""
        x = F.gelu(self.first_norm(F.max_pool2d(self.first(x), 2)))
        return F.gelu(self.second_norm(self.second(x)))


class Wide(nn.Module):
    """[N, C, H, W] → [N, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(channels, 8 * channels, 2)
        before = (8 * channels, *_WIDTHS[:-1])
        self.pairs = nn.Sequential(*(Pair(c, f) for c, f in zip(before, _WIDTHS, strict=True)))
        self.head = nn.Linear(_WIDTHS[-1], classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.pairs(F.gelu(self.whitening(x)))
        # A third, as logits start too large otherwise.
        out: Tensor = self.head(F.adaptive_max_pool2d(x, 1).flatten(1)) / 3
        return out

    def whiten(self, pictures: Tensor) -> None:
        """Sets the fixed filters to the eigenvectors of 2×2 patches over the roots of their eigenvalues."""
        size = self.whitening.weight[0].numel()
        patches = (
            pictures.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, size).double()
        )
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).float()
        half = filters.reshape(size, *self.whitening.weight.shape[1:])
        self.whitening.weight.data = torch.cat([half, -half])
        self.whitening.weight.requires_grad = False


def recipe_of(epochs: int) -> Recipe:
    """How the wide network is trained."""
    return Recipe(
        epochs, _BATCH, "one-cycle", learning_rate=0.2, muon_rate=0.06, nesterov=True, label_smoothing=0.1,
        crop_padding=3, warmup=0.2,
    )  # fmt: skip


def probabilities(model: nn.Module, images: NDArray[np.uint8], augment: Augmenter) -> NDArray[np.float32]:
    """Mean of the plain and the mirrored picture's, [N, classes], of images [N, H, W, C]."""
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(images), _BATCH):
            x = augment.normalize(torch.from_numpy(images[start : start + _BATCH]))
            both = [model(v).float().softmax(1) for v in (x, x.flip(3))]
            parts.append((both[0] + both[1]).numpy() / 2)
    return np.concatenate(parts)


def train_wide(data: TrainingData, augment: Augmenter) -> Wide:
    """A trained network; tells the test images' top-1 after every epoch."""
    recipe = augment.recipe
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    model = Wide(data.preprocessing.channels, len(data.classes))
    model.whiten(augment.normalize(images[:5000]))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = RecipeOptimizer(model, recipe)
    generator = torch.Generator().manual_seed(0)
    steps, start = len(images) // _BATCH, time.perf_counter()
    for epoch in range(recipe.epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        hits = 0
        for step in range(steps):
            chosen = order[step * _BATCH : (step + 1) * _BATCH]
            x, _ = augment(images[chosen], epoch, generator)
            optimizer.set_rate(recipe.rate(epoch * steps + step, steps))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            hits += int((logits.argmax(1) == labels[chosen]).sum())
        test = probabilities(model, data.test_images, augment)
        print(
            f"epoch {epoch + 1}/{recipe.epochs} training top-1 {hits / steps / _BATCH:.4f} "
            f"test top-1 {top1(test, data.test_labels):.4f} {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return model


def as_logits(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Logarithms of probabilities [N, classes]."""
    return np.log(np.maximum(values, _LEAST)).astype(np.float16)


def top1(values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of images whose largest value is their label's."""
    return float((values.argmax(1) == labels).mean())


def main() -> None:
    """Trains, mixes, measures and writes."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--weights", type=Path, help="where the wide network is kept, as safetensors")
    parser.add_argument(
        "--mix", nargs="*", default=[], metavar="CHECKPOINT=SHARE", help="the wide network has the rest"
    )
    args = parser.parse_args()
    shares = {Path(p): float(share) for p, _, share in (m.rpartition("=") for m in args.mix)}
    if not all(share > 0 for share in shares.values()) or sum(shares.values()) >= 1:
        parser.error("the shares of --mix must be positive and leave something for the wide network")
    torch.manual_seed(0)
    train, test = open_dataset(args.data, "train"), open_dataset(args.data, "test")
    data = prepare_data(train, test, natural_preprocessing(train))
    augment = Augmenter(recipe_of(args.epochs), data.preprocessing)
    wide = train_wide(data, augment)
    if args.weights:
        with atomic_write(args.weights) as temporary:
            save_file({k: v.contiguous() for k, v in wide.state_dict().items()}, temporary)
    members: list[tuple[str, float, nn.Module, Augmenter]] = [
        ("wide", 1 - sum(shares.values()), wide, augment)
    ]
    for path, share in shares.items():
        checkpoint = load_checkpoint(path)
        own = Augmenter(Recipe(epochs=1), checkpoint.preprocessing)
        members.append((checkpoint.architecture.name, share, checkpoint.build(), own))
    taught = np.zeros((len(data.train_images), len(data.classes)), np.float32)
    seen = np.zeros((len(data.test_images), len(data.classes)), np.float32)
    for name, share, model, own in members:
        mine = probabilities(model, data.test_images, own)
        print(f"{name}: test top-1 {top1(mine, data.test_labels):.4f}", flush=True)
        taught += share * probabilities(model, data.train_images, own)
        seen += share * mine
    logits = as_logits(taught)
    what = ", ".join(f"{share:.0%} {name}" for name, share, *_ in members)
    made = f"{what}, plain and mirrored, top-1 {top1(seen, data.test_labels):.4f}"
    print(made)
    sha256 = fingerprint(data.train_images, data.train_labels)
    write_soft_targets(args.out, SoftTargets(np.stack([logits, logits], 1), data.classes, sha256, made))


if __name__ == "__main__":
    main()
