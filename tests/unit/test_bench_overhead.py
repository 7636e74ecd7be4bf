"""The tool that measures the harness; its figures are judged where nothing else runs, not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.onnx_artifact import make_artifact

ROOT = Path(__file__).parents[2]


def test_the_overhead_of_the_harness_can_be_measured(tmp_path: Path) -> None:
    path = make_artifact(tmp_path / "net-onnx", name="net").path
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "bench_overhead.py", path, "--seconds", "0.2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode in (0, 1) and "Traceback" not in run.stderr, run.stderr
    for name, figure in (
        ("no-op runtime, inside each sample", r"\d+ ns, [\d.]+% of [\d.]+ ms"),
        ("no-op runtime, loop with its clock", r"\d+ ns, in no sample"),
        ("an artifact against its own copy", r"[\d.]+, 95% [\d.]+ to [\d.]+"),
        ("a plan of 1,000 cells", r"[\d.]+ s to make"),
        ("the same, all but one of them done", r"[\d.]+ s to resume, [\d,]+ MB of results"),
    ):
        assert re.search(rf"^{re.escape(name)}: +{figure}$", run.stdout, re.M), run.stdout
