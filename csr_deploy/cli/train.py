"""`csr-train`: trains a backbone or a CSR-Conv network."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from csr_deploy.cli.common import (
    INTERRUPTED,
    VersionOption,
    is_main_process,
    new_app,
    parse_image_size,
    print_table,
    print_warning,
    require,
    run,
    stderr,
    stdout,
)
from csr_deploy.curve import EpochRecord, read_curve
from csr_deploy.errors import OptionError
from csr_deploy.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from csr_deploy.checkpoint import Checkpoint
    from csr_deploy.models import Architecture
    from csr_deploy.train import TrainingData, TrainOptions

app = new_app()


class RecipeName(str, Enum):
    """Keys of `RECIPES`."""

    PAPER = "paper"
    PAPER_IMAGENET = "paper-imagenet"
    SHORT = "short"


@app.command()
def train(
    network: Annotated[
        str,
        typer.Option(
            "--network",
            "-n",
            help="Preset (resnet56-csr2, vgg16-csr4, …) or backbone (resnet56, vgg16, …), or a checkpoint "
            "whose architecture is trained from fresh weights, such as one that csr-search found.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", help="Folder or zip: CIFAR-10 batches, IDX files or one folder of images a class."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the run.", show_default="runs/NETWORK")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, exactly.")] = False,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from this checkpoint: of the same network, or of the backbone, whose layers ahead of "
            "the first CSR-Conv are then taken over.",
            show_default=False,
        ),
    ] = None,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Do not train the layers taken over from --init.")
    ] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Learn from this network's answers beside the labels (knowledge distillation): a checkpoint "
            "trained on the same classes, or soft targets as .npz.",
            show_default=False,
        ),
    ] = None,
    distill_weight: Annotated[
        float | None, typer.Option(help="Share of the teacher in the loss, up to 1.", show_default="0.9")
    ] = None,
    distill_temperature: Annotated[
        float | None, typer.Option(help="Temperature of the softened answers.", show_default="2")
    ] = None,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat",
            help="Quantisation-aware fine-tuning: train with the rounding of the int8 export. Start from a "
            "trained network with --init, few epochs, a small --lr.",
        ),
    ] = False,
    recipe: Annotated[
        RecipeName,
        typer.Option(
            help="paper: learning rate halved every 30 epochs, as for CIFAR-10. paper-imagenet: a tenth "
            "every 10. short: one cycle, for CPUs. Epochs: "
            + ", ".join(str(RECIPES[name.value].epochs) for name in RecipeName)
            + "."
        ),
    ] = RecipeName.PAPER,
    csr_modules: Annotated[
        int | None,
        typer.Option(min=1, help="For a backbone: how many modules, from the last, become CSR-Convs."),
    ] = None,
    csr_steps: Annotated[int | None, typer.Option(min=1, help="T of those modules.")] = None,
    cell: Annotated[
        str | None,
        typer.Option(
            help="Recurrence of the CSR-Convs: vanilla (the paper's), gru, lstm, fastrnn, incremental-rnn, "
            "lipschitz-rnn, incremental, incremental-depthwise or s-groupconv.",
            show_default="vanilla",
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="H[xW]", help="Size the network takes.", show_default="that of the images"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images a step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Initial or (short) peak learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of SGD and Muon.")] = None,
    muon_lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of Muon for convolution kernels; 0 for SGD alone."),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps in which the one cycle's rate rises.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 penalty.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="0 for none.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay a step of an average of the weights, 0.999 say; 0 for none.")
    ] = None,
    crop_padding: Annotated[
        int | None, typer.Option(min=0, help="Pixels that random crops may move beyond the image.")
    ] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Random horizontal flips.")] = None,
    progressive: Annotated[
        bool | None,
        typer.Option(
            "--progressive/--no-progressive", help="Smaller crops in the first third of the epochs."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes weights, data order and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's own choice")
    ] = None,
    bf16: Annotated[
        bool | None,
        typer.Option("--bf16/--no-bf16", help="bfloat16 autocast.", show_default="where the device has it"),
    ] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last/--no-channels-last", help="Memory format of the network.")
    ] = True,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw curves.png at the end.")] = True,
    version: VersionOption = False,
) -> None:
    """Trains a backbone or CSR-Conv network and writes model.pt, metrics.csv and curves.png into --out.

    Interrupt with Ctrl-C at any time: the last epoch's checkpoint stays, and --resume continues exactly.
    Start several processes with torchrun -m csr_deploy.cli.train.
    """
    size = parse_image_size(image_size) if image_size else None
    require("torch", "train", "csr-train")
    if plot:
        require("matplotlib", "train", "Drawing training curves (--plot)")
    changes: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "momentum": momentum,
        "muon_rate": muon_lr,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "ema_decay": ema,
        "crop_padding": crop_padding,
        "flip": flip,
        "progressive": progressive,
        "distill_weight": distill_weight,
        "distill_temperature": distill_temperature,
    }
    if teacher is None and (distill_weight, distill_temperature) != (None, None):
        raise OptionError("there is nothing to distill without a teacher", fix="Give --teacher as well.")
    chosen = replace(RECIPES[recipe.value], **{k: v for k, v in changes.items() if v is not None})

    import torch

    from csr_deploy import train as training
    from csr_deploy.data import natural_preprocessing, open_dataset
    from csr_deploy.distributed import native_bf16, pick_device
    from csr_deploy.models import architecture, count_parameters

    if threads:
        torch.set_num_threads(threads)
    where = pick_device(device)
    found = _architecture_of(network, csr_modules, csr_steps)
    options = training.TrainOptions(
        out or Path("runs") / (network if found is None else found.name),
        seed,
        str(where),
        native_bf16(where) if bf16 is None else bf16,
        channels_last,
        resume,
        init,
        freeze,
        teacher,
        qat,
    )
    if is_main_process():
        training.check_out(options)
    train_set, test_set = open_dataset(data, "train"), open_dataset(data, "test")
    preprocessing = natural_preprocessing(train_set, size)
    num_classes = max(1, len(train_set.classes))
    if found is None:
        plan = architecture(
            network, num_classes, preprocessing.channels, modules=csr_modules, num_steps=csr_steps
        )
    else:
        plan = replace(found, num_classes=num_classes, in_channels=preprocessing.channels)
    if cell is not None:
        plan = plan.with_cell(cell)
    parameters = count_parameters(plan.build())
    with _progress() as bars:
        tasks = {s: bars.add_task(f"reading {s} images", total=None, note="") for s in ("train", "test")}
        loaded = training.prepare_data(
            train_set,
            test_set,
            preprocessing,
            on_image=lambda split, done, count: bars.update(
                tasks[split], completed=done + 1, total=count, note=f"{done + 1:,}/{count:,}"
            ),
        )
    _describe(plan.name, parameters, loaded, chosen, options)
    try:
        with _progress() as bars:
            display = _Display(bars, chosen, loaded.preprocessing.height)
            checkpoint = training.train(
                plan, chosen, loaded, options, on_step=display.step, on_epoch=display.epoch
            )
    except KeyboardInterrupt as interrupt:
        if is_main_process():
            _say_how_to_resume(options.out, plan.name, plot)
        raise typer.Exit(INTERRUPTED) from interrupt
    if is_main_process():
        if plot:
            _draw(options.out, plan.name)
        _show_result(checkpoint, parameters, options.out, plot)


def _architecture_of(network: str, modules: int | None, steps: int | None) -> Architecture | None:
    """The architecture of a checkpoint; None where a network is named."""
    if not network.endswith((".pt", ".safetensors")):
        return None
    from csr_deploy.checkpoint import load_checkpoint

    found = load_checkpoint(network).architecture
    if modules is not None or steps is not None:
        raise OptionError(
            "a checkpoint already says which modules are CSR-Convs",
            where=network,
            fix="Give the number of modules and T with a backbone.",
        )
    return found


class _Display:
    """Progress over steps and epochs, with a line an epoch that stays."""

    def __init__(self, bars: Progress, recipe: Recipe, side: int) -> None:
        self._bars, self._recipe, self._side = bars, recipe, side
        self._run = bars.add_task("run", total=None, note="")
        self._epoch = bars.add_task("epoch", total=None, note="")
        self._started = False

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Shows one step; `epoch` from 0, `step` from 1."""
        before, after = self._cost(epoch) * steps, self._cost(epoch + 1) * steps
        if not self._started:
            # Epochs of an earlier start must not count as done in no time.
            self._bars.reset(self._run, total=self._cost(self._recipe.epochs) * steps, completed=int(before))
            self._started = True
        self._bars.update(self._run, completed=before + (after - before) * step / steps)
        text = f"epoch {epoch + 1}/{self._recipe.epochs}"
        if step == 1:
            self._bars.reset(self._epoch, total=steps, description=text)
        note = f"step {step}/{steps}, loss {loss:.3f}" if step < steps else "testing"
        self._bars.update(self._epoch, completed=step, note=note)

    def epoch(self, record: EpochRecord) -> None:
        """Prints one epoch's figures."""
        stderr.print(
            f"epoch {record.epoch}/{self._recipe.epochs}  lr {record.learning_rate:.4g}  "
            f"train loss {record.train_loss:.3f} top-1 {record.train_top1:.2%}  "
            f"test loss {record.test_loss:.3f} top-1 {record.test_top1:.2%}  {record.seconds:.1f} s",
            soft_wrap=True,
        )

    def _cost(self, epochs: int) -> float:
        # In steps at full size: an epoch of small crops takes less time, and the ETA should know.
        return sum((self._recipe.crop_size(e, self._side) / self._side) ** 2 for e in range(epochs))


@contextmanager
def _progress() -> Iterator[Progress]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=stderr,
        # In a log file the lines of the epochs are enough.
        disable=not (stderr.is_terminal and is_main_process()),
        refresh_per_second=2,
        speed_estimate_period=600,
        transient=True,
    ) as bars:
        yield bars


def _describe(name: str, parameters: int, data: TrainingData, recipe: Recipe, options: TrainOptions) -> None:
    if not is_main_process():
        return
    for message in data.damaged[:5]:
        print_warning(message)
    if data.damaged:
        print_warning(f"{len(data.damaged)} images cannot be decoded and are left out")
    count = len(data.train_images)
    if recipe.batch_size > count:
        print_warning(f"batch size {recipe.batch_size} is cut to the {count} training images")
    size = f"{data.preprocessing.height}×{data.preprocessing.width}"
    kind = "gray" if data.preprocessing.channels == 1 else "RGB"
    stderr.print(
        f"{name}: {parameters:,} parameters; {count:,} training and {len(data.test_images):,} test images, "
        f"{size} {kind}, {len(data.classes)} classes; {recipe.epochs} epochs on {options.device}, "
        f"{'bfloat16' if options.bf16 else 'float32'}",
        soft_wrap=True,
    )


def _draw(out: Path, name: str) -> None:
    """Draws the curves of the epochs that were done, where there were any."""
    from csr_deploy.train_plot import draw_curves

    if (out / "metrics.csv").exists():
        draw_curves(read_curve(out / "metrics.csv"), out / "curves.png", name)


def _say_how_to_resume(out: Path, name: str, plot: bool) -> None:
    if (out / "resume.pt").exists():
        stderr.print(
            f"Interrupted. The last finished epoch is kept in {out}. To continue:\n  {resume_command()}",
            soft_wrap=True,
            markup=False,
        )
        if plot:
            _draw(out, name)
    else:
        stderr.print("Interrupted before the first epoch was finished: nothing is kept.")


def resume_command() -> str:
    """The shell command that continues this run."""
    env = os.environ
    if int(env.get("WORLD_SIZE", "1")) > 1:
        processes = env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])
        machines = int(env["WORLD_SIZE"]) // int(processes)
        program = ["torchrun", *(["--nnodes", str(machines)] if machines > 1 else [])]
        program += ["--nproc-per-node", processes, "-m", "csr_deploy.cli.train"]
    elif Path(sys.argv[0]).name.startswith("csr-train"):
        program = ["csr-train"]
    else:
        program = ["python", "-m", "csr_deploy.cli.train"]
    return shlex.join([*program, *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])


def _show_result(checkpoint: Checkpoint, parameters: int, out: Path, plot: bool) -> None:
    curve = [EpochRecord(**record) for record in checkpoint.training["curve"]]
    best = max(curve, key=lambda r: r.test_top1)
    table = Table(title=checkpoint.architecture.name, show_header=False, title_justify="left")
    for key, value in {
        "test top-1": f"{curve[-1].test_top1:.2%} ({checkpoint.metrics['test_images']:,} images)",
        "best epoch": f"{best.test_top1:.2%} (epoch {best.epoch})",
        "train top-1": f"{curve[-1].train_top1:.2%}",
        "parameters": f"{parameters:,}",
        "epochs": f"{len(curve)}",
        "time": f"{checkpoint.training['seconds']:,.0f} s",
        "checkpoint": str(out / "model.pt"),
        "curves": str(out / ("curves.png" if plot else "metrics.csv")),
    }.items():
        table.add_row(key, value)
    print_table(stdout, table)


def main() -> None:
    """Entry point of `csr-train`."""
    run(app)


if __name__ == "__main__":
    main()
