"""Rows of the table as plain values: what was measured, ratios to the backbone, goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lowering_bench.goals import BYTES, HERE, PRIVATE, Goal, goals_of, verdict
from lowering_bench.kept import Kept
from lowering_bench.measuring import Counting, Failures, Timing
from lowering_bench.subjects import STEPWISE, Model, Variant, litert_of


@dataclass(frozen=True)
class Judged:
    """A goal and what came of it."""

    figure: str
    most: float
    value: float | None
    verdict: str


@dataclass(frozen=True)
class Record:
    """One row: a variant with a number of threads. Ratios are to the backbone, made step by step.

    Attributes:
        variant: Which.
        threads: Of the runtime.
        macs: Multiply-accumulates of the network, without zeros of wide filters; None without a model.
        macs_ratio: To the backbone.
        parameters: Of the network.
        file_bytes: Of the model file.
        bytes_per_parameter: Of it.
        boards: Board → `instructions`, `busiest_thread`, `private_bytes`, `mapped_bytes`, their ratios
            (`…_ratio`), and `to_litert`, the instructions to those of the backbone in LiteRT with the same
            numbers; or `error`.
        here: `ns`, `ratio`, `low`, `high`, `private_bytes`, `mapped_bytes`, `peak_rss_bytes`, or `error`;
            `void` where other programs disturbed it.
        goals: Judged for this row.
        notes: What a reader must know.
        error: Why there is no model.
    """

    variant: Variant
    threads: int
    macs: int | None = None
    macs_ratio: float | None = None
    parameters: int | None = None
    file_bytes: int | None = None
    bytes_per_parameter: float | None = None
    boards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    here: Mapping[str, Any] = field(default_factory=dict)
    goals: tuple[Judged, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        variant = self.variant
        named = {
            "network": variant.network,
            "runtime": variant.format.runtime,
            "numbers": variant.format.numbers,
            "way": variant.way,
        }
        return named | {k: v for k, v in asdict(self).items() if k != "variant"}


@dataclass(frozen=True)
class Measured:
    """Everything that rows are made from.

    Attributes:
        models: Variant → its model.
        errors: Variant → why it has none.
        kept: Measurements.
        failures: Key of a measurement → why there is none.
        seconds: Timed, of each model.
    """

    models: Mapping[Variant, Model]
    errors: Mapping[Variant, str]
    kept: Kept
    failures: Failures
    seconds: float

    def counted(self, variant: Variant, board: str, threads: int) -> Mapping[str, Any]:
        """What one board gave; empty if it was not asked."""
        if variant not in self.models:
            return {}
        key = Counting(self.models[variant], board, threads).key
        if key in self.failures:
            return {"error": self.failures[key]}
        return self.kept.get(key) or {}

    def timed(self, group: Sequence[Variant], variant: Variant, threads: int) -> Mapping[str, Any]:
        """What was timed here of a member of a group; empty if nothing was."""
        models = tuple(self.models[v] for v in group if v in self.models)
        if variant not in self.models or not models:
            return {}
        timing, digest = Timing(models, threads, self.seconds), self.models[variant].digest
        if timing.key in self.failures:
            return {"error": self.failures[timing.key]}
        value = self.kept.get(timing.key)
        if value is None:
            return {}
        if digest in value["failures"]:
            return {"error": value["failures"][digest]}
        found = dict(value["models"].get(digest, {}))
        memory = found.pop("memory", {})
        found |= {k: memory.get(k) for k in ("private_bytes", "mapped_bytes", "peak_rss_bytes")}
        return found | ({"void": value["void"]} if value["void"] else {})


def records_of(group: Sequence[Variant], threads: int, measured: Measured) -> list[Record]:
    """Rows of a group, in its order; the first variant is the backbone that ratios are to."""
    base = group[0]
    plain = {v.network: m.macs for v in group if v.way == STEPWISE and (m := measured.models.get(v))}
    return [_record(group, v, base, threads, measured, plain) for v in group]


def _record(
    group: Sequence[Variant],
    variant: Variant,
    base: Variant,
    threads: int,
    measured: Measured,
    plain: Mapping[str, int],
) -> Record:
    model = measured.models.get(variant)
    if model is None:
        return Record(variant, threads, error=measured.errors.get(variant, "not made"))
    boards = {}
    for board in variant.boards:
        found = measured.counted(variant, board, threads)
        if found:
            boards[board] = _with_ratios(found, measured.counted(base, board, threads))
            litert = measured.counted(replace(base, format=litert_of(base.format)), board, threads)
            if found.get("instructions") and litert.get("instructions"):
                boards[board]["to_litert"] = found["instructions"] / litert["instructions"]
    macs, base_macs = plain.get(variant.network, model.macs), plain.get(base.network)
    notes = [f"{b}: {v['golden']}" for b, v in boards.items() if v.get("golden")]
    record = Record(
        variant,
        threads,
        macs,
        macs / base_macs if base_macs else None,
        model.parameters,
        model.size,
        model.size / model.parameters,
        boards,
        measured.timed(group, variant, threads),
        notes=tuple(notes),
    )
    return replace(record, goals=_judge(record))


def _with_ratios(found: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(found)
    for name in ("instructions", "busiest_thread", "private_bytes", "mapped_bytes"):
        if found.get(name) and base.get(name):
            values[f"{name}_ratio"] = found[name] / base[name]
    return values


def _judge(record: Record) -> tuple[Judged, ...]:
    """Goals are for lowered networks with one thread; those of another board are not this row's."""
    variant = record.variant
    board = variant.optimized_for
    if board is None or record.threads != 1 or record.macs_ratio is None:
        return ()
    mine = [
        g
        for g in goals_of(variant.network, variant.format.label)
        if g.figure in (board, HERE, PRIVATE, BYTES)
    ]
    judged = []
    for goal in mine:
        value, most = _value(record, goal, board), goal.most(record.macs_ratio)
        judged.append(Judged(goal.figure, most, value, verdict(value, most)))
    return tuple(judged)


def _value(record: Record, goal: Goal, board: str) -> float | None:
    if goal.figure == BYTES:
        return record.bytes_per_parameter
    if goal.figure == HERE:
        return None if record.here.get("void") else record.here.get("ratio")
    name = "private_bytes_ratio" if goal.figure == PRIVATE else "instructions_ratio"
    return record.boards.get(board, {}).get(name)
