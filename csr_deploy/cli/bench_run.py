"""The default command of `csr-bench`: from what was typed to figures and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from csr_deploy.atomic import atomic_write
from csr_deploy.bench.devices import open_device
from csr_deploy.bench.expand import ExpandedPlan, PlanRequest, expand
from csr_deploy.bench.gates import check_gates, parse_gate
from csr_deploy.bench.plan_file import KEYS, read_plan_file
from csr_deploy.bench.report import markdown, overview, table, to_json
from csr_deploy.bench.results import BenchResult
from csr_deploy.bench.runner import Outcome, Runner, RunOptions, run_record
from csr_deploy.bench.store import Attempt, Record, Store
from csr_deploy.cli.bench_display import Display
from csr_deploy.cli.common import print_error, print_table, print_warning, stderr, stdout
from csr_deploy.errors import BenchError, CsrError, OptionError
from csr_deploy.runtimes.mcu.devices import parse_device

_AXES = ("models", "targets", "runtimes", "threads", "batch", "devices", "baseline", "together", "quick")
_OF_THE_RUN = ("results", "repeats", "cool_down", "fail_if")
_REPEATS, _COOL_DOWN = 2, 60.0


@dataclass(frozen=True)
class Outputs:
    """Where results go.

    Attributes:
        results: Results file, None for none.
        resume: Whether it may hold results of an earlier run.
        json: File of --json, "-" for standard output.
        markdown: File of --markdown, likewise.
    """

    results: str | None
    resume: bool
    json: str | None
    markdown: str | None


class _Nowhere:
    """Keeps no record: without a results file the tables are all there is."""

    def append(self, record: Record) -> None:
        """Forgets it."""


def run_bench(
    plan_file: Path | None, given: Mapping[str, Any], outputs: Outputs, access: Mapping[str, Any]
) -> None:
    """Plans, measures what is missing, and shows it.

    Args:
        plan_file: A plan in TOML, None for none.
        given: What was typed, by the keys of a plan file; it is stronger than the file.
        outputs: Where results go; the plan file may name the results file too.
        access: How devices are reached: fields of `DeviceOptions`.

    Raises:
        CsrError: If the plan makes no sense, or results cannot be written.
        typer.Exit: With 1 where something failed, is void, or meets a gate.
    """
    values = {**(read_plan_file(plan_file).values if plan_file else {}), **given}
    assert set(values) <= set(KEYS)
    results = outputs.results or values.get("results")
    _check_outputs(outputs.json, outputs.markdown, results)
    if outputs.resume and results is None:
        raise OptionError("there is nothing to resume", fix="Name the results file: --results FILE.")
    gates = [parse_gate(text) for text in values.get("fail_if", ())]
    request = _request(values, is_planned=plan_file is not None or results is not None)
    plan = expand(request)
    if outputs.json is not None and len(plan.groups) > 1:
        raise OptionError(
            f"--json holds one comparison, these are {len(plan.groups)}", fix="Use --results FILE."
        )
    quick = request.quick
    options = RunOptions(values.get("repeats", 0 if quick else _REPEATS), values.get("cool_down", _COOL_DOWN))
    record = run_record(plan, sys.argv)
    for text in plan.left_out:
        print_warning(f"left out: {text}")
    with ExitStack() as stack:
        previous: Mapping[str, Attempt] = {}
        sink: Store | _Nowhere = _Nowhere()
        if results is not None:
            sink = stack.enter_context(_open_store(Path(results), outputs.resume))
            previous = sink.contents.attempts
            _say_what_is_there(sink, plan)
        sink.append(record)
        devices = len({g.device for g in plan.groups})
        missing = [g for g in plan.groups if g.id not in previous or previous[g.id].status != "passed"]
        display = stack.enter_context(Display(len(missing), devices))
        # Only what is resumed may be taken over from a run that was killed.
        opener = partial(open_device, adopt=outputs.resume, **access)
        outcomes = Runner(plan, previous, record.run, sink, opener, display, options).run()
    _show(outcomes, outputs, results)
    errors = [error for outcome in outcomes for error in _errors(outcome, len(outcomes) > 1)]
    errors += [BenchError(text) for text in _gate_failures(gates, outcomes)]
    for error in errors:
        print_error(error)
    if errors:
        raise typer.Exit(1)


def _request(values: Mapping[str, Any], is_planned: bool) -> PlanRequest:
    request = PlanRequest(
        tuple(values.get("models", ())),
        tuple(values.get("targets", ())),
        tuple(values.get("runtimes", ())),
        tuple(values.get("threads", (1,))),
        tuple(values.get("batch", ())),
        tuple(values.get("devices", ("local",))),
        values.get("baseline"),
        False,
        values.get("quick", False),
        {k: v for k, v in values.items() if k not in (*_AXES, *_OF_THE_RUN)},
    )
    # One comparison of everything named is what is meant where nothing says that it is a plan.
    is_plain = not is_planned and request.is_single and not request.targets
    _check_timing(request)
    return replace(request, together=values.get("together", is_plain))


def _open_store(path: Path, resume: bool) -> Store:
    if not resume and path.is_file() and path.stat().st_size:
        raise OptionError(
            "exists already",
            where=str(path),
            fix="Give --resume to measure what is missing in it, or name another file.",
        )
    return Store(path)


def _say_what_is_there(store: Store, plan: ExpandedPlan) -> None:
    contents = store.contents
    if contents.cut:
        print_warning(
            f"{store.path}: its last line was cut ({contents.cut:,} bytes), as by a run that was killed; "
            "it is dropped, and what it was about is measured again"
        )
    if not contents.attempts:
        return
    ids = [g.id for g in plan.groups]
    states = [contents.attempts[i].status if i in contents.attempts else "missing" for i in ids]
    parts = [f"{states.count('passed')} of {len(ids)} groups are there"]
    words = {"missing": "missing", "void": "void", "incomplete": "incomplete", "failed": "failed"}
    again = [f"{states.count(s)} {word}" for s, word in words.items() if s in states]
    parts.append(f"to be measured: {', '.join(again)}" if again else "nothing is missing")
    others = len(set(contents.attempts) - set(ids))
    if others:
        parts.append(f"{others} others in the file are not in this plan and stay as they are")
    stderr.print(f"{store.path}: {'; '.join(parts)}.", soft_wrap=True)


def _show(outcomes: Sequence[Outcome], outputs: Outputs, results: str | None) -> None:
    """Prints the figures and writes the files that were asked for."""
    wanted = outcomes if outputs.markdown or outputs.json else [o for o in outcomes if o.is_new]
    read = [(o, result) for o in wanted if (result := o.read()) is not None and result.measurements]
    console = stderr if "-" in (outputs.json, outputs.markdown) else stdout
    shown = [(o, r) for o, r in read if o.is_new or not results]
    if len(shown) == 1:
        print_table(console, table(shown[0][1]))
    elif shown:
        print_table(console, overview([(o.group.device, r) for o, r in shown]))
    if results is not None:
        passed = sum(o.status == "passed" for o in outcomes)
        console.print(
            f"{passed} of {len(outcomes)} groups passed. Report: csr-bench report {results}", soft_wrap=True
        )
    if outputs.json is not None and read:
        _write(outputs.json, to_json(read[0][1]))
    if outputs.markdown is not None and read:
        _write(outputs.markdown, _markdown(read))


def _markdown(read: Sequence[tuple[Outcome, BenchResult]]) -> str:
    if len(read) == 1:
        return markdown(read[0][1])
    return "\n".join(f"## {outcome.group.title}\n\n{markdown(result)}" for outcome, result in read)


def _errors(outcome: Outcome, names_group: bool) -> list[CsrError]:
    """What did not pass in a group."""
    prefix = f"{outcome.group.title}: " if names_group else ""
    if outcome.failure is not None:
        failure = outcome.failure
        where = f" ({failure.where})" if failure.where and names_group else ""
        return [
            BenchError(
                f"failed at {failure.stage}: {failure.reason}{where}" if names_group else failure.reason,
                where=outcome.group.title if names_group else failure.where,
                fix=failure.fix,
            )
        ]
    if outcome.status == "passed":
        return []
    result = outcome.read()
    assert result is not None
    errors: list[CsrError] = [
        BenchError(
            f"{failure.reason} (stage: {failure.stage})",
            where=f"{prefix}{failure.where or failure.subject}",
            fix=failure.fix,
        )
        for failure in result.failures
    ]
    if result.void:
        errors.append(
            BenchError(
                f"the latencies are void: {'; '.join(result.void)}",
                where=outcome.group.title if names_group else None,
                fix="Let it cool down, or give it a stronger supply or a lower power mode; then repeat.",
            )
        )
    return errors


def _gate_failures(gates: Sequence[Any], outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    if not gates:
        return ()
    results = [(o.group.device, result) for o in outcomes if (result := o.read()) is not None]
    failed = check_gates(gates, results)
    if not failed:
        stderr.print(f"All of {len(gates)} gates hold." if len(gates) > 1 else "The gate holds.")
    return failed


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


def _check_timing(request: PlanRequest) -> None:
    """Refuses options of a clock that is not there, or of a machine that is not measured.

    Raises:
        OptionError: Then, or if there is no such device.
    """
    if len(request.devices) != 1 or not request.devices[0].startswith(("qemu:", "serial:")):
        return
    place = parse_device(request.devices[0])
    given = [f"--{name}" for name in ("images", "seconds") if name in request.settings]
    if place.board is not None and given:
        raise OptionError(
            f"{' and '.join(given)} given, but nothing is timed on {place.text}",
            fix="Leave it out: an emulator has no time that means anything, its instructions are counted.",
        )
    if request.settings.get("telemetry", "none") != "none":
        raise OptionError(
            f"the telemetry is that of this machine, and the model runs on {place.text}",
            fix="Leave --telemetry out.",
        )


def _write(file: str, text: str) -> None:
    if file == "-":
        typer.echo(text, nl=False)
        return
    with atomic_write(Path(file)) as temporary:
        temporary.write_text(text, encoding="utf-8")
