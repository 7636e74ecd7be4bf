"""A real csr-bench on real networks, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from csr_deploy.bench.store import read_results, read_store
from tests.unit.test_bench_cli import workers_of
from tests.unit.test_bench_schema import validate

ROOT = Path(__file__).parents[2]
START = "import sys; sys.path = [p for p in sys.path if p]; from csr_deploy.cli.{} import main; main()"
NETWORKS = ("fashion-resnet20", "fashion-resnet20-csr")


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", START.format(name), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def call(name: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments), capture_output=True, text=True, check=False, env=environment(), cwd=cwd
    )


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two demo networks on Fashion-MNIST, exported to ONNX."""
    pytest.importorskip("torch", reason="needs torch to export")
    out = tmp_path_factory.mktemp("fashion")
    for name in NETWORKS:
        made = call(
            "export", ROOT / "demos" / "models" / f"{name}.pt", "--target", "onnx", "--calibration",
            "fashion-mnist", "--parity-images", 64, "--out", out,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    return out


def wait_for_lines(path: Path, count: int, run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if path.is_file() and path.read_bytes().count(b"\n") >= count:
            return
        assert run.poll() is None, "csr-bench ended by itself"
        time.sleep(0.02)
    raise AssertionError("csr-bench wrote nothing")


@pytest.fixture
def plan(artifacts: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bench.toml"
    path.write_text(
        f'models = ["{artifacts}/fashion-resnet20", "{artifacts}/fashion-resnet20-csr"]\n'
        'targets = ["onnx"]\nthreads = [1, 2, 3]\nquick = true\ndata = "fashion-mnist"\nlimit = 40\n'
        'images = 9\nseconds = 0\nprofile = false\nresults = "r.jsonl"\nfail_if = ["accuracy_drop>50"]\n'
    )
    return path


@pytest.fixture
def children() -> Iterator[list[psutil.Process]]:
    found: list[psutil.Process] = []
    yield found
    for process in found:
        if process.is_running():
            process.kill()


def test_killed_in_the_middle_and_resumed(plan: Path, tmp_path: Path, children: list[psutil.Process]) -> None:
    path = tmp_path / "r.jsonl"
    run = subprocess.Popen(
        command("bench", "--plan", plan),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        # The plan and the first of three groups are there; the second one is being measured.
        wait_for_lines(path, 2, run)
        children += psutil.Process(run.pid).children(recursive=True)
        os.kill(run.pid, signal.SIGKILL)
    finally:
        run.wait()
    before = path.read_bytes()
    kept = before.splitlines(keepends=True)
    assert 2 <= len(kept) < 4
    # What a machine leaves whose power goes while it writes.
    path.write_bytes(before + kept[1][: len(kept[1]) // 2])

    refused = call("bench", "--plan", plan)
    assert refused.returncode == 1 and "exists already" in refused.stderr and "--resume" in refused.stderr
    resumed = call("bench", "--plan", plan, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "its last line was cut" in resumed.stderr
    missing = 3 - (len(kept) - 1)
    assert f"{len(kept) - 1} of 3 groups are there; to be measured: {missing} missing" in resumed.stderr
    assert "3 of 3 groups passed" in resumed.stdout and "The gate holds." in resumed.stderr

    # Nothing measured was lost or measured again.
    content = path.read_bytes()
    assert content.startswith(before)
    records = [json.loads(line) for line in content.splitlines()]
    for record in records:
        validate(record)
    groups = [r for r in records if r["record"] == "group"]
    assert len(groups) == len({r["group"] for r in groups}) == 3
    assert len({r["run"] for r in groups}) == 2
    assert [r["record"] for r in records].count("run") == 2
    for _, measured in read_results(path):
        base, csr = measured.measurements
        assert base.accuracy is not None and base.accuracy.images == 40 and base.accuracy.top1 > 0.7
        # Its recurrences have the drift that the export recorded.
        assert base.drift is None and csr.drift is not None and len(csr.drift.layers[0].rms) == 3

    again = call("bench", "--plan", plan, "--resume")
    assert again.returncode == 0 and "3 of 3 groups are there; nothing is missing" in again.stderr
    assert path.read_bytes().count(b"\n") == content.count(b"\n") + 1

    other = call("bench", "--plan", plan, "--resume", "--threads", 4, "--fail-if", "latency_ratio<1000")
    assert other.returncode == 1
    assert "3 others in the file are not in this plan and stay as they are" in other.stderr
    assert "latency_ratio<1000: it is " in other.stderr
    assert len(read_store(path).attempts) == 4


def test_compare_in_continuous_integration(plan: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    options = ("--plan", plan, "--threads", 1, "--results", tmp_path / "one.jsonl", "--json", old)
    assert call("bench", *options).returncode == 0
    same = call("bench", "compare", old, tmp_path / "one.jsonl")
    assert same.returncode == 0 and "0 worse" in same.stdout, same.stderr
    values = json.loads(old.read_text())
    values["measurements"][1]["accuracy"]["top1"] -= 0.2
    values["measurements"][1]["sizes"]["file_bytes"] *= 2
    new.write_text(json.dumps(values))
    worse = call("bench", "compare", old, new)
    assert worse.returncode == 1 and "2 figures became worse" in worse.stderr
    assert "top-1 in %" in worse.stdout and "−20.00 points" in worse.stdout and "×2.000" in worse.stdout
    assert call("bench", "compare", old, new, "--tolerance", 100, "--accuracy-tolerance", 30).returncode == 0
    values["measurements"] = values["measurements"][:1]
    new.write_text(json.dumps(values))
    gone = call("bench", "compare", old, new)
    assert gone.returncode == 1 and "1 cells are missing" in gone.stderr
    assert call("bench", "compare", old, new, "--allow-missing").returncode == 0
    for wrong in (plan, tmp_path, tmp_path / "nowhere"):
        refused = call("bench", "compare", old, wrong)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr


def test_ctrl_c_ends_every_device(artifacts: Path, tmp_path: Path) -> None:
    """Two lanes, one of which waits for a machine that never answers."""
    run = subprocess.Popen(
        command(
            "bench", artifacts / "fashion-resnet20-onnx", "--device", "local", "--device", "ssh://pi@192.0.2.1",
            "--images", 10**8, "--results", tmp_path / "r.jsonl",
        ),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**environment(), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    found: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while len(found) < 2 and time.monotonic() < deadline:
            found = workers_of(psutil.Process(run.pid))
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, messages = run.communicate(timeout=60)
        gone, alive = psutil.wait_procs(found, timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130 and b"Traceback" not in messages, messages
    assert not alive and gone
    assert read_store(tmp_path / "r.jsonl").runs
