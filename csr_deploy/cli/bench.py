"""`csr-bench`: measures networks against their backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from csr_deploy.atomic import atomic_write
from csr_deploy.cli.common import VersionOption, new_app, run, stderr, stdout
from csr_deploy.errors import BenchError, OptionError

app = new_app()


@app.command()
def bench(
    subjects: Annotated[
        list[Path],
        typer.Argument(
            metavar="SUBJECT...",
            help="Artifacts of csr-export and checkpoints of csr-train; the first is the baseline.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="Test images for the accuracy: folder, zip, or the built-in fashion-mnist."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most test images, a seeded draw. [default: all; --quick: 500]")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Name or path of the subject to compare with. [default: the first]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="litert, mcu, ort, tflm, torch or trt. [default: the one that each subject is made for]"
        ),
    ] = None,
    kernels: Annotated[
        str | None, typer.Option(help="optimized or reference. [default: the runtime's own]")
    ] = None,
    cuda_graph: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graph/--no-cuda-graph",
            help="Give the GPU an inference as one CUDA graph. Only trt. [default: no]",
        ),
    ] = None,
    copies: Annotated[
        bool | None,
        typer.Option(
            "--copies/--no-copies", help="Time the copies to the GPU and back too. Only trt. [default: yes]"
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(help="How the CPU waits for the GPU: spin or block. Only trt. [default: spin]"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where the C of mcu artifacts runs: host, qemu:cortex-m4 (or m3, m7, m55) for counted "
            "instructions, stack and flash, serial:PORT[@BAUD] for a flashed board. Only mcu. [default: host]"
        ),
    ] = None,
    device_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Test images that the device itself classifies, for the accuracy. "
            "[default: none; the same C classifies them on this machine]",
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Measure latency and memory.")
    ] = True,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Time at least that many inferences. [default: 200; --quick: 30]"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Time inferences at least that long. [default: 10; --quick: 0.3]"),
    ] = None,
    telemetry: Annotated[
        str | None,
        typer.Option(
            help="Where clocks, power and throttling are read: auto, jtop, tegrastats, vcgencmd, sysfs or "
            "none. [default: auto]"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look; the result says so.")] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write everything, samples included; - for stdout."),
    ] = None,
    markdown_file: Annotated[
        str | None,
        typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown; - for stdout."),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Measures accuracy, size, latency and memory of networks, side by side.

    Golden outputs are checked before anything is timed. Every subject runs in processes of its own, latencies
    are taken in turns, and ratios come with a bootstrap confidence interval. On an emulated microcontroller
    instructions are counted and nothing is timed. Where the machine was throttled
    meanwhile the result is written, marked as void, and the exit status is 1.
    """
    from csr_deploy.bench.measure import run_plan
    from csr_deploy.bench.plan import QUICK, BenchOptions, make_plan
    from csr_deploy.bench.report import markdown, table, to_json

    _check_outputs(json_file, markdown_file)
    if device is not None:
        _check_timing(device, {"--images": images, "--seconds": seconds}, telemetry)
    given: dict[str, Any] = {
        "runtime": runtime,
        "threads": threads,
        "kernels": kernels,
        "cuda_graph": cuda_graph,
        "copies": copies,
        "wait": wait,
        "device": device,
        "device_images": device_images,
        "data": data,
        "limit": limit,
        "latency": latency,
        "images": images,
        "seconds": seconds,
        "telemetry": telemetry,
    }
    options = replace(QUICK if quick else BenchOptions(), **{k: v for k, v in given.items() if v is not None})
    plan = make_plan(subjects, options, baseline)
    with _Display() as display:
        result = run_plan(plan, display)
    _print_table(stderr if "-" in (json_file, markdown_file) else stdout, table(result))
    for file, write in ((json_file, to_json), (markdown_file, markdown)):
        if file is not None:
            _write(file, write(result))
    if result.void:
        raise BenchError(
            f"the latencies are void: {'; '.join(result.void)}",
            fix="Let it cool down, or give it a stronger supply or a lower power mode; then repeat.",
        )


class _Display:
    """One line that says what is being done. It is drawn between timed windows, never during one."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=stderr,
            disable=not stderr.is_terminal,
            # Redrawing by the clock would take a CPU from what is measured.
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bars.add_task("starting", total=None)

    def __enter__(self) -> _Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, subject: str, done: int, total: int) -> None:
        text = f"{subject}: {stage}"
        self._bars.update(self._task, description=text, completed=done, total=total, refresh=True)


def _check_outputs(*files: str | None) -> None:
    """Refuses what cannot be written before minutes are spent on measuring.

    Raises:
        OptionError: If a name is a directory, or both are standard output.
    """
    if files.count("-") > 1:
        raise OptionError("only one output can go to standard output", fix="Give the other one a file name.")
    for file in files:
        if file is not None and file != "-" and Path(file).is_dir():
            raise OptionError("is a directory", where=file, fix="Give a file name.")


def _check_timing(device: str, timing: Mapping[str, float | None], telemetry: str | None) -> None:
    """Refuses options of a clock that is not there, or of a machine that is not measured.

    Raises:
        OptionError: Then, or if there is no such device.
    """
    from csr_deploy.runtimes.mcu.devices import parse_device

    place = parse_device(device)
    given = [name for name, value in timing.items() if value is not None]
    if place.board is not None and given:
        raise OptionError(
            f"{' and '.join(given)} given, but nothing is timed on {place.text}",
            fix="Leave it out: an emulator has no time that means anything, its instructions are counted.",
        )
    if not place.is_host and telemetry not in (None, "none"):
        raise OptionError(
            f"the telemetry is that of this machine, and the model runs on {place.text}",
            fix="Leave --telemetry out.",
        )


def _print_table(console: Console, shown: Table) -> None:
    if not console.is_terminal:
        # A file has no width to fit into.
        width = max(
            console.width, Measurement.get(console, console.options.update(width=1000), shown).maximum
        )
        console = Console(file=console.file, width=width, highlight=False)
    console.print(shown)


def _write(file: str, text: str) -> None:
    if file == "-":
        typer.echo(text, nl=False)
        return
    with atomic_write(Path(file)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main() -> None:
    """Entry point of `csr-bench`."""
    run(app)


if __name__ == "__main__":
    main()
