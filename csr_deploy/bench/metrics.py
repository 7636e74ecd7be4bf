"""Statistics of latencies and readers of a process's own memory."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BLOCKS = 10
_DRAWS = 4000
_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Summary:
    """Latencies in nanoseconds, see `csr_deploy.bench.results.Latency`."""

    median_ns: float
    p50_ns: float
    p90_ns: float
    p95_ns: float
    p99_ns: float
    min_ns: int
    max_ns: int


def summarise(windows: Sequence[Sequence[int]]) -> Summary:
    """Median of the windows' medians, and percentiles of all samples together."""
    samples = np.concatenate([np.asarray(w, np.int64) for w in windows])
    p50, p90, p95, p99 = (float(v) for v in np.percentile(samples, (50, 90, 95, 99)))
    return Summary(median_of_windows(windows), p50, p90, p95, p99, int(samples.min()), int(samples.max()))


def median_of_windows(windows: Sequence[Sequence[int]]) -> float:
    """Median of the windows' medians: one disturbed window does not move it."""
    return float(np.median([np.median(w) for w in windows]))


def ratio_interval(
    subject: Sequence[Sequence[int]],
    baseline: Sequence[Sequence[int]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap confidence interval of the ratio of two medians of windows.

    Neighbouring samples are alike and both subjects share a drift of the machine, so single samples are not
    drawn: rounds are drawn, the same for both subjects, then blocks of consecutive samples in each window.

    Args:
        subject: Samples of the subject, one sequence a round.
        baseline: Samples of the baseline in the same rounds.
        confidence: Level, 0..1.
        seed: Of the draws.

    Returns:
        (low, high).
    """
    blocks = min(_BLOCKS, *(len(w) for w in (*subject, *baseline)))
    over, under = _block_medians(subject, blocks), _block_medians(baseline, blocks)
    draw = np.random.default_rng(seed)
    rounds = draw.integers(len(over), size=(_DRAWS, len(over)))
    ratios = _draw_medians(over, rounds, draw) / _draw_medians(under, rounds, draw)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return float(low), float(high)


def _block_medians(windows: Sequence[Sequence[int]], blocks: int) -> NDArray[np.float64]:
    return np.asarray([[np.median(part) for part in np.array_split(np.asarray(w), blocks)] for w in windows])


def _draw_medians(
    medians: NDArray[np.float64], rounds: NDArray[np.int64], draw: np.random.Generator
) -> NDArray[np.float64]:
    chosen = draw.integers(medians.shape[1], size=(*rounds.shape, medians.shape[1]))
    windows = np.median(medians[rounds[:, :, None], chosen], axis=2)
    drawn: NDArray[np.float64] = np.median(windows, axis=1)
    return drawn


@dataclass(frozen=True)
class MemoryReading:
    """Memory of this process in bytes, see `csr_deploy.bench.results.Memory`."""

    private_bytes: int
    mapped_bytes: int | None
    source: str


def read_memory() -> MemoryReading:
    """Reads this process's memory: from the kernel's own sums, or through psutil where there are none."""
    rollup = _kilobytes(_PROC / "smaps_rollup")
    if "Anonymous" in rollup:
        # Not Private_Dirty: that has the pages of a file in it which was only just written by someone.
        private = rollup["Anonymous"] + rollup.get("Swap", 0)
        return MemoryReading(private * 1024, _mapped(), "smaps_rollup")
    import psutil

    return MemoryReading(int(psutil.Process().memory_full_info().uss), _mapped(), "psutil")


def release_free_memory() -> None:
    """Gives freed memory back to the system.

    What imports left free in the heap would else take in a part of the model, uncounted.
    """
    gc.collect()
    # Of the GNU C library; others give back by themselves.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def peak_rss() -> int:
    """Largest resident size of this process in bytes."""
    # ru_maxrss of a new process begins with that of the process which started it; VmHWM does not.
    kilobytes = _kilobytes(_PROC / "status").get("VmHWM")
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if kilobytes is None else kilobytes)


def _mapped() -> int | None:
    kilobytes = _kilobytes(_PROC / "status").get("RssFile")
    return None if kilobytes is None else kilobytes * 1024


def _kilobytes(path: Path) -> dict[str, int]:
    """Lines such as "Private_Dirty:   12 kB" of a file in /proc; empty where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    values = {}
    for line in lines:
        key, _, rest = line.partition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[1] == "kB":
            values[key] = int(parts[0])
    return values
