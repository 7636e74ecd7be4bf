"""README's commands run.

Every `csr-*` command in a block fenced as ```console and starting with `$ ` is run, block after block, in
one folder where demos/ is at hand, CIFAR-10 is cifar10.zip and $CSR_DATA names it. Training commands
(`--recipe`) and blocks under a comment `<!-- not run: why -->` are only checked for options that exist. Other
commands (make, pip, git) are not looked at.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) *-->\n\s*)?^```console\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A console block.

    Attributes:
        commands: Its `csr-*` commands, continuation lines joined.
        not_run: Why they are not run, or None.
    """

    commands: tuple[str, ...]
    not_run: str | None


def blocks_of(text: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(text):
        joined = re.sub(r"\\\n\s*", "", match["text"])
        lines = [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]
        if commands := tuple(line for line in lines if line.startswith("csr-")):
            found.append(Block(commands, match["reason"]))
    return found


BLOCKS = blocks_of(README.read_text(encoding="utf-8")) if README.exists() else []
COMMANDS = [command for block in BLOCKS for command in block.commands]


def is_run(command: str, block: Block) -> bool:
    return block.not_run is None and "--recipe" not in command


def needs_cifar10(command: str) -> bool:
    return "cifar10.zip" in command or "$CSR_DATA" in command


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "300", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def cifar10() -> Path | None:
    place = Path(os.environ.get("CSR_DATA") or ROOT.parent / "shared" / "data" / "cifar10.zip")
    return place.resolve() if place.exists() else None


@pytest.fixture(scope="module")
def folder(cifar10: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all blocks run, one after the other: later ones use what earlier ones made."""
    made = tmp_path_factory.mktemp("readme") / "csr-deploy"
    made.mkdir()
    (made / "demos").symlink_to(ROOT / "demos")
    if cifar10 is not None:
        (made / "cifar10.zip").symlink_to(cifar10)
        (made.parent / "shared" / "data").mkdir(parents=True)
        (made.parent / "shared" / "data" / "cifar10.zip").symlink_to(cifar10)
    return made


def test_readme_shows_both_commands_at_work() -> None:
    assert README.exists()
    ran = {command.split()[0] for block in BLOCKS for command in block.commands if is_run(command, block)}
    assert {"csr-export", "csr-bench"} <= ran


@pytest.mark.parametrize("block", BLOCKS, ids=[block.commands[0] for block in BLOCKS])
def test_commands_run(block: Block, folder: Path, cifar10: Path | None) -> None:
    commands = [command for command in block.commands if is_run(command, block)]
    if cifar10 is None and any(needs_cifar10(command) for command in commands):
        pytest.skip("CIFAR-10 is neither at $CSR_DATA nor at ../shared/data/cifar10.zip")
    for command in commands:
        done = run(command, folder, **({} if cifar10 is None else {"CSR_DATA": str(cifar10)}))
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("command", COMMANDS)
def test_options_exist(command: str, tmp_path: Path) -> None:
    words = shlex.split(command.split("|")[0].split("#")[0])
    shown = run(f"{words[0]} --help", tmp_path).stdout
    if words[1:] and words[1].isalpha():
        # A subcommand has options of its own.
        shown += run(f"{words[0]} {words[1]} --help", tmp_path).stdout
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown))
    assert known, f"{words[0]} --help shows no options"
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


def test_blocks_are_found_with_their_reason() -> None:
    text = (
        "```console\n$ make demo\n```\n"
        "```console\n$ csr-export a.pt \\\n    --target onnx\nwritten\n$ csr-bench a\n```\n"
        "<!-- not run: takes an hour -->\n```console\n$ csr-train x\n```\n"
        "```\n$ csr-export not-a-console-block\n```\n"
    )
    assert blocks_of(text) == [
        Block(("csr-export a.pt --target onnx", "csr-bench a"), None),
        Block(("csr-train x",), "takes an hour"),
    ]
