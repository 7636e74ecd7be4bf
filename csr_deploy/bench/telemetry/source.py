"""What every source of telemetry can do."""

from __future__ import annotations

from typing import Protocol

from csr_deploy.bench.telemetry.record import PowerMode, TelemetrySample


class TelemetrySource(Protocol):
    """An open source. Its methods are called from one thread at a time and do not raise for bad readings."""

    @property
    def name(self) -> str:
        """Key of `csr_deploy.bench.telemetry.CHOICES`."""

    @property
    def least_interval_s(self) -> float:
        """Shortest pause between two samples that does not cost the machine too much, in seconds."""

    @property
    def tells_throttling(self) -> bool:
        """Whether this machine has anything that shows throttling."""

    @property
    def malformed(self) -> int:
        """Readings so far that could not be understood."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the samples should know."""

    def sample(self) -> TelemetrySample:
        """The machine now; `time_ns` is `time.monotonic_ns()` of the reading."""

    def power_mode(self) -> PowerMode | None:
        """How the machine is set; None where it has no such modes."""

    def close(self) -> None:
        """Ends what the source has started. May be called twice."""
