"""The emulated Raspberry Pi, as far as it goes without the emulator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from csr_deploy.bench import emulated_pi
from csr_deploy.bench.emulated_pi import (
    BOARDS,
    Board,
    Count,
    Job,
    count,
    count_subjects,
    emulator,
    guest,
    root,
)
from csr_deploy.cli import device
from csr_deploy.errors import BenchError, CsrError, OptionError, RuntimeUnavailableError
from tests.onnx_artifact import SIDE, make_artifact, make_model

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

# What a process of the board says and marks for two jobs: one counted, with a second thread from the fourth
# mark on, one failed.
COUNTED = [
    (0, [1000]),
    (1, [5000]),
    (2, [6000]),
    (3, [9100]),
    *((4, [10_000 + 100 * i]) for i in range(3)),
    (5, [11_000]),
    (5, [12_100, 500]),
    (5, [13_200, 900]),
    (5, [14_300, 1300]),
]


class FakeRoot:
    """A root whose board is a script of this machine."""

    versions = {"onnxruntime": "1", "ai-edge-litert": "2"}

    def __init__(self, script: str) -> None:
        self.script = script

    def command(self, board: Board, arguments: Sequence[str], marks: Path | None = None) -> list[str]:
        return [sys.executable, "-c", f"MARKS = {str(marks)!r}\n{self.script}"]

    def environment(self) -> dict[str, str]:
        return {}


def fake(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(emulator, "prepare_root", lambda folder: FakeRoot(script))


def marked(number: int) -> str:
    return "".join(f"{16 * number + moment} {' '.join(map(str, c))}\n" for moment, c in COUNTED)


def saying(*lines: dict[str, object]) -> str:
    done = {number for number in range(len(lines)) if "done" in lines[number]}
    marks = "".join(marked(number) for number in sorted(done))
    saved = "".join(
        f"numpy.save('{number}.npy', numpy.full((1, 2), {number}.0))\n" for number in sorted(done)
    )
    return (
        f"import numpy\nopen(MARKS, 'w').write({marks!r})\n{saved}"
        f"for line in {[json.dumps(line) for line in lines]!r}: print(line, flush=True)\n"
    )


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [Job("one", tmp_path / "one.onnx", "ort"), Job("two", tmp_path / "two.onnx", "ort")]


def test_counts_come_from_the_marks(monkeypatch: pytest.MonkeyPatch, jobs: list[Job]) -> None:
    done = {"done": 0, "private_bytes": 4096, "mapped_bytes": 8192}
    fake(monkeypatch, saying(done, {"failed": 1, "reason": "it is no model"}))
    seen: list[Count] = []
    one, two = count(jobs, "pi4", runs=3, on_done=seen.append)
    assert seen == [one, two]
    # A mark takes 100; both threads of an inference count, and the busiest is the first one.
    assert (one.instructions, one.busiest_thread) == (1000 + 400, 1000)
    assert (one.load, one.first) == (4000 - 100, 3100 - 100)
    assert (one.private_bytes, one.mapped_bytes, one.error) == (4096, 8192, None)
    np.testing.assert_array_equal(one.outputs, [[0.0, 0.0]])
    assert (two.instructions, two.outputs, two.error) == (0, None, "it is no model")


def test_a_process_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch, jobs: list[Job]) -> None:
    fake(monkeypatch, "import sys; sys.exit('the last word')")
    with pytest.raises(BenchError, match="exit status 1; the last word"):
        count(jobs, "pi4")


def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, jobs: list[Job]) -> None:
    monkeypatch.setattr(emulator, "_MOST_SILENT_SECONDS", 0.2)
    fake(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(BenchError, match="exit status -9"):
        count(jobs, "pi4")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count([], "pi3"), "no board 'pi3'"),
        (lambda: count([], "pi4", runs=0), "runs is 0"),
        (lambda: Job("x", Path("x"), "tflm"), "no runtime 'tflm'"),  # type: ignore[arg-type]
        (lambda: Job("x", Path("x"), "ort", threads=0), "threads is 0"),
        (lambda: count_subjects([Path("pyproject.toml")], ["pi4"]), "neither an artifact nor"),
    ],
)
def test_options_are_checked(call: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()  # type: ignore[operator]


def test_nothing_is_made_for_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(emulator, "prepare_root")
    assert count([], "pi5") == []


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_board_tells_its_processor(board: Board) -> None:
    files = board.files()
    assert files["proc/cpuinfo"].count("processor\t: ") == board.cores
    assert f"CPU part\t: 0x{board.part:x}\n" in files["proc/cpuinfo"]
    assert files["sys/devices/system/cpu/possible"] == "0-3\n"
    # The part stands in bits 4 to 15 of MIDR_EL1.
    midr = int(files["sys/devices/system/cpu/cpu3/regs/identification/midr_el1"], 16)
    assert (midr >> 24, midr >> 4 & 0xFFF) == (0x41, board.part)
    assert ("asimddp" in board.features) == (board.key == "pi5")


def test_the_cache_is_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CSR_PI_ROOT", raising=False)
    assert root.cache_folder() == tmp_path / "cache" / "csr-deploy" / "emulated-pi"
    monkeypatch.setenv("CSR_PI_ROOT", str(tmp_path / "named"))
    assert root.cache_folder() == tmp_path / "named"
    assert root.cache_folder(tmp_path / "given") == tmp_path / "given"


def test_another_version_here_needs_another_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = root._place(tmp_path)
    monkeypatch.setattr(root.importlib.metadata, "version", lambda name: "0.0")
    assert root._place(tmp_path) != before


def test_a_damaged_stamp_is_told(tmp_path: Path) -> None:
    place = root._place(tmp_path)
    place.mkdir()
    assert root.find_root(tmp_path) is None
    (place / "stamp.json").write_text("{")
    with pytest.raises(RuntimeUnavailableError, match="Delete the folder"):
        root.find_root(tmp_path)


def test_a_machine_without_apt_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(root.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match="apt-get is missing here"):
        root.prepare_root(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> list[Path]:
        raise RuntimeUnavailableError("apt could not download it", fix="This needs the network once.")

    monkeypatch.setattr(root.shutil, "which", lambda name: name)
    monkeypatch.setattr(root, "_call", lambda *arguments, **options: "amd64\n")
    monkeypatch.setattr(root, "_download_debian", refuse)
    with pytest.raises(RuntimeUnavailableError, match="needs the network once"):
        root.prepare_root(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_program_that_fails_says_why() -> None:
    script = "import sys; print('out'); sys.exit('no such package')"
    with pytest.raises(RuntimeUnavailableError, match=r"it failed \(exit status 1\): no such package"):
        root._call([sys.executable, "-c", script], "it failed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path / "model.onnx")
    return tmp_path


def run_guest(folder: Path, *jobs: dict[str, object]) -> list[dict[str, object]]:
    """The guest's program on this machine: the marks go nowhere, all else is the same."""
    for number, job in enumerate(jobs):
        whole = {
            "model": str(folder / "model.onnx"),
            "runtime": "ort",
            "threads": 1,
            "inputs": None,
            "runs": 1,
        }
        (folder / f"{number}.json").write_text(json.dumps(whole | job))
    run = subprocess.run(
        [sys.executable, guest.__file__, str(len(jobs))],
        cwd=folder,
        env={"ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_the_guest_goes_on_after_a_failure(folder: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)
    np.save(folder / "inputs.npy", inputs)
    np.save(folder / "wrong.npy", inputs[:, :2])
    broken, wrong, good, noise = run_guest(
        folder,
        {"runtime": "litert"},
        {"inputs": str(folder / "wrong.npy")},
        {"inputs": str(folder / "inputs.npy")},
        {},
    )
    assert broken["failed"] == 0
    assert "ValueError" in str(broken["reason"])
    assert wrong["reason"] == (
        "ValueError: the inputs are float32[3, 2, 16, 16], the model takes float32[1, 3, 16, 16]"
    )
    assert good["done"] == 2
    assert isinstance(good["private_bytes"], int)
    means = np.maximum(np.load(folder / "2.npy"), 0)
    assert means.shape == (3, 3)
    assert noise["done"] == 3
    assert np.load(folder / "3.npy").shape == (1, 3)


def test_noise_fills_its_type() -> None:
    floats = guest._noise((1, 3, 40, 40), "float32")
    assert abs(float(floats.mean())) < 0.05
    assert abs(float(floats.std()) - 1) < 0.05
    for dtype, low, high in (("int8", -128, 127), ("uint8", 0, 255)):
        integers = guest._noise((1, 40, 40, 3), dtype)
        assert (integers.dtype, integers.min(), integers.max()) == (np.dtype(dtype), low, high)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_golden_outputs_come_before_counts(
    shift: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "colours")
    outputs = artifact.golden().outputs + np.float32(shift)

    def counted(jobs: Sequence[Job], board: str, **options: object) -> list[Count]:
        (job,) = jobs
        assert job.inputs is not None
        np.testing.assert_array_equal(np.load(job.inputs), artifact.encode(artifact.golden().images))
        result = Count(job.name, 7, outputs=outputs)
        options["on_done"](result)  # type: ignore[operator]
        return [result]

    monkeypatch.setattr(emulated_pi.subjects, "count", counted)
    monkeypatch.setattr(emulated_pi.subjects, "prepare_root", lambda folder: FakeRoot(""))
    first, second = count_subjects([artifact.path], ["pi4", "pi5"])
    assert (first.board, second.board) == ("pi4", "pi5")
    if shift:
        assert first.golden is None
        assert first.count.instructions == 0
        assert "differs by" in str(first.count.error)
        assert "onnxruntime 1 on pi4" in str(first.count.error)
    else:
        assert first.golden is not None
        assert first.golden.exact
        assert first.count.instructions == 7


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(device.app, list(arguments))
    if isinstance(result.exception, CsrError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def test_info_wants_a_prepared_device(tmp_path: Path) -> None:
    assert "Run: csr-device setup pi-emulated" in invoke("info", "pi-emulated:pi4", "--cache", str(tmp_path))


def test_unknown_devices_are_told() -> None:
    assert "there is no device 'pi'" in invoke("setup", "pi")
    assert "no board 'pi9'" in invoke("info", "pi-emulated:pi9")


def test_the_table_has_ratios_and_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = {"base": 10_000_000, "ours": 8_000_000}

    def rows(paths: Sequence[Path], boards: Sequence[str], **options: object) -> list[emulated_pi.Row]:
        return [
            emulated_pi.Row(path.name, board, "litert", 1, Count(path.name, counts[path.name]), None)
            if path.name in counts
            else emulated_pi.Row(path.name, board, "litert", 1, Count(path.name, 0, error="is broken"), None)
            for board in boards
            for path in paths
        ]

    monkeypatch.setattr(emulated_pi, "count_subjects", rows)
    out = tmp_path / "counts.json"
    shown = invoke("count", "base", "ours", "--json", str(out))
    assert "10.00 M" in shown
    assert "(×0.800)" in shown
    assert [row["instructions"] for row in json.loads(out.read_text())["rows"]] == [10_000_000, 8_000_000] * 2
    assert "2 of 4 could not be counted\nlost on pi4: is broken" in invoke("count", "base", "lost")
