"""Gates, and what became worse between two results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from csr_deploy.bench.compare import Tolerances, compare_results
from csr_deploy.bench.gates import METRICS, check_gates, parse_gate
from csr_deploy.bench.results import BenchResult
from csr_deploy.errors import OptionError
from tests.bench_values import full_result, measurement, result

BASE, CSR = measurement("net", right=10), measurement("csr", milliseconds=1.0, right=9, kilobytes=256)
GOOD = [("local", result(BASE, CSR))]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("accuracy_drop>0.5", ("accuracy_drop", ">", 0.5, None)),
        ("  p99_ms >= 2e1 ", ("p99_ms", ">=", 20.0, None)),
        ("private_bytes>2MiB", ("private_bytes", ">", 2 * 2**20, None)),
        ("private_bytes>2 kB", ("private_bytes", ">", 2000, None)),
        ("first_ms>2s@local", ("first_ms", ">", 2000, "local")),
        ("macs<.5M @ qemu:*", ("macs", "<", 500_000, "qemu:*")),
        ("accuracy_drop>-1points", ("accuracy_drop", ">", -1.0, None)),
    ],
)
def test_conditions(text: str, parsed: tuple[object, ...]) -> None:
    gate = parse_gate(text)
    assert (gate.name, gate.operator, gate.bound, gate.scope) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy>1", r"no figure 'accuracy' in 'accuracy>1'\nDid you mean accuracy_drop"),
        ("zzz>1", r"no figure 'zzz'.*\nNames: accuracy_drop, top1"),
        ("p99_ms>1MiB", r"has the unit 'MiB'; p99_ms is the 99th percentile.*\nUse ms, us, s"),
        ("size_ratio>1x", r"has the unit 'x'.*\nUse no unit"),
        ("p99_ms", "'p99_ms' is no condition"),
        ("p99_ms>", "is no condition"),
        ("p99_ms>five", "is no condition"),
        ("p99_ms==5", "is no condition"),
        ("p99_ms>1>2", "is no condition"),
        ("p99_ms>nan", "is no condition"),
        ("__import__('os').system('true')>1", "is no condition"),
        ("p99_ms>1 or True", "is no condition|has the unit"),
        ("", "'' is no condition"),
    ],
)
def test_conditions_that_are_none(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        parse_gate(text)
    assert caught.value.where == "--fail-if"


def failed(text: str, results: list[tuple[str, BenchResult]] | None = None) -> tuple[str, ...]:
    return check_gates([parse_gate(text)], results or GOOD)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("accuracy_drop>0.5", "10"),
        ("top1<95@csr*", "90"),
        ("size_ratio<0.6", "0.5"),
        ("latency_ratio<0.6", "0.5"),
        ("latency_ratio<=0.5", "0.5"),
        ("private_ratio>=1", "1"),
        ("p99_ms<1.5", "1"),
        ("images_per_second>900", "1,000"),
        ("compressed_bytes>200kB@csr*", "204,800"),
    ],
)
def test_a_gate_that_is_met_says_by_what(text: str, value: str) -> None:
    assert failed(text) == (f"{text}: it is {value} of csr-tflite-int8, litert with 1 thread on local",)


@pytest.mark.parametrize("text", ["accuracy_drop>10", "size_ratio>0.5", "latency_ratio>=0.501", "top1<90"])
def test_a_gate_that_holds(text: str) -> None:
    assert failed(text) == ()


def test_what_was_not_measured_fails() -> None:
    (reason,) = failed("instructions_ratio>1")
    where = "csr-tflite-int8, litert with 1 thread on local"
    assert reason == f"instructions_ratio>1: instructions_ratio was not measured of {where}"
    untimed = [("pi-emulated:pi4", result(BASE, replace(CSR, latency=None)))]
    assert "latency_ratio was not measured" in failed("latency_ratio>1", untimed)[0]
    # A gate about one device leaves the others alone.
    assert failed("latency_ratio>1@local", [*GOOD, *untimed]) == ()
    assert failed("latency_ratio>1@here", GOOD) == (
        "latency_ratio>1@here: there is no subject beside a baseline that it is about",
    )
    assert failed("latency_ratio>1", [("local", result(BASE))]) == (
        "latency_ratio>1: there is no subject beside a baseline that it is about",
    )
    assert failed("p99_ms>1@here") == ("p99_ms>1@here: there is no subject that it is about",)


def test_every_metric_can_be_computed_from_a_full_result() -> None:
    full = full_result()
    base, other = full.measurements
    other = replace(
        other,
        energy=base.energy,
        instructions=base.instructions,
        microcontroller=base.microcontroller,
        sizes=replace(other.sizes, arena_bytes=5),
    )
    full = result(base, other)
    missing = {name for name, metric in METRICS.items() if metric.of(full, other) is None}
    # Of a network that is compared with float there are the classes of float needed.
    assert missing == {"agreement"}


# Comparisons


def verdicts(old: BenchResult, new: BenchResult, **tolerances: float) -> dict[str, str]:
    found = compare_results([("local", old)], [("local", new)], Tolerances(**tolerances))
    return {c.figure: c.verdict for c in found.changes if c.cell.subject == "csr-tflite-int8"}


def test_the_same_is_the_same() -> None:
    found = compare_results(GOOD, GOOD)
    assert {c.verdict for c in found.changes} == {"same"} and not found.regressions
    assert found.missing == found.added == () and found.notes == ()


def test_what_became_worse_beyond_the_tolerance() -> None:
    old = result(BASE, CSR)
    new = result(BASE, measurement("csr", milliseconds=1.06, right=8, kilobytes=270))
    assert {k for k, v in verdicts(old, new).items() if v == "worse"} == {
        "top-1 in %",
        "model size in bytes",
        "stored weights in bytes",
        "latency, median, in ms",
        "latency p99 in ms",
        "latency over the baseline's",
    }
    assert "worse" not in verdicts(old, new, percent=7, points=10).values()
    assert {k for k, v in verdicts(new, old).items() if v == "better"} == {
        k for k, v in verdicts(old, new).items() if v == "worse"
    }
    (change,) = [
        c for c in compare_results(GOOD, [("local", new)]).changes
        if c.cell.subject.startswith("csr") and c.figure == "top-1 in %"
    ]  # fmt: skip
    assert (change.old, change.new, change.is_points) == (90, 80, True)
    assert change.change == pytest.approx(-10)


def test_a_figure_that_is_gone_is_worse_and_a_cell_that_is_gone_is_missing() -> None:
    assert verdicts(result(BASE, CSR), result(BASE, replace(CSR, accuracy=None)))["top-1 in %"] == "worse"
    found = compare_results(GOOD, [("local", result(BASE)), ("ssh://pi", result(CSR))])
    assert [str(c) for c in found.missing] == ["csr-tflite-int8, litert with 1 thread on local"]
    assert [str(c) for c in found.added] == ["csr-tflite-int8, litert with 1 thread on ssh://pi"]
    nothing = compare_results(GOOD, [("ssh://pi", result(BASE, CSR))])
    assert nothing.changes == () and "nothing was compared" in nothing.notes[0]


def test_times_of_another_machine_are_not_judged_but_ratios_are() -> None:
    old, slow = result(BASE, CSR), result(BASE, measurement("csr", milliseconds=9.0, kilobytes=256))
    elsewhere = replace(slow, environment=replace(slow.environment, cpu="Another CPU"))
    found = verdicts(old, elsewhere)
    assert found["latency, median, in ms"] == found["private memory in bytes"] == "not judged"
    assert found["latency over the baseline's"] == "worse" and found["model size in bytes"] == "same"


def test_void_and_quick_times_are_not_judged() -> None:
    slow = measurement("csr", milliseconds=9.0, right=9, kilobytes=256)
    for new in (result(BASE, slow, void=("hot",)), result(BASE, slow, quick=True)):
        found = verdicts(result(BASE, CSR), new)
        assert found["latency, median, in ms"] == found["latency over the baseline's"] == "not judged"
        assert found["top-1 in %"] == "same"
        assert compare_results(GOOD, [("local", new)]).notes


def test_accuracies_on_other_images_are_not_judged() -> None:
    assert CSR.accuracy is not None
    other = replace(CSR, accuracy=replace(CSR.accuracy, images_sha256="00" * 32, top1=0.1))
    assert verdicts(result(BASE, CSR), result(BASE, other))["top-1 in %"] == "not judged"


def test_tolerances_are_no_less_than_nothing() -> None:
    for wrong in ({"percent": -1.0}, {"points": float("nan")}):
        with pytest.raises(OptionError):
            Tolerances(**wrong)
