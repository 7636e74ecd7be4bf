"""What `csr-bench` shows while it runs."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from csr_deploy.cli.common import print_warning, stderr

if TYPE_CHECKING:
    from csr_deploy.bench.runner import Outcome

_STYLES = {"passed": "green", "void": "yellow", "incomplete": "red", "failed": "red"}


class Display:
    """A line a device that says what is being done. It is drawn between timed windows, never during one.

    Args:
        groups: How many groups are to be measured; of more than one each is reported as it ends.
        devices: How many devices they are on.
    """

    def __init__(self, groups: int, devices: int) -> None:
        self._groups = groups
        self._names_devices = devices > 1
        self._done: set[str] = set()
        self._lock = threading.Lock()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=stderr,
            disable=not stderr.is_terminal,
            # Redrawing by the clock would take a CPU from what is measured.
            auto_refresh=False,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def progress(self, device: str, stage: str, subject: str, done: int, total: int) -> None:
        """`done` of `total` parts of a stage are finished for a subject."""
        text = f"{device}: {subject}: {stage}" if self._names_devices else f"{subject}: {stage}"
        with self._lock:
            if device not in self._tasks:
                self._tasks[device] = self._bars.add_task("starting", total=None)
            self._bars.update(
                self._tasks[device], description=text, completed=done, total=total, refresh=True
            )

    def say(self, text: str) -> None:
        """Something that the user should know, though the run goes on."""
        with self._lock:
            print_warning(text)

    def finished(self, outcome: Outcome) -> None:
        """A group was measured, or could not be."""
        if self._groups < 2:
            return
        with self._lock:
            self._done.add(outcome.group.id)
            line = Text(f"{len(self._done)} of {self._groups}: {outcome.group.title}: ")
            line.append(outcome.status, _STYLES[outcome.status])
            stderr.print(line, soft_wrap=True)
