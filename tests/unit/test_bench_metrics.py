"""Statistics and memory readers of the benchmark."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.bench.metrics import (
    median_of_windows,
    peak_rss,
    ratio_interval,
    read_memory,
    release_free_memory,
    summarise,
)

MIB = 2**20


def test_percentiles_are_those_of_all_samples() -> None:
    windows = [list(range(0, 50)), list(range(50, 101))]
    summary = summarise(windows)
    assert (summary.min_ns, summary.max_ns) == (0, 100)
    assert (summary.p50_ns, summary.p90_ns, summary.p95_ns, summary.p99_ns) == (50, 90, 95, 99)


def test_a_disturbed_window_does_not_move_the_median() -> None:
    windows = [[10, 11, 12], [10, 11, 13], [9000, 9001, 9002]]
    assert median_of_windows(windows) == 11
    assert summarise(windows).median_ns == 11


def samples(scale: float, seed: int, drift: float = 0.0) -> list[list[int]]:
    """Five windows of skewed noise; `drift` is the growth from the first window to the last."""
    random = np.random.default_rng(seed)
    return [
        [int(scale * (1 + drift * w / 4) * (1 + v)) for v in random.gamma(2.0, 0.01, 400)] for w in range(5)
    ]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7])
def test_the_interval_holds_the_true_ratio(ratio: float) -> None:
    low, high = ratio_interval(samples(1e6 * ratio, 1), samples(1e6, 2))
    assert low < ratio < high
    assert high - low < 0.02 * ratio


def test_a_drift_that_both_share_cancels() -> None:
    low, high = ratio_interval(samples(2e6, 1, drift=0.5), samples(1e6, 2, drift=0.5))
    assert 1.97 < low < 2 < high < 2.03


def test_rounds_that_disagree_widen_the_interval() -> None:
    steady = samples(1e6, 1)
    uneven = [[v * (1 + w) for v in window] for w, window in enumerate(samples(1e6, 2))]
    low, high = ratio_interval(uneven, steady)
    assert high - low > 1


def test_the_interval_is_repeatable() -> None:
    one, two = samples(1e6, 1), samples(1.3e6, 2)
    assert ratio_interval(one, two, seed=3) == ratio_interval(one, two, seed=3)


def test_windows_may_differ_in_length_and_be_short() -> None:
    low, high = ratio_interval([[2, 2], [2, 2, 2]], [[1], [1, 1, 1, 1]])
    assert low == high == 2


def test_private_memory_is_what_was_written() -> None:
    release_free_memory()
    before = read_memory()
    assert before.source == "smaps_rollup"
    block = np.ones(32 * MIB, np.uint8)
    after = read_memory()
    assert 31 * MIB < after.private_bytes - before.private_bytes < 34 * MIB
    assert peak_rss() >= block.nbytes


def test_memory_that_was_never_touched_does_not_count() -> None:
    release_free_memory()
    before = read_memory()
    with mmap.mmap(-1, 64 * MIB) as untouched:
        assert len(untouched) == 64 * MIB
        after = read_memory()
    assert after.private_bytes - before.private_bytes < 2 * MIB


def test_pages_of_a_file_are_mapped_not_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 16 * MIB)
    release_free_memory()
    before = read_memory()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) > 0
        after = read_memory()
    assert before.mapped_bytes is not None and after.mapped_bytes is not None
    assert after.mapped_bytes - before.mapped_bytes > 15 * MIB
    assert after.private_bytes - before.private_bytes < 2 * MIB
