"""Which GPU this machine has, asked without starting to use it."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

DRIVER = "libcuda.so.1"
L4T_RELEASE = Path("/etc/nv_tegra_release")
DPKG_STATUS = Path("/var/lib/dpkg/status")

# Of CUdevice_attribute; fixed by the driver's binary interface.
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76
_NAME_BYTES = 256
_RELEASE = re.compile(r"#\s*(R\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_PACKAGE = re.compile(r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class DeviceInfo:
    """A GPU.

    Attributes:
        gpu: Its name, e.g. "Orin".
        compute_capability: For example "8.7".
        jetpack: Release of Jetson Linux, the base of JetPack, e.g. "R36.4.3"; None where this is no Jetson.
        jetpack_package: Version of the package nvidia-jetpack, e.g. "6.2"; None where it is not installed.
    """

    gpu: str
    compute_capability: str
    jetpack: str | None = None
    jetpack_package: str | None = None

    @property
    def description(self) -> str:
        """One line for reports, e.g. "Orin, compute capability 8.7, Jetson Linux R36.4.3, JetPack 6.2"."""
        parts = [self.gpu, f"compute capability {self.compute_capability}"]
        if self.jetpack:
            parts.append(f"Jetson Linux {self.jetpack}")
        if self.jetpack_package:
            parts.append(f"JetPack {self.jetpack_package}")
        return ", ".join(parts)


def local_device(
    driver: str = DRIVER, l4t_release: Path = L4T_RELEASE, dpkg_status: Path = DPKG_STATUS
) -> DeviceInfo | None:
    """The first GPU that this process sees, or None where there is none or no driver for it.

    Args:
        driver: CUDA's driver library.
        l4t_release: Where Jetson Linux writes its release.
        dpkg_status: Debian's list of installed packages.
    """
    found = _ask_driver(driver)
    if found is None:
        return None
    return DeviceInfo(*found, _read_release(l4t_release), _read_package(dpkg_status))


def _ask_driver(driver: str) -> tuple[str, str] | None:
    """Name and compute capability of device 0; no context is made, so the GPU stays untouched."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    # CUDA's functions return 0 for success.
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    )
    if failed:
        return None
    return name.value.decode(errors="replace").strip(), f"{major.value}.{minor.value}"


def _read_release(path: Path) -> str | None:
    """From "# R36 (release), REVISION: 4.3, …"."""
    found = _RELEASE.search(_text(path))
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _read_package(path: Path) -> str | None:
    found = _PACKAGE.search(_text(path))
    return found.group(1).split("+")[0] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
