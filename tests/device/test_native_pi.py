"""Native artifacts on emulated Raspberry Pis: the kernels that each board takes, outputs, and the demo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")

from csr_deploy.artifact import Artifact
from csr_deploy.bench.devices import open_device
from csr_deploy.bench.emulated_pi import BOARDS, Job, Root, count, count_subjects
from csr_deploy.bench.emulated_pi.install import install
from csr_deploy.bench.groups import make_group
from csr_deploy.bench.plan import QUICK, make_plan
from csr_deploy.bench.results import BenchResult
from csr_deploy.errors import RuntimeUnavailableError
from csr_deploy.runtimes.native.platforms import AARCH64
from csr_deploy.runtimes.native.runtime import carried_library
from tests.native import demand_compiler, make_native, without_libraries

ARCHITECTURES = {"pi4": "armv8-a", "pi5": "armv8.2-a+dotprod"}
WORKER = "from csr_deploy.bench.worker import main; main()"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    demand_compiler(AARCH64)
    return make_native(tmp_path_factory.mktemp("native"))


def test_each_board_takes_its_kernels_and_gives_the_golden_outputs(root: Root, artifact: Artifact) -> None:
    rows = count_subjects([artifact.path], list(ARCHITECTURES), runs=3)
    for row in rows:
        assert row.count.error is None
        assert row.count.kernels == ARCHITECTURES[row.board]
        assert row.golden is not None and row.golden.exact and row.golden.images == 16
        assert row.count.instructions > 1000
        assert row.count.busiest_thread == row.count.instructions
        assert row.count.private_bytes is not None and row.count.private_bytes < 1 << 20


def test_what_cannot_be_counted(root: Root, artifact: Artifact, tmp_path: Path) -> None:
    bare = without_libraries(artifact, tmp_path / "bare-native")
    with pytest.raises(RuntimeUnavailableError, match="no library for aarch64, and an emulated Pi cannot"):
        count_subjects([bare.path], ["pi4"])
    library = carried_library(artifact, "aarch64")
    assert library is not None
    broken = tmp_path / "libmodel.so"
    broken.write_bytes(b"nothing")
    jobs = [
        Job("many", library, "native", threads=65),
        Job("broken", broken, "native"),
        Job("one", library, "native"),
        Job("two", library, "native", threads=2),
    ]
    many, bad, one, two = count(jobs, "pi5", runs=1)
    assert many.error is not None and "set_threads gave the error 4" in many.error
    assert bad.error is not None and bad.error.startswith("OSError")
    assert one.error is None and one.outputs is not None and one.outputs.dtype == np.int8
    assert two.error is None and np.array_equal(two.outputs, one.outputs)


def test_as_a_device_of_csr_bench(root: Root, artifact: Artifact) -> None:
    plan = make_plan([artifact.path], QUICK)
    with open_device("pi-emulated:pi5", count_runs=3) as device:
        values = device.run(make_group(device.name, plan), lambda *event: None)
    (measured,) = BenchResult.from_json(json.loads(json.dumps(values))).measurements
    assert measured.runtime == "native"
    assert measured.golden is not None and measured.golden.exact
    assert measured.instructions is not None and measured.instructions.per_inference > 1000
    assert measured.settings["architecture"] == ARCHITECTURES["pi5"]
    assert measured.sizes.file_bytes == artifact.model["libraries"]["aarch64"]["bytes"]
    assert measured.sizes.arena_bytes == artifact.model["arena_bytes"]


@pytest.mark.full
@pytest.mark.parametrize("board", ARCHITECTURES)
def test_the_device_side_runs_it(
    root: Root, artifact: Artifact, tmp_path: Path, own_wheel: Path, board: str
) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    site = install(root, tmp_path / "site", wheel=own_wheel)
    start = {
        "path": str(artifact.path),
        "kind": "artifact",
        "runtime": None,
        "threads": 1,
        "kernels": None,
        "batch": 1,
    }
    requests = [{"do": "start", "with": start}, {"do": "check", "with": {}}]
    given = "".join(json.dumps(request) + "\n" for request in requests)
    said = site.run(BOARDS[board], ["-c", WORKER], given=given)
    started, checked = (json.loads(line)["value"] for line in said.splitlines())
    assert started["runtime"] == "native"
    assert checked["golden"]["exact"]
    assert checked["settings"]["architecture"] == ARCHITECTURES[board]
    assert checked["settings"]["library"] == "lib/aarch64/libmodel.so"
    photos = tmp_path / "photos"
    photos.mkdir()
    golden = artifact.golden()
    for index in range(3):
        image.fromarray(golden.images[index]).save(photos / f"{index}.png")
    arguments = [str(artifact.path), "--headless", "--source", str(photos)]
    shown = site.run(BOARDS[board], ["-m", "csr_deploy.cli.demo", *arguments])
    lines = [json.loads(line) for line in shown.splitlines()]
    assert [line["name"] for line in lines] == ["0.png", "1.png", "2.png"]
    best = [line["models"][0]["top"][0]["label"] for line in lines]
    assert best == [artifact.labels[i] for i in golden.outputs[:3].argmax(1)]
