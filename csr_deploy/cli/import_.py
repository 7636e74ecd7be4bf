"""`csr-import`: takes a network of the paper's authors, or a plain backbone, as a checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from csr_deploy.cli.common import (
    VersionOption,
    new_app,
    parse_image_size,
    print_warning,
    require,
    run,
    stdout,
)
from csr_deploy.errors import OptionError

if TYPE_CHECKING:
    from csr_deploy.importing import Imported

app = new_app()


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is no list of numbers: give 0.485,0.456,0.406.") from error


@app.command()
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A state_dict that torch.save wrote; never a whole model.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The checkpoint, model.pt or .safetensors.")
    ],
    network: Annotated[
        str | None,
        typer.Option("--network", "-n", help="Backbone that it is of.", show_default="found out"),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file with a class name a line, in the order of the logits.",
            show_default="CIFAR-10's, or numbers",
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="H[xW]", help="Size the network takes.", show_default="the backbone's"),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Mean in units of 0..1.", show_default="the usual one"),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Standard deviation, likewise.", show_default="the usual one"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
    version: VersionOption = False,
) -> None:
    """Takes a network of the paper's authors, or a plain backbone, as a checkpoint.

    Reads the state_dict of their released MobileNet-V2, in its form for CIFAR and in that for ImageNet, and
    plain backbones with torchvision's names. Nothing in the file is run.
    """
    size = None if image_size is None else parse_image_size(image_size)
    means, deviations = (None if text is None else _numbers(text) for text in (mean, std))
    require("torch", "train", "csr-import")
    from csr_deploy.checkpoint import save_checkpoint
    from csr_deploy.importing import ImportOptions, import_network

    if out.exists() and not force:
        raise OptionError("exists already", where=str(out), fix="Name another file, or give --force.")
    names = None if classes is None else _read_names(classes)
    imported = import_network(file, ImportOptions(network, names, size, means, deviations))
    save_checkpoint(out, imported.checkpoint)
    if imported.assumptions:
        print_warning(
            f"The file does not say, and it was assumed: {'; '.join(imported.assumptions)}. "
            "See --help where that is wrong."
        )
    _show(imported, out)


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise OptionError(f"cannot be read: {reason}", where=str(path)) from error
    return tuple(line.strip() for line in lines if line.strip())


def _show(imported: Imported, out: Path) -> None:
    from csr_deploy.models import count_parameters

    checkpoint = imported.checkpoint
    plan = checkpoint.architecture
    table = Table(title=plan.name, show_header=False, title_justify="left")
    steps = Counter((plan.layer_cells.get(n, plan.cell), t) for n, t in plan.csr_layers.items())
    recurrences = [f"{count} {cell} with T = {t}" for (cell, t), count in sorted(steps.items())]
    for key, value in {
        "backbone": plan.backbone,
        "CSR-Convs": ", ".join(recurrences) or "none",
        "parameters": f"{count_parameters(checkpoint.build()):,}",
        "classes": f"{plan.num_classes}",
        "input": f"{checkpoint.preprocessing.height}×{checkpoint.preprocessing.width}×{plan.in_channels}",
        "checkpoint": str(out),
    }.items():
        table.add_row(key, value)
    stdout.print(table)


def main() -> None:
    """Entry point of `csr-import`."""
    run(app)


if __name__ == "__main__":
    main()
