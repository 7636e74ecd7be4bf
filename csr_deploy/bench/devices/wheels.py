"""Wheels for a device: of csr-deploy itself, and of what it needs there."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import csr_deploy
from csr_deploy.bench.devices.identity import package_files
from csr_deploy.errors import OptionError, RuntimeUnavailableError

PACKAGE = "csr-deploy"
_BUILD_SECONDS = 300
_DOWNLOAD_SECONDS = 1800
_MESSAGE_LINES = 8
_EPOCH = (1980, 1, 1, 0, 0, 0)
# Of an installation, not of a wheel.
_NOT_IN_A_WHEEL = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_OLDEST_GLIBC_MINOR = 17
# With --python-version and --platform pip takes the device's wheels, but still asks this machine's Python
# whether a requirement such as "tomli; python_version < '3.11'" applies.
_PIP_FOR_A_DEVICE = """
import json, sys
from pip._vendor.packaging import markers
here, there = markers.default_environment, json.loads(sys.argv.pop(1))
markers.default_environment = lambda: {**here(), **there}
if not markers.Marker(f"python_full_version == '{there['python_full_version']}'").evaluate():
    sys.exit("this pip cannot judge requirements for another Python")
from pip._internal.cli.main import main
sys.exit(main())
"""


def make_wheel(folder: Path) -> Path:
    """Makes a wheel of the csr-deploy that runs here.

    From a checkout it is built by its build backend where that is installed. Otherwise it is put together
    from the installed files, which is what a wheel is.

    Args:
        folder: Where it goes.

    Raises:
        RuntimeUnavailableError: If the build fails.
        OptionError: If this csr-deploy is neither a checkout nor installed.
    """
    root = Path(csr_deploy.__file__).resolve().parents[1]
    is_checkout = (root / "pyproject.toml").is_file()
    if is_checkout and importlib.util.find_spec("hatchling") is not None:
        _call(
            [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
            "the wheel could not be built",
            _BUILD_SECONDS,
            cwd=root,
        )
        (wheel,) = folder.glob("csr_deploy-*.whl")
        return wheel
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise OptionError(
            "this csr-deploy is not installed, so there is no wheel of it to send",
            where=str(root),
            fix="Give one: --wheel FILE, or install it: pip install -e .",
        ) from error
    package = Path(csr_deploy.__file__).resolve().parent
    files = {f"csr_deploy/{file.relative_to(package).as_posix()}": file for file in package_files(package)}
    return _write_wheel(folder, distribution, files)


def repack(name: str, folder: Path) -> Path:
    """Makes a wheel again of an installed package: for devices like this machine, without the network.

    Args:
        name: Of the distribution.
        folder: Where it goes.

    Raises:
        OptionError: If it is not installed, or does not list its files.
    """
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise OptionError("is not installed here", where=name) from error
    files = {}
    for file in distribution.files or ():
        # Programs in bin/ are made again from the entry points.
        is_inside = ".." not in file.parts and "__pycache__" not in file.parts
        if is_inside and not file.parts[0].endswith(".dist-info"):
            files[file.as_posix()] = Path(str(distribution.locate_file(file)))
    if not files:
        raise OptionError("does not list its files", where=name)
    return _write_wheel(folder, distribution, files)


def _write_wheel(
    folder: Path, distribution: importlib.metadata.Distribution, files: Mapping[str, Path]
) -> Path:
    metadata = _metadata_folder(distribution)
    stem = metadata.name.removesuffix(".dist-info")
    tags = [
        line.partition(":")[2].strip()
        for line in (metadata / "WHEEL").read_text(encoding="utf-8").splitlines()
        if line.startswith("Tag:")
    ]
    everything = dict(files)
    for path in sorted(metadata.rglob("*")):
        name = path.relative_to(metadata).as_posix()
        if path.is_file() and name not in _NOT_IN_A_WHEEL:
            everything[f"{metadata.name}/{name}"] = path
    wheel = folder / f"{stem}-{_joined(tags)}.whl"
    record = []
    # Stored: it is unpacked again at once, and what takes time is the packing.
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for name, path in sorted(everything.items()):
            content = path.read_bytes()
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = (path.stat().st_mode & 0xFFFF) << 16
            archive.writestr(info, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{_quoted(name)},sha256={digest},{len(content)}\n")
        own = f"{metadata.name}/RECORD"
        archive.writestr(zipfile.ZipInfo(own, _EPOCH), "".join(record) + f"{own},,\n")
    return wheel


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name


def _joined(tags: Sequence[str]) -> str:
    """One compressed tag of several: each part lists all values that occur."""
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    return "-".join(".".join(dict.fromkeys(values)) for values in parts)


def _metadata_folder(distribution: importlib.metadata.Distribution) -> Path:
    for file in distribution.files or ():
        if file.name == "METADATA" and file.parts[0].endswith(".dist-info"):
            return Path(str(distribution.locate_file(file))).parent
    raise OptionError("does not list its files", where=distribution.metadata["Name"])


def platform_tags(device: Mapping[str, Any]) -> list[str]:
    """Platforms whose wheels run on a device, the newest first.

    Args:
        device: What `csr_deploy.bench.devices.probe` found.

    Raises:
        OptionError: If its C library is none that wheels are made for.
    """
    machine = device["kernel_machine"]
    name, _, version = (device["libc"] or "").partition(" ")
    major, _, minor = version.partition(".")
    if name != "glibc" or major != "2" or not minor.isdigit():
        raise OptionError(
            f"its C library is {device['libc'] or 'not known'}; wheels are made for glibc",
            fix="Collect wheels for it yourself: --wheels DIR.",
        )
    tags = [f"manylinux_2_{m}_{machine}" for m in range(int(minor), _OLDEST_GLIBC_MINOR - 1, -1)]
    return [*tags, f"manylinux2014_{machine}", f"linux_{machine}"]


def download(wheel: Path, extras: Sequence[str], device: Mapping[str, Any], folder: Path) -> None:
    """Downloads here what csr-deploy needs on a device that has no internet.

    Args:
        wheel: Of csr-deploy.
        extras: Of it.
        device: What `csr_deploy.bench.devices.probe` found.
        folder: Where the wheels go, that of csr-deploy included.

    Raises:
        RuntimeUnavailableError: If pip fails.
        OptionError: See `platform_tags`.
    """
    python = ".".join(map(str, device["python_version"]))
    environment = {
        "python_version": python,
        "python_full_version": device["python"],
        "platform_machine": device["kernel_machine"],
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    tags = [word for tag in platform_tags(device) for word in ("--platform", tag)]
    _call(
        [
            *(sys.executable, "-c", _PIP_FOR_A_DEVICE, json.dumps(environment)),
            *("download", "--quiet", "--only-binary=:all:"),
            *("--implementation", "cp", "--python-version", python, *tags),
            *("--dest", str(folder), requirement(wheel, extras)),
        ],
        f"pip could not download wheels for Python {python} on {device['kernel_machine']}",
        _DOWNLOAD_SECONDS,
    )


def requirement(wheel: Path, extras: Sequence[str]) -> str:
    """The wheel with extras, as pip takes it."""
    return f"{wheel}[{','.join(extras)}]" if extras else str(wheel)


def _call(command: Sequence[str], failed: str, seconds: int, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailableError(f"{failed}: it took more than {seconds} s") from error
    if done.returncode:
        words = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-_MESSAGE_LINES:])
        raise RuntimeUnavailableError(f"{failed}:\n  {words}", fix="Or collect them yourself: --wheels DIR.")
