"""A queue of one: who is late gets the newest value, never an old one."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Slot(Generic[T]):
    """Hands values from one thread to another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._value: T | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing more will come; what lies there can still be taken."""
        return self._closed

    def put(self, value: T) -> bool:
        """Lays a value there in place of what was not taken yet.

        Returns:
            Whether there was something, which is lost.
        """
        with self._changed:
            lost = self._value is not None
            if not self._closed:
                self._value = value
                self._changed.notify_all()
            return lost

    def offer(self, value: T) -> None:
        """Waits until what lay there was taken, so that nothing is lost; gives up once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._value is None or self._closed)
            if not self._closed:
                self._value = value
                self._changed.notify_all()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Takes the value; None where none came in time, or it was closed and is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._value is not None or self._closed, timeout_s)
            value, self._value = self._value, None
            self._changed.notify_all()
            return value

    def close(self) -> None:
        """Wakes everyone who waits. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
