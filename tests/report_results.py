"""Results of every kind for tests of the report: made from the real records and written by the real store."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from csr_deploy.bench.metrics import ratio_interval, summarise
from csr_deploy.bench.results import (
    Accuracy,
    BenchResult,
    ClassAccuracy,
    Comparison,
    Drift,
    Environment,
    Failure,
    Golden,
    Instructions,
    Latency,
    LayerDrift,
    MachineState,
    Measurement,
    Memory,
    Microcontroller,
    OpTime,
    Sizes,
)
from csr_deploy.bench.store import (
    FailureRecord,
    GroupRecord,
    Plan,
    PlannedGroup,
    PlannedSubject,
    Record,
    RunRecord,
    encode,
)
from csr_deploy.bench.telemetry import Telemetry
from csr_deploy.bench.telemetry.record import TelemetrySample, TimedWindow

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|=1+1"
CLASSES = ("shirt", "trouser", "pullover", "dress", "coat", "sandal")
_EMPTY = {
    "threads": 1,
    "windows": 5,
    "images": 200,
    "seconds": 10.0,
    "warmup_runs": 10,
    "warmup_seconds": 1.0,
}


def _windows(median_ns: float, seed: int) -> tuple[tuple[int, ...], ...]:
    draw = np.random.default_rng(seed)
    return tuple(tuple(int(v) for v in median_ns * draw.lognormal(0.02 * w, 0.08, 400)) for w in range(5))


def latency(median_ns: float, seed: int) -> Latency:
    windows = _windows(median_ns, seed)
    found = summarise(windows)
    return Latency(
        load_ns=int(9 * median_ns),
        first_ns=int(1.4 * median_ns),
        warmup_runs=20,
        windows_ns=windows,
        images_per_second=1e9 / median_ns,
        **vars(found),
    )


def measurement(network: str, target: str, scale: float, **more: Any) -> Measurement:
    """A measurement whose costs are `scale` times those of the baseline, less accurate for it."""
    label = f"{network}-{target}"
    return Measurement(
        subject=label,
        network=network,
        target=target,
        file=f"{network}.tflite",
        sha256=f"{zlib.crc32(label.encode()):064x}",
        runtime="litert" if target.startswith("tflite") else "ort",
        runtime_version="ai-edge-litert 2.3.0",
        kernels="optimized",
        threads=1,
        batch=1,
        sizes=Sizes(
            int(855_770 * scale), int(125e6 * scale), int(900_000 * scale), int(860_000 * scale), None
        ),
        golden=Golden(16, True, 0.0, 2.0, 1.0),
        accuracy=Accuracy(
            "cifar10",
            10_000,
            "ab" * 32,
            0,
            0.93 - 0.02 * (1 - scale),
            per_class=tuple(
                ClassAccuracy(name, 1000, 0.95 - 0.02 * i * (2 - scale)) for i, name in enumerate(CLASSES)
            ),
        ),
        memory=Memory(int(4e6 * scale), int(3e6), int(6e7), int(2e7), 5, "smaps_rollup"),
        **more,
    )


def profile(scale: float) -> tuple[OpTime, ...]:
    times = {"CONV_2D": 700e3 * scale, "ADD": 90e3, "CONCATENATION": 40e3 * (1 - scale) + 1e3, "MEAN": 9e3}
    total = sum(times.values())
    return tuple(
        OpTime(kind, f"{kind.lower()}_{i}", ns / 4, ns / 4 / total)
        for kind, ns in times.items()
        for i in range(4)
    )


def drift(layers: int, steps: int) -> Drift:
    return Drift(
        4,
        tuple(
            LayerDrift(
                f"layer3.{i}.conv1",
                tuple(0.8 for _ in range(steps)),
                tuple(5e-16 for _ in range(steps)),
                tuple(2e-7 for _ in range(steps)),
                tuple((0.02 + 0.002 * i) * (1 + 0.15 * t) for t in range(steps)),
                tuple(33.0 - t for t in range(steps)),
            )
            for i in range(layers)
        ),
    )


def telemetry(subjects: Sequence[str], *, throttled: bool = False) -> Telemetry:
    samples = tuple(
        TelemetrySample(
            time_ns=int(i * 5e8),
            temperatures_c={"cpu": 48 + 0.4 * i, "gpu": 47 + 0.3 * i},
            clocks_mhz={f"cpu{c}": 2400 - 10 * (i % 3) for c in range(4)},
            load_percent={"cpu": 27 + i % 4},
            throttled=("under-voltage",) if throttled and i in (11, 12) else (),
        )
        for i in range(30)
    )
    windows = tuple(
        TimedWindow(subjects[i % len(subjects)], int((2 + i) * 1e9), int((2.9 + i) * 1e9)) for i in range(10)
    )
    void = ("the machine was throttled: under-voltage",) if throttled else ()
    return Telemetry("vcgencmd", 0.5, None, True, void, len(samples), samples, windows, 0.3, 0)


def environment(**more: Any) -> Environment:
    return replace(
        Environment(
            "aarch64",
            "Cortex-A76",
            4,
            "Linux 6.6.31",
            "3.11.2",
            8 * 2**30,
            "Raspberry Pi 5 Model B Rev 1.0",
            {"csr-deploy": "0.1.0", "ai-edge-litert": "2.3.0"},
        ),
        **more,
    )


def result(measurements: Sequence[Measurement], **more: Any) -> BenchResult:
    base, *others = measurements
    comparisons = []
    for other in others:
        if base.latency and other.latency:
            low, high = ratio_interval(other.latency.windows_ns, base.latency.windows_ns)
            ratio = other.latency.median_ns / base.latency.median_ns
            comparisons.append(Comparison(other.subject, base.subject, ratio, low, high, 0.95))
    state = MachineState(0.2, "performance", 2400.0)
    plain: dict[str, Any] = {
        "quick": False,
        "options": _EMPTY,
        "environment": environment(),
        "before": state,
        "after": state,
        "baseline": base.subject,
        "measurements": tuple(measurements),
        "comparisons": tuple(comparisons),
    }
    return BenchResult(**{**plain, **more})


def timed(target: str, base_ns: float, *, throttled: bool = False, **more: Any) -> BenchResult:
    """ResNet-56 and two CSR networks in turns on a Raspberry Pi 5."""
    scales = {"resnet56": 1.0, "resnet56-csr2": 0.4, "resnet56-csr4": 0.2}
    found = [
        measurement(
            network,
            target,
            scale,
            latency=latency(base_ns * (0.3 + 0.7 * scale), seed),
            profile=profile(scale),
            drift=drift(6, 4) if scale < 1 else None,
        )
        for seed, (network, scale) in enumerate(scales.items())
    ]
    seen = telemetry([m.subject for m in found], throttled=throttled)
    return result(found, telemetry=seen, void=seen.void, **more)


def counted(board: str) -> BenchResult:
    """The same on an emulated board."""
    found = [
        replace(
            measurement(network, "tflite-int8", scale),
            instructions=Instructions(
                board, int(13.3e6 * ratio), int(13.3e6 * ratio), int(16e6 * ratio), int(90e6)
            ),
        )
        for network, scale, ratio in (("resnet56", 1.0, 1.0), ("resnet56-csr2", 0.4, 0.97))
    ]
    return result(found, environment=environment(cpu="Cortex-A76", board=None))


def on_microcontroller() -> BenchResult:
    found = [
        replace(
            measurement(network, "mcu", scale),
            runtime="mcu",
            memory=None,
            microcontroller=Microcontroller(
                "qemu:cortex-m4",
                "mps2-an386",
                int(160e6 * scale),
                1.4,
                None,
                2000,
                int(70_000 * scale),
                int(950_000 * scale),
                "arm-none-eabi-gcc 12.2",
                "-O2",
            ),
        )
        for network, scale in (("resnet56", 1.0), ("resnet56-csr2", 0.45))
    ]
    broken = Failure(
        "resnet56-csr4-mcu", "build", "region FLASH overflowed by 2 KiB", "ld", "Take a smaller model."
    )
    return result(found, environment=environment(cpu="AMD EPYC", board=None), failures=(broken,))


def group_record(group: str, device: str, found: BenchResult, attempt: int = 1) -> GroupRecord:
    day = "2026-11-24T10:00:00+00:00"
    failed = tuple(f.subject for f in found.failures)
    return GroupRecord("run1", group, device, attempt, day, day, 61.0, found.void, failed, found.to_json())


def failure_record(group: str, device: str, reason: str) -> FailureRecord:
    fix = "Check the cable, then run again with --resume."
    return FailureRecord(
        "run1", group, device, 1, "2026-11-24T10:05:00+00:00", "connect", reason, device, fix, "BenchError"
    )


def run_record(groups: Sequence[tuple[str, str]], command: Sequence[str] = ("csr-bench", "run")) -> RunRecord:
    subject = PlannedSubject("resnet56-onnx", "out/resnet56-onnx", "artifact", "resnet56", "onnx", "cd" * 32)
    planned = tuple(PlannedGroup(g, device, "resnet56-onnx", (subject,), {}) for g, device in groups)
    left_out = ("resnet56-mcu: an emulated Raspberry Pi runs no .c files",)
    return RunRecord("run1", "2026-11-24T09:59:00+00:00", tuple(command), "0.1.0", Plan(planned, left_out))


def write(path: Path, records: Sequence[Record]) -> Path:
    path.write_bytes(b"".join(encode(record) for record in records))
    return path


def everything(path: Path) -> Path:
    """A file with every kind of record: devices, a void group, failures, a group that is missing."""
    pi, host = "ssh://pi@kitchen", "ssh://pi@cellar"
    records: list[Record] = [
        run_record(
            [
                ("g1", pi),
                ("g2", pi),
                ("g3", pi),
                ("g4", "pi-emulated:pi5"),
                ("g5", "qemu:cortex-m4"),
                ("g6", host),
            ]
            + [("g7", pi)],
            ("/home/me/.venv/bin/csr-bench", "run", "plan one.toml", "--results", "pi.jsonl"),
        ),
        group_record("g1", pi, timed("tflite-int8", 4e6)),
        group_record("g2", pi, timed("onnx-int8", 6e6, quick=True, notes=("The machine was busy before.",))),
        group_record("g3", pi, timed("tflite-fp32", 9e6, throttled=True)),
        group_record("g4", "pi-emulated:pi5", counted("pi5")),
        group_record("g5", "qemu:cortex-m4", on_microcontroller()),
        failure_record("g6", host, "no route to host"),
    ]
    return write(path, records)


def evil(path: Path) -> Path:
    """Markup, scripts and formulas wherever a result has text."""
    found = timed("tflite-int8", 4e6)
    seen = found.telemetry
    assert seen is not None
    nasty = [
        replace(
            m,
            subject=EVIL + str(i),
            network=EVIL + str(i),
            target=EVIL,
            runtime_version=EVIL,
            profile=tuple(replace(op, op=EVIL, name=EVIL) for op in m.profile or ()),
            accuracy=m.accuracy
            and replace(m.accuracy, per_class=tuple(replace(k, name=EVIL) for k in m.accuracy.per_class[:1])),
            drift=m.drift and replace(m.drift, layers=tuple(replace(k, layer=EVIL) for k in m.drift.layers)),
        )
        for i, m in enumerate(found.measurements)
    ]
    wicked = replace(
        result(nasty),
        environment=environment(board=EVIL, cpu=EVIL, kernel=EVIL, versions={EVIL: EVIL}),
        notes=(EVIL,),
        void=(EVIL,),
        failures=(Failure(EVIL, EVIL, EVIL, EVIL, EVIL),),
        telemetry=replace(
            seen,
            source=EVIL,
            samples=tuple(replace(s, temperatures_c={EVIL: 1.0}, throttled=(EVIL,)) for s in seen.samples),
        ),
    )
    command = ["csr-bench", EVIL]
    return write(
        path,
        [
            run_record([("g1", EVIL), ("g2", EVIL)], command),
            group_record("g1", EVIL, wicked),
            failure_record("g3", EVIL, EVIL),
        ],
    )
