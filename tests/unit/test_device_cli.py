"""`csr-device` where no board is needed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from csr_deploy.cli.device import app

DEMOS = Path(__file__).parents[2] / "demos"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_this_machine() -> None:
    shown = invoke("info", "local")
    assert shown.exit_code == 0
    assert "processor" in shown.output and "programs" in shown.output
    facts = json.loads(invoke("info", "local", "--json", "-").output)
    assert facts["userland_bits"] == 64
    assert "numpy" in facts["packages"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("setup", "local"), "needs no preparation"),
        (("setup", "qemu:cortex-m4"), "needs no preparation"),
        (("clean", "pi-emulated"), "nothing is sent"),
        (("info", "qemu:cortex-m4"), "tells nothing"),
        (("info", "ssh://"), "is no address"),
        (("setup", "raspberry"), "there is no device"),
        (("setup", "ssh://board", "--extra", "train"), "there is no extra"),
    ],
)
def test_what_makes_no_sense(arguments: tuple[str, ...], words: str) -> None:
    result = invoke(*arguments)
    assert result.exception is not None
    assert words in str(result.exception) + result.output


@pytest.mark.parametrize("script", ["bench_pi.sh", "bench_jetson.sh", "bench_mcu.sh"])
def test_demos_explain_themselves(script: str) -> None:
    for arguments, status in ((["--help"], 0), (["nonsense"], 2)):
        command = ["bash", str(DEMOS / script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert f"Usage: demos/{script}" in done.stdout + done.stderr
