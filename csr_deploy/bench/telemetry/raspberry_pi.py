"""Telemetry from the firmware of a Raspberry Pi, through its program vcgencmd.

The firmware lowers the clock of the CPU without telling the kernel: only here can the true clock be seen, and
whether it was heat or a weak power supply. vcgencmd needs access to /dev/vcio, which the group `video` has;
where it is missing or refused, the file of the firmware in /sys is read (`csr_deploy.bench.telemetry.sysfs`),
which tells throttling but not the true clock.

    $ vcgencmd get_throttled          throttled=0x50005
    $ vcgencmd measure_clock arm      frequency(48)=1800404352
    $ vcgencmd measure_temp           temp=48.7'C
    $ vcgencmd measure_volts core     volt=0.8600V
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.readers import is_temperature
from csr_deploy.bench.telemetry.record import PowerMode, TelemetrySample
from csr_deploy.bench.telemetry.sysfs import SysfsSource
from csr_deploy.bench.telemetry.throttling import firmware_bits, firmware_throttling

PROGRAM = "vcgencmd"
_Value = TypeVar("_Value")
_CLOCK = re.compile(r"frequency\(\d{1,6}\)=(\d{1,12})", re.ASCII)
_TEMPERATURE = re.compile(r"temp=(-?\d{1,4}(?:\.\d{1,4})?)'C", re.ASCII)
_VOLTS = re.compile(r"volt=(\d{1,4}(?:\.\d{1,6})?)V", re.ASCII)


def parse_throttled(text: str) -> int | None:
    """Bits of `get_throttled`."""
    key, _, value = text.strip().partition("=")
    return firmware_bits(value) if key == "throttled" else None


def parse_clock(text: str) -> float | None:
    """MHz of `measure_clock`."""
    match = _CLOCK.fullmatch(text.strip())
    return int(match[1]) / 1e6 if match else None


def parse_temperature(text: str) -> float | None:
    """°C of `measure_temp`."""
    match = _TEMPERATURE.fullmatch(text.strip())
    return float(match[1]) if match and is_temperature(float(match[1])) else None


def parse_volts(text: str) -> float | None:
    """V of `measure_volts`."""
    match = _VOLTS.fullmatch(text.strip())
    return float(match[1]) if match else None


class VcgencmdSource:
    """Asks the firmware, four calls a sample, and reads the rest from /sys.

    Args:
        machine: Where vcgencmd and /sys are.
        clock: Gives the time in ns.
    """

    name = PROGRAM
    # Four programs a sample are a noticeable part of a small CPU; nothing is missed between two samples,
    # because the firmware remembers throttling.
    least_interval_s = 2.0
    tells_throttling = True

    def __init__(self, machine: Machine, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._machine = machine
        self._sysfs = SysfsSource(machine, clock, firmware=False)

    @property
    def malformed(self) -> int:
        return self._machine.problems.malformed

    @property
    def notes(self) -> tuple[str, ...]:
        return self._machine.problems.notes

    def answers(self) -> bool:
        """Whether the program may speak with the firmware."""
        return parse_throttled(self._machine.output(PROGRAM, "get_throttled") or "") is not None

    def sample(self) -> TelemetrySample:
        """Asks for everything."""
        beside = self._sysfs.sample()
        bits = self._ask(parse_throttled, "get_throttled")
        arm = self._ask(parse_clock, "measure_clock", "arm")
        celsius = self._ask(parse_temperature, "measure_temp")
        volts = self._ask(parse_volts, "measure_volts", "core")
        now, since = firmware_throttling(bits) if bits is not None else ((), {})
        return replace(
            beside,
            throttled=(*beside.throttled, *now),
            events={**beside.events, **since},
            clocks_mhz={**beside.clocks_mhz, **({} if arm is None else {"arm": arm})},
            temperatures_c={**beside.temperatures_c, **({} if celsius is None else {"soc": celsius})},
            voltages_v={} if volts is None else {"core": volts},
        )

    def power_mode(self) -> PowerMode | None:
        return None

    def close(self) -> None:
        """There is nothing to close."""

    def _ask(self, parse: Callable[[str], _Value | None], *arguments: str) -> _Value | None:
        text = self._machine.output(PROGRAM, *arguments)
        value = parse(text) if text is not None else None
        if value is None:
            self._machine.problems.count(f"{PROGRAM} {' '.join(arguments)}")
        return value
