"""Telemetry from jetson-stats, through the Python package `jtop` and its service.

jetson-stats is licensed under the AGPL-3.0. It is therefore no dependency of csr-deploy, in no extra of it,
and nothing of it is in here: where a user has installed it and its service answers, its documented interface
is called, and else little is missed (the memory's clock). Throttling is read from /sys beside it.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.readers import is_temperature, zone_name
from csr_deploy.bench.telemetry.record import PowerMode, TelemetrySample
from csr_deploy.bench.telemetry.sysfs import SysfsSource

_KIB_PER_MIB = 1024
_KHZ_PER_MHZ = 1000


class JtopUnavailableError(Exception):
    """The package or its service cannot be used; the text says why."""


class JtopSource:
    """Asks the service that jetson-stats runs as root.

    Its readings are at most one interval old.

    Args:
        machine: Whose /sys is read beside it.
        interval_s: How often the service should update its readings, in seconds.
        clock: Gives the time in ns.

    Raises:
        JtopUnavailableError: If jetson-stats is not installed or its service does not answer.
    """

    name = "jtop"
    least_interval_s = 0.0

    def __init__(
        self, machine: Machine, interval_s: float, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        try:
            package: Any = importlib.import_module("jtop")
        except ImportError as error:
            raise JtopUnavailableError("jetson-stats is not installed") from error
        self._failure: type[Exception] = package.JtopException
        self._machine = machine
        self._sysfs = SysfsSource(machine, clock)
        self._jetson: Any = package.jtop(interval=interval_s)
        try:
            self._jetson.start()
            # Waits for the first readings.
            answers = self._jetson.ok()
        except (self._failure, OSError) as error:
            raise JtopUnavailableError(f"the service of jetson-stats does not answer: {error}") from error
        if not answers:
            self.close()
            raise JtopUnavailableError("the service of jetson-stats does not answer")

    @property
    def tells_throttling(self) -> bool:
        return self._sysfs.tells_throttling

    @property
    def malformed(self) -> int:
        return self._machine.problems.malformed

    @property
    def notes(self) -> tuple[str, ...]:
        return self._machine.problems.notes

    def sample(self) -> TelemetrySample:
        """What the service last said, or /sys alone where it has stopped answering."""
        try:
            if not self._jetson.ok(spin=True):
                raise self._failure("it has stopped")
            told = self._told()
        except (self._failure, OSError) as error:
            self._machine.problems.note(f"the service of jetson-stats ended: {error}; /sys was read instead")
            return self._sysfs.sample()
        beside = self._sysfs.sample(without=("temperatures", "power", "loads", "memory"))
        return replace(beside, clocks_mhz={**beside.clocks_mhz, **told.pop("clocks_mhz")}, **told)

    def power_mode(self) -> PowerMode | None:
        """As the service tells it: it is root and sees every clock."""
        mode, clocks = self._jetson.nvpmodel, self._jetson.jetson_clocks
        if mode is None:
            return self._sysfs.power_mode()
        number = mode.id
        return PowerMode(
            number if isinstance(number, int) else None,
            str(mode.name),
            None if clocks is None else bool(clocks),
        )

    def close(self) -> None:
        try:
            self._jetson.close()
        except (self._failure, OSError) as error:
            self._machine.problems.note(f"jetson-stats did not close: {error}")

    def _told(self) -> dict[str, Any]:
        """Fields of a sample."""
        jetson = self._jetson
        clocks, loads = {}, {}
        for unit, cpu in self._cpus(jetson.cpu):
            clocks[unit] = self._number(cpu, "freq", "cur", divide=_KHZ_PER_MHZ)
            idle = self._number(cpu, "idle")
            loads[unit] = None if idle is None else round(100 - idle, 1)
        # The first one is the integrated GPU.
        for gpu in list(_entries(jetson.gpu).values())[:1]:
            clocks["gpu"] = self._number(gpu, "freq", "cur", divide=_KHZ_PER_MHZ)
            loads["gpu"] = self._number(gpu, "status", "load")
        memory = _entries(jetson.memory)
        clocks["emc"] = self._number(memory, "EMC", "cur", divide=_KHZ_PER_MHZ)
        loads["emc"] = self._number(memory, "EMC", "val")
        zones = {zone_name(str(n)): self._number(z, "temp") for n, z in _entries(jetson.temperature).items()}
        power = _entries(jetson.power)
        rails = dict(_entries(power.get("rail")))
        # A rail of the whole input is told apart from the others, and has a name; a sum of rails has none.
        total = _entries(power.get("tot"))
        if isinstance(total.get("name"), str):
            rails[total["name"]] = total
        fans = list(_entries(jetson.fan).values())[:1]
        return {
            "temperatures_c": {n: v for n, v in zones.items() if v is not None and is_temperature(v)},
            "power_mw": _known({str(name): self._number(rail, "power") for name, rail in rails.items()}),
            "clocks_mhz": _known(clocks),
            "load_percent": _known(loads),
            "memory_used_mib": self._number(memory, "RAM", "used", divide=_KIB_PER_MIB),
            "memory_total_mib": self._number(memory, "RAM", "tot", divide=_KIB_PER_MIB),
            "fan_percent": self._number(fans, 0, "speed", 0),
            "fan_rpm": self._number(fans, 0, "rpm", 0),
        }

    def _cpus(self, cpu: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
        listed = _entries(cpu).get("cpu")
        for index, entry in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(entry, Mapping) and entry.get("online"):
                yield f"cpu{index}", entry

    def _number(self, value: Any, *keys: str | int, divide: float = 1) -> float | None:
        """A number deep inside mappings and lists; None where it is missing, counted where it is none."""
        for key in keys:
            if isinstance(key, str) and isinstance(value, Mapping):
                value = value.get(key)
            elif isinstance(key, int) and isinstance(value, list) and key < len(value):
                value = value[key]
            else:
                return None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._machine.problems.count(f"jtop's {'.'.join(map(str, keys))}")
            return None
        return float(value) / divide


def _entries(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
