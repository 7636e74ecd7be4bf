"""Who slows the machine down: thermal limits, over-current, a weak power supply."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.readers import chips
from csr_deploy.bench.telemetry.record import TelemetrySample

# Cooling devices that take speed away. Others are fans, displays, radios, or only a warning: Orin's
# hot-surface-alert tells of a hot heat sink, and nothing is slowed down.
_SLOWING = re.compile(r".+-throttle-alert|(thermal-)?(cpufreq|devfreq|idle)-.+|intel_powerclamp", re.ASCII)
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_CPU = "sys/devices/system/cpu"
_MOST_CPUS = 16
_HEX = re.compile(r"(?:0x)?([0-9a-f]{1,8})", re.ASCII | re.IGNORECASE)

FIRMWARE_BITS: Mapping[int, str] = {
    0: "under-voltage",
    1: "ARM frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""Bits of a Raspberry Pi's get_throttled that tell of this moment; the same + 16 have it since boot."""


def firmware_bits(text: str) -> int | None:
    """The number that a Raspberry Pi's firmware tells, "0x50005" or "50005"; None for other text."""
    match = _HEX.fullmatch(text.strip())
    return int(match[1], 16) if match else None


def firmware_throttling(bits: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """Throttling now, and the record since boot as counters of 0 or 1."""
    now = tuple(f"firmware: {words}" for bit, words in FIRMWARE_BITS.items() if bits >> bit & 1)
    since = {f"firmware: {words} since boot": bits >> bit + 16 & 1 for bit, words in FIRMWARE_BITS.items()}
    return now, since


class Throttling:
    """Everything in /sys that shows throttling.

    Args:
        machine: Where.
        firmware: Whether the file of a Raspberry Pi's firmware is one of them.
    """

    def __init__(self, machine: Machine, firmware: bool = True) -> None:
        self._machine = machine
        self._states = dict(_cooling_devices(machine))
        self._counters = dict(_counters(machine))
        self._firmware = firmware and machine.text(_FIRMWARE) is not None
        for name, chip in chips(machine):
            if name == "rpi_volt":
                self._states["under-voltage (rpi_volt)"] = f"{chip}/in0_lcrit_alarm"

    @property
    def tells(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._states or self._counters or self._firmware)

    def read(self) -> tuple[tuple[str, ...], dict[str, int]]:
        """What slows the machine down now, and counters of such events."""
        now = [name for name, path in self._states.items() if (self._machine.integer(path) or 0) > 0]
        counts = {name: self._machine.integer(path) for name, path in self._counters.items()}
        events = {name: count for name, count in counts.items() if count is not None}
        text = self._machine.text(_FIRMWARE) if self._firmware else None
        if text is not None:
            bits = firmware_bits(text)
            if bits is None:
                self._machine.problems.count(_FIRMWARE)
            else:
                flags, since = firmware_throttling(bits)
                now += flags
                events.update(since)
        return tuple(now), events


def _cooling_devices(machine: Machine) -> Iterator[tuple[str, str]]:
    processors = 0
    for folder in machine.entries("sys/class/thermal", "cooling_device"):
        kind = machine.text(f"{folder}/type")
        if kind == "Processor":
            # A PC has one for every CPU.
            processors += 1
            if processors <= _MOST_CPUS:
                yield f"thermal limit of processor {processors - 1}", f"{folder}/cur_state"
        elif kind and _SLOWING.fullmatch(kind):
            yield kind, f"{folder}/cur_state"


def _counters(machine: Machine) -> Iterator[tuple[str, str]]:
    for name, chip in chips(machine):
        if name in ("soctherm_oc", "soctherm-oc-event"):
            for path in machine.entries(chip, "oc"):
                event = path.rpartition("/")[2].removesuffix("_event_cnt")
                counts = path.endswith("_event_cnt")
                if counts and machine.text(f"{chip}/{event}_throt_en") != "0":
                    yield f"over-current event {event}", path
    package = f"{_CPU}/cpu0/thermal_throttle/package_throttle_count"
    if machine.text(package) is not None:
        yield "thermal throttling of the processor package", package
    for cpu in range(_MOST_CPUS):
        core = f"{_CPU}/cpu{cpu}/thermal_throttle/core_throttle_count"
        if machine.text(core) is not None:
            yield f"thermal throttling of the core of cpu{cpu}", core


def throttle_reasons(samples: Sequence[TelemetrySample]) -> tuple[str, ...]:
    """What throttling the samples show, in words; empty where none.

    A state counts in any sample; a counter counts by its growth, so that an event between two samples is not
    missed.
    """
    seen: dict[str, int] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for sample in samples:
        for name in sample.throttled:
            seen[name] = seen.get(name, 0) + 1
        for name, count in sample.events.items():
            first.setdefault(name, count)
            last[name] = count
    states = [f"{name}, in {count} of {len(samples)} samples" for name, count in seen.items()]
    grown = [f"{name}: from {first[name]} to {last[name]}" for name in first if last[name] > first[name]]
    return (*states, *grown)
