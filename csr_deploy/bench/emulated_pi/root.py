"""The folder in which a Raspberry Pi's programs lie: Debian for arm64, Python, its packages, and QEMU.

Everything is downloaded once, through apt and pip as they are set up on this machine, and unpacked into a
cache; nothing is installed, no root rights are needed, and apt's own state stays as it is. Afterwards nothing
here uses the network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from csr_deploy.atomic import atomic_directory
from csr_deploy.bench.emulated_pi.boards import BOARDS, Board
from csr_deploy.errors import BenchError, ExportError, RuntimeUnavailableError

ROOT_VARIABLE = "CSR_PI_ROOT"
# Rises when what a root holds changes, so that older ones are not used any more.
_LAYOUT = 1
_STAMP = "stamp.json"
_PLUGIN_SOURCE = Path(__file__).with_name("counter.c")
_COMPILERS = ("cc", "gcc", "clang")
_PLUGIN_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")
# What the wheels link to besides Python itself.
_GUEST_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgcc-s1", "zlib1g")
_EMULATOR_PACKAGES = ("qemu-user",)
# The device side of csr-deploy: its core and the extra "pi".
_WHEELS = ("numpy", "psutil", "rich", "typer", "ai-edge-litert", "onnxruntime", "pillow")
# What a glibc of 2.36 (Debian 12) can load; pip tries them all.
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)) + ("manylinux2014_aarch64",)
_DOWNLOAD_SECONDS = 900
_GUEST_SECONDS = 300
_MESSAGE_LINES = 6
_WARM_UP = "import numpy, ai_edge_litert.interpreter, onnxruntime, ctypes, json, mmap, random, traceback"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Root:
    """A prepared root.

    Attributes:
        path: The folder.
        python: Python's version inside, e.g. "3.11".
        versions: Versions of the Debian packages and wheels in it, by name.
    """

    path: Path
    python: str
    versions: Mapping[str, str]

    @property
    def site_packages(self) -> Path:
        """Where the wheels are."""
        return self.path / "site-packages"

    def interpreter(self) -> Path:
        """Python's program for arm64."""
        return self.path / "debian" / "usr" / "bin" / f"python{self.python}"

    def board(self, board: Board) -> Path:
        """What a program on that board sees as /."""
        return self.path / "boards" / board.key

    def emulator(self) -> list[str]:
        """The command that runs QEMU, with libraries of its own."""
        return _emulator(self.path / "emulator")

    def plugin(self) -> Path:
        """The plug-in that counts, compiled when its source is newer than what is there.

        Raises:
            RuntimeUnavailableError: If there is no C compiler, or it fails.
        """
        source = _PLUGIN_SOURCE.read_bytes()
        built = self.path / f"counter-{hashlib.sha256(source).hexdigest()[:12]}.so"
        if built.is_file():
            return built
        compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
        if compiler is None:
            raise RuntimeUnavailableError(
                "there is no C compiler to build the plug-in that counts instructions",
                where=str(_PLUGIN_SOURCE),
                fix="Install one: apt-get install gcc libc6-dev",
            )
        handle, name = tempfile.mkstemp(suffix=".so", dir=self.path)
        os.close(handle)
        temporary = Path(name)
        try:
            _call(
                [compiler, *_PLUGIN_FLAGS, "-o", name, str(_PLUGIN_SOURCE)],
                "the plug-in could not be compiled",
            )
            temporary.replace(built)
        finally:
            temporary.unlink(missing_ok=True)
        return built

    def command(self, board: Board, arguments: Sequence[str], marks: Path | None = None) -> list[str]:
        """The command that runs Python on a board.

        Args:
            board: Which.
            arguments: Python's.
            marks: The file that the counts at each mark go to; None to count nothing.
        """
        counting = [] if marks is None else ["-plugin", f"{self.plugin()},out={marks}"]
        machine = ["-L", str(self.board(board)), "-cpu", board.cpu, "-seed", "0"]
        return [*self.emulator(), *machine, *counting, str(self.interpreter()), "-s", *arguments]

    def run(self, board: Board, arguments: Sequence[str], packages: Sequence[Path] = ()) -> str:
        """Runs Python on a board; gives what it printed.

        Args:
            board: Which.
            arguments: Python's.
            packages: More folders to import from.

        Raises:
            RuntimeUnavailableError: If it fails.
            BenchError: If it takes too long.
        """
        environment = self.environment()
        environment["PYTHONPATH"] = ":".join([str(self.site_packages), *map(str, packages)])
        failed = f"Python failed on the emulated {board.name}"
        return _call(self.command(board, arguments), failed, environment=environment, seconds=_GUEST_SECONDS)

    def emulator_version(self) -> str:
        """What QEMU says of itself."""
        said = _call([*self.emulator(), "--version"], "QEMU does not start")
        return said.splitlines()[0].removeprefix("qemu-aarch64 version ")

    def environment(self) -> dict[str, str]:
        """The environment of a program on the board: nothing of this machine's, so that counts repeat."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.site_packages),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            # Without the folder of the program, or the working directory, among the places to import from.
            "PYTHONSAFEPATH": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # Official builds send what they run to their maker unless this is set before the import.
            "ORT_DISABLE_TELEMETRY": "1",
        }


def cache_folder(folder: Path | None = None) -> Path:
    """Where roots are kept: `folder`, else $CSR_PI_ROOT, else the user's cache."""
    if folder is not None:
        return folder.absolute()
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache").absolute() / "csr-deploy" / "emulated-pi"


def find_root(folder: Path | None = None) -> Root | None:
    """The root for the versions that are installed here, if it was made before."""
    return _read(_place(folder))


def prepare_root(folder: Path | None = None, on_progress: Progress | None = None) -> Root:
    """The root for the versions that are installed here; made if it is not there.

    NumPy, LiteRT and ONNX Runtime get the version that this machine has, where it has them.

    Args:
        folder: The cache, see `cache_folder`.
        on_progress: Called with what is being done.

    Raises:
        RuntimeUnavailableError: If a tool, a package or the network is missing.
        ExportError: If the folder cannot be written.
    """
    place = _place(folder)
    found = _read(place)
    if found is not None:
        return found
    say = on_progress or (lambda what: None)
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RuntimeUnavailableError(
                f"an emulated Raspberry Pi is made of Debian packages, and {tool} is missing here",
                fix="Use a machine with Debian 12 or later, or a derivative.",
            )
    with _alone(place):
        # Another process may have made it while this one waited.
        return _read(place) or _make(place, say)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Lets one process at a time make the root: another would replace the one that is used already."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(place.parent, os.O_RDONLY)
    except OSError as error:
        raise ExportError(f"cannot be written: {error.strerror or error}", where=str(place.parent)) from error
    try:
        # The folder itself, so that no lock file stays.
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _make(place: Path, say: Progress) -> Root:
    with atomic_directory(place, replace=True) as path:
        versions = _unpack_debian(path, say)
        python = _python_version(path / "debian")
        say(f"unpacking Python {python}'s packages for arm64")
        versions |= _unpack_wheels(path / "site-packages", python)
        for board in BOARDS.values():
            _lay_out(path, board)
        root = Root(path, python, versions)
        say("building the plug-in that counts")
        root.plugin()
        say("importing everything once")
        _warm_up(root)
        stamp = {"python": python, "versions": dict(sorted(versions.items()))}
        (path / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    return Root(place, python, versions)


def _requirements() -> list[str]:
    """The wheels to take, at this machine's versions."""
    requirements = []
    for name in _WHEELS:
        try:
            requirements.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            requirements.append(name)
    return requirements


def _place(folder: Path | None) -> Path:
    wanted = json.dumps([_LAYOUT, _requirements(), _GUEST_PACKAGES, _EMULATOR_PACKAGES])
    return cache_folder(folder) / f"root-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"


def _read(place: Path) -> Root | None:
    try:
        stamp = json.loads((place / _STAMP).read_text(encoding="utf-8"))
        return Root(place, str(stamp["python"]), dict(stamp["versions"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeUnavailableError(
            f"its stamp cannot be read: {error}", where=str(place), fix="Delete the folder; it is made again."
        ) from error


def _unpack_debian(path: Path, say: Progress) -> dict[str, str]:
    """Downloads and unpacks the guest's packages and QEMU; gives their versions."""
    here = _call(["dpkg", "--print-architecture"], "dpkg does not tell this machine's architecture").strip()
    versions = {}
    for architecture, packages, folder in (
        ("arm64", _GUEST_PACKAGES, path / "debian"),
        (here, _EMULATOR_PACKAGES, path / "emulator"),
    ):
        say(f"downloading Debian's {packages[0]} for {architecture} and what it needs")
        with tempfile.TemporaryDirectory(dir=path) as state:
            archives = _download_debian(Path(state), architecture, packages)
            say(f"unpacking {len(archives)} Debian packages for {architecture}")
            folder.mkdir()
            for archive in archives:
                _call(["dpkg-deb", "-x", str(archive), str(folder)], f"{archive.name} could not be unpacked")
                package, version, _ = archive.name.split("_")
                versions[f"{package}:{architecture}"] = version.replace("%3a", ":")
    return versions


def _download_debian(state: Path, architecture: str, packages: Sequence[str]) -> list[Path]:
    """Packages and all they depend on, into `state`, as on a machine that has none of them."""
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Architecture": architecture,
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
        "APT::Install-Recommends": "false",
        # As root apt gives up its rights for downloads, and then may not write into the user's folder.
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    # The machine's own list of architectures would be added to the one above.
    configuration = state / "apt.conf"
    configuration.write_text(f'#clear APT::Architectures;\nAPT::Architectures {{ "{architecture}"; }};\n')
    environment = {**os.environ, "APT_CONFIG": str(configuration), "DEBIAN_FRONTEND": "noninteractive"}
    fix = "This needs the network once, and package sources of Debian or a derivative that have arm64."
    failed = f"apt could not download {', '.join(packages)} for {architecture}"
    _call([*apt, "update"], failed, fix, environment)
    _call([*apt, "install", "--yes", "--download-only", *packages], failed, fix, environment)
    return sorted((state / "cache" / "archives").glob("*.deb"))


def _python_version(debian: Path) -> str:
    found = [re.fullmatch(r"python(3\.\d+)", file.name) for file in (debian / "usr" / "bin").iterdir()]
    versions = [match[1] for match in found if match]
    if len(versions) != 1:
        raise RuntimeUnavailableError(
            f"Debian's packages hold {len(versions)} versions of Python, not one", where=str(debian)
        )
    return versions[0]


def _unpack_wheels(folder: Path, python: str) -> dict[str, str]:
    requirements = _requirements()
    _call(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"),
            *("--target", str(folder), "--implementation", "cp", "--python-version", python),
            *(word for platform in PLATFORMS for word in ("--platform", platform)),
            *requirements,
        ],
        f"pip could not download {', '.join(requirements)} for Python {python} on arm64",
        "This needs the network once, and wheels for arm64 of the versions that are installed here.",
    )
    found = importlib.metadata.distributions(path=[str(folder)])
    return {distribution.metadata["Name"]: distribution.version for distribution in found}


def _lay_out(path: Path, board: Board) -> None:
    """The board's /: Debian's folders, and the files that tell the processor."""
    root = path / "boards" / board.key
    root.mkdir(parents=True)
    for entry in (path / "debian").iterdir():
        if entry.name not in ("proc", "sys", "dev", "tmp", "etc"):
            (root / entry.name).symlink_to(Path("..") / ".." / "debian" / entry.name)
    # Empty: the one of this machine lists libraries of another architecture.
    files = {**board.files(), "etc/ld.so.cache": "", "etc/ld.so.preload": ""}
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="ascii")


def _emulator(folder: Path) -> list[str]:
    loaders = [*folder.glob("lib64/ld-linux-*.so.*"), *folder.glob("lib/ld-linux-*.so.*")]
    libraries = sorted({file.parent for file in folder.glob("**/lib*.so.*")})
    programs = list(folder.glob("usr/bin/qemu-aarch64"))
    if not loaders or not programs:
        raise RuntimeUnavailableError(
            "it holds no qemu-aarch64 with its libraries",
            where=str(folder),
            fix="Delete the folder above it; it is made again.",
        )
    # Through its own loader it needs no library of this machine, whose release may be another.
    paths = ":".join(map(str, libraries))
    return [str(loaders[0].absolute()), "--library-path", paths, str(programs[0])]


def _warm_up(root: Root) -> None:
    """Imports what measuring imports: proof that it works, and Python keeps its byte code."""
    board = next(iter(BOARDS.values()))
    environment = root.environment()
    del environment["PYTHONDONTWRITEBYTECODE"]
    _call(
        root.command(board, ["-c", _WARM_UP]),
        "the emulated Raspberry Pi does not import its packages",
        environment=environment,
        seconds=_GUEST_SECONDS,
    )


def _call(
    command: Sequence[str],
    failed: str,
    fix: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: int = _DOWNLOAD_SECONDS,
) -> str:
    """Runs a program; gives what it printed.

    Raises:
        RuntimeUnavailableError: If it fails, with the end of what it said.
        BenchError: If it takes too long.
    """
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{failed}: it took more than {seconds} s", fix=fix) from error
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_MESSAGE_LINES:])
        raise RuntimeUnavailableError(f"{failed} (exit status {done.returncode}): {words}", fix=fix)
    return done.stdout
