"""`csr-device`: prepares and describes devices, and counts instructions on an emulated Raspberry Pi."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from csr_deploy.atomic import atomic_write
from csr_deploy.cli.common import VersionOption, new_app, run, stderr, stdout
from csr_deploy.errors import BenchError, OptionError

if TYPE_CHECKING:
    from csr_deploy.bench.emulated_pi import Row

_KIND = "pi-emulated"
_CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Where the emulated Pi is kept. [default: $CSR_PI_ROOT, or the user's cache]",
    ),
]

app = new_app()


@app.callback()
def device(version: VersionOption = False) -> None:
    """Prepares and describes devices, and counts instructions on an emulated Raspberry Pi."""


@app.command()
def setup(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="pi-emulated.")],
    cache: _CacheOption = None,
) -> None:
    """Prepares a device; does nothing where it is ready.

    An emulated Pi downloads Debian's packages and wheels for arm64, about 400 MB when unpacked, once.
    """
    from csr_deploy.bench.emulated_pi import find_root, prepare_root

    _parse(device)
    ready = find_root(cache)
    if ready is None:
        with _progress() as bar:
            task = bar.add_task("looking", total=None)

            def say(what: str) -> None:
                bar.update(task, description=what)
                if not stderr.is_terminal:
                    stderr.print(what, soft_wrap=True)

            ready = prepare_root(cache, say)
    stdout.print(f"{_KIND} is ready: {ready.path}", soft_wrap=True)


@app.command()
def info(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="pi-emulated:pi4 or pi-emulated:pi5.")],
    cache: _CacheOption = None,
) -> None:
    """Says what a program sees on a device."""
    from csr_deploy.bench.emulated_pi import BOARDS, find_root, look_inside

    boards = _parse(device)
    root = find_root(cache)
    if root is None:
        raise OptionError(
            "is not prepared, or for other versions than are installed here",
            where=device,
            fix=f"Run: csr-device setup {_KIND}",
        )
    for key in boards:
        board = BOARDS[key]
        inside = look_inside(root, board)
        table = Table(title=f"{board.name}, emulated", show_header=False)
        table.add_row("processor", f"{board.cpu}, {inside.cores} cores, {inside.machine}")
        table.add_row("features", " ".join(inside.features))
        table.add_row("python", f"{inside.python}, {inside.libc}")
        for name, version in inside.packages.items():
            table.add_row(name, version)
        table.add_row("emulator", f"QEMU {root.emulator_version()}, user mode")
        table.add_row("latency", "not measured (emulated)")
        stdout.print(table)


@app.command()
def count(
    subjects: Annotated[
        list[Path],
        typer.Argument(
            metavar="SUBJECT…", help="Artifacts, .tflite and .onnx files; the first is the baseline."
        ),
    ],
    board: Annotated[
        list[str] | None, typer.Option(help="pi4 or pi5; can be repeated. [default: both]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Inferences to take the median of.")] = 5,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write everything; - for stdout.")
    ] = None,
    cache: _CacheOption = None,
) -> None:
    """Counts the instructions of one inference on an emulated Raspberry Pi.

    The runtimes' real kernels for arm64 run, on a processor without dot products (pi4) and with them (pi5).
    Golden outputs of artifacts are compared before a count is shown. Nothing is timed.
    """
    from csr_deploy.bench.emulated_pi import BOARDS, count_subjects

    boards = board or list(BOARDS)
    total = len(subjects) * len(boards)
    with _progress() as bar:
        task = bar.add_task(f"0 of {total}", total=None)
        done = 0

        def show(row: Row) -> None:
            nonlocal done
            done += 1
            bar.update(task, description=f"{done} of {total}: {row.subject} on {row.board}")

        rows = count_subjects(subjects, boards, threads=threads, runs=runs, root=cache, on_done=show)
    if json_file is not None:
        text = json.dumps({"runs": runs, "rows": [_plain(row) for row in rows]}, indent=2) + "\n"
        if json_file == "-":
            typer.echo(text, nl=False)
        else:
            with atomic_write(Path(json_file)) as temporary:
                temporary.write_text(text, encoding="utf-8")
    (stderr if json_file == "-" else stdout).print(_table(rows, boards))
    failed = [row for row in rows if row.count.error is not None]
    if failed:
        reasons = "\n".join(f"{row.subject} on {row.board}: {row.count.error}" for row in failed)
        raise BenchError(f"{len(failed)} of {total} could not be counted\n{reasons}")


def _parse(device: str) -> list[str]:
    """The boards that a device's name means.

    Raises:
        OptionError: If there is no such device.
    """
    from csr_deploy.bench.emulated_pi import BOARDS, find_board

    kind, colon, key = device.partition(":")
    if kind != _KIND:
        raise OptionError(
            f"there is no device '{device}' to prepare", fix=f"Use {_KIND}, or {_KIND}:pi4 or {_KIND}:pi5."
        )
    return [find_board(key).key] if colon else list(BOARDS)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
        transient=True,
    )


def _plain(row: Row) -> dict[str, Any]:
    values = {"subject": row.subject, "board": row.board, "runtime": row.runtime, "threads": row.threads}
    counted = {
        name: getattr(row.count, name) if row.count.error is None else None
        for name in ("instructions", "busiest_thread", "first", "load", "private_bytes", "mapped_bytes")
    }
    golden = None if row.golden is None else asdict(row.golden)
    return {**values, **counted, "golden": golden, "error": row.count.error}


def _table(rows: list[Row], boards: list[str]) -> Table:
    """A row a model, a column a board; ratios are to the first model of the same runtime."""
    from csr_deploy.bench.emulated_pi import BOARDS

    table = Table(title="Instructions of one inference, emulated; latency is not measured")
    table.add_column("Model")
    table.add_column("Runtime")
    for key in boards:
        table.add_column(BOARDS[key].name, justify="right")
    table.add_column("Private memory", justify="right")
    table.add_column("Golden outputs")
    models = len(rows) // len(boards)
    for number in range(models):
        mine = rows[number::models]
        cells = []
        for board, row in enumerate(mine):
            column = rows[board * models : (board + 1) * models]
            first = next((r for r in column if r.runtime == row.runtime), row)
            if row.count.error is not None:
                cells.append("failed")
                continue
            ratio = ""
            if first is not row and first.count.error is None:
                ratio = f" (×{row.count.instructions / first.count.instructions:.3f})"
            cells.append(f"{row.count.instructions / 1e6:.2f} M{ratio}")
        private = mine[0].count.private_bytes
        memory = "–" if private is None else f"{private / 2**20:.2f} MiB"
        threads = "" if mine[0].threads == 1 else f", {mine[0].threads} threads"
        table.add_row(mine[0].subject, mine[0].runtime + threads, *cells, memory, _golden(mine))
    return table


def _golden(rows: list[Row]) -> str:
    reports = [row.golden for row in rows if row.golden is not None]
    if not reports:
        return "–"
    if all(report.exact for report in reports):
        return f"{reports[0].images} equal"
    return f"{reports[0].images} within {max(report.max_difference for report in reports):.2g}"


def main() -> None:
    """Entry point of `csr-device`."""
    run(app)


if __name__ == "__main__":
    main()
