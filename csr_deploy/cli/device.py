"""`csr-device`: prepares and describes devices, and counts instructions on an emulated Raspberry Pi."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    from csr_deploy.bench.devices.names import DeviceName
    from csr_deploy.bench.devices.prepare import Found
    from csr_deploy.bench.emulated_pi import Row

_KIND = "pi-emulated"
_DeviceArgument = Annotated[
    str,
    typer.Argument(
        metavar="DEVICE",
        help="ssh://USER@HOST or ssh://USER@HOST:PORT/FOLDER; pi-emulated, pi-emulated:pi4 or :pi5.",
        show_default=False,
    ),
]
_CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Where the emulated Pi is kept. \\[default: $CSR_PI_ROOT, or the user's cache]",
    ),
]
_SshConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--ssh-config",
        metavar="FILE",
        help="What ssh reads instead of your own configuration. \\[default: $CSR_SSH_CONFIG]",
    ),
]
_JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write everything; - for stdout.")
]

app = new_app()


@app.callback()
def device(version: VersionOption = False) -> None:
    """Prepares and describes devices, and counts instructions on an emulated Raspberry Pi."""


@app.command()
def setup(
    device: _DeviceArgument,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="Python on the device. \\[default: the first of python3, python3.13, … 3.10]",
        ),
    ] = None,
    extra: Annotated[
        str | None,
        typer.Option(help="What to install there: pi, jetson, mcu or none. \\[default: by the board]"),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Carry these wheels there; the device then needs no internet.", exists=True
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download such wheels here first, and carry them.")
    ] = False,
    wheel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The wheel of csr-deploy. \\[default: made of the one that runs here]"
        ),
    ] = None,
    ssh_config: _SshConfigOption = None,
    cache: _CacheOption = None,
) -> None:
    """Prepares a device; does nothing where it is ready.

    A board behind SSH gets csr-deploy and its runtimes, without torch, in an environment of its own, by
    default in ~/.local/share/csr-deploy; nothing else on it changes. An emulated Pi downloads Debian's
    packages and wheels for arm64, about 400 MB when unpacked, once.
    """
    from csr_deploy.bench.devices.names import parse_device_name

    name = parse_device_name(device)
    if name.kind == "ssh":
        from csr_deploy.bench.devices.base import DeviceOptions
        from csr_deploy.bench.devices.prepare import SetupOptions, prepare

        chosen = SetupOptions(python, extra, wheel, wheels, download)
        with _saying() as say:
            found = prepare(name, DeviceOptions(ssh_config=ssh_config), chosen, say)
        stdout.print(_facts_table(name, found))
        stdout.print(f"{device} is ready.", soft_wrap=True)
        return
    if name.kind != _KIND:
        raise OptionError(f"{device} needs no preparation", fix=f"Prepared are ssh://… and {_KIND}.")
    from csr_deploy.bench.emulated_pi import find_root, prepare_root

    ready = find_root(cache)
    if ready is None:
        with _saying() as say:
            ready = prepare_root(cache, say)
    stdout.print(f"{_KIND} is ready: {ready.path}", soft_wrap=True)


@app.command()
def info(
    device: _DeviceArgument,
    json_file: _JsonOption = None,
    ssh_config: _SshConfigOption = None,
    cache: _CacheOption = None,
) -> None:
    """Says what a device is: board, processor, system, Python, runtimes, memory, clocks and temperature.

    DEVICE may also be local. A board behind SSH need not be prepared.
    """
    from csr_deploy.bench.devices.names import parse_device_name

    name = parse_device_name(device)
    if name.kind == "pi-emulated":
        _show_emulated(device, cache)
        return
    if name.kind == "mcu":
        raise OptionError(f"{device} tells nothing by itself", fix="csr-bench shows what it is compiled for.")
    from csr_deploy.bench.devices import probe
    from csr_deploy.bench.devices.base import DeviceOptions
    from csr_deploy.bench.devices.prepare import Found, describe

    if name.kind == "local":
        found = Found(probe.look(name.folder), sys.executable, True)
    else:
        found = describe(name, DeviceOptions(ssh_config=ssh_config))
    if json_file is not None:
        _write_json(json_file, {"device": device, "prepared": found.is_prepared, **found.facts})
    if json_file != "-":
        stdout.print(_facts_table(name, found))


@app.command()
def clean(
    device: _DeviceArgument,
    force: Annotated[
        bool, typer.Option("--force", help="End a measurement there whose host went away.")
    ] = False,
    ssh_config: _SshConfigOption = None,
) -> None:
    """Removes what csr-bench sent to a board behind SSH; csr-deploy itself stays there."""
    from csr_deploy.bench.devices.base import DeviceOptions
    from csr_deploy.bench.devices.names import parse_device_name
    from csr_deploy.bench.devices.remote import clean as clean_device

    name = parse_device_name(device)
    if name.kind != "ssh":
        raise OptionError(f"nothing is sent to {device}", fix="Name a device ssh://….")
    free = clean_device(name, DeviceOptions(ssh_config=ssh_config), force)
    stdout.print(f"{device} is clean, {free / 1e9:.1f} GB are free.", soft_wrap=True)


def _show_emulated(device: str, cache: Path | None) -> None:
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
        for package, version in inside.packages.items():
            table.add_row(package, version)
        table.add_row("emulator", f"QEMU {root.emulator_version()}, user mode")
        table.add_row("latency", "not measured (emulated)")
        stdout.print(table)


@app.command()
def count(
    subjects: Annotated[
        list[Path],
        typer.Argument(
            metavar="SUBJECT…",
            help="Artifacts, .tflite and .onnx files, native libraries for AArch64; the first of each "
            "runtime is the baseline.",
        ),
    ],
    board: Annotated[
        list[str] | None, typer.Option(help="pi4 or pi5; can be repeated. \\[default: both]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Inferences to take the median of.")] = 5,
    across: Annotated[
        bool, typer.Option("--across-runtimes", help="Ratios to the very first model, whatever runs it.")
    ] = False,
    json_file: _JsonOption = None,
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
        _write_json(json_file, {"runs": runs, "rows": [_plain(row) for row in rows]})
    (stderr if json_file == "-" else stdout).print(_table(rows, boards, across=across))
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


@contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """Shows one line that changes; where that is not possible, a line for each step."""
    said = ""
    with _progress() as bar:
        task = bar.add_task("looking", total=None)

        def say(what: str) -> None:
            nonlocal said
            bar.update(task, description=what)
            # Counters within a step are for a terminal.
            step = what.partition(",")[0]
            if not stderr.is_terminal and step != said:
                stderr.print(step, soft_wrap=True)
            said = step

        yield say


def _write_json(file: str, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2) + "\n"
    if file == "-":
        typer.echo(text, nl=False)
        return
    with atomic_write(Path(file)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _facts_table(name: DeviceName, found: Found) -> Table:
    from csr_deploy.bench.devices.facts import describe_facts

    table = Table(title=name.text, show_header=False)
    for row in describe_facts(found):
        table.add_row(*row)
    return table


def _plain(row: Row) -> dict[str, Any]:
    values = {"subject": row.subject, "board": row.board, "runtime": row.runtime, "threads": row.threads}
    counted = {
        name: getattr(row.count, name) if row.count.error is None else None
        for name in (
            "instructions",
            "busiest_thread",
            "first",
            "load",
            "private_bytes",
            "mapped_bytes",
            "kernels",
        )  # fmt: skip
    }
    golden = None if row.golden is None else asdict(row.golden)
    return {**values, **counted, "golden": golden, "error": row.count.error}


def _table(rows: list[Row], boards: list[str], *, across: bool) -> Table:
    """A row a model, a column a board.

    Args:
        rows: All of the first board, then all of the second one, ….
        boards: Their keys.
        across: Whether ratios are to the first model of all, not of the same runtime.
    """
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
            first = next((r for r in column if across or r.runtime == row.runtime), row)
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
