"""Training: the paper's recipe, or a short one-cycle recipe that a CPU can finish.

Everything that varies along a run is a pure function of (seed, epoch, step): data order, augmentation,
learning rate and crop size. A resumed run therefore continues exactly, from weights, momentum and the
epoch alone.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csr_deploy import __version__
from csr_deploy.atomic import atomic_write, undisturbed
from csr_deploy.augment import Augmenter
from csr_deploy.checkpoint import Checkpoint, check_state, read_torch_bytes, save_checkpoint, torch_bytes
from csr_deploy.curve import EpochRecord, write_curve
from csr_deploy.data import ImageDataset, Preprocessing, Split, fingerprint
from csr_deploy.distill import distillation_loss, load_teacher
from csr_deploy.distributed import World, joined_world
from csr_deploy.errors import CheckpointError, DataError, ModelError, OptionError
from csr_deploy.inherit import freeze, inherit
from csr_deploy.models import Architecture
from csr_deploy.nn.dead_channels import silence_dead_channels
from csr_deploy.optimizer import RecipeOptimizer
from csr_deploy.qat import QuantizationAware
from csr_deploy.recipe import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "EpochRecord",
    "Recipe",
    "TrainOptions",
    "TrainingData",
    "check_out",
    "prepare_data",
    "train",
]


@dataclass(frozen=True)
class TrainingData:
    """Both splits at the network's size, uint8."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    source: str
    damaged: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """[1, C, H, W] of one picture."""
        p = self.preprocessing
        return (1, p.channels, p.height, p.width)


def prepare_data(
    train: ImageDataset,
    test: ImageDataset,
    preprocessing: Preprocessing,
    *,
    on_image: Callable[[Split, int, int], None] | None = None,
) -> TrainingData:
    """Decodes both splits; mean and std of `preprocessing` are replaced by those of the training split.

    Args:
        train: The training split.
        test: The test split.
        preprocessing: Size and channels of the network.
        on_image: Called before each image with (split, images done, images in the split).

    Raises:
        DataError: If images have no labels, the splits have different classes, a class has no image, too
            many are damaged or they do not fit into memory.
    """
    for split, dataset in (("train", train), ("test", test)):
        if not dataset.classes:
            raise DataError(
                f"its {split} part has no class folders",
                where=dataset.name,
                fix="Put the images of each class in a folder.",
            )
    if train.classes != test.classes:
        raise DataError(
            f"its train and test parts have different classes: "
            f"{', '.join(sorted(set(train.classes) ^ set(test.classes)))}",
            where=train.name,
            fix="Give both parts the same classes.",
        )
    if len(train.classes) < 2:
        raise DataError("has only one class", where=train.name, fix="Give at least two class folders.")

    def told(split: Split) -> Callable[[int, int], None] | None:
        return (lambda done, count: on_image(split, done, count)) if on_image else None

    images, labels = train.load(preprocessing, on_image=told("train"))
    test_images, test_labels = test.load(preprocessing, on_image=told("test"))
    counts = np.bincount(labels, minlength=len(train.classes))
    if bare := [c for c, n in zip(train.classes, counts, strict=True) if not n]:
        raise DataError(
            f"no training image of class {', '.join(bare)}",
            where=train.name,
            fix="Add images, or remove the class.",
        )
    return TrainingData(
        images,
        labels,
        test_images,
        test_labels,
        train.classes,
        Preprocessing.from_images(images),
        train.name,
        train.damaged + test.damaged,
    )


@dataclass(frozen=True)
class TrainOptions:
    """Where and how a run computes; but for seed and start, this changes what is learnt by rounding only.

    Attributes:
        out: Directory of the run.
        seed: Fixes initialisation, data order and augmentation; from 0 to 2^63 − 1.
        device: Torch device.
        bf16: bfloat16 autocast.
        channels_last: Memory format of the network.
        resume: Continue the run in `out`.
        init: Checkpoint whose weights the run starts from: of the same network, or of the backbone of a CSR
            network, which then takes over the layers ahead of its first CSR-Conv.
        freeze: Do not train what was taken over from `init`.
        teacher: Checkpoint, or `.npz` of soft targets, that the network learns from beside the labels.
        qat: Train with the rounding of the int8 export; the test accuracy then is that of rounded values.
    """

    out: Path
    seed: int = 0
    device: str = "cpu"
    bf16: bool = True
    channels_last: bool = True
    resume: bool = False
    init: Path | None = None
    freeze: bool = False
    teacher: Path | None = None
    qat: bool = False

    def __post_init__(self) -> None:
        """Checks the seed.

        Raises:
            OptionError: If it is out of range.
        """
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed {self.seed} is out of range", fix="Give a number from 0 to 2^63 − 1.")
        if self.freeze and self.init is None:
            raise OptionError("there is nothing to freeze without a start", fix="Give --init as well.")


_RESUME, _MODEL = "resume.pt", "model.pt"

Progress = Callable[[int, int, int, float], None]
"""Called after each step with (epoch, step in epoch, steps per epoch, running loss)."""


def check_out(options: TrainOptions) -> None:
    """Checks that a run may be started, or resumed, in its directory.

    Raises:
        OptionError: If it holds a run and `resume` is not set, or the other way round.
    """
    names = [n for n in (_RESUME, _MODEL) if (options.out / n).exists()]
    if names and not options.resume:
        raise OptionError(
            "already holds a run", where=str(options.out), fix="Give --resume, or another --out."
        )
    if options.resume and _RESUME not in names:
        raise OptionError("holds no run to resume", where=str(options.out), fix="Start one without --resume.")


def train(
    architecture: Architecture,
    recipe: Recipe,
    data: TrainingData,
    options: TrainOptions,
    *,
    masks: Mapping[str, Tensor] | None = None,
    on_step: Progress | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Checkpoint:
    """Trains a network; writes `model.pt`, `resume.pt`, `metrics.csv` into the run's directory.

    Files are replaced whole after every epoch, so an interrupted run loses at most the epoch under way.
    Under torchrun every process calls this; the callbacks and the files are the main process's.

    Args:
        architecture: What to train.
        recipe: How. A batch larger than the training set is cut to it.
        data: Both splits.
        options: Where.
        masks: Name of a parameter → bool mask of its shape; where it is False the parameter is exactly zero
            from the start on and after every step.
        on_step: Called after each step.
        on_epoch: Called after each epoch, when its files are written.

    Returns:
        What `model.pt` holds at the end.

    Raises:
        OptionError: If the run exists and `resume` is not set, resuming would change the run, or the loss
            is no longer finite; the files then are those of the epoch before.
        CheckpointError: If the run to resume is damaged, or the start or the teacher does not fit.
        DataError: If there are fewer images than the processes need, or soft targets are of other images.
        ModelError: If the network cannot be built or takes larger images.
        ExportError: If a file cannot be written.
    """
    device = torch.device(options.device)
    with joined_world(device) as world:
        run = _Run(architecture, recipe, data, options, world, masks or {})
        checkpoint = run.train(on_step, on_epoch)
        del run
        return checkpoint


class _Run:
    """State of one training run."""

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        data: TrainingData,
        options: TrainOptions,
        world: World,
        masks: Mapping[str, Tensor],
    ) -> None:
        if recipe.batch_size % world.size:
            raise OptionError(
                f"batch size {recipe.batch_size} is not a multiple of {world.size} processes",
                fix="Give a --batch-size that is.",
            )
        count = len(data.train_images)
        if recipe.batch_size > count:
            recipe = replace(recipe, batch_size=max(2, count // world.size * world.size))
        # BatchNorm needs two images to tell their variance.
        if count < recipe.batch_size or recipe.batch_size < 2 * world.size:
            raise DataError(
                f"{count} training images in batches of {recipe.batch_size} are too few "
                f"for {world.size} processes",
                where=data.source,
                fix="Every process needs two images a step.",
            )
        _check_size(architecture, recipe, data.preprocessing)
        self.architecture, self.recipe, self.data, self.options = architecture, recipe, data, options
        self.device, self.world = world.device, world
        if self.device.type == "cuda":
            # Otherwise cuDNN may add in another order after --resume.
            torch.backends.cudnn.deterministic = True
        torch.manual_seed(options.seed)
        model = architecture.build()
        self.origin = inherit(model, options.init, data.input_shape) if options.init else None
        self.frozen: list[nn.Module] = []
        if self.origin and options.freeze:
            if self.origin.complete:
                raise OptionError(
                    "the whole network was taken over, so nothing would be trained",
                    where=str(options.init),
                    fix="Leave out --freeze.",
                )
            self.frozen = freeze(model, self.origin.modules)
        model = model.to(self.device)
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = model
        self.masked = _masked(model, masks)
        self._apply_masks()
        self.aware: QuantizationAware | None = None
        if options.qat:
            self.aware = QuantizationAware(model, data.preprocessing, data.train_images).to(self.device)
        ahead: nn.Module = self.aware or model
        self.forward: nn.Module = nn.parallel.DistributedDataParallel(ahead) if world.size > 1 else ahead
        self.optimizer = RecipeOptimizer(model, recipe)
        self.ema = {k: v.clone() for k, v in model.state_dict().items()} if recipe.ema_decay else None
        self.augment = Augmenter(recipe, data.preprocessing)
        self.images = torch.from_numpy(data.train_images).to(self.device)
        self.labels = torch.from_numpy(data.train_labels).to(self.device)
        self.steps = count // recipe.batch_size
        self.records: list[EpochRecord] = []
        data_sha256 = fingerprint(data.train_images, data.train_labels)
        self.identity = {
            "architecture": asdict(architecture),
            "recipe": asdict(recipe),
            "seed": options.seed,
            "data_sha256": data_sha256,
            "processes": world.size,
            "bf16": options.bf16,
        }
        if self.origin:
            self.identity["init_sha256"] = self.origin.source["sha256"]
            self.identity["freeze"] = options.freeze
        if options.qat:
            self.identity["qat"] = True
        if masks:
            self.identity["masks_sha256"] = _masks_sha256(masks)
        self.teacher: str | None = None
        self.soft_targets: Tensor | None = None
        if options.teacher:
            targets = load_teacher(
                options.teacher,
                data.train_images,
                data.classes,
                data.preprocessing,
                data_sha256,
                self.device,
            )
            self.teacher = self.identity["teacher"] = targets.teacher
            self.soft_targets = torch.from_numpy(targets.logits).to(self.device)

    @property
    def _resume_file(self) -> Path:
        return self.options.out / _RESUME

    def train(self, on_step: Progress | None, on_epoch: Callable[[EpochRecord], None] | None) -> Checkpoint:
        self._open()
        for epoch in range(len(self.records), self.recipe.epochs):
            start = time.perf_counter()
            loss, top1 = self._epoch(epoch, on_step)
            test_loss, test_top1 = self._evaluate()
            if not math.isfinite(test_loss):
                raise self._diverged(test_loss, epoch, "when it was evaluated")
            rate = self.recipe.rate(epoch * self.steps, self.steps)
            seconds = time.perf_counter() - start
            record = EpochRecord(epoch + 1, rate, loss, top1, test_loss, test_top1, round(seconds, 1))
            self.records.append(record)
            if self.world.main:
                self._save()
                if on_epoch:
                    on_epoch(record)
        return self._checkpoint()

    def _open(self) -> None:
        """Makes the run's directory or restores the run in it, the same way in every process."""
        out, resume = self.options.out, self.options.resume
        content = None
        if self.world.main:
            check_out(self.options)
            try:
                out.mkdir(parents=True, exist_ok=True)
                content = self._resume_file.read_bytes() if resume else None
            except OSError as error:
                raise OptionError(
                    f"cannot be used for a run: {error.strerror or error}",
                    where=str(out),
                    fix="Give another --out.",
                ) from error
        # Only the main process need see the directory: other machines may not have it.
        content = self.world.share_bytes(content)
        if content is not None:
            self._restore(content)
            # An interrupt can have come between the files of the last epoch.
            if self.world.main:
                self._write_results()

    def _diverged(self, loss: float, epoch: int, moment: str) -> OptionError:
        return OptionError(
            f"the loss became {loss} in epoch {epoch + 1}, {moment}",
            fix="Lower --lr. The run up to the previous epoch is kept.",
        )

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Images, labels and the teacher's logits of each step."""
        order = torch.randperm(
            len(self.images), generator=torch.Generator().manual_seed(_mix(self.options.seed, epoch, 0))
        )
        draw = torch.Generator().manual_seed(_mix(self.options.seed, epoch, 1 + self.world.rank))
        per_rank = self.recipe.batch_size // self.world.size
        for step in range(self.steps):
            start = step * self.recipe.batch_size + self.world.rank * per_rank
            chosen = order[start : start + per_rank]
            chosen = chosen.to(self.device)
            x, mirrored = self.augment(self.images[chosen], epoch, draw)
            soft = None
            if self.soft_targets is not None:
                soft = self.soft_targets[chosen, mirrored.to(self.device).long()].float()
            yield x, self.labels[chosen], soft

    def _epoch(self, epoch: int, on_step: Progress | None) -> tuple[float, float]:
        if self.aware is not None:
            self.aware.calibrate()
        self.forward.train()
        for module in self.frozen:
            module.eval()
        total_loss = total_hits = seen = 0.0
        running = 0.0
        for step, (x, y, soft) in enumerate(self._batches(epoch)):
            self.optimizer.set_rate(self.recipe.rate(epoch * self.steps + step, self.steps))
            x = self._place(x)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
                logits = self.forward(x)
            loss = self._loss(logits.float(), y, soft)
            value = loss.item()
            if not math.isfinite(value):
                raise self._diverged(value, epoch, f"step {step + 1}")
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self._apply_masks()
            self._update_ema(epoch * self.steps + step)
            total_loss += value * len(y)
            total_hits += int((logits.argmax(1) == y).sum())
            seen += len(y)
            running = value if step == 0 else 0.98 * running + 0.02 * value
            if on_step and self.world.main:
                on_step(epoch, step + 1, self.steps, running)
        sums = self.world.sum(total_loss, total_hits, seen)
        return sums[0] / sums[2], sums[1] / sums[2]

    def _loss(self, logits: Tensor, y: Tensor, soft: Tensor | None) -> Tensor:
        recipe = self.recipe
        if soft is None:
            return nn.functional.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        loss = recipe.distill_weight * distillation_loss(logits, soft, recipe.distill_temperature)
        if recipe.distill_weight < 1:
            hard = nn.functional.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
            loss = loss + (1 - recipe.distill_weight) * hard
        return loss

    def _apply_masks(self) -> None:
        # After the step, whatever it was: momentum, weight decay and Muon move a weight without a gradient.
        with torch.no_grad():
            for parameter, dropped in self.masked:
                parameter.masked_fill_(dropped, 0.0)

    def _update_ema(self, step: int) -> None:
        if self.ema is None:
            return
        # Early averages follow the weights closely, as a long memory of the initialisation is of no use.
        decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.ema[key].lerp_(value, 1 - decay)
                else:
                    self.ema[key].copy_(value)

    def _evaluate(self) -> tuple[float, float]:
        # Each process has the BatchNorm statistics of its own images; those of the main one are saved.
        self.world.share(self.model.buffers())
        if self.ema is not None:
            self.world.share(self.ema.values())
        kept = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self._result()[0])
        self.model.eval()
        network = self.aware or self.model
        network.eval()
        loss = hits = seen = 0.0
        images, labels = self.data.test_images, self.data.test_labels
        size = min(256, math.ceil(len(images) / self.world.size))
        with torch.no_grad():
            for start in range(self.world.rank * size, len(images), self.world.size * size):
                x = torch.from_numpy(images[start : start + size]).to(self.device)
                x = self._place(self.augment.normalize(x))
                y = torch.from_numpy(labels[start : start + size]).to(self.device)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
                    logits = network(x).float()
                loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
                hits += int((logits.argmax(1) == y).sum())
                seen += len(y)
        self.model.load_state_dict(kept)
        sums = self.world.sum(loss, hits, seen)
        return sums[0] / sums[2], sums[1] / sums[2]

    def _place(self, x: Tensor) -> Tensor:
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return x.to(self.device).contiguous(memory_format=layout)

    def _result(self) -> tuple[dict[str, Tensor], int]:
        """What the training gives so far, and how many dead channels were silenced in it."""
        state = self.ema if self.ema is not None else self.model.state_dict()
        with torch.no_grad():
            return silence_dead_channels(self.model, state)

    def _checkpoint(self) -> Checkpoint:
        state, silenced = self._result()
        metrics: dict[str, Any] = {}
        if self.records:
            last = self.records[-1]
            metrics = {
                "test_top1": last.test_top1,
                "test_loss": last.test_loss,
                "test_images": len(self.data.test_labels),
            }
        training = {
            "recipe": asdict(self.recipe),
            "seed": self.options.seed,
            "epochs_done": len(self.records),
            "train_images": len(self.data.train_labels),
            "damaged_images": len(self.data.damaged),
            "data_sha256": self.identity["data_sha256"],
            "bf16": self.options.bf16,
            "init": self.origin.record(frozen=self.options.freeze) if self.origin else None,
            "teacher": self.teacher,
            "qat": self.options.qat,
            "silenced_channels": silenced,
            "processes": self.world.size,
            "seconds": round(sum(r.seconds for r in self.records), 1),
            "curve": [asdict(r) for r in self.records],
            "versions": {
                "csr-deploy": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }
        return Checkpoint(
            self.architecture,
            {k: v.detach().cpu().clone().contiguous() for k, v in state.items()},
            self.data.classes,
            self.data.preprocessing,
            training,
            metrics,
        )

    def _save(self) -> None:
        content = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "records": [asdict(r) for r in self.records],
        }
        # First, as a run with this file can always be resumed, whatever of the rest was written.
        with undisturbed():
            with atomic_write(self._resume_file) as temporary:
                temporary.write_bytes(torch_bytes(content))
            self._write_results()

    def _write_results(self) -> None:
        save_checkpoint(self.options.out / _MODEL, self._checkpoint())
        write_curve(self.options.out / "metrics.csv", self.records)

    def _restore(self, content: bytes) -> None:
        where = str(self._resume_file)
        try:
            read = read_torch_bytes(content)
            changed = _differences(read["identity"], self.identity)
        except CheckpointError as error:
            raise CheckpointError(error.what, where=where, fix=_START_AGAIN) from error
        except _NOT_A_RUN as error:
            raise CheckpointError(f"is damaged: {error!r}", where=where, fix=_START_AGAIN) from error
        if changed:
            raise OptionError(
                f"the run was started with other settings: {', '.join(changed)}",
                where=str(self.options.out),
                fix="Resume with the same options, or start another run.",
            )
        try:
            check_state(self.model, read["model"])
            self.model.load_state_dict(read["model"])
            self.optimizer.load_state_dict(read["optimizer"])
            if self.ema is not None:
                check_state(self.model, read["ema"])
                self.ema = {k: v.to(self.device) for k, v in read["ema"].items()}
            self.records = [EpochRecord(**r) for r in read["records"]]
        except CheckpointError as error:
            raise CheckpointError(error.what, where=where, fix=_START_AGAIN) from error
        except _NOT_A_RUN as error:
            raise CheckpointError(f"is damaged: {error!r}", where=where, fix=_START_AGAIN) from error


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters with what is dropped of each.

    Raises:
        ModelError: If a mask belongs to no parameter, or has another shape.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ModelError(
                f"a mask of shape {list(mask.shape)} fits no parameter of the network", where=name
            )
    return [(parameters[name], ~mask.to(parameters[name].device)) for name, mask in masks.items()]


def _masks_sha256(masks: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode())
        digest.update(np.packbits(masks[name].cpu().numpy()).tobytes())
    return digest.hexdigest()


_START_AGAIN = "Start again without --resume, in another --out."
# What comes of reading plain values of another form than `_Run._save` writes.
_NOT_A_RUN = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _check_size(architecture: Architecture, recipe: Recipe, preprocessing: Preprocessing) -> None:
    """Tries the smallest training crop on a network without storage.

    Raises:
        ModelError: If it is too small for the network.
    """
    height, width = (recipe.crop_size(0, side) for side in (preprocessing.height, preprocessing.width))
    with torch.device("meta"), torch.no_grad():
        model = architecture.build().eval()
        try:
            model(torch.empty(1, preprocessing.channels, height, width))
        except RuntimeError as error:
            raise ModelError(
                f"{architecture.backbone} cannot take training crops of {height}×{width}: {error}",
                fix="Give a larger --image-size" + (", or --no-progressive." if recipe.progressive else "."),
            ) from error


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    # A setting that an older run did not record cannot be compared.
    for key in sorted(before if not prefix else {*before, *now}):
        a, b = before.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += _differences(a, b, f"{prefix}{key}.")
        elif _comparable(a) != _comparable(b):
            out.append(f"{prefix}{key} was {a}, is {b}")
    return out


def _comparable(value: Any) -> Any:
    return [_comparable(v) for v in value] if isinstance(value, (list, tuple)) else value


def _mix(seed: int, epoch: int, stream: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, stream)).generate_state(1, np.uint64)[0] >> np.uint64(1))
