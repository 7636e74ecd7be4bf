"""Processor, memory and temperature of the machine, read once a second."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.readers import Temperatures

if TYPE_CHECKING:
    from typing_extensions import Self

_EVERY_S = 1.0
# Names of the zones that say how warm the processor is, on a Jetson, a Raspberry Pi and a PC.
_ZONES = ("cpu", "tj", "soc", "x86_pkg_temp", "package", "core")


@dataclass(frozen=True)
class SystemState:
    """The machine at one moment.

    Attributes:
        cpu_percent: Busy share of all CPUs, in %.
        process_percent: That of this process, in % of one CPU.
        memory_mib: Resident memory of this process.
        temperature_c: Of the processor; None where the machine does not tell.
    """

    cpu_percent: float = 0.0
    process_percent: float = 0.0
    memory_mib: float = 0.0
    temperature_c: float | None = None


class SystemMonitor:
    """Reads in a thread of its own, from entering to leaving a with block."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.state = SystemState()
        self._temperatures = Temperatures(machine or Machine())
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system", daemon=True)

    def __enter__(self) -> Self:
        self.read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.read()

    def read(self) -> None:
        """Reads everything now; shares are of the time since the last reading."""
        self.state = SystemState(
            psutil.cpu_percent(),
            self._process.cpu_percent(),
            self._process.memory_info().rss / 2**20,
            _processor(self._temperatures.read()),
        )


def _processor(temperatures: dict[str, float]) -> float | None:
    for zone in _ZONES:
        found = [celsius for name, celsius in temperatures.items() if zone in name.lower()]
        if found:
            return max(found)
    return max(temperatures.values(), default=None)
