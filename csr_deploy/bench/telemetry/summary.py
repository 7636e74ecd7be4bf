"""Telemetry in a line of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from csr_deploy.bench.telemetry.monitor import describe_mode
from csr_deploy.bench.telemetry.record import Telemetry, TelemetrySample

_CPU = re.compile(r"cpu\d+")


def summarise_telemetry(telemetry: Telemetry) -> str:
    """Source, power mode, clocks, temperature, throttled or not; of the timed windows if any were sampled."""
    timed = [s for s in telemetry.samples if _is_timed(s, telemetry)] or list(telemetry.samples)
    parts = [f"Telemetry from {telemetry.source}"]
    if telemetry.power_mode is not None:
        parts.append(f"power mode {describe_mode(telemetry.power_mode)}")
    parts += _clocks(timed)
    # Xavier and TX2 report a fixed number for their power controller.
    zones = [[t for zone, t in s.temperatures_c.items() if zone != "pmic"] for s in timed]
    hottest = [max(temperatures) for temperatures in zones if temperatures]
    if hottest:
        parts.append(f"hottest zone {_range(hottest, 1)} °C")
    parts.append(_throttling(telemetry))
    return "; ".join(parts) + "."


def _is_timed(sample: TelemetrySample, telemetry: Telemetry) -> bool:
    return any(w.start_ns <= sample.time_ns <= w.end_ns for w in telemetry.windows)


def _clocks(samples: Sequence[TelemetrySample]) -> Iterable[str]:
    by_unit: dict[str, list[float]] = {}
    for sample in samples:
        for unit, megahertz in sample.clocks_mhz.items():
            by_unit.setdefault("cpu" if _CPU.fullmatch(unit) else unit, []).append(megahertz)
    return [f"{unit} {_range(values, 0)} MHz" for unit, values in by_unit.items()]


def _throttling(telemetry: Telemetry) -> str:
    if telemetry.void:
        return "VOID"
    return "not throttled" if telemetry.tells_throttling else "throttling is not told by this machine"


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return low if low == high else f"{low}–{high}"
