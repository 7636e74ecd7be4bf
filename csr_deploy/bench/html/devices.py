"""Names of devices for people."""

from __future__ import annotations

_EMULATED_PI = {"pi4": "Raspberry Pi 4", "pi5": "Raspberry Pi 5"}


def device_title(device: str, machine: str) -> str:
    """What a device is called in the report.

    Args:
        device: As in the results, e.g. "local", "pi-emulated:pi5", "qemu:cortex-m4", "ssh://pi@kitchen".
        machine: Its board or processor; of a microcontroller in QEMU the emulated board; empty if not known.
    """
    kind, _, rest = device.partition(":")
    machine = machine.strip()
    if kind == "pi-emulated":
        return f"{_EMULATED_PI.get(rest or 'pi5', f'Raspberry Pi, {rest}')} (emulated)"
    if kind == "qemu":
        name = rest if rest.startswith("cortex-") else f"cortex-{rest}"
        return f"{name.replace('cortex-m', 'Cortex-M')} (QEMU{' ' + machine if machine else ''})"
    if kind in ("local", "host", ""):
        return machine or "this machine"
    return f"{machine} ({device})" if machine else device
