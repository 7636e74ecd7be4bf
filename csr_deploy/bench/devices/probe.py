"""What a device is, found out with nothing but its own Python, however old.

The source of this file is what is sent: `python3 - FOLDER < probe.py`. It prints one line, a mark and JSON.
It keeps to what Python 3.4 understands, so that an old one is named in an error and not in a traceback.
"""

import json
import os
import platform
import struct
import subprocess
import sys
import sysconfig

MARK = "csr-probe "
_PACKAGES = (
    "csr-deploy",
    "numpy",
    "ai-edge-litert",
    "onnxruntime",
    "tensorrt",
    "tflite-micro",
    "pillow",
    "psutil",
    "torch",
)
_CPU = "/sys/devices/system/cpu/cpu0/cpufreq/"


def _text(path: str) -> "str | None":
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").strip("\0\n ") or None
    except OSError:
        return None


def _said(*command: str) -> "str | None":
    try:
        said = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.decode("utf-8", "replace").strip() or None


def _fields(path: str) -> "dict[str, str]":
    """Lines `key : value` or `key=value`; the first of each key."""
    fields = {}  # type: dict[str, str]
    for line in (_text(path) or "").splitlines():
        mark = ":" if ":" in line else "="
        key, _, value = line.partition(mark)
        fields.setdefault(key.strip(), value.strip().strip('"'))
    return fields


def _free_bytes(folder: str) -> "int | None":
    """Of the file system that `folder` is on or will be on, for this user."""
    path = os.path.abspath(os.path.expanduser(folder))
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        state = os.statvfs(path)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def _has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def _packages() -> "dict[str, str]":
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:
        return {}
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _libc() -> "str | None":
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        return None


def _kibibytes(text: "str | None") -> "int | None":
    return int(text.split()[0]) * 1024 if text else None


def _temperature() -> "float | None":
    text = _text("/sys/class/thermal/thermal_zone0/temp")
    return int(text) / 1000.0 if text and text.lstrip("-").isdigit() else None


def look(folder: str) -> "dict[str, object]":
    """Everything, as plain values; None where the device does not tell.

    Args:
        folder: Where csr-deploy is or will be kept.
    """
    cpu, memory, release = (
        _fields("/proc/cpuinfo"),
        _fields("/proc/meminfo"),
        _fields("/etc/os-release"),
    )
    uname = os.uname()
    return {
        "host": uname.nodename,
        "board": _text("/proc/device-tree/model"),
        "jetson": (_text("/etc/nv_tegra_release") or "").split("\n")[0] or None,
        "system": release.get("PRETTY_NAME"),
        "kernel": uname.sysname + " " + uname.release,
        "kernel_machine": uname.machine,
        "userland_bits": struct.calcsize("P") * 8,
        "libc": _libc(),
        "python": platform.python_version(),
        "python_version": list(sys.version_info[:2]),
        "python_implementation": platform.python_implementation(),
        "soabi": sysconfig.get_config_var("SOABI"),
        "executable": sys.executable,
        "can_make_venv": _has("venv") and _has("ensurepip"),
        "packages": _packages(),
        "cpu": cpu.get("model name") or cpu.get("Model") or cpu.get("Hardware"),
        "cpu_features": cpu.get("Features") or cpu.get("flags") or "",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _kibibytes(memory.get("MemTotal")),
        "memory_available_bytes": _kibibytes(memory.get("MemAvailable")),
        "folder": os.path.abspath(os.path.expanduser(folder)),
        "free_bytes": _free_bytes(folder),
        "governor": _text(_CPU + "scaling_governor"),
        "temperature_c": _temperature(),
        "throttled": _said("vcgencmd", "get_throttled"),
        "load_average": os.getloadavg()[0],
        "user": _said("id", "-un"),
    }


if __name__ == "__main__":
    print(MARK + json.dumps(look(sys.argv[1])))
