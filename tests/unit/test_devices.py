"""Devices: their names, files by hash, the lock, wheels, and what is said about a board."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csr_deploy.bench.devices import DeviceOptions, open_device, parse_device_name
from csr_deploy.bench.devices.blobs import BlobError, BlobStore, answer_files, serve
from csr_deploy.bench.devices.facts import describe_facts
from csr_deploy.bench.devices.identity import code_sha256
from csr_deploy.bench.devices.lock import DeviceLock
from csr_deploy.bench.devices.names import DEFAULT_FOLDER
from csr_deploy.bench.devices.prepare import Found, SetupOptions
from csr_deploy.bench.devices.probe import look
from csr_deploy.bench.devices.processes import is_alive, name_process
from csr_deploy.bench.devices.ssh import quote
from csr_deploy.bench.devices.wheels import make_wheel, platform_tags, repack
from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.data.drawn import write_drawn
from csr_deploy.errors import DataError, OptionError


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TestNames:
    @pytest.mark.parametrize(
        ("text", "destination", "port", "folder"),
        [
            ("ssh://pi@raspberrypi.local", "pi@raspberrypi.local", None, DEFAULT_FOLDER),
            ("ssh://board:2222", "board", 2222, DEFAULT_FOLDER),
            ("ssh://me@[fe80::1%eth0]:22/opt/csr/", "me@fe80::1%eth0", 22, "/opt/csr"),
            ("ssh://board/~/bench", "board", None, "~/bench"),
        ],
    )
    def test_ssh(self, text: str, destination: str, port: int | None, folder: str) -> None:
        name = parse_device_name(text)
        assert (name.kind, name.destination, name.port, name.folder) == ("ssh", destination, port, folder)

    @pytest.mark.parametrize(
        "text", ["ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://me@-x", "ssh://h:0", "ssh://h:99999"]
    )
    def test_what_is_no_address(self, text: str) -> None:
        with pytest.raises(OptionError, match="is no address"):
            parse_device_name(text)

    def test_others(self) -> None:
        assert parse_device_name("local").kind == "local"
        assert parse_device_name("qemu:cortex-m4").kind == "mcu"
        assert parse_device_name("pi-emulated").board == "pi4"
        assert parse_device_name("pi-emulated:pi5").board == "pi5"

    @pytest.mark.parametrize(
        ("text", "guess"), [("lokal", "local"), ("pi-emulatd", "pi-emulated"), ("ssh:/x", "ssh://")]
    )
    def test_guesses(self, text: str, guess: str) -> None:
        with pytest.raises(OptionError, match=f"Did you mean {guess}"):
            open_device(text)

    @pytest.mark.parametrize("options", [{"wait_s": -1}, {"alive_s": 0}, {"ssh_config": Path("/nowhere")}])
    def test_options_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(OptionError):
            DeviceOptions(**options)

    def test_quoting(self) -> None:
        assert quote("~/a b") == "~/'a b'"
        assert quote("$(x)") == "'$(x)'"


class TestBlobs:
    def test_files_arrive_and_make_a_folder(self, tmp_path: Path) -> None:
        store, content = BlobStore(tmp_path), b"content"
        requests = io.BytesIO(
            json.dumps({"do": "need", "files": {sha(content): 7}}).encode()
            + b"\n"
            + json.dumps({"do": "put", "sha256": sha(content), "size": 7}).encode()
            + b"\n"
            + content
            + json.dumps({"do": "tree", "name": "trees/one", "files": {"src/a.c": sha(content)}}).encode()
            + b"\n"
        )
        replies = io.BytesIO()
        serve(requests, replies, lambda request, stream: answer_files(store, request, stream))
        need, put, tree = (json.loads(line)["value"] for line in replies.getvalue().splitlines())
        assert need["missing"] == [sha(content)]
        assert put is None
        assert Path(tree, "src/a.c").read_bytes() == content
        assert store.need({sha(content): 7})["missing"] == []

    def test_other_bytes_are_refused_and_the_next_request_is_understood(self, tmp_path: Path) -> None:
        store = BlobStore(tmp_path)
        store.need({})
        stream = io.BytesIO(b"contents" + b"next")
        with pytest.raises(BlobError) as caught:
            store.put(stream, sha(b"content!"), 8)
        assert caught.value.kind == "changed"
        assert stream.read() == b"next"
        assert list((tmp_path / "blobs").iterdir()) == []

    def test_a_connection_that_ends_in_a_file(self, tmp_path: Path) -> None:
        store = BlobStore(tmp_path)
        store.need({})
        with pytest.raises(EOFError):
            store.put(io.BytesIO(b"cont"), sha(b"content"), 7)
        assert list((tmp_path / "blobs").iterdir()) == []


class TestLock:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        first, second = DeviceLock(tmp_path), DeviceLock(tmp_path)
        assert first.take("one", "me@here") == {"state": "held"}
        assert first.take("one", "me@here") == {"state": "held"}
        busy = second.take("two", "you@there")
        assert (busy["state"], busy["who"]) == ("busy", "me@here")
        assert first.handle is not None and second.handle is None

    def test_it_is_free_when_its_holder_is_killed(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path; "
            "from csr_deploy.bench.devices.lock import DeviceLock; lock = DeviceLock(Path(sys.argv[1])); "
            "print(lock.take('one', 'me')['state'], flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert DeviceLock(tmp_path).take("two", "you")["state"] == "busy"
            holder.kill()
            holder.wait()
            assert DeviceLock(tmp_path).take("two", "you") == {"state": "held"}

    def test_a_number_that_was_given_again_is_another_process(self) -> None:
        me = name_process()
        assert is_alive(me)
        assert not is_alive({**me, "start": "1"})
        assert not is_alive({**me, "boot_id": "another"})


class TestWheels:
    def test_an_installed_package_is_packed_again(self, tmp_path: Path) -> None:
        wheel = repack("rich", tmp_path)
        install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "site")]
        subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True)
        code = "import rich, importlib.metadata as m; print(rich.__file__, len(m.files('rich')))"
        said = subprocess.check_output(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path / "site")}, text=True
        )
        assert said.startswith(str(tmp_path / "site"))

    def test_the_wheel_is_this_csr_deploy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = []
        for hidden in (False, True):
            if hidden:
                # As where no build backend is installed.
                monkeypatch.setattr(
                    "csr_deploy.bench.devices.wheels.importlib.util.find_spec", lambda name: None
                )
            folder = tmp_path / str(hidden)
            folder.mkdir()
            with zipfile.ZipFile(make_wheel(folder)) as archive:
                assert archive.testzip() is None
                names.append({n for n in archive.namelist() if n.startswith("csr_deploy/")})
        assert names[0] == names[1]
        assert "csr_deploy/runtimes/litert.py" in names[0]
        assert len(code_sha256()) == 64

    def test_platforms_of_a_pi(self) -> None:
        tags = platform_tags({"kernel_machine": "aarch64", "libc": "glibc 2.36"})
        assert tags[0] == "manylinux_2_36_aarch64"
        assert {"manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"} <= set(tags)
        with pytest.raises(OptionError, match="C library is musl"):
            platform_tags({"kernel_machine": "aarch64", "libc": "musl"})

    @pytest.mark.parametrize(
        "options", [{"extra": "train"}, {"wheel": Path("/x.whl")}, {"wheels": Path("/nowhere")}]
    )
    def test_setup_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(OptionError):
            SetupOptions(**options)


class TestFacts:
    def describe(self, **changes: object) -> dict[str, str]:
        return dict(describe_facts(Found({**look("~/x"), **changes}, "python3", True)))

    def test_32_bit_programs_on_a_64_bit_kernel(self) -> None:
        said = self.describe(kernel_machine="aarch64", userland_bits=32, libc="glibc 2.31")
        assert said["kernel"] == "64-bit (aarch64)"
        assert said["programs"] == "32-bit, glibc 2.31"

    @pytest.mark.parametrize(
        ("throttled", "words"),
        [("throttled=0x0", "no"), ("throttled=0x1", "under-voltage"), ("throttled=0x10000", "since boot")],
    )
    def test_throttling(self, throttled: str, words: str) -> None:
        assert words in self.describe(throttled=throttled)["throttled"]

    def test_here(self) -> None:
        said = self.describe()
        assert said["python"].startswith(".".join(map(str, sys.version_info[:3])))
        assert "GB" in said["memory"] or "MB" in said["memory"]


class TestDrawn:
    def test_it_is_the_same_draw(self, image_folder: Path, tmp_path: Path) -> None:
        sizes = [Preprocessing(16, 16, (0.0,) * 3, (1.0,) * 3), Preprocessing(8, 8, (0.0,), (1.0,))]
        whole = open_dataset(str(image_folder), "test")
        sets = [(size, sample(whole, size, 12, 0)) for size in sizes]
        for name in ("one.zip", "two.zip"):
            write_drawn(tmp_path / name, sets, whole.classes)
        assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
        drawn = open_dataset(tmp_path / "one.zip", "test")
        assert drawn.classes == whole.classes
        for size, expected in sets:
            again = sample(drawn, size, 12, 0)
            assert again.sha256 == expected.sha256
            np.testing.assert_array_equal(again.images, expected.images)

    def test_what_it_lacks(self, image_folder: Path, tmp_path: Path) -> None:
        size = Preprocessing(16, 16, (0.0,) * 3, (1.0,) * 3)
        whole = open_dataset(str(image_folder), "test")
        path = tmp_path / "drawn.zip"
        write_drawn(path, [(size, sample(whole, size, 3, 0))], whole.classes)
        with pytest.raises(DataError, match="test part only"):
            open_dataset(path, "train")
        other = Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3)
        with pytest.raises(DataError, match="holds images of 16×16×3, the network takes 8×8×3"):
            sample(open_dataset(path, "test"), other, 3, 0)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("labels2.npy", b"nothing")
        with pytest.raises(DataError, match="is damaged"):
            open_dataset(path, "test")
