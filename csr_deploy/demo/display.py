"""A window on the machine's own screen, through Tk, which Python brings: headless OpenCV has no windows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from csr_deploy.demo.picture import annotate
from csr_deploy.demo.slot import Slot
from csr_deploy.errors import MissingDependencyError, RuntimeUnavailableError

if TYPE_CHECKING:
    from csr_deploy.demo.pipeline import Result

_POLL_MS = 15


class Window:
    """Shows results until it is closed or Escape or q is pressed. It belongs to the main thread.

    Args:
        names: Of the networks.
        rate: Gives the frames a second to be shown.

    Raises:
        MissingDependencyError: If Tk is not installed.
        RuntimeUnavailableError: If there is no screen.
    """

    def __init__(self, names: Sequence[str], rate: Callable[[], float]) -> None:
        try:
            tkinter = importlib.import_module("tkinter")
            self._image_tk: Any = importlib.import_module("PIL.ImageTk")
            self._image: Any = importlib.import_module("PIL.Image")
        except ImportError as error:
            raise MissingDependencyError(
                "tkinter", "demo", "A window", fix="Run: sudo apt install python3-tk, or use --serve."
            ) from error
        self._names = names
        self._rate = rate
        self.slot: Slot[Result] = Slot()
        try:
            self._root: Any = tkinter.Tk()
        except tkinter.TclError as error:
            raise RuntimeUnavailableError(
                f"there is no screen to open a window on: {error}",
                fix="Run it from the desktop (over SSH: DISPLAY=:0 csr-demo …), or use --serve.",
            ) from error
        self._error: BaseException | None = None
        # Tk would print what is raised in its callbacks, Ctrl-C among it, and go on.
        self._root.report_callback_exception = self._keep
        self._root.title("csr-demo")
        self._root.configure(background="black")
        self._label = tkinter.Label(self._root, borderwidth=0, background="black")
        self._label.pack(expand=True)
        self.shown = 0
        for key in ("<Escape>", "q"):
            self._root.bind(key, lambda event: self.close())
        self._root.protocol("WM_DELETE_WINDOW", self.close)

    def __call__(self, result: Result) -> None:
        """Takes a result from the inference thread; only the newest one is shown."""
        self.slot.put(result)

    def run(self, ended: Callable[[], bool]) -> None:
        """Shows until it is closed, or `ended` says so."""
        self._poll(ended)
        self._root.mainloop()
        self._root.destroy()
        if self._error is not None:
            raise self._error

    def _keep(self, kind: type[BaseException], error: BaseException, trace: object) -> None:
        self._error = error
        self.close()

    def close(self) -> None:
        """Ends `run`."""
        self._root.quit()

    def _poll(self, ended: Callable[[], bool]) -> None:
        result = self.slot.take(0)
        if result is not None:
            image = self._image.fromarray(annotate(result, self._names, self._rate()))
            # Tk shows what somebody holds a reference to.
            self._photo = self._image_tk.PhotoImage(image)
            self._label.configure(image=self._photo)
            self.shown += 1
        elif ended():
            self.close()
            return
        self._root.after(_POLL_MS, self._poll, ended)
