"""How a Jetson is set: nvpmodel and jetson_clocks, without asking for root."""

from __future__ import annotations

import re

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.readers import cpu_policies, devfreq_units
from csr_deploy.bench.telemetry.record import PowerMode

_STATUS = "var/lib/nvpmodel/status"
_CONFIGURATION = "etc/nvpmodel.conf"
_QUERY_NAME = re.compile(r"NV Power Mode:[ \t]*(\S[^\r\n]*)")
_QUERY_ID = re.compile(r"^\s*(\d{1,6})\s*$", re.ASCII | re.MULTILINE)
_STATUS_ID = re.compile(r"pmode:(\d{1,6})", re.ASCII)
_MODEL = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,6})\s+NAME=([^\s>]+)\s*>", re.ASCII | re.MULTILINE)


def is_jetson(machine: Machine) -> bool:
    """Whether this is one: by NVIDIA's release file or the device tree."""
    if machine.text("etc/nv_tegra_release") is not None:
        return True
    return "nvidia,tegra" in (machine.text("proc/device-tree/compatible") or "")


def parse_query(text: str) -> tuple[int | None, str | None]:
    """Number and name of the mode in what `nvpmodel -q` prints: a line with the name, then the number."""
    name = _QUERY_NAME.search(text)
    number = _QUERY_ID.search(text, name.end() if name else 0)
    return (int(number[1]) if number else None), (name[1].strip() if name else None)


def parse_status(text: str) -> int | None:
    """Number of the mode in /var/lib/nvpmodel/status, e.g. "pmode:0002"."""
    match = _STATUS_ID.search(text)
    return int(match[1]) if match else None


def parse_models(text: str) -> dict[int, str]:
    """Names of all modes in /etc/nvpmodel.conf, by number."""
    return {int(number): name for number, name in _MODEL.findall(text)}


def read_power_mode(machine: Machine) -> PowerMode | None:
    """The mode of a Jetson; None on any other machine."""
    if not is_jetson(machine):
        return None
    number, name = parse_query(machine.output("nvpmodel", "-q") or "")
    if number is None:
        status = machine.text(_STATUS)
        number = parse_status(status) if status is not None else None
        if status is not None and number is None:
            machine.problems.count(_STATUS)
    if name is None and number is not None:
        name = parse_models(machine.text(_CONFIGURATION) or "").get(number)
    return PowerMode(number, name, are_clocks_pinned(machine))


def are_clocks_pinned(machine: Machine) -> bool | None:
    """Whether every clock of CPUs, GPU and memory that can be read has its lowest at its highest limit.

    That is what jetson_clocks does; its own --show needs root. None where neither CPU nor GPU can be read.
    """
    limits = [
        (machine.integer(f"{folder}/scaling_min_freq"), machine.integer(f"{folder}/scaling_max_freq"))
        for folder in cpu_policies(machine)
    ]
    limits += [
        (machine.integer(f"{folder}/min_freq"), machine.integer(f"{folder}/max_freq"))
        for unit, folder in devfreq_units(machine).items()
        if unit in ("gpu", "emc")
    ]
    known = [(low, high) for low, high in limits if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None
