"""`csr-bench`: measures networks against their backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from csr_deploy.cli.common import VersionOption, new_app, print_table, run, stdout
from csr_deploy.errors import BenchError

if TYPE_CHECKING:
    from csr_deploy.bench.compare import Comparison

_DEFAULT = "run"


class DefaultGroup(TyperGroup):
    """Runs the default command where the first word is none of the others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [_DEFAULT, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = new_app(DefaultGroup)


@app.command(
    _DEFAULT,
    epilog="Also: csr-bench report RESULTS… makes a page of them; csr-bench compare OLD NEW says what became "
    "worse. A subject called like a command is named by its path, ./report.",
)
def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT...",
            help="Artifacts of csr-export and checkpoints of csr-train; the first is the baseline. With "
            "--target, what stands before -TARGET in the names of artifacts.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A plan in TOML, see docs/benchmarks.md; options given beside it are stronger."),
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Target of the subjects; can be repeated.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="Test images for the accuracy: folder, zip, or the built-in fashion-mnist."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most test images, a seeded draw. \\[default: all; --quick: 500]"),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Name or path of the subject to compare with. \\[default: the first]")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Threads of the runtime; can be repeated. \\[default: 1]")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Images an inference; can be repeated. \\[default: the batch of each artifact's export]",
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="litert, mcu, ort, tflm, torch or trt; can be repeated. "
            "\\[default: the one that each subject is made for]"
        ),
    ] = None,
    kernels: Annotated[
        str | None, typer.Option(help="optimized or reference. \\[default: the runtime's own]")
    ] = None,
    cuda_graph: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graph/--no-cuda-graph",
            help="Give the GPU an inference as one CUDA graph. Only trt. \\[default: no]",
        ),
    ] = None,
    copies: Annotated[
        bool | None,
        typer.Option(
            "--copies/--no-copies", help="Time the copies to the GPU and back too. Only trt. \\[default: yes]"
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(help="How the CPU waits for the GPU: spin or block. Only trt. \\[default: spin]"),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Where to measure; can be repeated: local, ssh://user@host[:port], pi-emulated:pi4 (or "
            "pi5), qemu:cortex-m4 (or m3, m7, m55) for counted instructions, stack and flash of mcu "
            "artifacts, serial:PORT\\[@BAUD] for a flashed board. \\[default: local]"
        ),
    ] = None,
    device_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Test images that a microcontroller itself classifies, for the accuracy. "
            "\\[default: none; the same C classifies them on this machine]",
        ),
    ] = None,
    latency: Annotated[
        bool | None,
        typer.Option("--latency/--no-latency", help="Measure latency and memory. \\[default: yes]"),
    ] = None,
    profile: Annotated[
        bool | None,
        typer.Option(
            "--profile/--no-profile",
            help="Time every operator too, in a pass of its own, where the runtime can. \\[default: yes]",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Time at least that many inferences. \\[default: 200; --quick: 30]"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Time inferences at least that long. \\[default: 10; --quick: 0.3]"),
    ] = None,
    telemetry: Annotated[
        str | None,
        typer.Option(
            help="Where clocks, power and throttling are read: auto, jtop, tegrastats, vcgencmd, sysfs or "
            "none. \\[default: auto]"
        ),
    ] = None,
    quick: Annotated[
        bool | None, typer.Option("--quick", help="A first look; the result says so.", show_default=False)
    ] = None,
    together: Annotated[
        bool | None,
        typer.Option(
            "--together/--by-target",
            help="Compare all subjects with one baseline, or those of each target among themselves. "
            "\\[default: together; in a plan by target]",
        ),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Append every result to this file as it comes (JSON lines)."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Measure only what is missing in the results file.")
    ] = False,
    wait_for_device: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to wait for a board that somebody else measures on. \\[default: an error at once]",
            show_default=False,
        ),
    ] = 0.0,
    ssh_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What ssh reads instead of your own configuration. \\[default: $CSR_SSH_CONFIG]",
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=0, help="Measure a void group again, at most that often. \\[default: 2; --quick: 0]"
        ),
    ] = None,
    cool_down: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait before that. \\[default: 60]")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Exit with 1 if it holds for any subject, such as 'accuracy_drop>0.5' or "
            "'latency_ratio>0.9@local'; can be repeated.",
        ),
    ] = None,
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
    are taken in turns, and ratios come with a bootstrap confidence interval. On an emulated device
    instructions are counted and nothing is timed.

    Repeated options make a plan: models × targets × runtimes × threads × batches × devices. A subject that
    fails is reported and the others go on. The exit status is 1 if something failed, was throttled or
    disturbed in spite of repetitions, or meets a --fail-if.
    """
    if not subjects and plan is None:
        raise typer.BadParameter("Name something to measure, or a --plan.", param_hint="SUBJECT...")
    from csr_deploy.cli.bench_run import Outputs, run_bench

    given: dict[str, Any] = {
        "models": subjects,
        "targets": target,
        "runtimes": runtime,
        "threads": threads,
        "batch": batch,
        "devices": device,
        "baseline": baseline,
        "together": together,
        "data": data,
        "limit": limit,
        "quick": quick,
        "kernels": kernels,
        "cuda_graph": cuda_graph,
        "copies": copies,
        "wait": wait,
        "device_images": device_images,
        "latency": latency,
        "profile": profile,
        "images": images,
        "seconds": seconds,
        "telemetry": telemetry,
        "repeats": repeats,
        "cool_down": cool_down,
        "fail_if": fail_if,
    }
    # Repeated options that were not given are empty lists.
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v not in (None, [])}
    access = {"wait_s": wait_for_device, "ssh_config": ssh_config}
    run_bench(plan, kept, Outputs(results, resume, json_file, markdown_file), access)


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Files of --results or --json.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page, one HTML file.")] = Path(
        "report.html"
    ),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown too.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a line a cell as CSV too.")
    ] = None,
) -> None:
    """Makes a report of results: one HTML file that needs nothing else and no network."""
    from csr_deploy.bench.html import write_report

    write_report(results, out, markdown=markdown, csv=csv)
    for path in (out, markdown, csv):
        if path is not None:
            stdout.print(f"{path}", soft_wrap=True)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Results of before: of --results or --json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Results of now.")],
    tolerance: Annotated[
        float, typer.Option(min=0, metavar="PERCENT", help="How much slower or larger is still the same.")
    ] = 5.0,
    accuracy_tolerance: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="How much less accurate is still the same.")
    ] = 0.5,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Cells that the new results lack are no regression.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show figures that stayed the same too.")] = False,
) -> None:
    """Compares two results cell by cell; exits with 1 if something became worse.

    Cells are matched by device, subject, target, runtime, kernels, threads and batch. Times, memory and
    energy are judged on the same machine only, ratios to the baseline everywhere.
    """
    from csr_deploy.bench.compare import Tolerances, compare_results
    from csr_deploy.bench.store import read_results

    found = compare_results(read_results(old), read_results(new), Tolerances(tolerance, accuracy_tolerance))
    _show_comparison(found, everything)
    lost = () if allow_missing else found.missing
    if not found.changes:
        raise BenchError(
            "the two have no cell in common, so nothing was compared",
            where=f"{old}, {new}",
            fix="Measure the same subjects with the same devices, runtimes, threads and batches.",
        )
    if found.regressions or lost:
        parts = []
        if found.regressions:
            parts.append(f"{len(found.regressions)} figures became worse")
        if lost:
            parts.append(f"{len(lost)} cells are missing")
        raise BenchError(" and ".join(parts), where=str(new))


def _show_comparison(found: Comparison, everything: bool) -> None:
    from rich.table import Table

    shown = Table()
    for name in ("Cell", "Figure"):
        shown.add_column(name)
    for name in ("Old", "New", "Change"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    counts = {verdict: 0 for verdict in ("same", "better", "worse", "not judged")}
    for change in found.changes:
        counts[change.verdict] += 1
        if not everything and change.verdict == "same":
            continue
        relative = "–" if change.change is None else f"×{change.change:.3f}"
        if change.is_points and change.change is not None:
            relative = f"{change.change:+.2f} points".replace("-", "−")
        new = "–" if change.new is None else f"{change.new:,.6g}"
        why = f"{change.verdict}: {change.why}" if change.why else change.verdict
        shown.add_row(str(change.cell), change.figure, f"{change.old:,.6g}", new, relative, why)
    if shown.row_count:
        print_table(stdout, shown)
    for cell in found.missing:
        stdout.print(f"Missing now: {cell}", soft_wrap=True)
    for cell in found.added:
        stdout.print(f"New: {cell}", soft_wrap=True)
    for note in found.notes:
        stdout.print(f"Note: {note}", soft_wrap=True)
    stdout.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".", soft_wrap=True)


def main() -> None:
    """Entry point of `csr-bench`."""
    run(app)


if __name__ == "__main__":
    main()
