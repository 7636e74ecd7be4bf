"""A board over SSH: what works. What goes wrong is in test_ssh_faults.py."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from csr_deploy.bench.devices import DeviceOptions, open_device, parse_device_name
from csr_deploy.bench.devices.remote import clean
from csr_deploy.bench.devices.wheels import download
from csr_deploy.bench.groups import Group, make_group
from csr_deploy.bench.plan import QUICK, make_plan
from csr_deploy.bench.results import BenchResult
from tests.onnx_artifact import make_artifact
from tests.sshd import Board

Events = list[tuple[str, str, int, int]]


def group_of(board: Board, *paths: Path, **options: object) -> Group:
    chosen = replace(QUICK, telemetry="none", profile=False, **options)  # type: ignore[arg-type]
    return make_group(board.url, make_plan(paths, chosen))


def recorder(events: Events) -> object:
    return lambda *event: events.append(event)


@pytest.fixture
def artifacts(tmp_path: Path) -> tuple[Path, Path]:
    first = make_artifact(tmp_path / "first", name="first")
    second = make_artifact(tmp_path / "second", name="second", extra_channels=3)
    return first.path, second.path


def test_torch_is_not_there(board: Board) -> None:
    code = (
        "import csr_deploy.bench.measure, importlib.util as u; "
        "print([u.find_spec(name) for name in ('torch', 'onnx')])"
    )
    said = subprocess.check_output([board.folder / "venv/bin/python", "-I", "-c", code], text=True)
    assert said.strip() == "[None, None]"


@pytest.mark.full
def test_wheels_are_downloaded_for_another_python_and_processor(own_wheel: Path, tmp_path: Path) -> None:
    board = {
        "python": "3.10.12",
        "python_version": [3, 10],
        "kernel_machine": "aarch64",
        "libc": "glibc 2.35",
    }
    download(own_wheel, ["pi"], board, tmp_path)
    names = [path.name for path in tmp_path.glob("*.whl")]
    assert any(n.startswith("numpy-") and "cp310" in n and "aarch64" in n for n in names)
    # Only Python 3.10 needs it: whether a requirement applies is the board's matter.
    assert any(n.startswith("tomli-") for n in names)


def test_a_group_is_measured_there(board: Board, artifacts: tuple[Path, Path], image_folder: Path) -> None:
    events: Events = []
    group = group_of(board, *artifacts, data=str(image_folder), limit=12)
    with open_device(board.url, ssh_config=board.config) as device:
        values = device.run(group, recorder(events))
    result = BenchResult.from_json(values)
    assert result.failures == ()
    assert [m.subject for m in result.measurements] == ["first-onnx", "second-onnx"]
    first = result.measurements[0]
    assert first.golden is not None and first.golden.images == 6
    assert first.latency is not None and first.memory is not None
    assert first.accuracy is not None
    assert (first.accuracy.source, first.accuracy.images) == (str(image_folder), 12)
    assert result.options["data"] == str(image_folder)
    assert "torch" not in result.environment.versions
    stages = [stage for stage, *_ in events]
    # Hashes on arrival and golden outputs come before anything is timed.
    assert stages.index("transfer") < stages.index("check") < stages.index("latency")
    assert any((board.folder / "blobs").iterdir())
    assert clean(parse_device_name(board.url), DeviceOptions(ssh_config=board.config)) > 0
    assert not (board.folder / "blobs").exists() and (board.folder / "venv").exists()
