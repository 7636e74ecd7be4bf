"""Results made by hand, with every part that a result can have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr_deploy.bench.accuracy import pack_predictions
from csr_deploy.bench.measure import compare
from csr_deploy.bench.plan import BenchOptions, BenchPlan, BenchSubject
from csr_deploy.bench.results import (
    Accuracy,
    BenchResult,
    ClassAccuracy,
    Drift,
    Environment,
    Failure,
    Golden,
    GpuTime,
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
from csr_deploy.bench.telemetry import Energy, PowerMode, Telemetry, TelemetrySample, TimedWindow

IMAGES = 10
MS = 1_000_000


def latency(milliseconds: float) -> Latency:
    ns = int(milliseconds * MS)
    windows = ((ns, ns, ns), (ns, ns, ns))
    return Latency(5 * ns, 3 * ns, 10, *([float(ns)] * 5), ns, ns, windows, None, 1e9 / ns, 1.0)


def accuracy(right: int, predictions: list[int] | None = None) -> Accuracy:
    return Accuracy(
        "data", IMAGES, "cd" * 32, 0, right / IMAGES, None, 1.0,
        per_class=(ClassAccuracy("cat", IMAGES, right / IMAGES),),
        predictions=pack_predictions(np.asarray(predictions or [0] * IMAGES)),
    )  # fmt: skip


def measurement(
    name: str,
    *,
    target: str = "tflite-int8",
    milliseconds: float | None = 2.0,
    right: int | None = 9,
    kilobytes: int = 512,
    predictions: list[int] | None = None,
) -> Measurement:
    return Measurement(
        f"{name}-{target}", name, target, "model.tflite", "ab" * 32, "litert", "ai-edge-litert 2.0",
        "optimized", 1, 1,
        Sizes(100_000, 50_000_000, kilobytes * 1024, kilobytes * 900, None, None, kilobytes * 800),
        Golden(8, True, 0.0, 2.0, 1.0),
        None if right is None else accuracy(right, predictions),
        None if milliseconds is None else latency(milliseconds),
        Memory(3 * 2**20, 2**20, 50 * 2**20, 20 * 2**20, 5, "smaps_rollup"),
        {"top1_agreement": 0.985, "images": 200},
        checkpoint_sha256=f"{sum(name.encode()):064x}",
    )  # fmt: skip


def result(*measurements: Measurement, void: tuple[str, ...] = (), quick: bool = False) -> BenchResult:
    """The first is the baseline."""
    subjects = tuple(BenchSubject(m.subject, None, "artifact") for m in measurements)  # type: ignore[arg-type]
    plan = BenchPlan(subjects, measurements[0].subject, BenchOptions())
    return BenchResult(
        quick,
        {"threads": 1, "windows": 2, "data": "data"},
        Environment("x86_64", "Some CPU", 4, "Linux 6", "3.11.7", 2**30, None, {"numpy": "2.0"}),
        MachineState(0.1, "performance", 2400.0),
        MachineState(0.2, None, None),
        measurements[0].subject,
        measurements,
        compare(plan, measurements),
        ("A note.",),
        void=void,
    )


def full_result() -> BenchResult:
    """A result in which nothing is left out."""
    base, other = measurement("net"), measurement("csr", milliseconds=1.0)
    steps = LayerDrift("layer3", (0.5, 0.6), (1e-16, None), (1e-7, None), (0.02, None), (33.0, None))
    assert base.latency is not None
    gpu = GpuTime(*[500_000.0] * 5, 400_000, 900_000, ((500_000,),))
    base = replace(
        base,
        latency=replace(base.latency, gpu=gpu),
        energy=Energy("VIN", "board", 30_000.0, 12.3, 9),
        settings={"copies": True},
        microcontroller=Microcontroller(
            "qemu:cortex-m4", "mps2-an386", 5_000_000, 1.5, None, 900, 20_000, 90_000, "gcc 12", "-O2"
        ),
        instructions=Instructions("pi4", 30_000_000, 20_000_000, 40_000_000, 90_000_000),
        profile=(OpTime("Conv", "conv_1", 1500.0, 1.0),),
        drift=Drift(4, (steps,)),
    )  # fmt: skip
    sample = TelemetrySample(1, {"cpu": 50.0}, {"VIN": 5000.0}, {"cpu0": 1500.0}, {"cpu": 40.0}, {"5V": 5.1})
    telemetry = Telemetry(
        "sysfs", 0.5, PowerMode(0, "MAXN", True), True, ("hot",), 1, (sample,),
        (TimedWindow("net", 1, 2),), 0.1, 0, ("a note",),
    )  # fmt: skip
    failure = Failure("third", "check", "differs by 3 counts", "model", "Export it again.", "ParityError")
    return replace(result(base, other, void=("hot",)), telemetry=telemetry, failures=(failure,))
