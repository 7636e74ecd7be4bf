"""`csr-search`: finds the CSR-Conv network that fits a target."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from csr_deploy.cli.common import (
    INTERRUPTED,
    VersionOption,
    new_app,
    parse_image_size,
    print_table,
    print_warning,
    require,
    run,
    stderr,
    stdout,
)
from csr_deploy.errors import OptionError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from csr_deploy.search.front import Found, Front
    from csr_deploy.search.grid import GridRow
    from csr_deploy.search.settings import SearchSettings
    from csr_deploy.search.space import Space
    from csr_deploy.search.worker import Study

app = new_app()


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"'{text}' is no list of numbers: give 2,3,4.")
    return tuple(int(part) for part in parts)


@app.command()
def search(
    backbone: Annotated[
        str, typer.Option("--backbone", "-b", help="What is changed: resnet20, resnet56, vgg16, …")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Folder, zip, or the built-in fashion-mnist. Only its training part is used.",
            show_default=False,
        ),
    ] = None,
    target_compression: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Least share of the backbone's parameters to do without. Alone it lists the paper's grid; "
            "with --trials it limits the search.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            "-n",
            min=1,
            help="Networks to try, over all workers and starts.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="May be given several times: parameters, macs, latency:TARGET, size:TARGET, ram:TARGET, "
            "instructions:pi4 (pi5, cortex-m4, …), flash, ram, flash:cortex-m4, ram:cortex-m4. Accuracy "
            "always is one.",
            show_default="parameters",
        ),
    ] = None,
    steps: Annotated[str, typer.Option(metavar="T,T,…", help="Choices of T, besides 1.")] = "2,3,4",
    per_module: Annotated[
        bool,
        typer.Option("--per-module", help="Choose T for every module, not one T for the last modules alike."),
    ] = False,
    max_modules: Annotated[
        int | None, typer.Option(min=1, help="Most modules, from the last backwards.", show_default="all")
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(help="Cell to choose from; may be given several times.", show_default="vanilla"),
    ] = None,
    width: Annotated[
        list[float] | None,
        typer.Option(
            help="Factor of the channels to choose from; may be given several times.", show_default="1"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the search.", show_default="runs/search-BACKBONE"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database that all workers share, as an URL: sqlite:///FILE, postgresql://….",
            show_default="a SQLite file in --out",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name of the study in it.", show_default="the backbone")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes on this machine.")] = 1,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Only continue: fail if there is no such study."),
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Of a short training.")] = 4,
    limit: Annotated[int, typer.Option(min=2, help="Training images of it.")] = 4000,
    validation: Annotated[
        int, typer.Option(min=1, help="Images of the training part held out, to tell the accuracy.")
    ] = 1000,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate of SGD.")] = 0.1,
    muon_lr: Annotated[float, typer.Option(help="Peak learning rate of Muon; 0 for SGD alone.")] = 0.05,
    prune_margin: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            help="Stop a training when a network that costs no more is so many points ahead; 100 for never.",
        ),
    ] = 3.0,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="H[xW]", help="Size the network takes.", show_default="that of the images"),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to learn from beside the labels (knowledge distillation).", show_default=False
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Trained backbone, whose layers ahead of the first CSR-Conv are taken over.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes images, trainings and draws.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of a worker.", show_default="its share of the machine"),
    ] = None,
    bf16: Annotated[
        bool | None,
        typer.Option("--bf16/--no-bf16", help="bfloat16 autocast.", show_default="where the device has it"),
    ] = None,
    heartbeat: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Between signs of life; a worker silent four times as long is dead.",
        ),
    ] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    version: VersionOption = False,
) -> None:
    """Searches for networks that are accurate and cheap on a target; ends with their Pareto front.

    With --target-compression alone it lists the paper's grid: which modules and T reach it.

    Any number of workers can share a study: --workers on this machine, and the same command with the same
    --storage and --study on others. Interrupt with Ctrl-C at any time: the same command continues.
    """
    require("torch", "search", "csr-search")
    require("optuna", "search", "csr-search")
    choices = _numbers(steps)
    size = parse_image_size(image_size) if image_size else None
    if trials is None and target_compression is None:
        raise OptionError(
            "there is nothing to do",
            fix="Give --trials N to search, or --target-compression PERCENT to list what reaches it.",
        )
    if trials is None:
        if objective or per_module:
            raise OptionError(
                "a list of the grid has one T and no objectives", fix="Give --trials N to search."
            )
        _list(backbone, data, size, choices, max_modules, cell, width, target_compression, as_json)
        return
    if data is None:
        raise OptionError(
            "a search trains networks, and no images were given", where="--data", fix="Give --data."
        )
    require("matplotlib", "search", "Drawing the Pareto front")

    from csr_deploy.search.settings import SearchSettings
    from csr_deploy.search.storage import default_url

    folder = out or Path("runs") / f"search-{backbone}"
    settings = SearchSettings(
        backbone=backbone,
        data=data,
        out=str(folder),
        trials=trials,
        storage=storage or default_url(folder.absolute()),
        study=study or backbone,
        objectives=("accuracy", *(o for o in objective or ["parameters"] if o != "accuracy")),
        steps=choices,
        per_module=per_module,
        max_modules=max_modules,
        cells=tuple(cell or ["vanilla"]),
        widths=tuple(width or [1.0]),
        target_compression=target_compression,
        epochs=epochs,
        limit=limit,
        validation=validation,
        batch_size=batch_size,
        learning_rate=lr,
        muon_rate=muon_lr,
        prune_margin=prune_margin,
        image_size=size,
        teacher=str(teacher) if teacher else None,
        init=str(init) if init else None,
        seed=seed,
        device=device,
        threads=threads or max(1, _cpus() // workers),
        bf16=bf16,
        heartbeat=heartbeat,
    )
    _search(settings, workers, folder, resume, as_json)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list(
    backbone: str,
    data: str | None,
    size: tuple[int, int] | None,
    steps: tuple[int, ...],
    max_modules: int | None,
    cells: list[str] | None,
    widths: list[float] | None,
    target: float | None,
    as_json: bool,
) -> None:
    from csr_deploy.models import BACKBONES
    from csr_deploy.models.architecture import unknown_name
    from csr_deploy.search.grid import list_grid
    from csr_deploy.search.space import Space

    if backbone not in BACKBONES:
        raise unknown_name(backbone, BACKBONES, "backbone")
    side = BACKBONES[backbone].image_size
    classes, shape = BACKBONES[backbone].num_classes, (1, 3, side, side)
    if data is not None:
        from csr_deploy.data import natural_preprocessing, open_dataset

        images = open_dataset(data, "train")
        p = natural_preprocessing(images, size)
        classes, shape = max(1, len(images.classes)), (1, p.channels, p.height, p.width)
    elif size is not None:
        shape = (1, 3, *size)
    space = Space(
        backbone,
        steps=steps,
        max_modules=max_modules,
        cells=cells or ["vanilla"],
        widths=widths or [1.0],
        num_classes=classes,
        input_shape=shape,
        target_compression=target,
    )
    rows = list_grid(space)
    if as_json:
        stdout.print_json(json.dumps([asdict(row) for row in rows]))
        return
    _show_grid(space, rows, target)


def _show_grid(space: Space, rows: Sequence[GridRow], target: float | None) -> None:
    counts = space.backbone_counts
    _, channels, height, width = space.input_shape
    shown = [row for row in rows if row.fewest]
    table = Table(
        title=f"{space.backbone} with at least {target:g} % fewer parameters, fewest modules for each T",
        title_justify="left",
    )
    table.add_column("Network", no_wrap=True)
    for column in ("Modules", "T", "Parameters", "Compression", "MACs", "of backbone"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in shown:
        table.add_row(
            row.network,
            f"{row.modules} of {space.modules}",
            str(row.steps),
            f"{row.parameters:,}",
            f"{row.compression:.1f} %",
            f"{row.macs:,}",
            f"{row.mac_ratio:.2f}",
        )
    print_table(stdout, table)
    stdout.print(
        f"Backbone: {counts.parameters:,} parameters, {counts.macs:,} MACs, {space.num_classes} classes, "
        f"{height}×{width}×{channels}. {len(rows)} networks of the grid reach it; --json lists them all.",
        soft_wrap=True,
    )
    stdout.print(
        f"To train one: csr-train --network {space.backbone} --csr-modules {shown[0].modules} "
        f"--csr-steps {shown[0].steps} --data …",
        soft_wrap=True,
    )


def _search(settings: SearchSettings, workers: int, folder: Path, resume: bool, as_json: bool) -> None:
    from csr_deploy.search.front import collect, write_front
    from csr_deploy.search.run import run_search
    from csr_deploy.search.worker import Study

    opened = Study(settings, create=not resume)
    _describe(opened, workers)
    interrupted = False
    try:
        run_search(
            settings,
            workers,
            opened,
            on_trial=lambda trial: _say(opened, trial),
            on_loss=print_warning,
        )
    except KeyboardInterrupt:
        interrupted = True
    front = write_front(opened, collect(opened), folder)
    if as_json:
        stdout.print_json((folder / "pareto.json").read_text(encoding="utf-8"))
    else:
        _show(opened, front, folder)
    if interrupted:
        stderr.print(
            f"Interrupted after {len(front.front) + len(front.others)} of {settings.trials} networks. "
            f"To continue:\n  {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(INTERRUPTED)


def _describe(study: Study, workers: int) -> None:
    from csr_deploy.search.storage import shown

    settings, space, data = study.settings, study.space, study.proxy.data
    p = data.preprocessing
    count = "more than 20,000" if space.listed is None else f"{len(space.listed):,}"
    stderr.print(
        f"{settings.backbone}: {count} networks to choose from, {settings.trials} to try; "
        f"{len(data.train_images):,} training and {len(data.test_images):,} held-out images, "
        f"{p.height}×{p.width}×{p.channels}, {settings.epochs} epochs on {study.proxy.device}; "
        f"{workers} worker{'s' if workers > 1 else ''} of {settings.threads} "
        f"thread{'s' if settings.threads != 1 else ''}; study '{settings.study}' in "
        f"{shown(settings.storage)}",
        soft_wrap=True,
        markup=False,
    )
    if done := len(study.finished()):
        stderr.print(f"{done} networks are done already.")


def _say(study: Study, trial: FrozenTrial) -> None:
    from csr_deploy.search.front import describe

    found = describe(study, trial)
    stderr.print(
        f"{len(study.finished())}/{study.settings.trials}  {found.network}: {_outcome(study, found)}",
        soft_wrap=True,
        markup=False,
    )


def _outcome(study: Study, found: Found) -> str:
    if found.outcome == "failed":
        return f"failed: {found.failure}"
    values = ", ".join(f"{o.text} {o.show(found.values[o.text])}" for o in study.objectives)
    if found.outcome == "stopped":
        return f"stopped after epoch {found.epochs}, {found.ahead} is ahead; {values}"
    return f"{values}, {found.seconds:.0f} s"


def _show(study: Study, front: Front, folder: Path) -> None:
    from csr_deploy.search.front import is_here

    table = Table(title=f"Pareto front of {front.backbone}", title_justify="left")
    table.add_column("Network", no_wrap=True)
    for o in front.objectives:
        table.add_column(o.text, justify="right", no_wrap=True)
    extra = sorted({name for found in front.front for name in found.details})
    for name in ("compression", *extra):
        table.add_column(name, justify="right", no_wrap=True)
    for found in front.front:
        details: list[Any] = [found.details.get(name) for name in extra]
        table.add_row(
            found.network,
            *(o.show(found.values[o.text]) for o in front.objectives),
            "–" if found.compression is None else f"{found.compression:.1f} %",
            *("–" if value is None else f"{value:.3f}" for value in details),
        )
    print_table(stdout, table)
    outcomes = [f.outcome for f in front.others]
    stdout.print(
        f"{len(front.front)} on the front, {outcomes.count('trained')} beaten, "
        f"{outcomes.count('stopped')} stopped early, {outcomes.count('failed')} failed. "
        f"Accuracy is that of {len(study.proxy.data.test_labels):,} held-out training images after "
        f"{study.settings.epochs} epoch{'s' if study.settings.epochs > 1 else ''}.",
        soft_wrap=True,
    )
    stdout.print(f"Written: {folder / 'pareto.json'}, {folder / 'pareto.png'}", soft_wrap=True)
    for found in front.front:
        if found.command:
            stdout.print(f"  {found.command}", soft_wrap=True, markup=False)
        else:
            where = "" if is_here(found) else f" on {found.host}"
            print_warning(f"the checkpoint of {found.network} is not here: it is in {found.folder}{where}")


def main() -> None:
    """Entry point of `csr-search`."""
    run(app)


if __name__ == "__main__":
    main()
