"""The machine and its state, read without changing anything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

from csr_deploy import __version__
from csr_deploy.bench.results import Environment, MachineState

_PACKAGES = (
    "numpy",
    "ai-edge-litert",
    "tflite-runtime",
    "onnxruntime",
    "tflite-micro",
    "torch",
    "tensorrt",
    "cuda-bindings",
)
_CPUS = Path("/sys/devices/system/cpu")
_GOVERNOR = _CPUS / "cpu0/cpufreq/scaling_governor"
_BOARD = Path("/proc/device-tree/model")
_CPU_KEYS = ("model name", "Model", "Hardware")


def read_environment() -> Environment:
    """What does not change while a benchmark runs."""
    versions = {"csr-deploy": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Environment(
        machine=platform.machine(),
        cpu=_cpu(),
        cpus=len(os.sched_getaffinity(0)),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        memory_bytes=int(psutil.virtual_memory().total),
        board=_text(_BOARD),
        versions=versions,
    )


def read_state() -> MachineState:
    """Load, governor and frequency now."""
    return MachineState(
        load_average=round(os.getloadavg()[0], 2),
        governor=_text(_GOVERNOR),
        frequency_mhz=_frequency_mhz(),
    )


def _frequency_mhz() -> float | None:
    # psutil.cpu_freq raises on some boards whose drivers leave a file out.
    kilohertz = [_text(path) for path in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    values = [int(text) / 1000 for text in kilohertz if text and text.isdigit()]
    return round(sum(values) / len(values), 1) if values else None


def _cpu() -> str:
    found: dict[str, str] = {}
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return next(
        (found[key] for key in _CPU_KEYS if found.get(key)), platform.processor() or platform.machine()
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
