"""The thread that takes pictures, and the watchdog that starts a new one when it hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from csr_deploy.demo.errors import DamagedFrameError, SourceError
from csr_deploy.demo.frames import Frame
from csr_deploy.demo.slot import Slot
from csr_deploy.demo.sources.base import Source
from csr_deploy.demo.sources.choose import SourceMaker
from csr_deploy.errors import CsrError

RUNNING, OPENING, LOST, STALLED, ENDED, FAILED = "running", "opening", "lost", "stalled", "ended", "failed"
_LONGEST_PAUSE_S = 10.0
# A camera whose pictures are all damaged is opened again.
_MOST_DAMAGED = 100


@dataclass(frozen=True)
class CaptureOptions:
    """How the source is watched.

    Attributes:
        every_frame: Whether frames wait until they are taken, instead of giving way to newer ones.
        stall_s: Seconds without a sign of life after which the source is given up and opened anew.
        open_s: The same while it is being opened.
        retry_s: Pause before the first try to open a lost source again; it grows to ten seconds.
    """

    every_frame: bool = False
    stall_s: float = 5.0
    open_s: float = 20.0
    retry_s: float = 0.5


@dataclass(frozen=True)
class SourceState:
    """What the source does.

    Attributes:
        state: "opening", "running", "lost", "stalled", "ended" or "failed".
        text: For the user.
    """

    state: str
    text: str = ""


@dataclass
class CaptureCounts:
    """What became of the frames.

    Attributes:
        captured: All that were decoded.
        dropped: Those that gave way to a newer one.
        damaged: Those that could not be decoded.
        reopened: How often the source was opened again.
    """

    captured: int = 0
    dropped: int = 0
    damaged: int = 0
    reopened: int = 0


class Capture:
    """Takes pictures in a thread of its own and lays the newest one ready.

    A live source that stops or hangs is opened again until it returns; a file that ends, ends. The first
    opening must succeed.

    Args:
        make_source: Makes the source.
        options: How it is watched.
        on_state: Called in other threads when the source's state changes.
        on_damaged: Called with each frame that cannot be decoded.
    """

    def __init__(
        self,
        make_source: SourceMaker,
        options: CaptureOptions,
        on_state: Callable[[SourceState], None] | None = None,
        on_damaged: Callable[[DamagedFrameError], None] | None = None,
    ) -> None:
        self.slot: Slot[Frame] = Slot()
        self.counts = CaptureCounts()
        self.state = SourceState(OPENING)
        self.failure: BaseException | None = None
        self._make_source = make_source
        self._options = options
        self._on_state = on_state or (lambda state: None)
        self._on_damaged = on_damaged or (lambda error: None)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._generation = 0
        self._busy_until: float | None = None
        self._opened_once = False
        self._worker: threading.Thread | None = None
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins; frames come into `slot`, which is closed at the end."""
        self._start_worker()
        self._watchdog.start()

    def stop(self) -> None:
        """Ends it and waits for the thread, unless that hangs. May be called twice."""
        self._stop.set()
        self.slot.close()
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(timeout=2)

    def _start_worker(self) -> None:
        self._generation += 1
        self._worker = threading.Thread(
            target=self._work, args=(self._generation,), name=f"capture-{self._generation}", daemon=True
        )
        self._worker.start()

    def _say(self, state: SourceState) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state)

    def _current(self, generation: int) -> bool:
        return generation == self._generation and not self._stop.is_set()

    def _work(self, generation: int) -> None:
        pause = self._options.retry_s
        try:
            while self._current(generation):
                source = self._make_source()
                try:
                    opened_ns = time.monotonic_ns()
                    self._run(source, generation)
                    return
                except SourceError as error:
                    if not self._current(generation):
                        return
                    if not source.live or not self._opened_once:
                        raise
                    self._say(SourceState(LOST, str(error)))
                    # A camera that worked for a while is tried again soon.
                    worked = time.monotonic_ns() - opened_ns > 5e9
                    pause = self._options.retry_s if worked else min(2 * pause, _LONGEST_PAUSE_S)
                finally:
                    self._busy_until = None if generation == self._generation else self._busy_until
                    source.close()
                self._stop.wait(pause)
        except BaseException as error:
            # Whatever it is, it belongs to the main thread, which ends the demo with it.
            if self._current(generation):
                self.failure = error
                self._say(SourceState(FAILED, str(error)))
        finally:
            if generation == self._generation:
                self.slot.close()

    def _run(self, source: Source, generation: int) -> None:
        self._busy(generation, self._options.open_s)
        source.open()
        if self._opened_once and self._current(generation):
            self.counts.reopened += 1
        damaged = 0
        while self._current(generation):
            self._busy(generation, self._options.stall_s)
            start = time.monotonic_ns()
            try:
                shot = source.read()
            except DamagedFrameError as error:
                if self._current(generation):
                    damaged += 1
                    self.counts.damaged += 1
                    self._on_damaged(error)
                if source.live and damaged >= _MOST_DAMAGED:
                    raise SourceError(f"{damaged} frames in a row are damaged", where=source.name) from error
                continue
            finally:
                if generation == self._generation:
                    self._busy_until = None
            now = time.monotonic_ns()
            if not self._current(generation):
                return
            damaged = 0
            self._opened_once = True
            if shot is None:
                self._say(SourceState(ENDED, f"{source.name} has ended"))
                return
            self._say(SourceState(RUNNING, source.name))
            frame = Frame(shot, self.counts.captured, now, now - start)
            self.counts.captured += 1
            if self._options.every_frame:
                self.slot.offer(frame)
            elif self.slot.put(frame):
                self.counts.dropped += 1

    def _busy(self, generation: int, seconds: float) -> None:
        """From now on the source may take that long."""
        if generation == self._generation:
            self._busy_until = time.monotonic() + seconds

    def _watch(self) -> None:
        """Gives up a worker that hangs in the source; when it returns, it closes its source and ends."""
        while not self._stop.wait(min(self._options.stall_s / 4, 0.5)):
            until, worker = self._busy_until, self._worker
            if until is not None and time.monotonic() > until and not self.slot.closed:
                self._busy_until = None
                if not self._opened_once:
                    self.failure = SourceError(
                        "the source does not answer", fix="See whether the camera is connected and free."
                    )
                    self._generation += 1
                    self._say(SourceState(FAILED, str(self.failure)))
                    self.slot.close()
                    return
                self._say(SourceState(STALLED, "no picture for some time; the source is opened again"))
                self._start_worker()
            elif worker is not None and not worker.is_alive():
                return


def raise_failure(capture: Capture) -> None:
    """Raises what ended the capture, if an error did.

    Raises:
        CsrError: Such an error.
    """
    failure = capture.failure
    if failure is None:
        return
    if isinstance(failure, CsrError):
        raise failure
    raise RuntimeError("the capture thread has failed") from failure
