"""The plugin that fails skips which CI may not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_runs():
    pass

def test_data():
    pytest.skip("CIFAR-10 is not at $CSR_DATA")

def test_device():
    pytest.skip("no CUDA device")

@pytest.mark.xfail(reason="CIFAR-10 is hard")
def test_expected_failure():
    raise ValueError
"""
MODULE = """
import pytest

pytest.importorskip("no_such_module", reason="needs no-such-module")
"""


def outcomes(tmp_path: Path, **environment: str) -> tuple[int, str]:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.require", "-p", "no:cacheprovider", "--rootdir=.", "."],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith(("CSR_", "PYTEST_"))}
        | {"PYTHONPATH": str(ROOT)}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout


def test_skips_are_skips_by_default(tmp_path: Path) -> None:
    code, output = outcomes(tmp_path)
    assert code == 0, output
    assert "1 passed, 3 skipped, 1 xfailed" in output


@pytest.mark.parametrize("name", ["cifar10", "CIFAR-10", "fashion-mnist,cifar10"])
def test_a_required_resource_may_not_be_missing(tmp_path: Path, name: str) -> None:
    code, output = outcomes(tmp_path, CSR_REQUIRE=name)
    assert code == 1
    assert "1 failed, 1 passed, 2 skipped, 1 xfailed" in output
    assert "CIFAR-10 is not at $CSR_DATA" in output


def test_all_leaves_only_what_may_skip(tmp_path: Path) -> None:
    code, output = outcomes(tmp_path, CSR_REQUIRE="all", CSR_MAY_SKIP="cuda,no-such-module")
    assert code == 1
    assert "1 failed, 1 passed, 2 skipped, 1 xfailed" in output


def test_a_module_that_skips_whole_fails_the_collection(tmp_path: Path) -> None:
    code, output = outcomes(tmp_path, CSR_REQUIRE="no-such-module")
    assert code == 2
    assert "needs no-such-module" in output
