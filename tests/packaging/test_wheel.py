"""What a wheel holds. A checkout that lost the two links builds a broken one, and only this shows it."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_COPIED = (
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "build",
    "demos",
    "dist",
    "out",
    "runs",
)
LIGHT = {"numpy", "psutil", "rich", "tomli", "typer"}
EXTRAS = {"all", "demo", "dev", "export", "jetson", "mcu", "pi", "report", "search", "train"}


def build(source: Path, out: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options, str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, so that the build leaves nothing in it."""
    copy = tmp_path_factory.mktemp("source") / "csr-deploy"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def dist_info(installed: Path) -> Path:
    (folder,) = installed.glob("*.dist-info")
    return folder


@pytest.fixture(scope="module")
def metadata(dist_info: Path) -> Message:
    return Parser().parsestr((dist_info / "METADATA").read_text(encoding="utf-8"))


def files_of(folder: Path) -> set[str]:
    return {
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder, followlinks=True)
        if "__pycache__" not in parent
        for name in names
    }


def test_the_links_are_links() -> None:
    for name in ("exporters", "runtimes"):
        assert os.readlink(ROOT / "csr_deploy" / name) == f"../{name}"


def test_one_package_and_its_metadata(installed: Path, dist_info: Path) -> None:
    assert {p.name for p in installed.iterdir()} == {"csr_deploy", dist_info.name}


def test_every_file_of_the_package(installed: Path, source: Path) -> None:
    assert files_of(installed / "csr_deploy") == files_of(source / "csr_deploy")


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "exporters/__init__.py",
        "runtimes/__init__.py",
        "runtimes/native/runtime.py",
        "cli/export.py",
        "cli/bench.py",
        "cli/train.py",
        "bench/emulated_pi/counter.c",
        "bench/schema/results.schema.json",
        "demo/artifacts/resnet56-csr2-tflite-int8/manifest.json",
        "demo/artifacts/resnet56-tflite-int8/manifest.json",
        "demo/imagenet_classes.txt",
        "demo/page/app.js",
        "data/samples/fashion-mnist/LICENSE",
        "data/samples/fashion-mnist/train-images-idx3-ubyte.gz",
        "data/samples/fashion-mnist/train-labels-idx1-ubyte.gz",
        "data/samples/fashion-mnist/t10k-images-idx3-ubyte.gz",
        "data/samples/fashion-mnist/t10k-labels-idx1-ubyte.gz",
    ],
)
def test_what_must_not_be_forgotten(installed: Path, name: str) -> None:
    assert (installed / "csr_deploy" / name).is_file()


def test_licences(dist_info: Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (dist_info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    samples = "csr_deploy/data/samples/fashion-mnist/LICENSE"
    assert (dist_info / "licenses" / samples).read_bytes() == (ROOT / samples).read_bytes()


def test_dependencies_are_light_without_extras(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    plain = [r for r in requirements if "extra ==" not in r]
    assert {r.split(">")[0] for r in plain} == LIGHT
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert metadata["Requires-Python"] == "<3.14,>=3.10"


def test_commands(dist_info: Path, installed: Path, tmp_path: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read_string((dist_info / "entry_points.txt").read_text(encoding="utf-8"))
    assert dict(parser["console_scripts"]) == {
        # `import` is a keyword.
        f"csr-{name}": f"csr_deploy.cli.{name if name != 'import' else 'import_'}:main"
        for name in ("bench", "demo", "device", "export", "import", "info", "prune", "search", "train")
    }
    run_installed(
        installed,
        tmp_path,
        "from importlib.metadata import distributions\n"
        f"(found,) = distributions(path=[{str(installed)!r}])\n"
        "for point in found.entry_points: assert callable(point.load()), point",
    )


def test_the_sample_opens_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    run_installed(
        installed,
        tmp_path,
        "from csr_deploy.data import open_dataset\n"
        "assert len(open_dataset('fashion-mnist', 'train')) == 200\n"
        "assert len(open_dataset('fashion-mnist', 'test')) == 1000\n"
        "import csr_deploy.exporters, csr_deploy.runtimes",
    )


def test_the_source_distribution_builds_the_same_wheel(
    source: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Without --wheel the wheel is built from the source distribution, not from the tree.
    again = build(source, tmp_path_factory.mktemp("sdist"))
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        assert all(one.read(name) == other.read(name) for name in one.namelist())


def run_installed(installed: Path, folder: Path, code: str) -> None:
    """Runs code against the unpacked wheel, away from the tree."""
    setup = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        f"import csr_deploy; assert csr_deploy.__file__.startswith({str(installed)!r}), csr_deploy.__file__\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", setup + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
