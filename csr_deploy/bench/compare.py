"""Compares two results cell by cell: what became worse than before, for continuous integration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from csr_deploy.bench.results import BenchResult, Measurement
from csr_deploy.errors import OptionError

Results = Sequence["tuple[str, BenchResult]"]
Verdict = Literal["same", "better", "worse", "not judged"]


@dataclass(frozen=True)
class Tolerances:
    """How much worse a figure may become.

    Attributes:
        percent: Of latencies, memory, sizes, instructions and energy, in % of the old value.
        points: Of accuracies and agreements, in points.
    """

    percent: float = 5.0
    points: float = 0.5

    def __post_init__(self) -> None:
        for name in ("percent", "points"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"a tolerance of {getattr(self, name):g} {name}", fix="Give 0 or more.")


@dataclass(frozen=True)
class Cell:
    """What is matched: one subject as it was measured.

    Attributes:
        device: Its name.
        subject: Label.
        target: Of the artifact.
        runtime: Key of the runtime.
        kernels: "optimized" or "reference".
        threads: Of the runtime.
        batch: Images an inference.
    """

    device: str
    subject: str
    target: str
    runtime: str
    kernels: str
    threads: int
    batch: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        kernels = ", reference kernels" if self.kernels == "reference" else ""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.subject}, {self.runtime} with {threads}{kernels}{batch} on {self.device}"


@dataclass(frozen=True)
class Change:
    """One figure of one cell, before and after.

    Attributes:
        cell: Which.
        figure: Its name, the unit included.
        old: Before.
        new: After; None where it is not measured any more.
        change: new / old, or new − old for points; None where that means nothing.
        is_points: Whether the difference counts and not the quotient.
        verdict: "worse" beyond the tolerance, "better" as much the other way round, "not judged" where the
            two cannot be compared.
        why: Why it is not judged, or what is missing; empty elsewhere.
    """

    cell: Cell
    figure: str
    old: float
    new: float | None
    change: float | None
    is_points: bool
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """Everything that was found.

    Attributes:
        changes: Of cells that both have.
        missing: Cells that only the old results have.
        added: Cells that only the new ones have.
        notes: What a reader must know.
    """

    changes: tuple[Change, ...]
    missing: tuple[Cell, ...]
    added: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What became worse."""
        return tuple(c for c in self.changes if c.verdict == "worse")


@dataclass(frozen=True)
class _Entry:
    device: str
    result: BenchResult
    measurement: Measurement


@dataclass(frozen=True)
class _Figure:
    """A figure to compare.

    Attributes:
        name: With its unit.
        of: Its value.
        less_is_better: Which way is worse.
        is_points: See `Change`.
        needs: What both measurements must have in common for it to be judged.
    """

    name: str
    of: Callable[[_Entry], float | None]
    less_is_better: bool = True
    is_points: bool = False
    needs: Literal["nothing", "machine", "good times", "good ratios", "images"] = "nothing"


def _of(path: str, factor: float = 1.0) -> Callable[[_Entry], float | None]:
    def value(entry: _Entry) -> float | None:
        found: object = entry.measurement
        for name in path.split("."):
            found = getattr(found, name, None)
        return found * factor if isinstance(found, (int, float)) else None

    return value


def _ratio(metric: str) -> Callable[[_Entry], float | None]:
    def value(entry: _Entry) -> float | None:
        label = entry.measurement.subject
        return next(
            (c.ratio for c in entry.result.comparisons if (c.subject, c.metric) == (label, metric)), None
        )

    return value


FIGURES = (
    _Figure("top-1 in %", _of("accuracy.top1", 100), False, True, "images"),
    _Figure("top-5 in %", _of("accuracy.top5", 100), False, True, "images"),
    _Figure(
        "agreement with float in %", _of("accuracy.agreement_with_float.share", 100), False, True, "images"
    ),
    _Figure("model size in bytes", _of("sizes.model_bytes")),
    _Figure("stored weights in bytes", _of("sizes.weight_bytes")),
    _Figure("arena in bytes", _of("sizes.arena_bytes")),
    _Figure("latency, median, in ms", _of("latency.median_ns", 1e-6), needs="good times"),
    _Figure("latency p99 in ms", _of("latency.p99_ns", 1e-6), needs="good times"),
    _Figure("latency over the baseline's", _ratio("latency"), needs="good ratios"),
    _Figure("private memory in bytes", _of("memory.private_bytes"), needs="machine"),
    _Figure("energy of an inference in mJ", _of("energy.millijoules"), needs="good times"),
    _Figure("instructions of an inference", _of("counted_instructions")),
    _Figure("RAM on a microcontroller in bytes", _of("microcontroller.ram_bytes")),
    _Figure("flash on a microcontroller in bytes", _of("microcontroller.flash_bytes")),
)


def compare_results(old: Results, new: Results, tolerances: Tolerances | None = None) -> Comparison:
    """Compares cells that both have.

    Times, memory and energy are judged on the same machine only, and not where a result is void; ratios to
    the baseline, sizes, counts and accuracies everywhere. A figure that is not measured any more is worse.

    Args:
        old: Devices and results of before.
        new: Of now.
        tolerances: How much worse is still the same.
    """
    tolerances = tolerances or Tolerances()
    before, after = _entries(old), _entries(new)
    changes = [
        change
        for cell, entry in before.items()
        if cell in after
        for change in _changes(cell, entry, after[cell], tolerances)
    ]
    return Comparison(
        tuple(changes),
        tuple(cell for cell in before if cell not in after),
        tuple(cell for cell in after if cell not in before),
        tuple(_notes(before, after)),
    )


def _entries(results: Results) -> Mapping[Cell, _Entry]:
    return {
        Cell(device, m.subject, m.target, m.runtime, m.kernels, m.threads, m.batch): _Entry(device, result, m)
        for device, result in results
        for m in result.measurements
    }


def _changes(cell: Cell, old: _Entry, new: _Entry, tolerances: Tolerances) -> Iterable[Change]:
    for figure in FIGURES:
        before, after = figure.of(old), figure.of(new)
        if before is not None:
            yield _change(cell, figure, before, after, _hindrance(figure, old, new), tolerances)


def _change(
    cell: Cell,
    figure: _Figure,
    before: float,
    after: float | None,
    hindrance: str,
    tolerances: Tolerances,
) -> Change:
    if after is None:
        verdict: Verdict = "not judged" if hindrance else "worse"
        return Change(
            cell, figure.name, before, None, None, figure.is_points, verdict, hindrance or "not measured now"
        )
    if figure.is_points:
        change: float | None = after - before
        loss = before - after if not figure.less_is_better else after - before
        allowed = tolerances.points
    else:
        change = after / before if before > 0 else None
        loss = 100 * ((after / before if before > 0 else float(after > before) + 1) - 1)
        allowed = tolerances.percent
    if hindrance:
        verdict = "not judged"
    elif loss > allowed + 1e-9:
        verdict = "worse"
    else:
        verdict = "better" if loss < -allowed - 1e-9 else "same"
    return Change(cell, figure.name, before, after, change, figure.is_points, verdict, hindrance)


def _hindrance(figure: _Figure, old: _Entry, new: _Entry) -> str:
    """Why two values of a figure cannot be compared; empty where they can."""
    if figure.needs == "nothing":
        return ""
    if figure.needs == "images":
        mine, theirs = old.measurement.accuracy, new.measurement.accuracy
        other = mine and theirs and mine.images_sha256 != theirs.images_sha256
        return "other test images" if other else ""
    if figure.needs in ("machine", "good times") and _machine(old) != _machine(new):
        return f"another machine: {_machine(old)}, {_machine(new)}"
    if figure.needs in ("good times", "good ratios"):
        if old.result.void or new.result.void:
            return "void"
        if old.result.quick != new.result.quick:
            return "one of them was measured with --quick"
    return ""


def _machine(entry: _Entry) -> str:
    environment = entry.result.environment
    return f"{environment.board or environment.cpu} with {environment.cpus} CPUs"


def _notes(before: Mapping[Cell, _Entry], after: Mapping[Cell, _Entry]) -> Iterable[str]:
    if not set(before) & set(after):
        yield "No cell stands in both: nothing was compared."
    for name, entries in (("old", before), ("new", after)):
        if any(entry.result.quick for entry in entries.values()):
            yield f"The {name} results were measured with --quick: their times are for a first look."
        if any(entry.result.void for entry in entries.values()):
            yield f"Some of the {name} results are void: their times are not judged."
