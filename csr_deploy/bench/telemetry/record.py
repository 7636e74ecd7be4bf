"""What telemetry gives: frozen records with the unit in every name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TelemetrySample:
    """The machine at one moment; what it does not tell is absent or None.

    Attributes:
        time_ns: Since the start of the run, by a monotonic clock.
        temperatures_c: °C by thermal zone, e.g. "cpu", "gpu", "tj".
        power_mw: mW by rail, e.g. "VDD_IN".
        clocks_mhz: MHz by unit: "cpu0", "gpu", "emc", …
        load_percent: Busy share in % by unit: "cpu" for all CPUs, "cpu0", "gpu", …
        voltages_v: V by name.
        throttled: What is slowing the machine down at this moment, in words.
        events: Counters of such events since boot; bits that stay set until the next boot count as 0 or 1.
        fan_percent: Drive of the fan in %.
        fan_rpm: Its speed in revolutions a minute.
        memory_used_mib: Main memory that is not available to new programs, in MiB.
        memory_total_mib: All of it.
    """

    time_ns: int
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    power_mw: Mapping[str, float] = field(default_factory=dict)
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    load_percent: Mapping[str, float] = field(default_factory=dict)
    voltages_v: Mapping[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    fan_percent: float | None = None
    fan_rpm: float | None = None
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None


@dataclass(frozen=True)
class PowerMode:
    """How a Jetson is set.

    Attributes:
        mode_id: Number of nvpmodel's mode.
        name: Its name, e.g. "MAXN_SUPER" or "15W".
        jetson_clocks: Whether all clocks that can be read are pinned (lowest equals highest allowed); None
            where none can be read.
    """

    mode_id: int | None
    name: str | None
    jetson_clocks: bool | None


@dataclass(frozen=True)
class TimedWindow:
    """Part of the run in which one subject was timed.

    Attributes:
        subject: Label.
        start_ns: Since the start of the run.
        end_ns: Likewise.
    """

    subject: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Telemetry:
    """Everything that was seen from just before the first load to just after the last timed window.

    Attributes:
        source: Where it comes from, a key of `csr_deploy.bench.telemetry.CHOICES`.
        interval_s: Pause between samples in seconds.
        power_mode: None on a machine that has none.
        tells_throttling: Whether the machine has anything that would have shown throttling.
        void: Why times taken meanwhile are void: throttling, or a power mode that changed. Empty where
            nothing of the kind was seen.
        sampled: How many samples were taken.
        samples: At most a few hundred of them, evenly spaced, the first and the last included.
        windows: When subjects were timed.
        sample_cost_ms: Mean processor time of one sample in this process, in ms; that of programs which were
            called is not in it.
        malformed: Readings that could not be understood.
        notes: What a reader should know, e.g. that a source ended early.
    """

    source: str
    interval_s: float
    power_mode: PowerMode | None
    tells_throttling: bool
    void: tuple[str, ...]
    sampled: int
    samples: tuple[TelemetrySample, ...]
    windows: tuple[TimedWindow, ...]
    sample_cost_ms: float
    malformed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Energy:
    """Energy of an inference, idle power included.

    Attributes:
        rail: What was measured: the name of the total-input rail, or the rails that add up to it.
        scope: "board", or "module": without the carrier board and what is plugged into it.
        mean_mw: Mean power in the timed windows, in mW.
        millijoules: Of one inference: mean power · mean time of an inference, in mJ.
        samples: Readings of the rail inside the timed windows.
    """

    rail: str
    scope: str
    mean_mw: float
    millijoules: float
    samples: int
