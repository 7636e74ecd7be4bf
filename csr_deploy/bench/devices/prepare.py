"""Prepares a device behind SSH: csr-deploy and its runtimes in a virtual environment of its own, no torch.

An environment is made beside the one in use and takes its place when everything in it works, so that a
setup that breaks off leaves the device as it was.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_deploy.bench.devices import blobs, probe
from csr_deploy.bench.devices.base import DeviceError, DeviceOptions
from csr_deploy.bench.devices.blobs import file_sha256
from csr_deploy.bench.devices.identity import code_sha256
from csr_deploy.bench.devices.names import DeviceName
from csr_deploy.bench.devices.remote import connected
from csr_deploy.bench.devices.session import Session
from csr_deploy.bench.devices.ssh import Ssh, quote
from csr_deploy.bench.devices.wheels import download, make_wheel, requirement
from csr_deploy.errors import OptionError

EXTRAS = ("pi", "jetson", "mcu", "none")
OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 13)

_PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)))
_NOT_FOUND = (126, 127)
_INSTALL_SECONDS = 1800.0
_NEEDED_BYTES = 450 << 20
_UNPACKED = 4
_MESSAGE_LINES = 12
# Runs the source that follows on standard input, whose length is the first argument.
_LOADER = (
    "import sys; n = int(sys.argv[1]); s = sys.stdin.buffer.read(n); "
    "exec(compile(s, 'blobs.py', 'exec'), {'__name__': '__main__'})"
)
_TRY = (
    "import csr_deploy.bench.devices.agent; from csr_deploy.bench.devices.identity import code_sha256; "
    "print(code_sha256())"
)
_BUSY = 75
_TRY_LOCK = f"""
import fcntl, os, sys
path = os.path.expanduser(sys.argv[1])
if os.path.exists(path):
    try:
        fcntl.flock(open(path, "ab"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit({_BUSY})
"""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class SetupOptions:
    """What to install, and from where.

    Attributes:
        python: Program on the device; None for the first of python3, python3.13, …, python3.10 that fits.
        extra: One of `EXTRAS`; None for what the board is.
        wheel: Of csr-deploy; None to make one here.
        wheels: Folder here with wheels of all that it needs, which are carried there; None to let the device
            download.
        download: Whether to download such wheels here first.
    """

    python: str | None = None
    extra: str | None = None
    wheel: Path | None = None
    wheels: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.extra not in (None, *EXTRAS):
            raise OptionError(
                f"there is no extra '{self.extra}' for devices", fix=f"Use {', '.join(EXTRAS)}."
            )
        if self.wheel is not None and not (self.wheel.is_file() and self.wheel.suffix == ".whl"):
            raise OptionError("is not a wheel", where=str(self.wheel), fix="Name a file csr_deploy-….whl.")
        if self.wheels is not None and not any(self.wheels.glob("*.whl")):
            raise OptionError(
                "holds no wheels", where=str(self.wheels), fix="Name a folder with *.whl files."
            )
        if self.wheels is not None and self.download:
            raise OptionError("--wheels and --download exclude each other", fix="Give one of them.")


@dataclass(frozen=True)
class Found:
    """A device.

    Attributes:
        facts: What `csr_deploy.bench.devices.probe.look` says.
        python: The program that said it.
        is_prepared: Whether that is the Python of csr-deploy's own environment there.
    """

    facts: Mapping[str, Any]
    python: str
    is_prepared: bool


def describe(name: DeviceName, options: DeviceOptions) -> Found:
    """Looks at a device, prepared or not.

    Raises:
        DeviceError: If it cannot be reached, or has no Python at all.
    """
    with connected(name, options) as ssh:
        own = f"{name.folder}/venv/bin/python"
        facts = _look(ssh, name, own)
        return Found(facts, own, True) if facts is not None else _find_python(ssh, name, None)


def prepare(
    name: DeviceName, options: DeviceOptions, setup: SetupOptions, on_progress: Progress | None = None
) -> Found:
    """Prepares a device; does nothing where it is ready.

    Args:
        name: Of kind "ssh".
        options: How to reach it.
        setup: What to install.
        on_progress: Called with what is being done.

    Returns:
        What it is, told by its new Python.

    Raises:
        DeviceError: If it cannot be reached or prepared; what was there before stays.
        OptionError: If there is nothing to send.
    """
    say = on_progress or (lambda what: None)
    say("looking at the device")
    with connected(name, options) as ssh, tempfile.TemporaryDirectory(prefix="csr-setup-") as temporary:
        found = _find_python(ssh, name, setup.python)
        # Before anything is made or copied.
        extras = _extras(found.facts, setup.extra, name)
        _check(found.facts, extras, name)
        # Before the wheel, so that a file which is edited meanwhile is noticed.
        code_sha256()
        folder = Path(temporary)
        if setup.wheel is None:
            say("making the wheel")
        wheel = setup.wheel or make_wheel(folder)
        carried = setup.wheels
        if setup.download:
            say(f"downloading wheels for Python {found.facts['python']} on {found.facts['kernel_machine']}")
            carried = folder / "wheels"
            carried.mkdir()
            download(wheel, extras, found.facts, carried)
        files = {wheel.name: wheel}
        files |= {} if carried is None else {p.name: p for p in sorted(carried.glob("*.whl"))}
        # A csr_deploy among the carried wheels would be another one than ours.
        files = {n: p for n, p in files.items() if p == wheel or not n.startswith("csr_deploy-")}
        return _Installation(ssh, name, found, extras, wheel, files, carried is not None, say).install()


class _Installation:
    """One setup.

    Args:
        ssh: Connected.
        name: The device.
        found: What it is.
        extras: Of csr-deploy.
        wheel: Of csr-deploy.
        files: Name → wheel here.
        offline: Whether these are all that is needed.
        say: Told what is being done.
    """

    def __init__(
        self,
        ssh: Ssh,
        name: DeviceName,
        found: Found,
        extras: Sequence[str],
        wheel: Path,
        files: Mapping[str, Path],
        offline: bool,
        say: Progress,
    ) -> None:
        self._ssh = ssh
        self._name = name
        self._found = found
        self._extras = extras
        self._wheel = wheel
        self._hashes = {n: file_sha256(p) for n, p in files.items()}
        self._files = {self._hashes[n]: p for n, p in files.items()}
        self._offline = offline
        self._say = say
        self._key = _key([found.facts["python"], found.python, list(extras), self._hashes, offline])

    def install(self) -> Found:
        """Does it.

        Raises:
            DeviceError: If something fails.
        """
        folder = self._name.folder
        environment = f"{folder}/venvs/{self._key}"
        current = f"{folder}/venv"
        ready = self._ssh.run(["readlink", current])[1].strip() == f"venvs/{self._key}"
        facts = _look(self._ssh, self._name, f"{current}/bin/python") if ready else None
        if facts is None:
            self._demand_idle()
            try:
                self._make(environment)
            except DeviceError:
                # Whatever is half done takes space; what works is elsewhere.
                self._ssh.run(["rm", "-rf", environment, f"{folder}/wheels"])
                raise
            facts = _look(self._ssh, self._name, f"{current}/bin/python")
        if facts is None:
            raise DeviceError("its new Python does not run", stage="setup", where=self._name.text)
        return Found(facts, f"{current}/bin/python", True)

    def _demand_idle(self) -> None:
        """Refuses to exchange the environment under a measurement.

        Raises:
            DeviceError: If one is going on.
        """
        status, _, said = self._ssh.run([self._found.python, "-c", _TRY_LOCK, f"{self._name.folder}/lock"])
        if status == _BUSY:
            raise DeviceError(
                "somebody measures on it at this moment",
                stage="lock",
                where=self._name.text,
                fix="Wait for the end, then prepare it.",
                may_repeat=True,
            )
        if status:
            raise self._failed("looking at the lock", status, said)

    def _make(self, environment: str) -> None:
        """Makes the environment and puts it in the place of the old one."""
        folder = self._name.folder
        wheels = self._send()
        self._shell(f"rm -rf {quote(environment)}")
        self._say("making the virtual environment")
        system = ["--system-site-packages"] if "jetson" in self._extras else []
        self._do([self._found.python, "-m", "venv", *system, environment])
        self._say("installing")
        source = ["--no-index", "--find-links", wheels] if self._offline else []
        target = requirement(Path(wheels, self._wheel.name), self._extras)
        self._do([f"{environment}/bin/python", "-m", "pip", "install", "--quiet", *source, target])
        self._say("trying it")
        code = self._do([f"{environment}/bin/python", "-I", "-c", _TRY]).strip()
        if code != code_sha256():
            raise DeviceError(
                f"{self._wheel.name} is of another csr-deploy than runs here",
                stage="setup",
                where=self._name.text,
                fix="Leave --wheel out, or give one of this csr-deploy.",
            )
        # A link that is replaced by a rename is there at any moment; the old environments go after it.
        place, parent = quote(folder), quote(f"{folder}/venvs")
        self._shell(
            f"ln -sfn venvs/{self._key} {place}/venv.new && mv -T {place}/venv.new {place}/venv && "
            f'cd {parent} && for each in *; do [ "$each" = {self._key} ] || rm -rf "$each"; done'
        )
        self._shell(f"rm -rf {quote(wheels)}")

    def _send(self) -> str:
        """Carries the wheels there; gives their folder."""
        source = Path(blobs.__file__).read_bytes()
        command = [self._found.python, "-I", "-c", _LOADER, str(len(source)), self._name.folder]
        names = {sha256: n for n, sha256 in self._hashes.items()}
        with Session(self._ssh, command, self._name.text, source) as session:

            def show(name: str, done: int, total: int) -> None:
                self._say(f"sending {name}, {done / 1e6:.0f} of {total / 1e6:.0f} MB")

            session.send(self._files, lambda sha256: names[sha256], show)
            folder: str = session.ask("tree", "setup", name=f"wheels/{self._key}", files=self._hashes)
            # The folder holds them now; as blobs they would stay for good.
            session.ask("drop", "setup", sha256s=list(self._files))
            return folder

    def _do(self, command: Sequence[str]) -> str:
        status, out, said = self._ssh.run(command, seconds=_INSTALL_SECONDS)
        if status:
            raise self._failed(" ".join(command), status, said or out)
        return out

    def _shell(self, script: str) -> None:
        status, out, said = self._ssh.run(["sh", "-c", script])
        if status:
            raise self._failed(script, status, said or out)

    def _failed(self, command: str, status: int, said: str) -> DeviceError:
        full = "no space left" in said.lower() or "disk quota" in said.lower()
        tail = "\n  ".join(said.strip().splitlines()[-_MESSAGE_LINES:])
        fix = "What was there before is still there."
        if full:
            fix = "Free space there, or name another folder behind the address: ssh://user@host/folder."
        elif "No matching distribution" in said or "Could not find a version" in said:
            fix = "A wheel for this device is missing: --download fetches them here and carries them."
        what = "its disk is full" if full else f"a step of the setup failed with status {status}"
        return DeviceError(f"{what}: {command}\n  {tail}", stage="setup", where=self._name.text, fix=fix)


def _look(ssh: Ssh, name: DeviceName, python: str) -> Mapping[str, Any] | None:
    """Asks a Python on the device; None where there is none of that name.

    Raises:
        DeviceError: If it is there, and fails.
    """
    # Not -I: Python 2 and 3.3 do not know it, and are to be named.
    source = Path(probe.__file__).read_bytes()
    status, out, said = ssh.run([python, "-", name.folder], source)
    for line in out.splitlines():
        if line.startswith(probe.MARK):
            facts: Mapping[str, Any] = json.loads(line.removeprefix(probe.MARK))
            return facts
    if status in _NOT_FOUND:
        return None
    tail = "\n  ".join(said.strip().splitlines()[-_MESSAGE_LINES:])
    raise DeviceError(
        f"{python} does not run what is needed to look at it (status {status}):\n  {tail}",
        stage="setup",
        where=name.text,
        fix=f"Python {_text(OLDEST_PYTHON)} or later is needed there; --python names another one.",
    )


def _find_python(ssh: Ssh, name: DeviceName, wanted: str | None) -> Found:
    """The first Python that fits; else the first that is there, whose version the caller looks at."""
    first: Found | None = None
    for python in (wanted,) if wanted is not None else _PYTHONS:
        facts = _look(ssh, name, python)
        if facts is not None:
            found = Found(facts, python, False)
            if OLDEST_PYTHON <= tuple(facts["python_version"]) <= NEWEST_PYTHON:
                return found
            first = first or found
    if first is None:
        raise DeviceError(
            f"has no {wanted or 'python3'}",
            stage="setup",
            where=name.text,
            fix="Install it there: sudo apt install python3 python3-venv. --python names another one.",
        )
    return first


def _extras(facts: Mapping[str, Any], wanted: str | None, name: DeviceName) -> tuple[str, ...]:
    if wanted is not None:
        return () if wanted == "none" else (wanted,)
    return ("jetson",) if facts["jetson"] else ("pi",)


def _check(facts: Mapping[str, Any], extras: Sequence[str], name: DeviceName) -> None:
    """Says what is in the way before anything is copied.

    Raises:
        DeviceError: If something is.
    """

    def refuse(what: str, fix: str) -> None:
        raise DeviceError(what, stage="setup", where=name.text, fix=fix)

    version = tuple(facts["python_version"])
    if version < OLDEST_PYTHON:
        refuse(
            f"its Python is {facts['python']}, which is too old: {_text(OLDEST_PYTHON)} or later is needed",
            "Take a newer system (Raspberry Pi OS 12, JetPack 6), or name another Python: --python PATH.",
        )
    if version > NEWEST_PYTHON:
        refuse(
            f"its Python is {facts['python']}, which is newer than is known to work ({_text(NEWEST_PYTHON)})",
            "Name another one: --python PATH.",
        )
    if not facts["can_make_venv"]:
        refuse(
            "its Python cannot make virtual environments",
            "Install what Debian keeps apart: sudo apt install python3-venv",
        )
    if facts["userland_bits"] != 64 and extras:
        kernel = "64-bit kernel" if facts["kernel_machine"] in ("aarch64", "x86_64") else "32-bit kernel"
        refuse(
            f"its programs are 32-bit (on a {kernel}), and LiteRT and ONNX Runtime have no wheels for that",
            "Install the 64-bit Raspberry Pi OS; every Pi from the Zero 2 W and the 3 on runs it.",
        )
    free = facts["free_bytes"]
    if free is not None and free < _NEEDED_BYTES and extras:
        refuse(
            f"its disk is full: {free >> 20} MiB are free in {facts['folder']}, "
            f"{_NEEDED_BYTES >> 20} MiB are needed",
            "Free space there, or name another folder behind the address: ssh://user@host/folder.",
        )


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _key(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
