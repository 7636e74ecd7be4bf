"""What CSR networks cost against their backbones on stock runtimes: the table of docs/lowering.md.

    python tools/bench_lowering.py --out out/bench-lowering [--networks resnet56-t4 …]
        [--runtimes litert ort] [--numbers int8 float32] [--boards pi4 pi5] [--threads 1 2]
        [--data CIFAR10] [--stock-python PYTHON | --no-stock] [--no-time] [--no-count] [--plan]

Each network and its backbone are made step by step, the network also lowered for each board, and both by
stock converters, which live in an environment of their own (`make bench-peers`). Instructions of one
inference are counted on the emulated Raspberry Pi 4 and 5 (exact, no measure of time), after the golden
outputs were compared there; wall time and memory are taken on this machine by csr-bench, all models of one
network and runtime in turns, with 95 % intervals of the ratio. Weights of networks that are not trained are
random: costs depend on shapes.

What was made and measured is kept in --out under its content and not repeated: an interrupted run goes on
where it stopped, and what was disturbed or failed is tried again. A model that fails is a row that says so.
The table goes to the terminal, and as Markdown and JSON to --out. The exit status is 1 where a model of this
project failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowering_bench import measuring, report, schedule
from lowering_bench.kept import Kept
from lowering_bench.making import Maker
from lowering_bench.records import Measured, Record, records_of
from lowering_bench.subjects import BACKBONES, BOARDS, FORMATS, STOCK, Model, Variant, groups, plan_variants
from rich.console import Console

import csr_deploy
from csr_deploy.atomic import atomic_write
from csr_deploy.errors import CsrError

_ROOT = Path(__file__).resolve().parents[1]
_PEERS = _ROOT / ".venv-peers" / "bin" / "python"
_WIDTH = 230
"""Columns where the output is no terminal."""


def parse(arguments: Sequence[str] | None = None) -> Any:
    """The command line's options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--networks", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    runtimes = list(dict.fromkeys(f.runtime for f in FORMATS))
    numbers = list(dict.fromkeys(f.numbers for f in FORMATS))
    parser.add_argument("--runtimes", nargs="+", choices=runtimes, default=runtimes)
    parser.add_argument("--numbers", nargs="+", choices=numbers, default=numbers)
    parser.add_argument("--boards", nargs="+", choices=BOARDS, default=list(BOARDS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=10.0, help="timed, of each model")
    parser.add_argument("--stock-python", default=str(_PEERS), help="interpreter with the stock converters")
    parser.add_argument(
        "--data", help="images of the trained networks, for calibration; packaged ones if not given"
    )
    parser.add_argument("--no-stock", action="store_true", help="leave the stock converters out")
    parser.add_argument("--no-count", action="store_true", help="count no instructions")
    parser.add_argument("--no-time", action="store_true", help="take no times")
    parser.add_argument(
        "--keep-models", action="store_true", help="use models that are there, whatever changed since"
    )
    parser.add_argument("--no-make", action="store_true", help="leave out models that are not there")
    parser.add_argument("--plan", action="store_true", help="only say what is to do")
    options: Any = parser.parse_args(arguments)
    if min(options.threads) < 1 or not options.seconds > 0:
        parser.error("--threads and --seconds must be positive")
    options.formats = [f for f in FORMATS if f.runtime in options.runtimes and f.numbers in options.numbers]
    return options


def make_all(
    variants: Sequence[Variant], maker: Maker, say: measuring.Say
) -> tuple[dict[Variant, Model], dict[Variant, str]]:
    """Models, and why there are some without."""
    models = {v: m for v in variants if (m := maker.found(v)) is not None}
    errors: dict[Variant, str] = {}
    todo = [v for v in variants if v not in models]
    for number, variant in enumerate(todo, 1):
        try:
            models[variant] = maker.make(variant)
            say(f"[{number}/{len(todo)}] made {variant.name}")
        except CsrError as error:
            errors[variant] = measuring.brief(error)
            say(f"[{number}/{len(todo)}] {variant.name}: FAILED, {errors[variant]}")
    return models, errors


def measure_all(
    options: Any, group: Sequence[Variant], models: Mapping[Variant, Model], kept: Kept, say: measuring.Say
) -> measuring.Failures:
    """Counts and times a group; gives the failures."""
    failures: measuring.Failures = {}
    there = [v for v in group if v in models]
    threads = options.threads
    if not options.no_count:
        countings = [
            measuring.Counting(models[v], board, n) for n in threads for v in there for board in v.boards
        ]
        failures |= measuring.count_all(countings, kept, say)
    if not options.no_time and len(there) > 1:
        members = tuple(models[v] for v in there)
        timings = [measuring.Timing(members, n, options.seconds) for n in threads]
        failures |= measuring.time_all(timings, kept, say)
    return failures


def versions() -> dict[str, str]:
    """Of what the figures depend on, and the day of the table."""
    found = {"csr-deploy": csr_deploy.__version__}
    for package in dict.fromkeys(f.package for f in FORMATS):
        found.setdefault(package, importlib.metadata.version(package))
    return {**found, "day": f"{datetime.date.today()}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes, measures, prints.

    Returns:
        The exit status.
    """
    options = parse(arguments)
    progress = Console(stderr=True, soft_wrap=True)

    def say(text: str) -> None:
        progress.print(
            f"{datetime.datetime.now():%H:%M:%S} {text}", style="dim", markup=False, highlight=False
        )

    variants = plan_variants(options.networks, options.formats, options.boards, stock=not options.no_stock)
    compared = groups(variants)
    try:
        kept = Kept(options.out / "measured.json")
        maker = Maker(
            options.out,
            kept,
            options.stock_python,
            _ROOT / "demos" / "models",
            data=options.data,
            anyhow=options.keep_models,
        )
        if options.no_make:
            compared = [g for group in compared if (g := [v for v in group if maker.found(v)])]
            variants = [v for v in variants if any(v in group for group in compared)]
        counts, times = not options.no_count, not options.no_time
        parts = schedule.plan(
            variants, maker.found, kept, threads=options.threads, seconds=options.seconds, counts=counts,
            times=times,
        )  # fmt: skip
        for line in schedule.show(parts):
            say(line)
        if options.plan:
            return 0
        models: dict[Variant, Model] = {}
        errors: dict[Variant, str] = {}
        failures: measuring.Failures = {}
        for number, group in enumerate(compared, 1):
            say(f"{number} of {len(compared)}: {group[-1].network} {group[-1].format.label}")
            made, failed = make_all(group, maker, say)
            models |= made
            errors |= failed
            failures |= measure_all(options, group, models, kept, say)
    except CsrError as error:
        progress.print(str(error), style="red", markup=False, highlight=False)
        return 1
    measured = Measured(models, errors, kept, failures, options.seconds)
    records = [r for g in compared for n in options.threads for r in records_of(g, n, measured)]
    _print(records, options, arguments)
    return 1 if any(_has_failed(r) for r in records if r.variant.way != STOCK) else 0


def _has_failed(record: Record) -> bool:
    places = [*record.boards.values(), record.here]
    return bool(record.error or any(p.get("error") for p in places))


def _print(records: list[Record], options: Any, arguments: Sequence[str] | None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    command = f"python tools/bench_lowering.py {shlex.join(given)}"
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(report.table(records, options.boards))
    for text in report.failures(records):
        console.print(text, style="red", markup=False, highlight=False)
    found = versions()
    text = report.markdown(records, options.boards, found, command)
    values = json.dumps(report.plain(records, found, command), indent=1) + "\n"
    for name, content in (("table.md", text), ("table.json", values)):
        with atomic_write(options.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
        console.print(f"{options.out / name}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
