"""A board over SSH: everything that goes wrong on the way, with a real sshd and a real client."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csr_deploy.bench.devices import DeviceError, DeviceOptions, open_device
from csr_deploy.bench.devices.base import BenchDevice
from csr_deploy.bench.devices.names import parse_device_name
from csr_deploy.bench.devices.prepare import SetupOptions, describe, prepare
from csr_deploy.bench.groups import Group, make_group
from csr_deploy.bench.plan import QUICK, make_plan
from csr_deploy.bench.results import BenchResult
from tests.onnx_artifact import make_artifact
from tests.sshd import Board

Progress = Callable[[str, str, int, int], None]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "colours").path


def group_of(url: str, artifact: Path, seconds: float = 0.3, **options: Any) -> Group:
    chosen = replace(QUICK, telemetry="none", profile=False, seconds=float(seconds), **options)
    return make_group(url, make_plan([artifact], chosen))


def quiet(stage: str, subject: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def at(stage: str, do: Callable[[], None]) -> Progress:
    """Progress that does something once, when a stage is reached."""
    done: list[str] = []

    def show(now: str, subject: str, count: int, total: int) -> None:
        if now == stage and not done:
            done.append(now)
            do()

    return show


def later(seconds: float, do: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


def check(values: dict[str, Any]) -> BenchResult:
    result = BenchResult.from_json(values)
    assert result.failures == ()
    assert result.measurements[0].latency is not None
    return result


def failure(board: Board, config: Path, url: str | None = None) -> DeviceError:
    with pytest.raises(DeviceError) as caught, open_device(url or board.url, ssh_config=config):
        pass
    return caught.value


class TestConnecting:
    def test_unreachable(self, board: Board) -> None:
        error = failure(board, board.write_config("nowhere", "user", port=1))
        assert (error.stage, error.may_repeat) == ("connect", True)
        assert "cannot be reached" in error.what and "refused" in error.what

    def test_unknown_name(self, board: Board) -> None:
        error = failure(board, board.config, "ssh://no-such-host.invalid")
        assert error.stage == "connect" and "resolve hostname" in error.what

    def test_wrong_key(self, board: Board) -> None:
        error = failure(board, board.write_config("wrong-key", "stranger"))
        assert error.stage == "connect" and "lets nobody in" in error.what
        assert error.fix is not None and "ssh-copy-id" in error.fix

    def test_unknown_host_key(self, board: Board) -> None:
        error = failure(board, board.write_config("unknown-host", "user", known=None))
        assert error.stage == "connect" and "is not known" in error.what

    def test_another_host_key(self, board: Board) -> None:
        error = failure(board, board.write_config("other-host", "user", known="stranger"))
        assert error.stage == "connect" and "not the one that is known" in error.what
        assert not error.may_repeat


class TestSetup:
    def test_not_prepared(self, board: Board) -> None:
        error = failure(board, board.config, f"{board.url}-of-somebody")
        assert error.stage == "setup" and "not prepared" in error.what
        assert error.fix is not None and "csr-device setup" in error.fix

    def test_another_csr_deploy(self, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("csr_deploy.bench.devices.remote.code_sha256", lambda: "0" * 64)
        error = failure(board, board.config)
        assert error.stage == "setup" and "another csr-deploy" in error.what

    def test_ready_devices_are_left_alone(self, board: Board, setup_options: SetupOptions) -> None:
        before = os.readlink(board.folder / "venv")
        name, options = parse_device_name(board.url), DeviceOptions(ssh_config=board.config)
        said: list[str] = []
        found = prepare(name, options, setup_options, said.append)
        assert said == ["looking at the device"]
        assert os.readlink(board.folder / "venv") == before
        assert "torch" not in found.facts["packages"]
        assert {"csr-deploy", "onnxruntime", "ai-edge-litert"} <= set(found.facts["packages"])
        assert describe(name, options).is_prepared

    @pytest.mark.parametrize("version", ["(3, 8)", pytest.param("(3, 14)", marks=pytest.mark.full)])
    def test_python_of_another_age(self, board: Board, tmp_path: Path, version: str) -> None:
        # The interpreter is this one and says that it is older or newer: no other one is at hand.
        claim = f"import sys; sys.version_info = {version} + (0, 'final', 0)"
        python = tmp_path / "python"
        python.write_text(
            "#!/bin/sh\n"
            f'exec {sys.executable} -c "{claim}; sys.argv[0:1] = []; exec(sys.stdin.read())" "$@"\n'
        )
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        name = parse_device_name(f"{board.url}-untouched")
        with pytest.raises(DeviceError, match="too old|newer") as caught:
            prepare(name, DeviceOptions(ssh_config=board.config), SetupOptions(python=str(python)))
        assert caught.value.stage == "setup"
        assert not Path(name.folder).exists()

    def test_no_python(self, board: Board) -> None:
        name = parse_device_name(f"{board.url}-untouched")
        with pytest.raises(DeviceError, match="has no /nowhere/python"):
            prepare(name, DeviceOptions(ssh_config=board.config), SetupOptions(python="/nowhere/python"))
        assert not Path(name.folder).exists()

    def test_a_setup_that_fails_leaves_the_old_one(self, board: Board, tmp_path: Path) -> None:
        before = os.readlink(board.folder / "venv")
        (tmp_path / "broken-1-py3-none-any.whl").write_bytes(b"nothing")
        name, options = parse_device_name(board.url), DeviceOptions(ssh_config=board.config)
        with pytest.raises(DeviceError, match="a step of the setup failed") as caught:
            prepare(name, options, SetupOptions(wheels=tmp_path))
        assert caught.value.fix is not None and "--download" in caught.value.fix
        assert os.readlink(board.folder / "venv") == before
        assert describe(name, options).is_prepared

    def test_missing_runtime(self, board: Board, artifact: Path) -> None:
        (package,) = board.folder.glob("venv/lib/python3*/site-packages/onnxruntime")
        hidden = package.rename(package.with_name("hidden"))
        try:
            with open_device(board.url, ssh_config=board.config) as device:
                result = BenchResult.from_json(device.run(group_of(board.url, artifact), quiet))
        finally:
            hidden.rename(package)
        (failed,) = result.failures
        assert failed.stage == "start" and "onnxruntime" in failed.reason
        assert result.measurements == ()


class TestOutages:
    def drop(self, board: Board, artifact: Path, seconds: float, outage: float) -> None:
        said: list[str] = []
        broken = at("load", lambda: (board.stop(), timers.append(later(outage, board.start)))[0])
        timers: list[threading.Timer] = []

        def show(stage: str, subject: str, done: int, total: int) -> None:
            said.append(stage)
            broken(stage, subject, done, total)

        with open_device(board.url, ssh_config=board.config) as device:
            check(device.run(group_of(board.url, artifact, seconds), show))
            loads = said.count("load")
            check(device.run(group_of(board.url, artifact), show))
        timers[0].join()
        assert "the connection was lost, trying again" in said
        # Nothing is measured twice.
        assert loads == 2

    def test_the_connection_drops(self, board: Board, artifact: Path) -> None:
        self.drop(board, artifact, seconds=3, outage=2)

    @pytest.mark.full
    def test_the_connection_drops_for_half_a_minute(self, board: Board, artifact: Path) -> None:
        self.drop(board, artifact, seconds=12, outage=30)

    @pytest.mark.full
    def test_the_line_goes_silent(self, board: Board, artifact: Path) -> None:
        def silence() -> None:
            servers = board.servers()
            for server in servers:
                server.suspend()
            timers.append(later(6, lambda: [server.resume() for server in servers if server.is_running()]))  # type: ignore[func-returns-value]

        timers: list[threading.Timer] = []
        with open_device(board.url, ssh_config=board.config, alive_s=1) as device:
            check(device.run(group_of(board.url, artifact, 3), at("load", silence)))
        timers[0].join()

    def test_the_connection_stays_away(self, board: Board, artifact: Path) -> None:
        group = group_of(board.url, artifact, 2)
        with (
            open_device(board.url, ssh_config=board.config, reconnect_s=1) as device,
            pytest.raises(DeviceError, match="did not come back within 1 s") as caught,
        ):
            device.run(group, at("load", board.stop))
        assert (caught.value.stage, caught.value.may_repeat) == ("connect", True)
        # What was started went on; a later run takes it over.
        board.start()
        said: list[str] = []
        with open_device(board.url, ssh_config=board.config) as device:
            check(device.run(group, lambda stage, *rest: said.append(stage)))
        assert said[0] == "taking over what an earlier run started"
        assert "transfer" not in said

    def test_reboot(self, board: Board, artifact: Path) -> None:
        def reboot() -> None:
            board.reboot()
            board.start()

        with open_device(board.url, ssh_config=board.config) as device:
            group = group_of(board.url, artifact, 20)
            with pytest.raises(DeviceError, match="rebooted") as caught:
                device.run(group, at("load", reboot))
            assert (caught.value.stage, caught.value.may_repeat) == ("measure", True)
            check(device.run(group_of(board.url, artifact), quiet))

    @pytest.mark.full
    def test_the_measurement_is_killed(self, board: Board, artifact: Path) -> None:
        def kill() -> None:
            (work,) = board.programs("work")
            work.kill()

        with open_device(board.url, ssh_config=board.config) as device:
            group = group_of(board.url, artifact, 20)
            with pytest.raises(DeviceError, match="was killed on the device") as caught:
                device.run(group, at("load", kill))
            assert caught.value.may_repeat
            check(device.run(group_of(board.url, artifact), quiet))


class TestFiles:
    def test_only_what_is_missing_is_sent(self, board: Board, artifact: Path) -> None:
        sent: list[list[str]] = []
        for seconds in (0.3, 0.4):
            names: list[str] = []

            def show(stage: str, subject: str, done: int, total: int, names: list[str] = names) -> None:
                if stage == "transfer":
                    names.append(subject)

            with open_device(board.url, ssh_config=board.config) as device:
                check(device.run(group_of(board.url, artifact, seconds), show))
            sent.append(names)
        assert "colours-onnx/model.onnx" in sent[0]
        assert sent[1] == []

    @pytest.mark.parametrize(
        "file",
        ["model.onnx", *(pytest.param(n, marks=pytest.mark.full) for n in ("manifest.json", "golden.npz"))],
    )
    def test_changed_on_the_device(self, board: Board, artifact: Path, file: str) -> None:
        with open_device(board.url, ssh_config=board.config) as device:
            check(device.run(group_of(board.url, artifact), quiet))
            (there,) = (board.folder / "trees").glob(f"*/{file}")
            content = bytearray(there.read_bytes())
            content[len(content) // 2] ^= 1
            there.write_bytes(content)
            with pytest.raises(DeviceError, match=f"{file} is not what was sent") as caught:
                device.run(group_of(board.url, artifact, 0.4), quiet)
            assert (caught.value.stage, caught.value.may_repeat) == ("verify", True)
            check(device.run(group_of(board.url, artifact, 0.4), quiet))

    def test_changed_here(self, board: Board, artifact: Path, tmp_path: Path) -> None:
        group = group_of(board.url, artifact)
        other = make_artifact(tmp_path / "other", extra_channels=1)
        for file in other.path.iterdir():
            file.replace(artifact / file.name)
        with (
            open_device(board.url, ssh_config=board.config) as device,
            pytest.raises(DeviceError, match="was changed since the plan was made"),
        ):
            device.run(group, quiet)


@pytest.fixture
def small_disk(board: Board, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a folder on the board, prepared, on a disk of so many KiB."""
    mounted: list[Path] = []

    def make(kibibytes: int) -> Path:
        folder = board.home / "small"
        folder.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "csr-deploy", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
        mounted.append(folder)
        (folder / "venv").symlink_to(board.folder / "venv")
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def url_of(folder: Path) -> str:
    return f"ssh://board{folder}"


class TestFullDisk:
    def test_no_room_for_the_files(
        self, board: Board, small_disk: Callable[[int], Path], artifact: Path
    ) -> None:
        folder = small_disk(64)
        (folder / "ballast").write_bytes(bytes(56 << 10))
        with (
            open_device(url_of(folder), ssh_config=board.config) as device,
            pytest.raises(DeviceError, match="disk is full") as caught,
        ):
            device.run(group_of(url_of(folder), artifact), quiet)
        assert caught.value.stage == "transfer"
        assert not [p for p in (folder / "blobs").iterdir() if p.name.startswith(".")]

    def test_no_room_for_a_result(
        self, board: Board, small_disk: Callable[[int], Path], artifact: Path
    ) -> None:
        folder = small_disk(8 << 10)
        with (
            open_device(url_of(folder), ssh_config=board.config) as device,
            pytest.raises(DeviceError, match="kept for the result"),
        ):
            device.run(group_of(url_of(folder), artifact), quiet)

    @pytest.mark.full
    def test_a_result_waits_for_room(
        self, board: Board, small_disk: Callable[[int], Path], artifact: Path
    ) -> None:
        folder = small_disk(48 << 10)
        ballast = folder / "ballast"

        def fill() -> None:
            with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            timers.append(later(4, ballast.unlink))

        timers: list[threading.Timer] = []
        with open_device(url_of(folder), ssh_config=board.config) as device:
            check(device.run(group_of(url_of(folder), artifact, 1), at("load", fill)))
        timers[0].join()
        assert not ballast.exists()


HOST = """
import sys
from dataclasses import replace
from pathlib import Path
from csr_deploy.bench.devices import open_device
from csr_deploy.bench.groups import make_group
from csr_deploy.bench.plan import QUICK, make_plan

def show(stage, subject, done, total):
    print(stage, flush=True)

url, config, artifact, seconds = sys.argv[1:]
options = replace(QUICK, telemetry="none", profile=False, seconds=float(seconds))
with open_device(url, ssh_config=Path(config)) as device:
    device.run(make_group(url, make_plan([Path(artifact)], options)), show)
    print("finished", flush=True)
    sys.stdin.read()
"""


def start_host(board: Board, artifact: Path, seconds: float, until: str) -> subprocess.Popen[str]:
    """Another process that measures, as `csr-bench` does, up to some stage.

    It runs the csr-deploy that was installed on the board: without torch, and the same code for sure.
    """
    python = str(board.folder / "venv/bin/python")
    process = subprocess.Popen(
        [python, "-I", "-c", HOST, board.url, str(board.config), str(artifact), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == until:
            return process
    pytest.fail(f"the other process did not get to '{until}'")


class TestHosts:
    @pytest.mark.parametrize("until", ["load", "finished"])
    def test_the_host_is_killed_and_another_takes_over(
        self, board: Board, artifact: Path, until: str
    ) -> None:
        other = start_host(board, artifact, 1, until)
        other.send_signal(signal.SIGKILL)
        other.communicate()
        said: list[str] = []
        with open_device(board.url, ssh_config=board.config) as device:
            group = group_of(board.url, artifact, 1)
            adopted = device.run(group, lambda stage, *rest: said.append(stage))
            check(adopted)
            assert said[0] == "taking over what an earlier run started"
            assert "transfer" not in said
            # The same group again, as after a void one, is measured anew.
            again = device.run(group, quiet)
            assert again["measurements"][0]["latency"] != adopted["measurements"][0]["latency"]
        assert board.programs("work") == []

    def test_two_runs_on_one_device(self, board: Board, artifact: Path, setup_options: SetupOptions) -> None:
        other = start_host(board, artifact, 20, "load")
        try:
            with (
                pytest.raises(DeviceError, match=rf"process {other.pid}\) measures on it since") as caught,
                open_device(board.url, ssh_config=board.config),
            ):
                pass
            assert caught.value.stage == "lock"
            assert caught.value.fix is not None and "--wait-for-device" in caught.value.fix
            # Nor is the environment exchanged under it.
            options = DeviceOptions(ssh_config=board.config)
            with pytest.raises(DeviceError, match="somebody measures on it"):
                prepare(parse_device_name(board.url), options, replace(setup_options, extra="none"))
        finally:
            other.kill()
            other.communicate()

    @pytest.mark.full
    def test_waiting_for_the_other_run(self, board: Board, artifact: Path) -> None:
        other = start_host(board, artifact, 0.3, "finished")
        timer = later(1, lambda: other.communicate("")[0])
        with open_device(board.url, ssh_config=board.config, wait_s=60) as device:
            assert other.poll() is not None or not timer.is_alive()
            check(device.run(group_of(board.url, artifact), quiet))
        timer.join()

    def test_ctrl_c_ends_the_measurement_there(self, board: Board, artifact: Path) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), open_device(board.url, ssh_config=board.config) as device:
            device.run(group_of(board.url, artifact, 20), at("load", interrupt))
        end = time.monotonic() + 10
        while board.programs("work") and time.monotonic() < end:
            time.sleep(0.05)
        assert board.programs("work") == []

    @pytest.mark.full
    def test_a_left_over_of_another_group_is_waited_for(self, board: Board, artifact: Path) -> None:
        other = start_host(board, artifact, 2, "load")
        other.send_signal(signal.SIGKILL)
        other.communicate()
        said: list[str] = []
        device: BenchDevice
        with open_device(board.url, ssh_config=board.config) as device:
            check(device.run(group_of(board.url, artifact, 0.3), lambda stage, *rest: said.append(stage)))
        assert "waiting for measurement" in said[0]
