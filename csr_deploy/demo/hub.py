"""Between the inference thread and browsers: the newest result, as JSON and JPEG, made once for all."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from csr_deploy.demo.lines import describe
from csr_deploy.demo.picture import annotate, encode_jpeg
from csr_deploy.demo.pipeline import Pipeline, Result
from csr_deploy.demo.slot import Slot
from csr_deploy.demo.system import SystemMonitor

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_VIEWERS = 32
_FIGURES_S = 0.2


@dataclass(frozen=True)
class Message:
    """What a browser gets.

    Attributes:
        number: Rises with each message.
        text: JSON.
        jpeg: The picture.
    """

    number: int
    text: str
    jpeg: bytes


class Hub:
    """A sink for results, and the place where browsers wait for them.

    Pictures are encoded in a thread of the hub, and only while somebody looks.

    Args:
        system: The machine's state.
    """

    def __init__(self, system: SystemMonitor) -> None:
        self.pipeline: Pipeline | None = None
        self._system = system
        self._slot: Slot[Result] = Slot()
        self._last: Result | None = None
        self._message: Message | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()
        self._viewers = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slot.close()
        self._thread.join(timeout=2)

    def __call__(self, result: Result) -> None:
        """Takes a result in the inference thread."""
        self._last = result
        if self._viewers:
            self._slot.put(result)

    @property
    def viewers(self) -> int:
        """Browsers that look."""
        return self._viewers

    @contextmanager
    def viewer(self) -> Iterator[bool]:
        """Counts a browser; gives whether there is room for it."""
        with self._lock:
            room = self._viewers < MOST_VIEWERS
            self._viewers += room
        self._loop = asyncio.get_running_loop()
        try:
            if room and self._last is not None:
                # Something to see at once, also where the source has ended.
                self._slot.put(self._last)
            yield room
        finally:
            with self._lock:
                self._viewers -= room

    async def newer(self, number: int, timeout_s: float) -> Message | None:
        """The newest message if its number is above `number`, as soon as there is one; None after a while."""
        if self._message is not None and self._message.number > number:
            return self._message
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except asyncio.TimeoutError:
            return None
        finally:
            self._waiting.discard(event)
        return self._message

    def snapshot(self) -> bytes | None:
        """The last frame with the answers drawn in, as a JPEG file; None before the first one."""
        result, pipeline = self._last, self.pipeline
        if result is None or pipeline is None:
            return None
        names = [c.artifact.name for c in pipeline.classifiers]
        return encode_jpeg(annotate(result, names, pipeline.statistics.snapshot().fps), 92, 4096)

    def status(self) -> dict[str, Any]:
        """Everything but a picture, as plain values."""
        assert self.pipeline is not None
        snapshot = self.pipeline.statistics.snapshot()
        return {
            "state": self._state(),
            "fps": round(snapshot.fps, 2),
            "frames": snapshot.frames,
            "known": snapshot.known,
            "counts": asdict(self.pipeline.capture.counts),
            "ms": {stage: round(value, 3) for stage, value in snapshot.stages_ms.items()},
            "system": asdict(self._system.state),
            "compare": [asdict(row) for row in snapshot.compared],
        }

    def _state(self) -> dict[str, str]:
        assert self.pipeline is not None
        state = self.pipeline.state
        # Where a file lies is nobody's business who looks.
        return {"state": state.state, "text": _short(state.text) if state.state == "running" else state.text}

    def _work(self) -> None:
        number = 0
        status: dict[str, Any] = {}
        due = 0.0
        while True:
            result = self._slot.take()
            if result is None:
                return
            assert self.pipeline is not None
            number += 1
            if time.monotonic() >= due:
                # Figures that change with every frame cannot be read, and take time.
                status, due = self.status(), time.monotonic() + _FIGURES_S
            values = {
                **status,
                "state": self._state(),
                "picture": True,
                "captured_ns": result.frame.captured_ns,
                **describe(result, self.pipeline.classifiers),
            }
            self._message = Message(number, json.dumps(values), encode_jpeg(result.frame.shot.picture))
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()


def _short(name: str) -> str:
    path = Path(name)
    return path.name if path.is_absolute() and path.parts[1] != "dev" else name
