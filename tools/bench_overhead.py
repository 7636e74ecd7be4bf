"""What the harness itself costs: a runtime that does nothing, an artifact against its own copy, a large plan.

    python tools/bench_overhead.py artifacts/fashion-resnet20-onnx

The first figure is what a recorded latency holds besides the model: the median of the samples of a runtime
whose inference is an empty call. The second one is the processor time of the loop around it, which is in no
sample. The ratio of an artifact to its own copy, in turns as always, should be 1. Last, a plan of 1,000 cells
is made, and resumed from a results file that has all of them but one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.bench.devices import BenchDevice, DeviceError
from csr_deploy.bench.expand import PlanRequest, expand
from csr_deploy.bench.measure import run_plan
from csr_deploy.bench.plan import BenchOptions, make_plan
from csr_deploy.bench.results import BenchResult
from csr_deploy.bench.runner import Outcome, Runner, RunOptions, run_record, wall_clock
from csr_deploy.bench.store import GroupRecord, Store, encode
from csr_deploy.bench.worker import Session
from csr_deploy.errors import CsrError
from csr_deploy.runtimes import Runtime

_INFERENCES = 200_000
_MOST_NS = 2_000.0
_MOST_SHARE = 0.01
_MOST_DIFFERENCE = 0.02
_MOST_SECONDS = 2.0
_DEVICES, _THREADS = 50, 10


class NoopRuntime(Runtime):
    """Gives the same outputs for every input, at once."""

    name = "noop"
    suffixes = (".onnx", ".tflite")

    def _package(self) -> str:
        return "numpy"

    def _import(self) -> None:
        self._outputs: NDArray[Any] = np.zeros(self.subject.output.shape, self.subject.output.dtype)

    def _open(self) -> None:
        pass

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return self._outputs

    def _close(self) -> None:
        pass


def measure_overhead(artifact: Artifact) -> tuple[float, float]:
    """Nanoseconds an inference: inside a sample, and of the processor for the whole loop."""
    session = Session(lambda done, total: None)
    inputs = np.zeros(artifact.input.shape, artifact.input.dtype)
    with NoopRuntime(artifact) as runtime:
        # What `start` and `load` of a worker set, with another runtime than there is a name for.
        session._runtime, session._inputs = runtime, cycle([inputs])
        session.window(_INFERENCES // 10, 0.0, 0)
        found = session.window(_INFERENCES, 0.0, 0)
    return float(np.median(found["wall"])), found["cpu"] / len(found["wall"])


def measure_twins(path: Path, twin: Path, seconds: float) -> BenchResult:
    """An artifact and its copy, measured in turns."""
    options = BenchOptions(seconds=seconds, profile=False)
    return run_plan(make_plan([path, twin], options), lambda *_: None).demand_complete()


def measure_plan(path: Path, twin: Path, result: BenchResult, file: Path) -> tuple[int, float, float]:
    """Cells of a large plan, seconds to make it, and seconds to resume it where one group is missing."""
    devices = tuple(f"ssh://pi@board{number}" for number in range(_DEVICES))
    request = PlanRequest(
        (str(path), str(twin)), threads=tuple(range(1, _THREADS + 1)), devices=devices,
        settings={"data": "fashion-mnist"},
    )  # fmt: skip
    start = time.monotonic()
    plan = expand(request)
    planned = time.monotonic() - start
    at = wall_clock()
    with file.open("wb") as lines:
        lines.write(encode(run_record(plan, sys.argv)))
        values = result.to_json()
        for group in plan.groups[:-1]:
            record = GroupRecord("", group.id, group.device, 1, at, at, 1.0, (), (), values)
            lines.write(encode(record))
    start = time.monotonic()
    with Store(file) as store:
        runner = Runner(
            expand(request), store.contents.attempts, "", store, _nowhere, _Silent(), RunOptions(0, 0.0)
        )  # fmt: skip
        outcomes = runner.run()
    seconds = time.monotonic() - start
    assert [o.is_new for o in outcomes].count(True) == 1
    return plan.cells, planned, seconds


def _nowhere(name: str) -> BenchDevice:
    raise DeviceError("there is no such device", stage="connect", where=name)


class _Silent:
    """Shows nothing."""

    def progress(self, device: str, stage: str, subject: str, done: int, total: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def finished(self, outcome: Outcome) -> None:
        """Nothing."""


def main() -> int:
    """Prints the figures; exits with 1 if one is beyond its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="of inferences timed, of each twin")
    arguments = parser.parse_args()
    try:
        artifact = read_artifact(arguments.artifact)
        inside, loop = measure_overhead(artifact)
        with tempfile.TemporaryDirectory() as folder:
            twin, file = Path(folder) / arguments.artifact.name, Path(folder) / "results.jsonl"
            shutil.copytree(arguments.artifact, twin)
            result = measure_twins(arguments.artifact, twin, arguments.seconds)
            cells, planned, resumed = measure_plan(arguments.artifact, twin, result, file)
            size = file.stat().st_size
    except CsrError as error:
        print(error, file=sys.stderr)
        return 1
    (ratio,) = result.comparisons
    latency = result.measurements[0].latency
    assert latency is not None
    share, milliseconds = inside / latency.median_ns, latency.median_ns / 1e6
    lines = {
        "no-op runtime, inside each sample": f"{inside:.0f} ns, {share:.3%} of {milliseconds:.3f} ms",
        "no-op runtime, loop with its clock": f"{loop:.0f} ns, in no sample",
        "an artifact against its own copy": f"{ratio.ratio:.4f}, 95% {ratio.low:.4f} to {ratio.high:.4f}",
        f"a plan of {cells:,} cells": f"{planned:.2f} s to make",
        "the same, all but one of them done": f"{resumed:.2f} s to resume, {size / 1e6:,.0f} MB of results",
    }
    for name, figure in lines.items():
        print(f"{name + ':':36} {figure}")
    for reason in result.void:
        print(f"void: {reason}")
    good = (inside < _MOST_NS or share < _MOST_SHARE) and abs(ratio.ratio - 1) <= _MOST_DIFFERENCE
    return int(not good or bool(result.void) or planned + resumed > _MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
