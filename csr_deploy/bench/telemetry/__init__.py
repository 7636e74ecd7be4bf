"""The machine's state while something is measured: power mode, clocks, temperatures, power, throttling.

Nothing here needs root, changes anything, or fails because a file is missing: what a machine does not tell is
left out, and text that cannot be understood is counted and noted. `docs/telemetry.md` says what is read from
where.
"""

from csr_deploy.bench.telemetry.monitor import Monitor, TelemetryReading
from csr_deploy.bench.telemetry.record import Energy, PowerMode, Telemetry, TelemetrySample, TimedWindow
from csr_deploy.bench.telemetry.source import TelemetrySource
from csr_deploy.bench.telemetry.sources import CHOICES, check_available, open_source

__all__ = [
    "CHOICES",
    "Energy",
    "Monitor",
    "PowerMode",
    "Telemetry",
    "TelemetryReading",
    "TelemetrySample",
    "TelemetrySource",
    "TimedWindow",
    "check_available",
    "open_source",
]
