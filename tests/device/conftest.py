"""A board behind a real sshd, prepared once: an environment of its own without torch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from csr_deploy.bench.devices import DeviceOptions
from csr_deploy.bench.devices.identity import code_sha256
from csr_deploy.bench.devices.names import parse_device_name
from csr_deploy.bench.devices.prepare import SetupOptions, prepare
from csr_deploy.bench.devices.wheels import PACKAGE, make_wheel, repack
from csr_deploy.bench.emulated_pi import Root, prepare_root
from csr_deploy.errors import RuntimeUnavailableError
from tests.sshd import Board, demand_sshd


@pytest.fixture(scope="session")
def root() -> Root:
    """The emulated Raspberry Pi, made where it is missing."""
    try:
        return prepare_root()
    except RuntimeUnavailableError as error:
        pytest.skip(f"needs the emulated Raspberry Pi: {error}")


def needed_packages(extra: str) -> list[str]:
    """What csr-deploy with an extra needs, as it is installed here, without csr-deploy itself."""
    requirements = pytest.importorskip("packaging.requirements", reason="needs packaging to read metadata")
    found: dict[str, None] = {}
    wanted = [(PACKAGE, extra)]
    while wanted:
        name, of_extra = wanted.pop()
        for text in importlib.metadata.requires(name) or ():
            requirement = requirements.Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": of_extra}):
                continue
            if requirement.name not in found:
                found[requirement.name] = None
                wanted.append((requirement.name, ""))
    return list(found)


@pytest.fixture(scope="session")
def carried_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of this environment's packages, made again: setting up a board needs no network."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in needed_packages("pi"):
        repack(name, folder)
    return folder


@pytest.fixture(scope="session")
def own_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The csr-deploy that is tested."""
    # The figures of a device count only with the same code on both sides; an editor may be at work.
    code_sha256()
    return make_wheel(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="session")
def setup_options(own_wheel: Path, carried_wheels: Path) -> SetupOptions:
    """How the board is set up."""
    return SetupOptions(wheel=own_wheel, wheels=carried_wheels)


@pytest.fixture(scope="session")
def prepared_board(tmp_path_factory: pytest.TempPathFactory, setup_options: SetupOptions) -> Iterator[Board]:
    """The board; its server runs."""
    demand_sshd()
    made = Board(tmp_path_factory.mktemp("board"))
    made.start()
    try:
        prepare(parse_device_name(made.url), DeviceOptions(ssh_config=made.config), setup_options)
        yield made
    finally:
        made.stop()


@pytest.fixture
def board(prepared_board: Board) -> Iterator[Board]:
    """The prepared board, with its server running and nothing left on it but what setup made."""
    try:
        yield prepared_board
    finally:
        prepared_board.reboot()
        prepared_board.boot_id.write_text("first\n")
        prepared_board.forget()
        prepared_board.start()
