"""A real sshd on loopback that stands for a board: keys, known hosts and configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

SSHD = "/usr/sbin/sshd"
ALIAS = "board"


class Board:
    """The server, and the client's configuration that leads to it.

    `url` is the device's name for csr-deploy, `folder` where it keeps everything there, `config` what the
    client reads: with the right key and the right host key.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.home = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.folder = folder / "device"
        self.boot_id = folder / "boot_id"
        self.boot_id.write_text("first\n")
        for name in ("host", "user", "stranger"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(keygen, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self.config = self.write_config("config", "user")
        values = {"CSR_BOOT_ID_FILE": str(self.boot_id), **(environment or {})}
        settings = " ".join(f'"{key}={value}"' for key, value in values.items())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\n"
            "ListenAddress 127.0.0.1\n"
            f"HostKey {folder / 'host'}\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\n"
            f"PidFile {folder / 'pid'}\n"
            "PasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\n"
            "StrictModes no\n"
            "UsePAM no\n"
            "MaxStartups 100\n"
            f"SetEnv {settings}\n"
        )

    @property
    def url(self) -> str:
        return f"ssh://{ALIAS}{self.folder}"

    def write_config(self, name: str, key: str, known: str | None = "host", port: int | None = None) -> Path:
        """A client's configuration with one of the keys, knowing one of the host keys or none."""
        hosts = self.home / f"{name}.known_hosts"
        where = f"[127.0.0.1]:{port or self.port}"
        hosts.write_text(f"{where} {(self.home / f'{known}.pub').read_text()}" if known else "")
        config = self.home / name
        config.write_text(
            f"Host {ALIAS}\n"
            "  HostName 127.0.0.1\n"
            f"  Port {port or self.port}\n"
            f"  User {getpass.getuser()}\n"
            f"  IdentityFile {self.home / key}\n"
            "  IdentitiesOnly yes\n"
            "  IdentityAgent none\n"
            f"  UserKnownHostsFile {hosts}\n"
            "  GlobalKnownHostsFile none\n"
            f"  HostKeyAlias {where}\n"
        )
        return config

    def start(self) -> None:
        """Starts the server and waits until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.home / "sshd.log").open("ab")
        command = [SSHD, "-D", "-e", "-f", str(self.home / "sshd_config")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"sshd does not start: {(self.home / 'sshd.log').read_text()}")
                time.sleep(0.02)

    def stop(self) -> None:
        """Ends the server and every connection, as when the network breaks. Programs on the board go on."""
        for process in self.servers():
            process.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def servers(self) -> list[psutil.Process]:
        """The server and the processes of its connections."""
        if self._process is None:
            return []
        server = psutil.Process(self._process.pid)
        found = [server]
        for child in server.children(recursive=True):
            try:
                if child.name() == "sshd":
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def programs(self, word: str) -> list[psutil.Process]:
        """Programs of csr-deploy that run on the board, those with a word among their arguments."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if str(self.folder) in " ".join(words) and word in words:
                found.append(process)
        return found

    def forget(self) -> None:
        """Removes what benchmarks left there."""
        for name in ("blobs", "trees", "jobs"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def reboot(self) -> None:
        """Everything on the board ends, and the kernel says another identity; the server stays off."""
        self.stop()
        for process in (*self.programs("serve"), *self.programs("work")):
            for child in (*process.children(recursive=True), process):
                child.kill()
        self.boot_id.write_text("second\n")


def demand_sshd() -> None:
    """Skips where there is no OpenSSH."""
    for program in (SSHD, "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"needs OpenSSH: {program} is not installed (apt-get install openssh-server)")
