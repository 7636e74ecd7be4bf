"""The emulated Raspberry Pi itself. It is made once, with the network, and kept in the user's cache."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.bench.emulated_pi import BOARDS, Job, Root, count, count_subjects, look_inside
from tests.mcu_tflite import GraphBuilder
from tests.onnx_artifact import make_artifact

REPOSITORY = Path(__file__).parents[2]
# Instructions by which the place among the jobs, or more runs, may change a count: Python takes some hundred
# more now and then. Whoever measures the same jobs again gets the same counts.
CLOSE = 1000
CHANNELS = 16

# `subs x0, x0, #1; b.ne .-4; ret`: 2n + 1 instructions.
KNOWN_LOOP = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"".join(word.to_bytes(4, "little") for word in (0xF1000400, 0x54FFFFE1, 0xD65F03C0)))
loop = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
syscall = ctypes.CDLL(None).syscall
syscall.argtypes = [ctypes.c_long] * 3
for n in [1] * 12 + [100_001, 200_001]:
    syscall(141, 0x43535250, n)
    loop(n)
    syscall(141, 0x43535250, n)
"""
DEVICE_SIDE = """
import sys
import csr_deploy.artifact, csr_deploy.bench, csr_deploy.runtimes.litert
from csr_deploy.artifact import read_artifact
from csr_deploy.runtimes import open_runtime
from csr_deploy.runtimes.golden import verify_golden
with open_runtime(None, read_artifact(sys.argv[1])) as runtime:
    report = verify_golden(runtime)
missing = [name for name in ("torch", "onnx") if name in sys.modules]
print(report.images, missing, csr_deploy.__file__)
"""


@pytest.fixture(scope="module")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3×3 convolution, int8: 16 channels at 16×16."""
    random = np.random.default_rng(0)
    graph = GraphBuilder()
    x = graph.input((1, 16, 16, CHANNELS), (0.05, 0))
    weights = random.integers(-127, 128, (CHANNELS, 3, 3, CHANNELS)).astype(np.int8)
    made = graph.conv2d(x, weights, np.full(CHANNELS, 0.01), np.zeros(CHANNELS, np.int32), (0.1, 0))
    path = tmp_path_factory.mktemp("tflite") / "conv.tflite"
    path.write_bytes(graph.build(made))
    return path


def test_instructions_are_counted_exactly(root: Root, tmp_path: Path) -> None:
    command = root.command(BOARDS["pi4"], ["-c", KNOWN_LOOP], tmp_path / "marks")
    subprocess.run(command, env=root.environment(), check=True, timeout=120)
    marks = [list(map(int, line.split())) for line in (tmp_path / "marks").read_text().splitlines()]
    calls = {n: sum(end) - sum(start) for (n, *start), (_, *end) in zip(marks[::2], marks[1::2], strict=True)}
    assert calls[200_001] - calls[100_001] == 2 * 100_000


def test_golden_outputs_of_an_artifact(root: Root, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "colours")
    first, second = count_subjects([artifact.path, artifact.path], ["pi5"], runs=3)
    assert first.count.error is None
    assert first.golden is not None
    assert first.golden.images == 6
    assert first.count.busiest_thread == first.count.instructions
    assert abs(second.count.instructions - first.count.instructions) <= CLOSE


@pytest.mark.full
def test_boards_differ_in_dot_products_and_counts_repeat(root: Root, tflite: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"nothing")
    job = Job("conv", tflite, "litert")
    jobs = [job, replace(job, name="broken", model=broken), job]
    pi4, bad, after = count(jobs, "pi4")
    assert bad.error is not None
    assert pi4.outputs is not None
    assert abs(after.instructions - pi4.instructions) <= CLOSE
    assert [c.instructions for c in count(jobs, "pi4")] == [pi4.instructions, 0, after.instructions]
    (longer,) = count([job], "pi4", runs=9)
    assert abs(longer.instructions - pi4.instructions) <= CLOSE
    (pi5,) = count([job], "pi5")
    np.testing.assert_array_equal(pi5.outputs, pi4.outputs)
    # 0.6 M multiplications, a dot product does 16 of them.
    assert pi5.instructions < 0.7 * pi4.instructions
    assert pi4.private_bytes is not None and 0 < pi4.private_bytes < 64 << 20


@pytest.mark.full
def test_the_wheel_runs_without_torch(root: Root, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "colours")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "wheel", *options, str(REPOSITORY)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    said = root.run(BOARDS["pi4"], ["-c", DEVICE_SIDE, str(artifact.path)], [site])
    assert said.split()[:2] == ["6", "[]"]
    assert str(site) in said


@pytest.mark.full
def test_what_a_program_sees(root: Root) -> None:
    pi4, pi5 = (look_inside(root, BOARDS[key]) for key in ("pi4", "pi5"))
    assert (pi4.machine, pi4.cores) == ("aarch64", 4)
    assert "asimddp" not in pi4.features
    assert "asimddp" in pi5.features
