"""What is still to be done, and about how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lowering_bench.kept import Kept
from lowering_bench.making import work
from lowering_bench.measuring import Counting, Timing, is_done
from lowering_bench.subjects import Model, Variant, groups

# Seconds a piece on an idle machine of two cores, before this machine has been seen at work.
_USUAL = {"export": 15.0, "convert": 60.0, "count": 6.0, "time": 90.0}
# The emulator computes floats in software.
_FLOATS = 6.0
_TITLES = {
    "export": "exports",
    "convert": "conversions by stock converters",
    "count": "counts on emulated boards",
    "time": "groups timed in turns",
}


@dataclass(frozen=True)
class Part:
    """One kind of work.

    Attributes:
        kind: "export", "convert", "count" or "time".
        done: Pieces whose results are there.
        todo: Pieces that are not.
        seconds: Those will take.
    """

    kind: str
    done: int
    todo: int
    seconds: float


def plan(
    variants: Sequence[Variant],
    found: Callable[[Variant], Model | None],
    kept: Kept,
    *,
    threads: Sequence[int],
    seconds: float,
    counts: bool,
    times: bool,
) -> list[Part]:
    """Parts of the work in their order.

    Args:
        variants: All of the table.
        found: Gives a model that is there.
        kept: What is measured.
        threads: Of the runtimes.
        seconds: Timed, of each model.
        counts: Whether instructions are counted.
        times: Whether times are taken.
    """
    models = {v: found(v) for v in variants}
    making = [(work(v), models[v] is not None, v.work(work(v))) for v in variants]
    measuring: list[tuple[str, bool, str]] = []
    if counts:
        for variant, model in models.items():
            for board in variant.boards:
                for number in threads:
                    done = model is not None and is_done(Counting(model, board, number), kept)
                    measuring.append(("count", done, variant.work("count")))
    if times:
        for group in groups(variants):
            there = [m for v in group if (m := models[v]) is not None]
            for number in threads:
                done = len(there) == len(group) and is_done(Timing(tuple(there), number, seconds), kept)
                measuring.append(("time", done, group[-1].work("time")))
    return list(_parts([*making, *measuring], kept))


def _parts(pieces: Sequence[tuple[str, bool, str]], kept: Kept) -> Iterable[Part]:
    for kind in _TITLES:
        mine = [(done, name) for each, done, name in pieces if each == kind]
        todo = [name for done, name in mine if not done]
        seconds = sum(kept.seconds(name) or _usual(kind, name) for name in todo)
        if mine:
            yield Part(kind, len(mine) - len(todo), len(todo), seconds)


def _usual(kind: str, name: str) -> float:
    return _USUAL[kind] * (_FLOATS if kind == "count" and name.endswith("float32") else 1)


def show(parts: Sequence[Part]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{p.todo} {_TITLES[p.kind]} to do ({_minutes(p.seconds)}), {p.done} there already" for p in parts
    ]
    return [*lines, f"{_minutes(sum(p.seconds for p in parts))} in all, if nothing else runs here"]


def _minutes(seconds: float) -> str:
    return "nothing" if not seconds else f"about {max(1, round(seconds / 60))} min"
