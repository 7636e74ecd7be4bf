"""What every command does about the place that its output goes to, and about packages that do not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from csr_deploy.errors import MissingDependencyError

COMMAND = [sys.executable, "-c", "from csr_deploy.cli.export import main; main()", "--list-targets"]


def test_a_console_that_knows_few_characters_gets_question_marks() -> None:
    program = (
        "from csr_deploy.cli.common import new_app, run, stdout\n"
        "app = new_app()\n"
        "app.command()(lambda: stdout.print('3×3 → ≥'))\n"
        "run(app)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3?3 ? ?\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the output: No space left" in done.stderr


def test_a_package_that_does_not_load_is_not_called_missing() -> None:
    absent = MissingDependencyError(
        "onnxruntime", "pi", "Running", cause=ModuleNotFoundError("No module named 'onnxruntime'")
    )
    assert "not installed" in absent.what
    assert "pip install 'csr-deploy[pi]'" in str(absent)
    broken = MissingDependencyError(
        "onnxruntime", "pi", "Running", cause=ImportError("version `GLIBC_2.38' not found\nmore")
    )
    assert broken.what.endswith("there but cannot be imported: version `GLIBC_2.38' not found")
    assert "this system" in str(broken)
