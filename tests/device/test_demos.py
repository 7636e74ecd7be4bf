"""The demos from checkpoints to a report: over SSH, on an emulated Pi, and on emulated microcontrollers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csr_deploy.bench.emulated_pi import prepare_root
from csr_deploy.bench.store import read_results
from csr_deploy.errors import RuntimeUnavailableError
from tests.sshd import Board

DEMOS = Path(__file__).parents[2] / "demos"


def run(script: str, *arguments: str, **variables: str) -> Path:
    """Runs a demo; gives the folder of its results, in which a report stands."""
    pytest.importorskip("torch", reason="needs torch to export")
    out = Path(variables["OUT"])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "QUICK": "1", **variables}
    done = subprocess.run(
        ["bash", str(DEMOS / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "results.html").stat().st_size > 10_000
    return out


@pytest.mark.full
def test_pi_over_ssh(board: Board, carried_wheels: Path, tmp_path: Path) -> None:
    settings = {"CSR_SSH_CONFIG": str(board.config), "WHEELS": str(carried_wheels)}
    out = run("bench_pi.sh", board.url, OUT=str(tmp_path), TARGETS="tflite-int8 onnx", LIMIT="50", **settings)
    results = [result for _, result in read_results(out / "results.jsonl")]
    # Two targets with one and four threads each.
    assert len(results) == 4
    assert all(m.latency and m.accuracy for result in results for m in result.measurements)


@pytest.mark.full
def test_emulated_pi(tmp_path: Path) -> None:
    try:
        prepare_root()
    except RuntimeUnavailableError as error:
        pytest.skip(f"needs the emulated Raspberry Pi: {error}")
    out = run("bench_pi.sh", "pi-emulated:pi5", OUT=str(tmp_path), TARGETS="tflite-int8", LIMIT="20")
    ((device, result),) = read_results(out / "results.jsonl")
    assert device == "pi-emulated:pi5"
    assert [m.latency for m in result.measurements] == [None, None]
    assert all(m.instructions and m.accuracy for m in result.measurements)


@pytest.mark.full
def test_microcontrollers(tmp_path: Path) -> None:
    for program in ("qemu-system-arm", "arm-none-eabi-gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    out = run("bench_mcu.sh", "qemu:cortex-m4", OUT=str(tmp_path))
    ((_, result),) = read_results(out / "results.jsonl")
    counts = [m.microcontroller.instructions for m in result.measurements if m.microcontroller]
    assert len(counts) == 2 and all(counts)
