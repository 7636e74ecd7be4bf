"""What all commands share: consoles, exit codes, the version option.

Importing this must stay cheap: `--help` of every command starts here.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from csr_deploy import __version__
from csr_deploy.errors import CsrError, MissingDependencyError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_main_process() -> bool:
    """Whether this is the only process, or the first that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"


def _is_first_here() -> bool:
    # An error can concern one machine alone, say a missing folder, so each machine reports its own.
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("LOCAL_RANK", "0") == "0"


stdout = Console(quiet=not is_main_process(), highlight=False)
"""For results. Silent in all but the main process."""

stderr = Console(stderr=True, quiet=not _is_first_here(), highlight=False)
"""For progress, warnings and errors. Silent in all but the first process of a machine."""


def new_app(group: type[TyperGroup] | None = None) -> typer.Typer:
    """A Typer application with the settings that all commands share.

    Args:
        group: How its subcommands are found; None for Typer's own way.
    """
    return typer.Typer(
        cls=group,
        add_completion=False,
        # A defect keeps Python's own traceback, without the values of local variables.
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def parse_image_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of "96" or "96x128".

    Raises:
        typer.BadParameter: If it is neither.
    """
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise typer.BadParameter(f"'{text}' is no size: give 96, or 96x128 for height and width.")
    return int(sides[0]), int(sides[-1])


def print_table(console: Console, table: Table) -> None:
    """Prints a table, in its full width where it goes into a file."""
    if not console.is_terminal:
        # A file has no width to fit into.
        wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
        width = max(console.width, wanted)
        console = Console(file=console.file, width=width, quiet=console.quiet, highlight=False)
    console.print(table)


def print_error(error: CsrError) -> None:
    """Says on stderr what is wrong, where, and what to do."""
    where = f"{error.where}: " if error.where else ""
    stderr.print(Text(f"Error: {where}{error.what}", style="red"), soft_wrap=True)
    if error.fix:
        stderr.print(Text(error.fix), soft_wrap=True)


def print_warning(text: str) -> None:
    """Says on stderr what the user should know, though the command goes on."""
    stderr.print(Text(f"Warning: {text}", style="yellow"), soft_wrap=True)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turns errors of a command into exit codes: 1 for a `CsrError` or a full disk, 130 for Ctrl-C.

    Anything else is a defect and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except CsrError as error:
            print_error(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            stderr.print("Interrupted.")
            raise typer.Exit(INTERRUPTED) from interrupt
        except OSError as error:
            # Where the output itself cannot be written. Files that a command writes have errors of their own.
            if error.errno not in _FULL:
                raise
            stderr.print(Text(f"Error: {error.filename or 'the output'}: {error.strerror}", style="red"))
            raise typer.Exit(1) from error

    return wrapped


def run(app: typer.Typer) -> None:
    """Runs an application as a program: usage errors exit with 2, errors as in `guarded`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Some consoles know no ×: a question mark is better than no result.
            stream.reconfigure(errors="replace")
    # Around each command, as Typer's own handling of Ctrl-C differs between its versions.
    for command in app.registered_commands:
        if command.callback:
            command.callback = guarded(command.callback)
    app()


def require(module: str, extra: str, purpose: str, *, package: str | None = None) -> None:
    """Checks that a module can be imported, without importing it.

    Args:
        module: Its name, of the top level.
        extra: The extra of csr-deploy that brings it.
        purpose: What it is needed for, the subject of the message.
        package: The distribution, where it is not named like the module.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(package or module, extra, purpose)


def _show_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"csr-deploy {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
]
"""Type of a command's parameter `version`, whose default is False."""
