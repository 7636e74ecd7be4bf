"""Names of processes that stay unique, and the boot they belong to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

BOOT_ID_VARIABLE = "CSR_BOOT_ID_FILE"
"""Names another file than the kernel's for the identity of the boot; for tests, which cannot reboot."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Of /proc/PID/stat, behind the name in brackets: state is the first, the start time the 20th.
_START_FIELD = 19
_GONE = ("Z", "X")


class ProcessName(TypedDict):
    """A process: its number can be given again, together with its start and the boot it cannot."""

    pid: int
    start: str
    boot_id: str


def boot_id() -> str:
    """The kernel's identity of this boot."""
    return Path(os.environ.get(BOOT_ID_VARIABLE, _BOOT_ID)).read_text(encoding="ascii").strip()


def name_process(pid: int | None = None) -> ProcessName:
    """The name of a process; of this one by default."""
    pid = os.getpid() if pid is None else pid
    stat = _stat(pid)
    return {"pid": pid, "start": stat[_START_FIELD] if stat else "", "boot_id": boot_id()}


def is_alive(process: ProcessName) -> bool:
    """Whether that very process still runs."""
    stat = _stat(process["pid"])
    return (
        stat is not None
        and stat[0] not in _GONE
        and stat[_START_FIELD] == process["start"]
        and process["boot_id"] == boot_id()
    )


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
