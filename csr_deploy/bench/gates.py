"""Gates: conditions on figures that make a run fail, such as `accuracy_drop>0.5`."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from csr_deploy.bench.results import BenchResult, Measurement
from csr_deploy.errors import OptionError

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "KiB": 2.0**10, "MiB": 2.0**20}
_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_PLAIN = {"": 1.0}
_POINTS = {"": 1.0, "points": 1.0, "%": 1.0}
_PERCENT = {"": 1.0, "%": 1.0}
_MS = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}
_EXPRESSION = re.compile(
    r"\s*(?P<name>\w+)\s*(?P<operator>>=|<=|>|<)\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"\s*(?P<unit>[A-Za-z%]*)\s*(?:@\s*(?P<scope>\S.*?))?\s*",
    re.ASCII,
)

_Value = Callable[[BenchResult, Measurement], "float | None"]


@dataclass(frozen=True)
class Metric:
    """A figure that a gate can be about.

    Attributes:
        words: What it is, its unit included.
        of: Its value.
        units: What may stand behind a number, and what that is worth.
        is_relative: Whether it compares with the baseline, which has none itself.
    """

    words: str
    of: _Value
    units: Mapping[str, float]
    is_relative: bool = False


def _part(path: str, factor: float = 1.0) -> _Value:
    """A number somewhere in a measurement."""

    def value(_result: BenchResult, measurement: Measurement) -> float | None:
        found: object = measurement
        for name in path.split("."):
            found = getattr(found, name, None)
        return None if not isinstance(found, (int, float)) else found * factor

    return value


def _baseline(result: BenchResult) -> Measurement | None:
    return next((m for m in result.measurements if m.subject == result.baseline), None)


def _ratio(of: _Value) -> _Value:
    """A figure over that of the baseline."""

    def value(result: BenchResult, measurement: Measurement) -> float | None:
        base = _baseline(result)
        over, under = of(result, measurement), None if base is None else of(result, base)
        return None if over is None or not under else over / under

    return value


def _accuracy_drop(result: BenchResult, measurement: Measurement) -> float | None:
    base = _baseline(result)
    if base is None or base.accuracy is None or measurement.accuracy is None:
        return None
    return 100 * (base.accuracy.top1 - measurement.accuracy.top1)


def _compared(metric: str) -> _Value:
    def value(result: BenchResult, measurement: Measurement) -> float | None:
        found = (
            c.ratio for c in result.comparisons if (c.subject, c.metric) == (measurement.subject, metric)
        )
        return next(found, None)

    return value


_SIZE = _part("sizes.model_bytes")
_INSTRUCTIONS = _part("counted_instructions")

METRICS: Mapping[str, Metric] = {
    "accuracy_drop": Metric(
        "top-1 of the baseline minus that of the subject, in points", _accuracy_drop, _POINTS, True
    ),
    "top1": Metric("top-1 accuracy in %", _part("accuracy.top1", 100), _PERCENT),
    "top5": Metric("top-5 accuracy in %", _part("accuracy.top5", 100), _PERCENT),
    "agreement": Metric(
        "images with the same top-1 class as the float network, in %",
        _part("accuracy.agreement_with_float.share", 100),
        _PERCENT,
    ),
    "size_ratio": Metric("model size over that of the baseline", _ratio(_SIZE), _PLAIN, True),
    "file_bytes": Metric("size of the model file in bytes", _part("sizes.file_bytes"), _BYTES),
    "weight_bytes": Metric("size of the stored weights in bytes", _part("sizes.weight_bytes"), _BYTES),
    "compressed_bytes": Metric(
        "size of the model file after deflate, in bytes", _part("sizes.compressed_bytes"), _BYTES
    ),
    "arena_bytes": Metric("size of the arena in bytes", _part("sizes.arena_bytes"), _BYTES),
    "parameters": Metric("number of parameters", _part("sizes.parameters"), _COUNTS),
    "macs": Metric("multiply-accumulates of an image", _part("sizes.macs"), _COUNTS),
    "latency_ratio": Metric("median latency over that of the baseline", _compared("latency"), _PLAIN, True),
    "median_ms": Metric("median of the windows' medians, in ms", _part("latency.median_ns", 1e-6), _MS),
    "p50_ms": Metric("50th percentile of the latency in ms", _part("latency.p50_ns", 1e-6), _MS),
    "p90_ms": Metric("90th percentile of the latency in ms", _part("latency.p90_ns", 1e-6), _MS),
    "p95_ms": Metric("95th percentile of the latency in ms", _part("latency.p95_ns", 1e-6), _MS),
    "p99_ms": Metric("99th percentile of the latency in ms", _part("latency.p99_ns", 1e-6), _MS),
    "load_ms": Metric("time to load in ms", _part("latency.load_ns", 1e-6), _MS),
    "first_ms": Metric("time of the first inference in ms", _part("latency.first_ns", 1e-6), _MS),
    "images_per_second": Metric("throughput in images a second", _part("latency.images_per_second"), _COUNTS),
    "private_bytes": Metric("private memory in bytes", _part("memory.private_bytes"), _BYTES),
    "private_ratio": Metric(
        "private memory over that of the baseline", _ratio(_part("memory.private_bytes")), _PLAIN, True
    ),
    "mapped_bytes": Metric("mapped memory in bytes", _part("memory.mapped_bytes"), _BYTES),
    "peak_rss_bytes": Metric("peak RSS of the process in bytes", _part("memory.peak_rss_bytes"), _BYTES),
    "energy_mj": Metric("energy of an inference in mJ", _part("energy.millijoules"), _PLAIN),
    "instructions": Metric("instructions of an inference in an emulator", _INSTRUCTIONS, _COUNTS),
    "instructions_ratio": Metric(
        "instructions over those of the baseline", _compared("instructions"), _PLAIN, True
    ),
    "ram_bytes": Metric(
        "arena and stack on a microcontroller, in bytes", _part("microcontroller.ram_bytes"), _BYTES
    ),
    "flash_bytes": Metric(
        "flash of a microcontroller in bytes", _part("microcontroller.flash_bytes"), _BYTES
    ),
}


@dataclass(frozen=True)
class Gate:
    """A condition under which a run fails.

    Attributes:
        text: As given.
        name: Key of `METRICS`.
        operator: ">", ">=", "<" or "<=".
        bound: In the metric's unit.
        scope: Pattern with `*` and `?` that the device, target, runtime or label has to match; None for all.
    """

    text: str
    name: str
    operator: str
    bound: float
    scope: str | None = None

    def is_met(self, value: float) -> bool:
        """Whether the run fails. A value that is no number meets every condition."""
        return math.isnan(value) or _OPERATORS[self.operator](value, self.bound)

    def concerns(self, device: str, measurement: Measurement) -> bool:
        """Whether it is about this subject on this device."""
        names = (device, measurement.target, measurement.runtime, measurement.network, measurement.subject)
        return self.scope is None or any(fnmatchcase(name, self.scope) for name in names)


def parse_gate(text: str) -> Gate:
    """Reads `NAME OPERATOR NUMBER[UNIT] [@PATTERN]`; nothing of it is evaluated as a program.

    Raises:
        OptionError: If it is not of that form, or the name or the unit is unknown.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise OptionError(
            f"'{text}' is no condition",
            where="--fail-if",
            fix="Write a name, one of > >= < <=, and a number, such as 'accuracy_drop>0.5' or "
            "'p99_ms>20@local'.",
        )
    name, unit = match["name"], match["unit"]
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=2)
        guess = f"Did you mean {' or '.join(close)}?" if close else f"Names: {', '.join(METRICS)}."
        raise OptionError(f"there is no figure '{name}' in '{text}'", where="--fail-if", fix=guess)
    units = METRICS[name].units
    if unit not in units:
        usual = ", ".join(u for u in units if u) or "no unit"
        raise OptionError(
            f"'{text}' has the unit '{unit}'; {name} is the {METRICS[name].words}",
            where="--fail-if",
            fix=f"Use {usual}.",
        )
    return Gate(text.strip(), name, match["operator"], float(match["number"]) * units[unit], match["scope"])


def check_gates(gates: Sequence[Gate], results: Iterable[tuple[str, BenchResult]]) -> tuple[str, ...]:
    """Says which gates failed, and on what; empty where all hold.

    Args:
        gates: The conditions.
        results: Devices and what was measured there.
    """
    results = list(results)
    return tuple(reason for gate in gates for reason in _check(gate, results))


def _check(gate: Gate, results: Sequence[tuple[str, BenchResult]]) -> list[str]:
    metric = METRICS[gate.name]
    reasons = []
    looked_at = 0
    for device, result in results:
        for measurement in result.measurements:
            is_baseline = measurement.subject == result.baseline
            if not gate.concerns(device, measurement) or (metric.is_relative and is_baseline):
                continue
            looked_at += 1
            value = metric.of(result, measurement)
            where = f"{measurement.subject}, {_cell(measurement)} on {device}"
            if value is None:
                reasons.append(f"{gate.text}: {gate.name} was not measured of {where}")
            elif gate.is_met(value):
                reasons.append(f"{gate.text}: it is {value:,.6g} of {where}")
    if not looked_at:
        what = "no subject beside a baseline" if metric.is_relative else "no subject"
        reasons.append(f"{gate.text}: there is {what} that it is about")
    return reasons


def _cell(measurement: Measurement) -> str:
    threads = measurement.threads
    return f"{measurement.runtime} with {threads} thread{'s' if threads > 1 else ''}"
