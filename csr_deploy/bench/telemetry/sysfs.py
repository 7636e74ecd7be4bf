"""Telemetry from files that every user may read: /sys and /proc.

It is the source of last resort of a Jetson and the usual one of every other Linux machine, a PC or server
included; there is simply less to read there.

One sample took 0.24 ms of processor time with the files of an AGX Orin with 12 CPUs, 0.09 ms with those of a
PC (median of 200, ordinary files on a server core, `tests/data/telemetry`). A device is slower and its kernel
has to ask sensors, so every result carries the cost that was measured in its own run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.power_mode import read_power_mode
from csr_deploy.bench.telemetry.readers import (
    Clocks,
    Fan,
    Loads,
    Rails,
    Temperatures,
    read_memory_mib,
)
from csr_deploy.bench.telemetry.record import PowerMode, TelemetrySample
from csr_deploy.bench.telemetry.throttling import Throttling


class SysfsSource:
    """Reads what there is.

    Args:
        machine: Where.
        clock: Gives the time in ns.
        firmware: Whether to read the throttling file of a Raspberry Pi's firmware.
    """

    name = "sysfs"
    least_interval_s = 0.0

    def __init__(
        self, machine: Machine, clock: Callable[[], int] = time.monotonic_ns, firmware: bool = True
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._temperatures = Temperatures(machine)
        self._rails = Rails(machine)
        self._clocks = Clocks(machine)
        self._loads = Loads(machine)
        self._fan = Fan(machine)
        self._throttling = Throttling(machine, firmware)

    @property
    def tells_throttling(self) -> bool:
        return self._throttling.tells

    @property
    def malformed(self) -> int:
        return self._machine.problems.malformed

    @property
    def notes(self) -> tuple[str, ...]:
        return self._machine.problems.notes

    def sample(self, without: Collection[str] = ()) -> TelemetrySample:
        """Reads everything.

        Args:
            without: What need not be read, because someone else tells: "temperatures", "power", "loads",
                "memory".
        """
        now = self._clock()
        throttled, events = self._throttling.read()
        fan_percent, fan_rpm = self._fan.read()
        used, total = (None, None) if "memory" in without else read_memory_mib(self._machine)
        return TelemetrySample(
            time_ns=now,
            temperatures_c={} if "temperatures" in without else self._temperatures.read(),
            power_mw={} if "power" in without else self._rails.read(),
            clocks_mhz=self._clocks.read(),
            load_percent={} if "loads" in without else self._loads.read(),
            throttled=throttled,
            events=events,
            fan_percent=fan_percent,
            fan_rpm=fan_rpm,
            memory_used_mib=used,
            memory_total_mib=total,
        )

    def power_mode(self) -> PowerMode | None:
        return read_power_mode(self._machine)

    def close(self) -> None:
        """There is nothing to close."""
