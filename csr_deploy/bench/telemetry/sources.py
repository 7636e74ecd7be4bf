"""Which source a machine has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from csr_deploy.bench.telemetry.jtop import JtopSource, JtopUnavailableError
from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.raspberry_pi import PROGRAM as VCGENCMD
from csr_deploy.bench.telemetry.raspberry_pi import VcgencmdSource
from csr_deploy.bench.telemetry.source import TelemetrySource
from csr_deploy.bench.telemetry.sysfs import SysfsSource
from csr_deploy.bench.telemetry.tegrastats import PROGRAM as TEGRASTATS
from csr_deploy.bench.telemetry.tegrastats import TegrastatsSource
from csr_deploy.errors import OptionError

CHOICES: Mapping[str, str] = {
    "auto": "the first of the others that answers",
    "jtop": "jetson-stats, if you have installed it and its service runs",
    "tegrastats": "NVIDIA's program on a Jetson",
    "vcgencmd": "the firmware's program on a Raspberry Pi",
    "sysfs": "files in /sys and /proc, on every Linux",
    "none": "no telemetry",
}
"""Names of the sources and what they are."""


class _UnavailableError(Exception):
    """A source that this machine does not have; the text says why."""


def _open_jtop(machine: Machine, interval_s: float, clock: Callable[[], int]) -> TelemetrySource:
    try:
        return JtopSource(machine, interval_s, clock)
    except JtopUnavailableError as error:
        raise _UnavailableError(str(error)) from error


def _open_tegrastats(machine: Machine, interval_s: float, clock: Callable[[], int]) -> TelemetrySource:
    if not machine.has_program(TEGRASTATS):
        raise _UnavailableError("tegrastats is not installed")
    try:
        source = TegrastatsSource(machine, interval_s, clock)
    except OSError as error:
        raise _UnavailableError(f"tegrastats cannot be started: {error.strerror}") from error
    if source.answers():
        return source
    source.close()
    raise _UnavailableError("tegrastats prints nothing that can be understood")


def _open_vcgencmd(machine: Machine, interval_s: float, clock: Callable[[], int]) -> TelemetrySource:
    if not machine.has_program(VCGENCMD):
        raise _UnavailableError("vcgencmd is not installed")
    source = VcgencmdSource(machine, clock)
    if source.answers():
        return source
    raise _UnavailableError("vcgencmd may not ask the firmware; members of the group video may")


def _open_sysfs(machine: Machine, interval_s: float, clock: Callable[[], int]) -> TelemetrySource:
    return SysfsSource(machine, clock)


_OPENERS: Mapping[str, Callable[[Machine, float, Callable[[], int]], TelemetrySource]] = {
    "jtop": _open_jtop,
    "tegrastats": _open_tegrastats,
    "vcgencmd": _open_vcgencmd,
    "sysfs": _open_sysfs,
}
_NOT_INSTALLED = "is not installed"


def check_choice(choice: str) -> None:
    """Refuses an unknown name.

    Raises:
        OptionError: Always then.
    """
    if choice not in CHOICES:
        raise OptionError(f"unknown telemetry '{choice}'", fix=f"Use one of: {', '.join(CHOICES)}.")


def check_available(choice: str) -> None:
    """Refuses a source that this machine does not have, before minutes are spent on measuring.

    Raises:
        OptionError: Then, or if the choice is unknown.
    """
    source = open_source(choice) if choice != "auto" else None
    if source is not None:
        source.close()


def open_source(
    choice: str = "auto",
    *,
    machine: Machine | None = None,
    interval_s: float = 0.5,
    clock: Callable[[], int] = time.monotonic_ns,
) -> TelemetrySource | None:
    """Opens a source.

    Args:
        choice: A key of `CHOICES`.
        machine: Where; this machine by default.
        interval_s: Pause between samples that will be asked for, in seconds.
        clock: Gives the time in ns.

    Returns:
        The source, to be closed; None for "none". Where "auto" passed over something that is installed but
        does not answer, the notes say so.

    Raises:
        OptionError: If the choice is unknown, or names a source that this machine does not have.
    """
    check_choice(choice)
    if choice == "none":
        return None
    machine = machine or Machine()
    for name, opener in _OPENERS.items():
        if choice not in ("auto", name):
            continue
        try:
            return opener(machine, interval_s, clock)
        except _UnavailableError as error:
            if choice == name:
                raise OptionError(
                    f"there is no telemetry from {name} here: {error}", fix="Use --telemetry auto or sysfs."
                ) from error
            if _NOT_INSTALLED not in str(error):
                machine.problems.note(str(error))
    raise AssertionError("sysfs can always be opened")
