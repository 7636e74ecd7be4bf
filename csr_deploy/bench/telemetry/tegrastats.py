"""Telemetry from NVIDIA's tegrastats, which prints a line every interval.

A line is words in no fixed order that differ between boards and releases; what is known is taken out of it,
the rest is passed over:

    RAM 2463/62780MB (lfb …) SWAP 0/31390MB (cached 0MB)      MiB
    CPU [1%@729,0%@729,off] or CPU [0%,5%,off]@2601           load, MHz
    EMC_FREQ 0%@2133                                          memory: load, MHz; root only
    GR3D_FREQ 7%@[1300,1297] or 7%@306 or 7%                  GPU: load, MHz of each cluster; no load on Thor
    cpu@46.5C or, from JetPack 7.2, cpu@58.25C/61.75C         now / highest
    VDD_IN 5251mW/8535mW or …/…/… or, before JetPack 5, 5251/8535    now / mean [/ highest]

It tells nothing about throttling, so that is read from /sys with every line.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.readers import is_temperature, zone_name
from csr_deploy.bench.telemetry.record import PowerMode, TelemetrySample
from csr_deploy.bench.telemetry.sysfs import SysfsSource

PROGRAM = "tegrastats"
_END_SECONDS = 2.0
_FIRST_LINE_SECONDS = 4.0
_LATE_INTERVALS = 3.0

_N = r"\d{1,9}"
_RAM = re.compile(rf"(?<!\S)RAM ({_N})/({_N})MB", re.ASCII)
_CPUS = re.compile(rf"(?<!\S)CPU \[([^\]]*)\](?:@({_N}))?", re.ASCII)
_CPU = re.compile(rf"({_N})%(?:@({_N}))?", re.ASCII)
_UNIT = re.compile(
    rf"(?<!\S)(EMC|GR3D)_FREQ (?:({_N})%)?(?:@(?:\[([\d,]{{1,99}})\]|({_N})))?(?!\S)", re.ASCII
)
_TEMPERATURE = re.compile(
    rf"(?<!\S)([A-Za-z][\w.-]*)@(-?{_N}(?:\.{_N})?)C(?:/-?{_N}(?:\.{_N})?C)?(?!\S)", re.ASCII
)
_RAIL = re.compile(rf"(?<!\S)([A-Z]\w*) (-?{_N})(mW)?((?:/-?{_N}(?:mW)?){{0,2}})(?!\S)", re.ASCII)
_UNITS = {"EMC": "emc", "GR3D": "gpu"}


@dataclass(frozen=True)
class TegrastatsLine:
    """What one line says, see `TelemetrySample`."""

    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_mw: dict[str, float] = field(default_factory=dict)
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    load_percent: dict[str, float] = field(default_factory=dict)
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None


def parse_line(line: str) -> TegrastatsLine | None:
    """Takes a line apart.

    Returns:
        What is in it; None if nothing that is known is.
    """
    clocks: dict[str, float] = {}
    loads: dict[str, float] = {}
    cpus = _CPUS.search(line)
    for index, cpu in enumerate(cpus[1].split(",") if cpus else ()):
        match = _CPU.fullmatch(cpu.strip())
        if match is None:
            continue
        loads[f"cpu{index}"] = float(match[1])
        megahertz = match[2] or (cpus and cpus[2])
        if megahertz:
            clocks[f"cpu{index}"] = float(megahertz)
    for name, load, listed, single in _UNIT.findall(line):
        if load:
            loads[_UNITS[name]] = float(load)
        megahertz = [float(n) for n in (listed or single).split(",") if 0 < len(n) < 10]
        if megahertz:
            clocks[_UNITS[name]] = max(megahertz)
    temperatures = {zone_name(name): float(value) for name, value in _TEMPERATURE.findall(line)}
    power = {
        name: float(now)
        for name, now, unit, rest in _RAIL.findall(line)
        # Without a unit only "now/mean" is a rail: "APE 174" is a clock.
        if name != "NC" and (unit or rest.count("/") == 1)
    }
    memory = _RAM.search(line)
    if not (clocks or loads or temperatures or power or memory):
        return None
    return TegrastatsLine(
        {name: value for name, value in temperatures.items() if is_temperature(value)},
        power,
        clocks,
        loads,
        float(memory[1]) if memory else None,
        float(memory[2]) if memory else None,
    )


class _Reader(threading.Thread):
    """Waits for lines and notes when they came; the last one is kept."""

    def __init__(self, stream: IO[bytes], machine: Machine, clock: Callable[[], int]) -> None:
        super().__init__(name=PROGRAM, daemon=True)
        self._stream = stream
        self._problems = machine.problems
        self._clock = clock
        self._changed = threading.Condition()
        self._latest: tuple[int, TegrastatsLine] | None = None
        self.lines = 0
        self.ended = False

    def run(self) -> None:
        for raw in self._stream:
            now = self._clock()
            # A line that was cut off could end in the middle of a number.
            line = parse_line(raw.decode(errors="replace")) if raw.endswith(b"\n") else None
            with self._changed:
                self.lines += 1
                if line is None:
                    self._problems.count(f"{PROGRAM}'s output")
                else:
                    self._latest = (now, line)
                    self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def next(self, seconds: float) -> tuple[int, TegrastatsLine] | None:
        """The last line that was not given yet, after waiting for one if need be; None if none came."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self.ended, timeout=seconds)
            latest, self._latest = self._latest, None
            return latest


class TegrastatsSource:
    """Runs tegrastats and reads what it prints.

    Args:
        machine: Where it is, and whose /sys is read beside it.
        interval_s: Pause between its lines in seconds.
        clock: Gives the time in ns.
    """

    name = PROGRAM
    least_interval_s = 0.0

    def __init__(
        self, machine: Machine, interval_s: float, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._machine = machine
        self._late_s = _LATE_INTERVALS * interval_s
        self._sysfs = SysfsSource(machine, clock)
        self._process = subprocess.Popen(
            [machine.program(PROGRAM) or PROGRAM, "--interval", str(max(round(interval_s * 1000), 1))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C reaches the benchmark only, which then ends this process.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = _Reader(self._process.stdout, machine, clock)
        self._reader.start()

    @property
    def tells_throttling(self) -> bool:
        return self._sysfs.tells_throttling

    @property
    def malformed(self) -> int:
        return self._machine.problems.malformed

    @property
    def notes(self) -> tuple[str, ...]:
        return self._machine.problems.notes

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def answers(self, seconds: float = _FIRST_LINE_SECONDS) -> bool:
        """Whether a line came that can be understood; waits for it."""
        return self._reader.next(seconds) is not None

    def sample(self) -> TelemetrySample:
        """What the last line said, or /sys alone where no line came."""
        latest = self._reader.next(self._late_s)
        if latest is None:
            self._machine.problems.note(f"{self._what_happened()}; /sys was read instead")
            return self._sysfs.sample()
        time_ns, line = latest
        told = {"temperatures": line.temperatures_c, "power": line.power_mw, "loads": line.load_percent}
        beside = self._sysfs.sample(without=("memory", *(what for what, values in told.items() if values)))
        return replace(
            beside,
            time_ns=time_ns,
            temperatures_c=line.temperatures_c or beside.temperatures_c,
            power_mw=line.power_mw or beside.power_mw,
            clocks_mhz={**beside.clocks_mhz, **line.clocks_mhz},
            load_percent=line.load_percent or beside.load_percent,
            memory_used_mib=line.memory_used_mib,
            memory_total_mib=line.memory_total_mib,
        )

    def power_mode(self) -> PowerMode | None:
        return self._sysfs.power_mode()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(_END_SECONDS)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _what_happened(self) -> str:
        lines = "1 line" if self._reader.lines == 1 else f"{self._reader.lines} lines"
        if not self._reader.ended:
            return f"{PROGRAM} fell silent after {lines}"
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return f"{PROGRAM} closed its output after {lines}"
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{PROGRAM} {how} after {lines}"
