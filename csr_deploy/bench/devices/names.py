"""Names of devices, as typed after --device."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from csr_deploy.errors import OptionError
from csr_deploy.runtimes.mcu.devices import parse_device

Kind = Literal["local", "ssh", "pi-emulated", "mcu"]

LOCAL = "local"
PI_EMULATED = "pi-emulated"
DEFAULT_FOLDER = "~/.local/share/csr-deploy"
_SSH = "ssh://"
_KNOWN = (
    LOCAL,
    "ssh://user@host[:port]",
    PI_EMULATED,
    "pi-emulated:pi4",
    "pi-emulated:pi5",
    "qemu:cortex-m4 (or m3, m7, m55)",
    "serial:PORT[@BAUD]",
)
# A destination that begins with a dash would be an option of ssh; the host is a name, an address or an alias.
_DESTINATION = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.+$-]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9_.][A-Za-z0-9_.-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<folder>/[^\0\n]*)?"
)


@dataclass(frozen=True)
class DeviceName:
    """A device's name, taken apart.

    Attributes:
        text: The whole name.
        kind: What sort of device: "mcu" is QEMU's Cortex-M or a board on a serial port.
        board: Key of an emulated board; None elsewhere.
        user: To log in as; None for what OpenSSH's configuration says.
        host: Name, address or alias in OpenSSH's configuration.
        port: None for what OpenSSH's configuration says.
        folder: Where everything is kept on a device behind SSH; relative to nothing, `~/` is its home.
    """

    text: str
    kind: Kind
    board: str | None = None
    user: str | None = None
    host: str | None = None
    port: int | None = None
    folder: str = DEFAULT_FOLDER

    @property
    def destination(self) -> str:
        """What `ssh` is told to connect to."""
        assert self.host is not None
        host = self.host.strip("[]")
        return host if self.user is None else f"{self.user}@{host}"


def parse_device_name(text: str) -> DeviceName:
    """Takes a device's name apart.

    Args:
        text: "local", "ssh://[user@]host[:port][/folder]", "pi-emulated[:pi4|:pi5]", "qemu:…" or "serial:…".

    Raises:
        OptionError: If there is no such device, with the closest names.
    """
    if text in (LOCAL, "host"):
        return DeviceName(LOCAL, "local")
    if text.startswith(_SSH):
        return _parse_ssh(text)
    kind, colon, rest = text.partition(":")
    if kind == PI_EMULATED:
        from csr_deploy.bench.emulated_pi.boards import find_board

        return DeviceName(text, "pi-emulated", find_board(rest).key if colon else "pi4")
    if kind in ("qemu", "serial"):
        return DeviceName(parse_device(text).text, "mcu")
    close = difflib.get_close_matches(text, (LOCAL, PI_EMULATED, "ssh://", "qemu:cortex-m4"), n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]}? " if close else ""
    raise OptionError(f"there is no device '{text}'", fix=f"{guess}Devices: {', '.join(_KNOWN)}.")


def _parse_ssh(text: str) -> DeviceName:
    match = _DESTINATION.fullmatch(text.removeprefix(_SSH))
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 1 <= port <= 65535):
        raise OptionError(
            f"'{text}' is no address of a device",
            fix="Write ssh://user@host, ssh://user@host:port or ssh://alias, as in your ~/.ssh/config; "
            "a path behind it is the folder to use on the device.",
        )
    folder = match["folder"]
    if folder is None or folder == "/":
        folder = DEFAULT_FOLDER
    elif folder.startswith("/~/"):
        folder = folder[1:]
    return DeviceName(text, "ssh", None, match["user"], match["host"], port, folder.rstrip("/"))
