from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.text import Text
from typer.testing import CliRunner

import csr_deploy.cli

MODULES = sorted(
    path.stem
    for path in Path(csr_deploy.cli.__file__).parent.glob("*.py")
    if "def main() -> None:" in path.read_text(encoding="utf-8")
)


def paths_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from paths_of(child, (*path, name))


@pytest.mark.parametrize("module", MODULES)
def test_every_help_can_be_shown(module: str) -> None:
    app = importlib.import_module(f"csr_deploy.cli.{module}").app
    for path in paths_of(typer.main.get_command(app)):
        shown = CliRunner().invoke(app, [*path, "--help"], prog_name="command")
        assert shown.exit_code == 0 and "Usage" in shown.output, (path, shown.output)


@pytest.mark.parametrize("module", MODULES)
def test_no_help_loses_what_stands_in_brackets(module: str) -> None:
    app = importlib.import_module(f"csr_deploy.cli.{module}").app
    command = typer.main.get_command(app)
    for each in (command, *getattr(command, "commands", {}).values()):
        for parameter in each.params:
            text = getattr(parameter, "help", None) or ""
            # Rich takes a bracket for markup unless a backslash stands before it.
            assert Text.from_markup(text).plain == text.replace("\\[", "["), (each.name, parameter.name)
