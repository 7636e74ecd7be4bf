"""Opens whatever device a name means."""

from __future__ import annotations

from typing import Any

from csr_deploy.bench.devices.base import BenchDevice, DeviceOptions
from csr_deploy.bench.devices.names import parse_device_name


def open_device(name: str, **options: Any) -> BenchDevice:
    """The device of that name, to be entered with `with`.

    Args:
        name: See `parse_device_name`.
        **options: Fields of `DeviceOptions`.

    Raises:
        OptionError: If there is no such device, or an option is out of range.
    """
    parsed = parse_device_name(name)
    chosen = DeviceOptions(**options)
    if parsed.kind == "ssh":
        from csr_deploy.bench.devices.remote import SshDevice

        return SshDevice(parsed, chosen)
    if parsed.kind == "pi-emulated":
        from csr_deploy.bench.devices.emulated import EmulatedPi

        return EmulatedPi(parsed, chosen)
    from csr_deploy.bench.devices.local import LocalDevice

    return LocalDevice(parsed)
