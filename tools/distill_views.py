r"""Trains a network further on views of the training images, with a wide teacher's answers for each view.

    python tools/wide_teacher.py --data cifar10.zip --out targets.npz --weights wide.safetensors
    python tools/distill_views.py targets --data cifar10.zip --wide wide.safetensors --out views.npz
    python tools/distill_views.py train --data cifar10.zip --init resnet56.pt --targets views.npz \
        --out runs/resnet56 --epochs 57 --frozen 45 --plain 6

For a CifarResNet, whose first stage takes 40 % of a step and has 5 % of the weights. In the first `--frozen`
epochs that stage is not trained: its BatchNorms are folded into its convolutions, and there is nothing to go
back through. The last `--plain` epochs leave out views that mix images, as the test images do. Interrupt with
Ctrl-C at any time; the same command goes on from the last epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from views import Views, ViewTargets
from wide_teacher import Wide, as_logits, probabilities, top1

from csr_deploy import __version__
from csr_deploy.atomic import atomic_write
from csr_deploy.augment import Augmenter
from csr_deploy.checkpoint import (
    Checkpoint,
    file_sha256,
    load_checkpoint,
    read_torch_bytes,
    save_checkpoint,
    torch_bytes,
)
from csr_deploy.curve import EpochRecord, write_curve
from csr_deploy.data import fingerprint, natural_preprocessing, open_dataset
from csr_deploy.distill import distillation_loss
from csr_deploy.inherit import inherit
from csr_deploy.models.resnet import CifarResNet
from csr_deploy.nn.dead_channels import silence_dead_channels
from csr_deploy.optimizer import RecipeOptimizer
from csr_deploy.recipe import Recipe
from csr_deploy.train import TrainingData, prepare_data


def recipe_of(epochs: int, batch_size: int, muon_rate: float) -> Recipe:
    """Rates, momentum and decay; the rate of a step is `rate_of`'s."""
    return Recipe(
        epochs, batch_size, "one-cycle", learning_rate=4 * muon_rate, muon_rate=muon_rate, nesterov=True,
        distill_weight=0.8, distill_temperature=2.0,
    )  # fmt: skip


def rate_of(recipe: Recipe, step: int, steps: int) -> float:
    """Rises over 1 % of the steps, then falls to zero in a line."""
    rising = max(1, steps // 100)
    return recipe.learning_rate * min(step / rising, (steps - step) / (steps - rising))


class FrozenFront(nn.Module):
    """A CifarResNet up to the end of its first stage, as it is in inference."""

    def __init__(self, model: CifarResNet) -> None:
        super().__init__()
        model.eval()
        self.stem = fuse_conv_bn_eval(model.conv1, model.bn1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([fuse_conv_bn_eval(b.conv1, b.bn1), fuse_conv_bn_eval(b.conv2, b.bn2)])
            for b in model.layer1
        )
        self.bfloat16().to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 16, H, W], bfloat16."""
        x = self.stem(x.bfloat16()).relu_()
        for first, second in self.blocks:  # type: ignore[misc]
            x = (second(first(x).relu_()) + x).relu_()
        return x


class Run:
    """One training, in a directory of its own."""

    def __init__(self, args: argparse.Namespace, data: TrainingData) -> None:
        self.args, self.data = args, data
        self.start = load_checkpoint(args.init)
        torch.manual_seed(args.seed)
        model = self.start.architecture.build()
        if not isinstance(model, CifarResNet):
            raise SystemExit(f"{args.init}: is no CIFAR ResNet")
        self.origin = inherit(model, args.init, data.input_shape)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = recipe_of(args.epochs, args.batch_size, args.muon_lr)
        self.sha256 = fingerprint(data.train_images, data.train_labels)
        self.targets = ViewTargets.read(args.targets, self.sha256)
        self.logits = torch.from_numpy(self.targets.logits)
        self.images, self.labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
        self.views = [
            Views.drawn(self.targets.seed, index, len(self.images), *self.images.shape[1:3])
            for index in range(len(self.logits))
        ]
        self.augment = Augmenter(self.recipe, data.preprocessing)
        self.steps = len(self.images) // self.recipe.batch_size
        self.records: list[EpochRecord] = []
        self.identity = {
            "init_sha256": self.origin.source["sha256"],
            "targets_sha256": file_sha256(args.targets),
            "recipe": asdict(self.recipe),
            "frozen": args.frozen,
            "plain": args.plain,
            "seed": args.seed,
        }
        self.optimizer: RecipeOptimizer | None = None
        self.front: FrozenFront | None = None
        args.out.mkdir(parents=True, exist_ok=True)
        self.file = args.out / "resume.pt"
        saved: dict[str, Any] | None = None
        if self.file.exists():
            saved = read_torch_bytes(self.file.read_bytes())
            if saved["identity"] != json.loads(json.dumps(self.identity)):
                raise SystemExit(f"{args.out}: holds a run with other settings; give another --out")
            self.model.load_state_dict(saved["model"])
            self.records = [EpochRecord(**r) for r in saved["records"]]
        self._begin_phase(len(self.records))
        if saved and len(self.records) not in (args.frozen, args.epochs):
            assert self.optimizer is not None
            self.optimizer.load_state_dict(saved["optimizer"])

    def _begin_phase(self, epoch: int) -> None:
        frozen = epoch < self.args.frozen
        front = [self.model.conv1, self.model.bn1, self.model.layer1]
        for module in front:
            module.requires_grad_(not frozen)
        self.front = FrozenFront(self.model) if frozen else None
        self.optimizer = RecipeOptimizer(self.model, self.recipe)

    def train(self) -> None:
        for epoch in range(len(self.records), self.args.epochs):
            if epoch == self.args.frozen:
                self._begin_phase(epoch)
            begun = time.perf_counter()
            loss, hits = self._epoch(epoch)
            test_loss, test_hits = self._test()
            rate = rate_of(self.recipe, epoch * self.steps, self.args.epochs * self.steps)
            seconds = round(time.perf_counter() - begun, 1)
            self.records.append(EpochRecord(epoch + 1, rate, loss, hits, test_loss, test_hits, seconds))
            self._save()
            print(
                f"epoch {epoch + 1}/{self.args.epochs} loss {loss:.4f} plain training views {hits:.4f} "
                f"test {test_hits:.4f} loss {test_loss:.4f} {seconds} s",
                flush=True,
            )

    def _epoch(self, epoch: int) -> tuple[float, float]:
        assert self.optimizer is not None
        number, seed = len(self.images), self.args.seed
        seeds = np.random.SeedSequence((seed, epoch)).generate_state(1)
        draw = torch.Generator().manual_seed(int(seeds[0]))
        which = self._which(epoch, draw)
        views = Views.chosen(self.views, which)
        order = torch.randperm(number, generator=draw)
        self.model.train()
        if self.front is not None:
            self.model.layer1.eval()
            self.model.bn1.eval()
        total, hits, plain = 0.0, 0, 0
        size, steps = self.recipe.batch_size, self.args.epochs * self.steps
        for step in range(self.steps):
            chosen = order[step * size : (step + 1) * size]
            x = self.augment.normalize(views.render(self.images, chosen, draw))
            self.optimizer.set_rate(rate_of(self.recipe, epoch * self.steps + step, steps))
            logits = self._forward(x)
            loss = self._loss(logits, views, chosen, self.logits[which[chosen], chosen].float())
            value = loss.item()
            if not np.isfinite(value):
                raise SystemExit(f"the loss became {value} in epoch {epoch + 1}; the epochs before are kept")
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += value
            whole = views.first[chosen] == 1
            plain += int(whole.sum())
            hits += int((logits.argmax(1) == self.labels[chosen])[whole].sum())
        return total / self.steps, hits / plain

    def _which(self, epoch: int, draw: torch.Generator) -> Tensor:
        """Number of the view that each image has in an epoch."""
        if epoch < self.args.epochs - self.args.plain:
            return torch.full((len(self.images),), epoch % len(self.views))
        whole = torch.stack([v.first for v in self.views]) == 1
        # An image without a plain view keeps one that mixes.
        return (torch.rand(whole.shape, generator=draw) + whole).argmax(0)

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if self.front is None:
                out: Tensor = self.model(x)
            else:
                with torch.no_grad():
                    x = self.front(x)
                x = self.model.layer3(self.model.layer2(x))
                out = self.model.fc(self.model.pool(x).flatten(1))
        return out.float()

    def _loss(self, logits: Tensor, views: Views, chosen: Tensor, soft: Tensor) -> Tensor:
        recipe, first = self.recipe, views.first[chosen]
        own, other = self.labels[chosen], self.labels[views.partner[chosen]]
        hard = first * F.cross_entropy(logits, own, reduction="none")
        hard += (1 - first) * F.cross_entropy(logits, other, reduction="none")
        taught = distillation_loss(logits, soft, recipe.distill_temperature)
        return recipe.distill_weight * taught + (1 - recipe.distill_weight) * hard.mean()

    def _test(self) -> tuple[float, float]:
        self.model.eval()
        loss, hits = 0.0, 0
        for s in range(0, len(self.data.test_images), 250):
            x = self.augment.normalize(torch.from_numpy(self.data.test_images[s : s + 250]))
            y = torch.from_numpy(self.data.test_labels[s : s + 250])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                logits = self.model(x).float()
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            hits += int((logits.argmax(1) == y).sum())
        return loss / len(self.data.test_images), hits / len(self.data.test_images)

    def _save(self) -> None:
        assert self.optimizer is not None
        content = {
            "identity": json.loads(json.dumps(self.identity)),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "records": [asdict(r) for r in self.records],
        }
        with atomic_write(self.file) as temporary:
            temporary.write_bytes(torch_bytes(content))
        state, silenced = silence_dead_channels(self.model, self.model.state_dict())
        last = self.records[-1]
        training = {
            "recipe": asdict(self.recipe),
            "script": "tools/distill_views.py: views with their own targets, the rate falls in a line",
            "frozen_first_stage_epochs": self.args.frozen,
            "last_epochs_without_mixed_views": self.args.plain,
            "seed": self.args.seed,
            "epochs_done": len(self.records),
            "train_images": len(self.images),
            "damaged_images": len(self.data.damaged),
            "data_sha256": self.sha256,
            "bf16": True,
            "init": self.origin.record(frozen=False),
            "teacher": self.targets.teacher,
            "qat": False,
            "silenced_channels": silenced,
            "processes": 1,
            "seconds": round(sum(r.seconds for r in self.records), 1),
            "curve": [asdict(r) for r in self.records],
            "versions": {"csr-deploy": __version__, "torch": str(torch.__version__)},
        }
        metrics = {
            "test_top1": last.test_top1,
            "test_loss": last.test_loss,
            "test_images": len(self.data.test_labels),
        }
        kept = {k: v.detach().clone().contiguous() for k, v in state.items()}
        save_checkpoint(
            self.args.out / "model.pt",
            Checkpoint(
                self.start.architecture, kept, self.data.classes, self.data.preprocessing, training, metrics
            ),
        )
        write_curve(self.args.out / "metrics.csv", self.records)


def make_targets(args: argparse.Namespace, data: TrainingData) -> None:
    """Asks the wide network about every view and its mirror image."""
    model = Wide(data.preprocessing.channels, len(data.classes))
    model.load_state_dict(load_file(args.wide))
    augment = Augmenter(Recipe(epochs=1), data.preprocessing)
    score = top1(probabilities(model, data.test_images, augment), data.test_labels)
    print(f"wide network, plain and mirrored: test top-1 {score:.4f}", flush=True)
    images = torch.from_numpy(data.train_images)
    everything = torch.arange(len(images))
    out = np.empty((args.views, len(images), len(data.classes)), np.float16)
    for index in range(args.views):
        views = Views.drawn(args.seed, index, len(images), *images.shape[1:3])
        said = probabilities(model, views.render(images, everything).numpy(), augment)
        out[index] = as_logits(said)
        plain = (views.first == 1).numpy()
        right = top1(said[plain], data.train_labels[plain])
        print(f"view {index + 1}/{args.views}: {right:.4f} of plain crops right", flush=True)
    teacher = f"wide network, plain and mirrored, top-1 {score:.4f}, asked about every view"
    sha256 = fingerprint(data.train_images, data.train_labels)
    ViewTargets(out, args.seed, sha256, teacher).write(args.out)


def main() -> None:
    """Makes targets, or trains."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("targets", help="ask the teacher")
    ask.add_argument("--wide", type=Path, required=True, help="of wide_teacher.py --weights")
    ask.add_argument("--views", type=int, default=8, help="of each image")
    go = commands.add_parser("train", help="train a checkpoint further, or resume")
    go.add_argument("--init", type=Path, required=True)
    go.add_argument("--targets", type=Path, required=True)
    go.add_argument("--epochs", type=int, required=True)
    go.add_argument("--frozen", type=int, default=0, help="first epochs that leave the first stage alone")
    go.add_argument("--plain", type=int, default=0, help="last epochs without views that mix images")
    go.add_argument("--batch-size", type=int, default=128)
    go.add_argument("--muon-lr", type=float, default=0.02, help="peak; SGD's is four times that")
    for command in (ask, go):
        command.add_argument("--data", required=True)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, test = open_dataset(args.data, "train"), open_dataset(args.data, "test")
    data = prepare_data(train, test, natural_preprocessing(train))
    if args.command == "targets":
        make_targets(args, data)
    else:
        Run(args, data).train()


if __name__ == "__main__":
    main()
