"""The command, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.onnx_artifact import make_artifact

ROOT = Path(__file__).parents[2]
# Like the installed command, without the working directory among the places to import from.
START = "import sys; sys.path = [p for p in sys.path if p]; from csr_deploy.cli.bench import main; main()"
COMMAND = [sys.executable, "-c", START]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def bench(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(),
    )


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("cli")
    return [make_artifact(root / name, name=name).path for name in ("backbone", "csr")]


def test_a_table_markdown_and_json(artifacts: list[Path], image_folder: Path, tmp_path: Path) -> None:
    # In a folder with a module that has the name of a standard one: workers must not import from there.
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working directory')")
    run = bench(
        *artifacts, "--quick", "--data", image_folder, "--limit", 6, "--images", 3, "--seconds", 0,
        "--json", "out/result.json", "--markdown", "out/result.md", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "backbone-onnx (baseline)" in run.stdout and "100.00%" in run.stdout
    values = json.loads((tmp_path / "out" / "result.json").read_text())
    assert values["quick"] and values["baseline"] == "backbone-onnx"
    assert values["options"]["images"] == 3 and values["options"]["limit"] == 6
    assert "| parameters | 90 | 90 (×1.00) |" in (tmp_path / "out" / "result.md").read_text()


def test_json_on_standard_output_is_nothing_but_json(artifacts: list[Path], image_folder: Path) -> None:
    run = bench(artifacts[0], "--no-latency", "--data", image_folder, "--limit", 3, "--json", "-")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["measurements"][0]["accuracy"]["top1"] == 1.0
    assert "top-1 (3 images)" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: does not exist"),
        (["{artifact}", "--runtime", "litrt"], "Did you mean litert"),
        (["{artifact}", "--runtime", "litert"], "the litert runtime runs .tflite files, this is model.onnx"),
        (["{artifact}", "--kernels", "reference"], "the ort runtime has no reference kernels"),
        (["{artifact}", "--kernels", "fast"], "unknown kernels 'fast'"),
        (["{artifact}", "--baseline", "other"], "Use one of: backbone-onnx"),
        (["{artifact}", "--no-latency"], "nothing to measure"),
        (["{artifact}", "--data", "nowhere"], "nowhere: does not exist"),
        (["{artifact}", "--json", "-", "--markdown", "-"], "only one output"),
        (["{artifact}", "--json", "{artifact}"], "is a directory"),
        (["{artifact}", "--fail-if", "acuracy_drop>1"], "Did you mean accuracy_drop"),
        (["{artifact}", "--batch", "4"], "takes 1 image an inference, a batch of 4 was asked for"),
        (["{artifact}", "--device", "locl"], "Did you mean local?"),
        (["{artifact}", "--resume"], "nothing to resume"),
        (["{artifact}", "--results", "{artifact}"], "is a directory"),
        (
            ["{artifact}", "--target", "onnx-int8"],
            "there is no artifact of backbone for the target onnx-int8",
        ),
        (["{artifact}", "--target", "onx"], "Did you mean onnx"),
        (["{artifact}", "--threads", "1", "--threads", "2", "--json", "x.json"], "Use --results FILE."),
        (["--plan", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["compare", "{artifact}/manifest.json", "nowhere"], "manifest.json, line 1: is damaged"),
        (["{artifact}", "--device", "qemu:cortex-m4"], "the ort runtime has no choice of a device"),
        (["{artifact}", "--device", "qemu:m9"], "Devices: host, qemu:cortex-m3"),
        (["{artifact}", "--device", "qemu:m4", "--seconds", "1"], "nothing is timed on qemu:cortex-m4"),
        (["{artifact}", "--device", "serial:/dev/x", "--telemetry", "sysfs"], "that of this machine"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_the_user_can_mend_exits_with_1(
    artifacts: list[Path], arguments: list[str], message: str
) -> None:
    run = bench(*(a.format(artifact=artifacts[0]) for a in arguments))
    assert run.returncode == 1, run.stderr
    assert message in run.stderr
    assert "Traceback" not in run.stderr and run.stdout == ""


@pytest.mark.parametrize("arguments", [[], ["x", "--threads", "0"], ["x", "--no-such-option"]], ids=str)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert bench(*arguments).returncode == 2


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children():
        try:
            if any("csr_deploy.bench.worker" in part for part in child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_for_timed_workers(process: psutil.Process) -> list[psutil.Process]:
    """Workers of both subjects and the one that watches the machine, all three alive."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(found := workers_of(process)) == 3:
            return found
        time.sleep(0.05)
    raise AssertionError("the workers never started")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_stopping_leaves_no_worker(
    artifacts: list[Path], tmp_path: Path, signal_number: signal.Signals
) -> None:
    # Windows are short, as a worker whose parent was killed notices it at the end of one.
    run = subprocess.Popen(
        [*COMMAND, *map(str, artifacts), "--images", "100000000" if signal_number == signal.SIGINT else "9"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**environment(), "TMPDIR": str(tmp_path)},
    )
    try:
        workers = wait_for_timed_workers(psutil.Process(run.pid))
        run.send_signal(signal_number)
        _, messages = run.communicate(timeout=60)
        gone, alive = psutil.wait_procs(workers, timeout=60)
    finally:
        run.kill()
    assert not alive and len(gone) == 3
    assert list(tmp_path.iterdir()) == []
    if signal_number == signal.SIGINT:
        assert run.returncode == 130 and b"Traceback" not in messages


def test_a_worker_that_dies_is_reported_and_the_others_go_on(artifacts: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    run = subprocess.Popen(
        [*COMMAND, *map(str, artifacts), "--quick", "--seconds", "5", "--json", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    try:
        workers = wait_for_timed_workers(psutil.Process(run.pid))
        max(workers, key=lambda p: p.create_time()).kill()
        shown, messages = run.communicate(timeout=120)
        gone, alive = psutil.wait_procs(workers, timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1
    assert "killed by SIGKILL" in messages and "Traceback" not in messages
    assert not alive and len(gone) == 3
    values = json.loads(file.read_text())
    (failure,) = values["failures"]
    assert (failure["subject"], failure["error"]) == ("csr-onnx", "BenchError")
    # Where it was when it died depends on how busy this machine is.
    assert failure["stage"] in ("start", "load", "latency")
    assert f"(stage: {failure['stage']})" in messages
    backbone, csr = values["measurements"]
    assert backbone["latency"]["median_ns"] > 0 and backbone["memory"] is not None
    # What was measured before is kept.
    assert csr["latency"] is None and csr["golden"]["images"] == 6 and values["comparisons"] == []
    assert f"Failed at {failure['stage']}: csr-onnx" in shown


def test_a_subject_called_like_a_command(artifacts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "report").symlink_to(artifacts[0])
    measured = bench("./report", "--quick", "--seconds", 0, cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert "backbone-onnx" in measured.stdout
    command = bench("report", cwd=tmp_path)
    assert command.returncode == 2 and "RESULTS" in command.stderr


@pytest.mark.parametrize("command", [[], ["report"], ["compare"], ["run"]], ids=str)
def test_every_command_has_help(command: list[str]) -> None:
    run = bench(*command, "--help")
    assert run.returncode == 0 and "Usage:" in run.stdout
    assert ("--fail-if" in run.stdout) == (command in ([], ["run"]))
