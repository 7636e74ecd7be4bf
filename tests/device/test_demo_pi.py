"""The camera demo, installed from its wheel on an emulated Raspberry Pi, over a folder of images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from csr_deploy.bench.emulated_pi import BOARDS, prepare_root
from csr_deploy.bench.emulated_pi.install import Site, install
from csr_deploy.demo.catalogue import open_model
from csr_deploy.errors import RuntimeUnavailableError
from tests.demo import noise


@pytest.fixture(scope="module")
def site(own_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    try:
        root = prepare_root()
    except RuntimeUnavailableError as error:
        pytest.skip(f"needs the emulated Raspberry Pi: {error}")
    return install(root, tmp_path_factory.mktemp("site") / "packages", wheel=own_wheel)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    artifact = open_model("resnet56-csr2")
    golden = artifact.golden()
    root = tmp_path_factory.mktemp("photos")
    for index in range(0, len(golden.images), 2):
        folder = root / artifact.labels[golden.labels[index]]
        folder.mkdir(exist_ok=True)
        image.fromarray(golden.images[index]).save(folder / f"{index:02}.png")
    image.fromarray(noise(119, 241)).save(root / "odd.png")
    image.fromarray(noise(90, 90, 1)[:, :, 0]).save(root / "gray.jpg", quality=95)
    (root / "damaged.png").write_bytes(b"no picture")
    return root


def answers(text: str) -> dict[str, list[list[tuple[str, float]]]]:
    """What each network says of each picture; the times are left out."""
    found = {}
    for line in map(json.loads, text.splitlines()):
        found[line["name"]] = [[(t["label"], t["share"]) for t in m["top"]] for m in line["models"]]
    return found


@pytest.mark.parametrize("board", [pytest.param("pi4", marks=pytest.mark.full), "pi5"])
def test_a_folder_of_images_without_a_screen(site: Site, photos: Path, board: str) -> None:
    arguments = ["-m", "csr_deploy.cli.demo", "--headless", "--source", str(photos)]
    there = answers(site.run(BOARDS[board], arguments))
    here = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    expected = answers(here.stdout)
    assert len(there) == len(list(photos.rglob("*.png"))) == 10
    assert there.keys() == expected.keys()
    for name, models in there.items():
        for ours, theirs in zip(models, expected[name], strict=True):
            # Kernels of another processor may round an activation differently.
            assert {label: share for label, share in ours} == pytest.approx(dict(theirs), abs=0.05)
