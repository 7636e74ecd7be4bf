"""Small parts of the camera demo: frames, the slot, smoothing, drawing."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest

from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.demo.classifier import Smoother, softmax
from csr_deploy.demo.errors import DamagedFrameError
from csr_deploy.demo.frames import to_picture
from csr_deploy.demo.picture import encode_jpeg
from csr_deploy.demo.pipeline import rank
from csr_deploy.demo.slot import Slot
from csr_deploy.demo.sources.base import Pace, SourceOptions
from csr_deploy.demo.system import SystemMonitor
from csr_deploy.errors import OptionError
from tests.demo import noise


def test_frames_of_every_kind_become_gray_or_rgb() -> None:
    colour = noise(5, 7)
    assert np.array_equal(to_picture(colour), colour)
    assert np.array_equal(to_picture(colour[:, :, ::-1], blue_first=True), colour)
    alpha = np.dstack([colour, noise(5, 7, 1)])
    assert np.array_equal(to_picture(alpha), colour)
    assert np.array_equal(to_picture(alpha[:, :, [2, 1, 0, 3]], blue_first=True), colour)
    gray = noise(5, 7, 1)
    assert np.array_equal(to_picture(gray[:, :, 0]), gray)
    assert np.array_equal(to_picture(gray), gray)
    assert np.array_equal(to_picture(gray.astype(np.uint16) * 257), gray)
    assert to_picture(colour[:, ::-1]).flags.c_contiguous


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_what_is_no_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(DamagedFrameError, match="is no picture"):
        to_picture(frame)


def test_the_newest_value_is_taken() -> None:
    slot: Slot[int] = Slot()
    assert [slot.put(1), slot.put(2), slot.put(3)] == [False, True, True]
    assert slot.take(0) == 3
    assert slot.take(0) is None


def test_offered_values_are_all_taken_in_order() -> None:
    slot: Slot[int] = Slot()

    def offer() -> None:
        for value in range(1, 101):
            slot.offer(value)
        slot.close()

    thread = threading.Thread(target=offer)
    thread.start()
    taken = []
    while (value := slot.take(10)) is not None:
        taken.append(value)
        if len(taken) == 100:
            break
    thread.join(10)
    assert taken == list(range(1, 101))


def test_closing_wakes_both_sides() -> None:
    slot: Slot[int] = Slot()
    slot.put(1)
    threads = [
        threading.Thread(target=slot.offer, args=(2,)),
        threading.Thread(target=Slot[int]().take, args=(0.1,)),
    ]
    for thread in threads:
        thread.start()
    slot.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert slot.take(0) == 1
    assert slot.take() is None
    assert not slot.put(3)
    assert slot.take() is None


def test_smoothing_follows_time_and_not_frames() -> None:
    start, goal = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    slow, fast = Smoother(0.3), Smoother(0.3)
    slow(start, 0)
    fast(start, 0)
    after_slow = slow(goal, 600_000_000)
    for step in range(1, 31):
        after_fast = fast(goal, step * 20_000_000)
    assert np.allclose(after_slow, [np.exp(-2), 1 - np.exp(-2)], atol=1e-6)
    assert np.allclose(after_fast, after_slow, atol=1e-6)
    plain = Smoother(0)
    plain(start, 0)
    assert np.array_equal(plain(goal, 1), goal)


def test_ranking_and_softmax() -> None:
    shares = softmax(np.array([1000.0, 1001.0, 1001.0], np.float32))
    assert np.isclose(shares.sum(), 1)
    ranked = rank(shares, ("a", "b", "c"), 2)
    assert ranked.labels == ("b", "c")
    assert ranked.shares[0] == pytest.approx(1 / (2 + np.exp(-1)))
    assert len(rank(shares, ("a", "b", "c"), 5).labels) == 3


def test_large_pictures_are_made_smaller_for_the_browser() -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    assert image.open(io.BytesIO(encode_jpeg(noise(500, 2000)))).size == (1280, 320)
    small = image.open(io.BytesIO(encode_jpeg(noise(32, 48, 1))))
    assert (small.size, small.mode) == ((48, 32), "L")


def test_a_pace_is_kept_and_lost_time_not_made_up() -> None:
    pace = Pace(50)
    pace.wait()
    time.sleep(0.1)
    start = time.monotonic()
    for _ in range(4):
        pace.wait()
    # The first of the four is late and comes at once, the others 20 ms apart each.
    assert time.monotonic() - start >= 0.055


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"height": 100_000}, {"fps": 0}, {"fps": float("nan")}, {"seconds": -1}]
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        SourceOptions(**options)  # type: ignore[arg-type]


def test_the_temperature_of_the_processor_is_shown(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for number, (zone, value) in enumerate((("gpu-thermal", "61000"), ("cpu-thermal", "48500"))):
        folder = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(zone + "\n")
        (folder / "temp").write_text(value + "\n")
    monitor = SystemMonitor(Machine(tmp_path))
    monitor.read()
    assert monitor.state.temperature_c == 48.5
    assert monitor.state.memory_mib > 10
    empty = SystemMonitor(Machine(tmp_path / "nothing"))
    empty.read()
    assert empty.state.temperature_c is None
