"""`csr-info`: what a network costs, layer by layer, before it is trained or exported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from csr_deploy.atomic import atomic_write
from csr_deploy.cli.common import (
    VersionOption,
    new_app,
    parse_image_size,
    print_warning,
    require,
    run,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from csr_deploy.analysis import NetworkFigures
    from csr_deploy.analysis.subject import Choice, Subject

app = new_app()


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Preset (resnet56-csr2) or backbone (resnet56), checkpoint, or artifact of csr-export.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Compare with this network.", show_default="the backbone of a CSR network"
        ),
    ] = None,
    table2: Annotated[
        bool, typer.Option("--table2", help="The 31 networks of the paper's Table 2 beside what is printed.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Show every layer.")] = True,
    csr_modules: Annotated[
        int | None,
        typer.Option(min=1, help="For a backbone: how many modules, from the last, are CSR-Convs."),
    ] = None,
    csr_steps: Annotated[int | None, typer.Option(min=1, help="T of those modules.")] = None,
    cell: Annotated[
        str | None, typer.Option(help="Recurrence of the CSR-Convs.", show_default="vanilla")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of logits.", show_default="10, or 1000 for ImageNet")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="H[xW]", help="Size of the pictures.", show_default="the network's own"),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all figures; - for stdout.")
    ] = None,
    markdown_file: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="Write the tables; - for stdout.")
    ] = None,
    version: VersionOption = False,
) -> None:
    """Counts parameters, MACs, depth, activation memory and flash of a network, layer by layer.

    Counts are for one image. λ_M and λ_F are the ratios of Propositions 1 and 2 of the paper, which hold
    where T divides the channels; beside them stand the ratios of the layer itself.
    """
    if table2 == (model is not None):
        raise typer.BadParameter("name a network, or give --table2")
    if json_file == markdown_file == "-":
        raise typer.BadParameter("--json and --markdown cannot both go to stdout")
    size = parse_image_size(image_size) if image_size else None
    require("torch", "export", "csr-info")
    with stderr.status("Loading torch …"):
        from csr_deploy.analysis.subject import Choice
    choice = Choice(csr_modules, csr_steps, cell, classes, size)
    if table2:
        if choice != Choice() or against is not None:
            raise typer.BadParameter("--table2 takes no options of a network")
        _table2(json_file, markdown_file)
    elif model is not None:
        _network(model, against, choice, json_file, markdown_file, layers=layers)


def _table2(json_file: str | None, markdown_file: str | None) -> None:
    from csr_deploy.analysis import table2

    with stderr.status("Counting 31 networks …"):
        rows = table2.compare_table_2()
        values, text = table2.to_json(rows), table2.markdown(rows)
    if "-" not in (json_file, markdown_file):
        header = ("backbone", "parameters, M", "paper", "MACs, M")
        _print(header, table2.backbone_lines())
        _print(table2.HEADER, [table2.cells(row) for row in rows])
    _write(json_file, _json(values))
    _write(markdown_file, text)


def _network(
    model: str, against: str | None, choice: Choice, json_file: str | None, markdown_file: str | None, *,
    layers: bool,
) -> None:  # fmt: skip
    from csr_deploy.analysis import show
    from csr_deploy.analysis.subject import Choice as Chosen
    from csr_deploy.analysis.subject import backbone_of, find_subject

    with stderr.status("Counting …"):
        subject = find_subject(model, choice)
        size = (subject.input_shape[1], subject.input_shape[2])
        chosen = Chosen(image_size=size)
        other = backbone_of(subject) if against is None else find_subject(against, chosen)
        figures = _analyse(subject)
        compared = None if other is None else _analyse(other)
    for each in (figures, compared):
        if each is not None and each.problem:
            print_warning(f"{each.name} has no figures of memory and depth: {each.problem}")
    totals = show.total_rows(figures, compared)
    header = [show.TOTAL_HEADER[0], figures.name, compared.name if compared else "–", show.TOTAL_HEADER[3]]
    stored = show.stored_rows(subject.stored)
    if compared is None:
        header, totals = header[:2], [row[:2] for row in totals]
    if "-" not in (json_file, markdown_file):
        if layers:
            _print(show.LAYER_HEADER, show.layer_rows(figures))
        _print(header, totals)
        if stored:
            _print(("artifact", ""), stored)
    _write(
        json_file,
        _json(
            {
                **figures.to_json(),
                "against": compared.to_json() if compared else None,
                "artifact": dict(subject.stored) or None,
            }
        ),
    )
    parts = [show.markdown_table(header, totals)]
    if stored:
        parts.append(show.markdown_table(("artifact", ""), stored))
    if layers:
        parts.append(show.markdown_table(show.LAYER_HEADER, show.layer_rows(figures)))
    _write(markdown_file, "\n".join(parts))


def _analyse(subject: Subject) -> NetworkFigures:
    from csr_deploy.analysis import analyse

    return analyse(subject.model, subject.name, subject.input_shape, trained=subject.trained)


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table that drops columns without content."""
    used = [i for i, name in enumerate(header) if i == 0 or any(row[i] not in ("", "–") for row in rows)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i in used:
        words = i == len(header) - 1 and header[i].startswith("why")
        table.add_column(Text(header[i]), justify="left" if i == 0 or words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in used))
    console = stdout
    if not console.is_terminal:
        # A file has no width to fit into.
        options = console.options.update(width=1000)
        width = max(console.width, Measurement.get(console, options, table).maximum)
        console = Console(file=console.file, width=width, highlight=False)
    console.print(table)
    console.print()


def _write(file: str | None, text: str) -> None:
    if file is None:
        return
    if file == "-":
        typer.echo(text, nl=False)
        return
    with atomic_write(Path(file)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main() -> None:
    """Entry point of `csr-info`."""
    run(app)


if __name__ == "__main__":
    main()
