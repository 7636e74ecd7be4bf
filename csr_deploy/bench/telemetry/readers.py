"""Single things that Linux tells in files.

Every reader looks once for what there is, and then reads only that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from csr_deploy.bench.telemetry.machine import Machine

# With more CPUs than these, their clocks and loads are those of the first ones and of all together: reading a
# clock can wake a sleeping CPU.
_MOST_CPUS = 16
_COLDEST_C, _HOTTEST_C = -100.0, 250.0
_CPUS = "sys/devices/system/cpu"
_HWMON = "sys/class/hwmon"
_THERMAL = "sys/class/thermal"
_DEVFREQ = "sys/class/devfreq"


def zone_name(name: str) -> str:
    """One spelling of what sources call "CPU-therm", "cpu-thermal" and "CPU"."""
    plain = name.strip().lower()
    for suffix in ("-thermal", "_thermal", "-therm"):
        plain = plain.removesuffix(suffix)
    return plain


def is_temperature(celsius: float) -> bool:
    """Whether it is one: sensors of a unit that is switched off say e.g. -256."""
    return _COLDEST_C < celsius < _HOTTEST_C


def chips(machine: Machine) -> Iterator[tuple[str, str]]:
    """Name and folder of every hwmon chip; their numbers change from boot to boot."""
    for folder in machine.entries(_HWMON, "hwmon"):
        name = machine.text(f"{folder}/name")
        if name:
            yield name, folder


class Temperatures:
    """Thermal zones, and the processor's own sensor where a chip has it (AMD)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        found: list[tuple[str, str]] = []
        for zone in machine.entries(_THERMAL, "thermal_zone"):
            kind = machine.text(f"{zone}/type")
            if kind:
                found.append((zone_name(kind), f"{zone}/temp"))
        found += [(name, f"{chip}/temp1_input") for name, chip in chips(machine) if name == "k10temp"]
        self._paths: dict[str, str] = {}
        for name, path in found:
            twins = sum(other.split("#")[0] == name for other in self._paths)
            self._paths[f"{name}#{twins + 1}" if twins else name] = path

    def read(self) -> dict[str, float]:
        """°C by zone; zones that do not answer are left out, as a GPU's does while it is switched off."""
        values = {}
        for name, path in self._paths.items():
            millidegrees = self._machine.integer(path)
            if millidegrees is not None and is_temperature(millidegrees / 1000):
                values[name] = millidegrees / 1000
        return values


class Rails:
    """Power monitors: INA3221 (voltage and current of three rails), INA238 (power of the board's input)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pairs: dict[str, tuple[str, str]] = {}
        self._powers: dict[str, str] = {}
        for name, chip in chips(machine):
            if name == "ina3221":
                self._add_ina3221(chip)
            elif name == "ina238":
                labels = (machine.text(f"{chip}/{file}") for file in ("in1_label", "power1_label", "label"))
                # The driver knows labels only from newer device trees; on a Jetson it is always the input.
                label = next((text for text in labels if text), "VIN")
                self._powers[label] = f"{chip}/power1_input"

    def _add_ina3221(self, chip: str) -> None:
        for channel in (1, 2, 3):
            label = self._machine.text(f"{chip}/in{channel}_label")
            if label and label != "NC":
                self._pairs[label] = (f"{chip}/in{channel}_input", f"{chip}/curr{channel}_input")

    def read(self) -> dict[str, float]:
        """Power in mW by rail."""
        values = {}
        for name, (voltage, current) in self._pairs.items():
            millivolts, milliamperes = self._machine.integer(voltage), self._machine.integer(current)
            if millivolts is not None and milliamperes is not None:
                values[name] = millivolts * milliamperes / 1000
        for name, path in self._powers.items():
            microwatts = self._machine.integer(path)
            if microwatts is not None:
                values[name] = microwatts / 1000
        return values


def cpu_policies(machine: Machine) -> dict[str, tuple[int, ...]]:
    """CPUs of every frequency policy, by its folder: all that have one clock together."""
    policies = {}
    for folder in machine.entries(f"{_CPUS}/cpufreq", "policy"):
        listed = machine.text(f"{folder}/affected_cpus") or folder.rpartition("policy")[2]
        cpus = tuple(int(cpu) for cpu in listed.split() if cpu.isdecimal() and len(cpu) < 6)
        if cpus:
            policies[folder] = cpus
    return policies


def devfreq_units(machine: Machine) -> dict[str, str]:
    """Folders of the devices whose clocks are of interest, by the unit they are.

    Orin calls its GPU 17000000.gpu or 17000000.ga10b, older ones …gv11b, …gp10b; Thor has gpu-gpc-0 and
    gpu-nvd-0 (video); the memory clock is bwmgr where there is one.
    """
    units: dict[str, str] = {}
    for folder in machine.entries(_DEVFREQ):
        name = folder.rpartition("/")[2]
        if name == "bwmgr" or "emc" in name.split("."):
            units.setdefault("emc", folder)
        elif name == "gpu-gpc-0" or name.rpartition(".")[2] in ("gpu", "ga10b", "gv11b", "gp10b", "gm20b"):
            units.setdefault("gpu", folder)
        elif name.startswith("gpu-nvd"):
            units.setdefault("nvd", folder)
    return units


class Clocks:
    """Clocks of CPUs, GPU and memory."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._cpus = {
            f"{folder}/scaling_cur_freq": tuple(f"cpu{cpu}" for cpu in cpus)
            for folder, cpus in cpu_policies(machine).items()
            if cpus[0] < _MOST_CPUS
        }
        self._units = {unit: f"{folder}/cur_freq" for unit, folder in devfreq_units(machine).items()}

    def read(self) -> dict[str, float]:
        """Clock in MHz by unit."""
        values = {}
        for path, cpus in self._cpus.items():
            kilohertz = self._machine.integer(path)
            if kilohertz is not None:
                values.update(dict.fromkeys(cpus, kilohertz / 1000))
        for unit, path in self._units.items():
            hertz = self._machine.integer(path)
            if hertz is not None:
                values[unit] = hertz / 1e6
        return values


class Loads:
    """Busy share of CPUs between two readings, and of the GPU."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._before: Mapping[str, tuple[int, int]] = {}
        units = devfreq_units(machine)
        self._gpu = f"{units['gpu']}/device/load" if "gpu" in units else None
        self.read()

    def read(self) -> dict[str, float]:
        """Load in % by unit."""
        now = self._busy_and_idle()
        values = {}
        for unit, (busy, idle) in now.items():
            busy_before, idle_before = self._before.get(unit, (busy, idle))
            passed = busy + idle - busy_before - idle_before
            if passed > 0:
                values[unit] = round(min(max(100 * (busy - busy_before) / passed, 0.0), 100.0), 1)
        self._before = now
        per_mille = self._machine.integer(self._gpu) if self._gpu else None
        if per_mille is not None:
            values["gpu"] = per_mille / 10
        return values

    def _busy_and_idle(self) -> dict[str, tuple[int, int]]:
        values = {}
        for line in (self._machine.text("proc/stat") or "").splitlines():
            words = line.split()[:9]
            if len(words) < 5 or not words[0].startswith("cpu"):
                break
            unit, fields = words[0], words[1:]
            if not all(f.isdecimal() and len(f) < 20 for f in fields):
                self._machine.problems.count("proc/stat")
                continue
            times = [int(f) for f in fields]
            idle = times[3] + (times[4] if len(times) > 4 else 0)
            values[unit] = (sum(times) - idle, idle)
        # The first line is that of all together.
        return values if len(values) <= _MOST_CPUS + 1 else dict(list(values.items())[:1])


class Fan:
    """The fan of a Jetson or a Raspberry Pi 5."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        named = dict(chips(machine))
        self._drive = f"{named['pwmfan']}/pwm1" if "pwmfan" in named else None
        self._speeds = [
            f"{named[n]}/{f}" for n, f in (("pwm_tach", "rpm"), ("pwmfan", "fan1_input")) if n in named
        ]

    def read(self) -> tuple[float | None, float | None]:
        """Drive in % and speed in revolutions a minute."""
        drive = self._machine.integer(self._drive) if self._drive else None
        speeds = (self._machine.integer(path) for path in self._speeds)
        speed = next((float(s) for s in speeds if s is not None), None)
        return (None if drive is None else round(100 * drive / 255, 1)), speed


def read_memory_mib(machine: Machine) -> tuple[float | None, float | None]:
    """Used and total main memory in MiB."""
    values = {}
    for line in (machine.text("proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            number = rest.split()[:1]
            if number and number[0].isdecimal() and len(number[0]) < 19:
                values[key] = int(number[0]) / 1024
            else:
                machine.problems.count("proc/meminfo")
    total, available = values.get("MemTotal"), values.get("MemAvailable")
    used = None if total is None or available is None else round(total - available, 1)
    return used, None if total is None else round(total, 1)
