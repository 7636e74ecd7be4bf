"""csr-deploy itself on an emulated Raspberry Pi: its wheel and further ones in a folder, and what runs them.

    from csr_deploy.bench.emulated_pi import find_board, prepare_root
    from csr_deploy.bench.emulated_pi.install import install

    root = prepare_root()
    site = install(root, Path("site"), ["opencv-python-headless", "starlette", "uvicorn", "websockets"])
    print(site.run(find_board("pi5"), ["-m", "csr_deploy.cli.bench", "--help"]))
    print(site.run(find_board("pi5"), ["-m", "csr_deploy.cli.demo", "--headless", "…"]))

A program there sees this machine's files under their own paths, so artifacts and videos are named as here.
It cannot start another program (this machine's kernel has no binary format registered for arm64), so
`csr-bench` measures nothing there, while one worker of it, `csr_deploy.bench.worker`, runs. Nothing that is
timed there means anything.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from csr_deploy.atomic import atomic_directory
from csr_deploy.bench.devices.wheels import make_wheel
from csr_deploy.bench.emulated_pi.boards import Board
from csr_deploy.bench.emulated_pi.root import PLATFORMS, Root
from csr_deploy.errors import BenchError, RuntimeUnavailableError

_INSTALL_SECONDS = 900
_MESSAGE_LINES = 12


@dataclass(frozen=True)
class Site:
    """What was installed on an emulated board.

    Attributes:
        root: The board's programs.
        packages: Folder to import from, beside those of the root.
    """

    root: Root
    packages: Path

    def command(self, board: Board, arguments: Sequence[str]) -> list[str]:
        """The command that runs Python with these arguments on a board."""
        return self.root.command(board, arguments)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment that `command` needs.

        Args:
            more: Further variables.
        """
        paths = f"{self.packages}:{self.root.site_packages}"
        return {**self.root.environment(), "PYTHONPATH": paths, **(more or {})}

    def run(
        self,
        board: Board,
        arguments: Sequence[str],
        *,
        given: str = "",
        folder: Path | None = None,
        seconds: float = 300.0,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Runs Python on a board to its end; gives what it printed.

        Args:
            board: Which.
            arguments: Python's, for example ["-m", "csr_deploy.cli.demo", "--headless"].
            given: Its standard input.
            folder: To run in; None for the working directory.
            seconds: How long it may take: an emulator is slow, and importing takes it seconds.
            environment: Further variables.

        Raises:
            BenchError: If it fails or takes too long, with the end of what it said.
        """
        try:
            done = subprocess.run(
                self.command(board, arguments),
                env=self.environment(environment),
                cwd=folder,
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(
                f"took more than {seconds:g} s on the emulated {board.name}", where=" ".join(arguments)
            ) from error
        if done.returncode:
            words = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-_MESSAGE_LINES:])
            raise BenchError(
                f"failed on the emulated {board.name} (exit status {done.returncode}):\n  {words}",
                where=" ".join(arguments),
            )
        return done.stdout


def install(root: Root, folder: Path, requirements: Sequence[str] = (), *, wheel: Path | None = None) -> Site:
    """Installs csr-deploy for arm64 into a folder.

    NumPy, LiteRT, ONNX Runtime and what the core needs are in the root already.

    Args:
        root: Prepared.
        folder: Where to; replaced if it is there.
        requirements: Further packages, as pip takes them, downloaded for arm64 with what they need.
        wheel: Of csr-deploy; None to make one of the csr-deploy that runs here.

    Raises:
        RuntimeUnavailableError: If pip fails.
        ExportError: If the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as temporary, atomic_directory(folder, replace=True) as place:
        made = wheel or make_wheel(Path(temporary))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(place)]
        _call([*pip, "--no-deps", "--no-index", str(made)])
        if requirements:
            target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", root.python]
            platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
            _call([*pip, *target, *platforms, *requirements])
    return Site(root, folder.absolute())


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailableError(f"pip took more than {_INSTALL_SECONDS} s") from error
    if done.returncode:
        words = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-_MESSAGE_LINES:])
        raise RuntimeUnavailableError(
            f"pip could not install for arm64:\n  {words}",
            fix="This needs the network once, and wheels for arm64 of these packages.",
        )
