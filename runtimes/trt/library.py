"""Finding TensorRT, or TensorRT for RTX, and hearing what it has to say.

TensorRT belongs to the system (on a Jetson it comes with JetPack) and is never a requirement of this package.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from csr_deploy.errors import MissingDependencyError, OptionError, RuntimeUnavailableError

TENSORRT = "tensorrt"
RTX = "tensorrt-rtx"
_MODULES = {TENSORRT: ("tensorrt",), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_FIXES = {
    TENSORRT: "On a Jetson, JetPack brings it: sudo apt install python3-libnvinfer, then make the virtual "
    "environment with python3 -m venv --system-site-packages. Elsewhere: pip install tensorrt",
    RTX: "Run: pip install tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings",
}
_OLDEST = 10
_LEVELS = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO")


@dataclass(frozen=True)
class Message:
    """One line of the library's log: its level (a name of `ILogger.Severity`) and text."""

    level: str
    text: str

    @property
    def is_error(self) -> bool:
        """Whether it says that something failed."""
        return self.level.endswith("ERROR")


@dataclass(frozen=True)
class TensorRT:
    """An imported library.

    Attributes:
        module: `tensorrt`, `tensorrt_rtx` or `tensorrt_rtx_bindings`; the three have the same interface.
        flavour: "tensorrt" or "tensorrt-rtx".
        version: For example "10.3.0".
    """

    module: ModuleType
    flavour: str
    version: str

    @property
    def name(self) -> str:
        """Flavour and version, e.g. "tensorrt 10.3.0"."""
        return f"{self.flavour} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether it builds without a GPU, for any compute capability it knows."""
        return self.flavour == RTX

    @property
    def logger(self) -> Any:
        """The one logger of this process: TensorRT keeps the first it is given and ignores all others."""
        return _logger(self.module)

    @contextmanager
    def messages(self) -> Iterator[list[Message]]:
        """Gives the list that messages of the block go to, those for debugging left out."""
        heard: list[Message] = []
        logger = self.logger
        # New tuples, as other threads may be going through the old one.
        logger.sinks = (*logger.sinks, heard)
        try:
            yield heard
        finally:
            logger.sinks = tuple(sink for sink in logger.sinks if sink is not heard)


@functools.cache
def _logger(module: Any) -> Any:
    named = {getattr(module.ILogger.Severity, level): level for level in _LEVELS}

    class Logger(module.ILogger):  # type: ignore[misc]
        """Hands messages to whoever listens; prints nothing. Called from any thread."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.sinks: tuple[list[Message], ...] = ()

        def log(self, severity: Any, msg: str) -> None:
            level = named.get(severity)
            if level is not None:
                for sink in self.sinks:
                    sink.append(Message(level, msg))

    return Logger()


def dimensions(shape: Any) -> tuple[int, ...]:
    """A shape of the library as a tuple; its type `Dims` can be iterated, which the stubs do not know."""
    return tuple(int(size) for size in shape)


def load_tensorrt(flavour: str | None = None) -> TensorRT:
    """Imports TensorRT, or else TensorRT for RTX.

    Args:
        flavour: "tensorrt" or "tensorrt-rtx"; None for the first that is installed.

    Raises:
        MissingDependencyError: If it is not installed.
        RuntimeUnavailableError: If it cannot be loaded, or is older than 10.
    """
    if flavour is not None and flavour not in _MODULES:
        raise OptionError(f"unknown library '{flavour}'", fix=f"Use one of {', '.join(_MODULES)}.")
    broken: list[str] = []
    for wanted in [flavour] if flavour else list(_MODULES):
        for name in _MODULES[wanted]:
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError:
                continue
            except ImportError as error:
                broken.append(f"{name}: {error}")
                continue
            # Where only type stubs are installed, importing gives an empty package.
            if hasattr(module, "Builder"):
                return _checked(TensorRT(module, wanted, str(module.__version__)))
    wanted = flavour or TENSORRT
    if broken:
        raise RuntimeUnavailableError(
            f"{wanted} is installed but cannot be loaded: {'; '.join(broken)}",
            fix="Its shared libraries must be those of the same version, and made for this CUDA and Python.",
        )
    raise MissingDependencyError(
        wanted, "jetson", "Building or running a TensorRT engine", fix=_FIXES[wanted]
    )


def _checked(library: TensorRT) -> TensorRT:
    major = library.version.split(".")[0]
    if not library.is_rtx and major.isdigit() and int(major) < _OLDEST:
        raise RuntimeUnavailableError(
            f"TensorRT {library.version} is too old: {_OLDEST}.0 is the first with strongly typed networks",
            fix="JetPack 6 brings 10.3.",
        )
    return library
