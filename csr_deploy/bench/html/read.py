"""Results files to the cells of a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csr_deploy.bench.html.cells import FailureRow, GroupResult, Report, make_panels
from csr_deploy.bench.html.devices import device_title
from csr_deploy.bench.results import BenchResult
from csr_deploy.bench.store import Attempt, PlannedGroup, RunRecord, device_of, read_store
from csr_deploy.errors import BenchError


def read_report(paths: Sequence[Path]) -> Report:
    """Reads and merges results files.

    Of a group that stands in several files the last file's counts.

    Args:
        paths: Files that csr-bench wrote with --results or --json.

    Raises:
        BenchError: If a file cannot be read, is neither, or of another version, or if none has a result.
    """
    attempts: dict[str, Attempt] = {}
    single: list[GroupResult] = []
    runs: list[RunRecord] = []
    planned: dict[str, PlannedGroup] = {}
    notes: list[str] = []
    for path in paths:
        values = _single(path)
        if values is not None:
            single.append(GroupResult(device_of(values), BenchResult.from_json(values, str(path))))
            continue
        contents = read_store(path)
        if not contents.runs and not contents.attempts:
            raise BenchError(
                "is empty" if path.stat().st_size == 0 else "has no whole record",
                where=str(path),
                fix="Measure first: csr-bench … --results FILE.",
            )
        if contents.cut:
            notes.append(
                f"{path.name} ends in the middle of a line ({contents.cut:,} bytes), as a run that was "
                "killed leaves it. That line is left out; csr-bench --resume measures what it held."
            )
        runs += contents.runs
        planned |= contents.planned()
        attempts |= contents.attempts
    if not single and not attempts:
        raise BenchError(
            "there is no result in it yet",
            where=", ".join(map(str, paths)) or None,
            fix="Wait for the first group, or run csr-bench again with --resume.",
        )
    groups, failed = _measured(attempts)
    groups = [*groups, *single]
    panels, titles = make_panels(groups)
    by_device = dict(zip((g.device for g in groups), titles, strict=True))
    failures = [
        FailureRow(by_device.get(device, device_title(device, "")), None, stage, reason, where, fix)
        for device, stage, reason, where, fix in failed
    ]
    failures += [
        FailureRow(title, f.subject, f.stage, f.reason, f.where, f.fix)
        for group, title in zip(groups, titles, strict=True)
        for f in group.result.failures
    ]
    versions = [run.csr_deploy for run in runs]
    versions += [g.result.environment.versions.get("csr-deploy", "") for g in groups]
    return Report(
        panels=tuple(panels),
        failures=tuple(failures),
        groups=tuple(groups),
        titles=tuple(titles),
        commands=tuple(dict.fromkeys(run.command for run in runs)),
        missing=tuple(
            (group.id, group.device, ", ".join(s.label for s in group.subjects))
            for group in planned.values()
            if group.id not in attempts
        ),
        notes=tuple(notes),
        left_out=tuple(dict.fromkeys(text for run in runs for text in run.plan.left_out)),
        versions=tuple(sorted({v for v in versions if v})),
    )


def _measured(
    attempts: dict[str, Attempt],
) -> tuple[list[GroupResult], list[tuple[str, str, str, str | None, str | None]]]:
    """What was measured, and (device, stage, reason, where, fix) of groups that could not run."""
    groups, failed = [], []
    for attempt in attempts.values():
        if attempt.failure is not None:
            each = attempt.failure
            failed.append((each.device, each.stage, each.reason, each.where, each.fix))
        if attempt.line is None:
            continue
        record = json.loads(attempt.line)
        result = BenchResult.from_json(record["result"], f"the result of group {attempt.group}")
        groups.append(
            GroupResult(
                attempt.device, result, attempt.group, attempt.number, record["started"], record["finished"]
            )
        )
    return groups, failed


def _single(path: Path) -> dict[str, Any] | None:
    """The one result that --json wrote; None where the file holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        values if isinstance(values, dict) and "record" not in values and "measurements" in values else None
    )
