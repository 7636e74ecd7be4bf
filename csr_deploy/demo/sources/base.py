"""What every source can do."""

from __future__ import annotations

import abc
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from csr_deploy.demo.frames import Shot
from csr_deploy.errors import OptionError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class SourceOptions:
    """How pictures are taken.

    Attributes:
        width: Of a camera's pictures, in pixels; a camera without this size gives the closest it has.
        height: Likewise.
        fps: Pictures a second that a camera is asked for.
        seconds: How long each picture of a folder or set stands, where it is shown and not only worked
            through.
        loop: Whether a file or folder begins again at its end.
        realtime: Whether a file plays at its own speed; otherwise it is read as fast as frames are taken.
    """

    width: int = 640
    height: int = 480
    fps: float = 30.0
    seconds: float = 1.0
    loop: bool = False
    realtime: bool = True

    def __post_init__(self) -> None:
        if not (16 <= self.width <= 8192 and 16 <= self.height <= 8192):
            raise OptionError(f"the size is {self.width}x{self.height}", fix="Give 16x16 to 8192x8192.")
        if not 0 < self.fps <= 1000:
            raise OptionError(f"{self.fps:g} pictures a second are asked for", fix="Give 0 to 1000.")
        if not 0 < self.seconds <= 3600:
            raise OptionError(f"a picture would stand {self.seconds:g} s", fix="Give 0 to 3600.")


class Source(abc.ABC):
    """Gives pictures, one after the other. Used by one thread, from `open` to `close`."""

    live: ClassVar[bool] = True
    """Whether pictures come whether they are taken or not; then only the newest one counts, and the source
    is opened again when it stops."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """For messages."""

    @abc.abstractmethod
    def open(self) -> None:
        """Makes it ready.

        Raises:
            SourceError: If it is not there, or busy.
            MissingDependencyError: If a package is missing.
        """

    @abc.abstractmethod
    def read(self) -> Shot | None:
        """The next picture; None at the end.

        Raises:
            DamagedFrameError: If this one cannot be decoded.
            SourceError: If the source stopped.
        """

    def close(self) -> None:  # noqa: B027
        """Gives back what `open` took. May be called twice, and without `open`."""

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Pace:
    """Keeps a rhythm by sleeping; who comes late is not made up for.

    Args:
        fps: Pictures a second; None for no pause.
    """

    def __init__(self, fps: float | None) -> None:
        self._step = 1 / fps if fps else 0.0
        self._next = 0.0

    def wait(self) -> None:
        """Sleeps until the next picture is due."""
        if not self._step:
            return
        now = time.monotonic()
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(self._next, now) + self._step
