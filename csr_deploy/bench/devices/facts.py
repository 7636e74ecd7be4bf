"""What a device is, in words."""

from __future__ import annotations

from collections.abc import Iterator

from csr_deploy.bench.devices.prepare import Found
from csr_deploy.bench.telemetry.raspberry_pi import parse_throttled
from csr_deploy.bench.telemetry.throttling import firmware_throttling

_64_BIT = ("aarch64", "x86_64", "riscv64", "ppc64le")
# Those that kernels of neural networks ask for, in the kernel's words, on ARM and on x86.
_FEATURES = (
    "neon",
    "asimd",
    "fphp",
    "asimdhp",
    "asimddp",
    "i8mm",
    "sve",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
)
_RUNTIMES = ("ai-edge-litert", "onnxruntime", "tensorrt", "tflite-micro")


def describe_facts(found: Found) -> Iterator[tuple[str, str]]:
    """Rows of (what, value), for people.

    Args:
        found: The device.
    """
    facts = found.facts
    packages = facts["packages"]
    yield "board", facts["board"] or "not known (no device tree)"
    if facts["jetson"]:
        yield "Jetson Linux", facts["jetson"]
    yield "system", f"{facts['system'] or 'not known'}, {facts['kernel']}"
    kernel = 64 if facts["kernel_machine"] in _64_BIT else 32
    yield "kernel", f"{kernel}-bit ({facts['kernel_machine']})"
    yield "programs", f"{facts['userland_bits']}-bit, {facts['libc'] or 'C library not known'}"
    yield "processor", f"{facts['cpu'] or 'not named'}, {facts['cpus']} cores"
    present = set(facts["cpu_features"].split())
    yield "features", " ".join(f for f in _FEATURES if f in present) or "none that matter here"
    yield (
        "memory",
        f"{_megabytes(facts['memory_bytes'])}, {_megabytes(facts['memory_available_bytes'])} available",
    )
    yield "disk", f"{_megabytes(facts['free_bytes'])} free in {facts['folder']}"
    yield "python", f"{facts['python']}, {found.python}"
    yield (
        "csr-deploy",
        packages.get("csr-deploy", "not there: csr-device setup")
        if found.is_prepared
        else ("not there: csr-device setup"),
    )
    if found.is_prepared:
        yield "numpy", packages.get("numpy", "not there")
        for name in _RUNTIMES:
            if name in packages:
                yield name, packages[name]
        if not any(name in packages for name in _RUNTIMES):
            yield "runtimes", "none"
    yield "governor", facts["governor"] or "not told"
    celsius = facts["temperature_c"]
    yield "temperature", "not told" if celsius is None else f"{celsius:.1f} °C"
    yield "throttled", _throttled(facts["throttled"])
    yield "load", f"{facts['load_average']:.2f}"


def _throttled(said: str | None) -> str:
    bits = parse_throttled(said or "")
    if bits is None:
        return "not told (vcgencmd is not there, or may not ask)"
    now, since_boot = firmware_throttling(bits)
    if now:
        return f"now: {', '.join(now)}"
    seen = [name for name, count in since_boot.items() if count]
    return f"not now; since boot: {', '.join(seen)}" if seen else "no"


def _megabytes(count: int | None) -> str:
    return "not told" if count is None else f"{count / 1e6:,.0f} MB"
