"""`csr-prune`: magnitude pruning of a trained network, with fine-tuning."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from csr_deploy.cli.common import (
    INTERRUPTED,
    VersionOption,
    new_app,
    print_warning,
    require,
    run,
    stderr,
    stdout,
)
from csr_deploy.curve import EpochRecord
from csr_deploy.errors import OptionError
from csr_deploy.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from csr_deploy.checkpoint import Checkpoint
    from csr_deploy.prune import ArtifactSize, PruneOptions
    from csr_deploy.train import TrainingData

app = new_app()

# A trained network needs no high rate to get over its lost weights.
_RECIPE = replace(
    RECIPES["short"], epochs=4, learning_rate=0.01, muon_rate=0.0, progressive=False, warmup=0.1
)


class ScopeName(str, Enum):
    """Values of `csr_deploy.prune.Scope`."""

    CSR = "csr"
    ALL = "all"


@app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="Checkpoint of csr-train.", show_default=False)],
    sparsity: Annotated[
        float,
        typer.Option("--sparsity", "-s", help="Share of the weights to remove, 0.5 for half of them."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="What the network was trained on: folder, zip, or the built-in fashion-mnist. Needed to "
            "fine-tune.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory of the run.", show_default="runs/MODEL-pruned"),
    ] = None,
    per_layer: Annotated[
        bool,
        typer.Option(
            "--per-layer/--global",
            help="The same share of every kernel, or the smallest weights of all of them.",
        ),
    ] = False,
    scope: Annotated[
        ScopeName, typer.Option(help="csr: the shared kernels of CSR-Convs. all: every convolution.")
    ] = ScopeName.CSR,
    steps: Annotated[
        int, typer.Option(min=1, help="Remove weights in so many steps, with --epochs of fine-tuning each.")
    ] = 1,
    epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of fine-tuning a step; 0 only removes weights.")
    ] = _RECIPE.epochs,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = _RECIPE.learning_rate,
    batch_size: Annotated[
        int, typer.Option(min=2, help="Images a step of the optimizer.")
    ] = _RECIPE.batch_size,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Learn from this network's answers beside the labels: a checkpoint, often the unpruned "
            "network itself, or soft targets as .npz.",
            show_default=False,
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Export the network before and after to this target and report the sizes, deflated too; may "
            "be given several times. Int8 targets calibrate with --data.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, exactly.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes data order and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's own choice")
    ] = None,
    bf16: Annotated[
        bool | None,
        typer.Option("--bf16/--no-bf16", help="bfloat16 autocast.", show_default="where the device has it"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    version: VersionOption = False,
) -> None:
    """Sets the smallest weights of a trained network to zero and fine-tunes the others.

    Writes model.pt, a normal checkpoint with exact zeros, into --out. Interrupt with Ctrl-C at any time:
    --resume continues exactly.
    """
    require("torch", "train", "csr-prune")

    import torch

    from csr_deploy import prune as pruning
    from csr_deploy.checkpoint import load_checkpoint
    from csr_deploy.distributed import native_bf16, pick_device
    from csr_deploy.targets import find_target
    from csr_deploy.train import TrainOptions

    options = pruning.PruneOptions(sparsity, scope.value, per_layer, steps)
    wanted = [find_target(name) for name in targets or ()]
    if epochs and data is None:
        raise OptionError(
            "fine-tuning needs images, and none were given",
            where="--data",
            fix="Give --data with the training data, or --epochs 0 to remove weights only.",
        )
    if not epochs and (steps > 1 or teacher or resume):
        raise OptionError(
            "without fine-tuning there are no steps, no teacher and nothing to resume",
            where="--epochs 0",
            fix="Leave them out, or give at least one epoch.",
        )
    if data is None and any(t.quantized for t in wanted):
        raise OptionError("an int8 target needs images to calibrate with", fix="Give --data.")
    if threads:
        torch.set_num_threads(threads)
    original = load_checkpoint(model)
    # Refused here, before the data is read.
    pruning.prunable(original.build(), options.scope)
    folder = out or Path("runs") / f"{_name(model, original)}-pruned"
    if epochs:
        assert data is not None
        recipe = replace(_RECIPE, epochs=epochs, learning_rate=lr, batch_size=batch_size)
        where = pick_device(device)
        training = TrainOptions(
            folder,
            seed,
            str(where),
            native_bf16(where) if bf16 is None else bf16,
            resume=resume,
            teacher=teacher,
        )
        loaded = _load(data, original)
        try:
            pruned = pruning.prune_and_train(
                model,
                recipe,
                loaded,
                options,
                training,
                on_start=lambda step, level: stderr.print(
                    f"step {step + 1}/{steps}: {level:.1%} of the weights removed"
                ),
                on_epoch=lambda record: _say(record, recipe),
            )
        except KeyboardInterrupt as interrupt:
            stderr.print(f"Interrupted. Give the same command with --resume to continue in {folder}.")
            raise typer.Exit(INTERRUPTED) from interrupt
    else:
        pruned = pruning.prune_only(model, folder, options)
    sizes = [_sizes(model, folder / "model.pt", name, data) for name in targets or ()]
    _show(original, pruned, options, folder, sizes, as_json)


def _name(model: Path, checkpoint: Checkpoint) -> str:
    return checkpoint.architecture.name if model.stem == "model" else model.stem


def _load(data: str, checkpoint: Checkpoint) -> TrainingData:
    from csr_deploy.data import open_dataset
    from csr_deploy.train import prepare_data

    loaded = prepare_data(open_dataset(data, "train"), open_dataset(data, "test"), checkpoint.preprocessing)
    for message in loaded.damaged[:5]:
        print_warning(message)
    return loaded


def _say(record: EpochRecord, recipe: Recipe) -> None:
    stderr.print(
        f"epoch {record.epoch}/{recipe.epochs}  train loss {record.train_loss:.3f} "
        f"top-1 {record.train_top1:.2%}  test loss {record.test_loss:.3f} top-1 {record.test_top1:.2%}  "
        f"{record.seconds:.1f} s",
        soft_wrap=True,
    )


def _sizes(before: Path, after: Path, target: str, data: str | None) -> tuple[ArtifactSize, ArtifactSize]:
    """Exports both networks, the same way."""
    from csr_deploy.export import ExportOptions, Network, export, load_export_data
    from csr_deploy.prune import artifact_size
    from csr_deploy.targets import find_target

    found = find_target(target)
    sizes = []
    with tempfile.TemporaryDirectory(prefix="csr-prune-") as folder:
        for number, path in enumerate((before, after)):
            # A name alike, as it is written into some files.
            network = replace(Network.from_checkpoint(path), name="model")
            options = ExportOptions()
            images = load_export_data(network, data, options, quantized=found.quantized)
            artifact = export(network, found, images, Path(folder) / f"{number}", options)
            sizes.append(artifact_size(artifact.path))
    return sizes[0], sizes[1]


def _show(
    original: Checkpoint,
    pruned: Checkpoint,
    options: PruneOptions,
    folder: Path,
    sizes: Sequence[tuple[ArtifactSize, ArtifactSize]],
    as_json: bool,
) -> None:
    record = pruned.training["pruning"]
    before, after = original.metrics.get("test_top1"), pruned.metrics.get("test_top1")
    dead = [name for name, layer in record["layers"].items() if layer["zeros"] == layer["values"]]
    if dead:
        print_warning(f"nothing is left of {', '.join(dead)}; --per-layer would keep a share of every kernel")
    if as_json:
        result: dict[str, Any] = {
            "checkpoint": str(folder / "model.pt"),
            "test_top1_before": before,
            "test_top1": after,
            **record,
            "artifacts": [{"before": asdict(a), "after": asdict(b)} for a, b in sizes],
        }
        stdout.print_json(json.dumps(result))
        return
    table = Table(title=f"{pruned.architecture.name}, pruned", title_justify="left")
    table.add_column("Kernel", overflow="fold")
    for column in ("Values", "Zeros", "Sparsity"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, layer in record["layers"].items():
        share = layer["zeros"] / layer["values"]
        table.add_row(name, f"{layer['values']:,}", f"{layer['zeros']:,}", f"{share:.1%}")
    stdout.print(table)
    nonzero, parameters = record["nonzero"], record["parameters"]
    stdout.print(f"parameters: {parameters:,}, not zero: {nonzero:,} ({nonzero / parameters:.1%})")
    stdout.print(f"test top-1: {_accuracy(original)} before, {_accuracy(pruned)} after")
    for old, new in sizes:
        stdout.print(
            f"{old.target}: {old.stored:,} bytes before, {new.stored:,} after; "
            f"deflated {old.compressed:,} before, {new.compressed:,} after",
            soft_wrap=True,
        )
    stdout.print(f"checkpoint: {folder / 'model.pt'}", soft_wrap=True)


def _accuracy(checkpoint: Checkpoint) -> str:
    top1, images = (checkpoint.metrics.get(name) for name in ("test_top1", "test_images"))
    if top1 is None:
        return "unknown"
    # The two can be of different sets.
    return f"{top1:.2%}" + (f" ({images:,} images)" if images else "")


def main() -> None:
    """Entry point of `csr-prune`."""
    run(app)


if __name__ == "__main__":
    main()
