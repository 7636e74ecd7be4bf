"""Energy of an inference from the power of the whole board or module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from csr_deploy.bench.telemetry.record import Energy, TelemetrySample, TimedWindow

_FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class TotalInput:
    """Rails that add up to everything that is consumed.

    Attributes:
        rails: Their names.
        scope: See `Energy`.
    """

    rails: tuple[str, ...]
    scope: str

    @property
    def name(self) -> str:
        """For tables."""
        return " + ".join(self.rails)

    def of(self, power_mw: Mapping[str, float]) -> float | None:
        """The sum in mW, None where a rail is missing."""
        values = [power_mw.get(rail) for rail in self.rails]
        return sum(v for v in values if v is not None) if None not in values else None


TOTAL_INPUTS = (
    # AGX Thor: INA238 at the input of the carrier board.
    TotalInput(("VIN",), "board"),
    # Orin NX, Orin Nano, Xavier NX, TX2: input of the module.
    TotalInput(("VDD_IN",), "module"),
    # Jetson Nano: 5 V input.
    TotalInput(("POM_5V_IN",), "board"),
    # AGX Orin has no total: these three feed the module. VDDQ_VDD2_1V8AO is fed by the third and would be
    # counted twice.
    TotalInput(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "module"),
)
"""What is known to be a total, best first. Other boards have none, and then there is no energy."""


def energy_per_inference(
    samples: Iterable[TelemetrySample], windows: Sequence[TimedWindow], times_ns: Sequence[int]
) -> Energy | None:
    """Mean power in the timed windows times the mean time of an inference.

    Args:
        samples: Of the whole run.
        windows: Of one subject.
        times_ns: Time of every inference timed in them, in ns.

    Returns:
        None where no total is known or fewer than 3 samples fell into the windows.
    """
    timed = [s for s in samples if any(w.start_ns <= s.time_ns <= w.end_ns for w in windows)]
    for total in TOTAL_INPUTS:
        values = [value for s in timed if (value := total.of(s.power_mw)) is not None]
        if len(values) >= _FEWEST_SAMPLES and times_ns:
            mean_mw = sum(values) / len(values)
            seconds = sum(times_ns) / len(times_ns) / 1e9
            return Energy(total.name, total.scope, mean_mw, mean_mw * seconds, len(values))
    return None
