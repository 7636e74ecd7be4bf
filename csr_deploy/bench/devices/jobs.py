"""A measurement on the device: a folder that outlives the connection and the process.

`job.json` is what was asked for, `process.json` who works on it, `progress` a line of JSON an event, `log`
what was printed, and in the end `result.json` or `failure.json` appears, whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from csr_deploy.artifact import MANIFEST
from csr_deploy.bench.devices.blobs import FULL, BlobStore, file_sha256, free_bytes
from csr_deploy.bench.devices.lock import DeviceLock
from csr_deploy.bench.devices.processes import ProcessName, boot_id, is_alive, name_process
from csr_deploy.bench.measure import run_plan
from csr_deploy.bench.plan import BenchOptions, BenchPlan, BenchSubject
from csr_deploy.errors import CsrError

_LOG_LINES = 15
_RESERVE_BYTES = 32 << 20
_FULL_PAUSE_S = 5.0
_FULL_PATIENCE_S = 3600.0
_STOP_SECONDS = 5.0


class JobError(Exception):
    """Why a job ended early, as plain values: stage, what, where, fix, and whether it may be repeated."""

    def __init__(
        self,
        stage: str,
        what: str,
        where: str | None = None,
        fix: str | None = None,
        may_repeat: bool = False,
    ) -> None:
        super().__init__(what)
        self.values = {"stage": stage, "what": what, "where": where, "fix": fix, "may_repeat": may_repeat}


class Job:
    """One measurement.

    Args:
        folder: Where everything of csr-deploy is on the device.
        key: Its name.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._root = folder
        self.key = key
        self.folder = folder / "jobs" / key

    @property
    def progress(self) -> Path:
        """The file of events."""
        return self.folder / "progress"

    @property
    def result(self) -> Path:
        """The result, once it is there."""
        return self.folder / "result.json"

    def state(self) -> dict[str, Any]:
        """What became of it.

        Returns:
            `{"state": "none"}`, `{"state": "starting"}`, `{"state": "running"}`,
            `{"state": "done", "age_s"}`, or `{"state": "failed", "failure"}` with the fields of `JobError`.
        """
        if self.result.is_file():
            return {"state": "done", "age_s": time.time() - self.result.stat().st_mtime}
        failure = _read(self.folder / "failure.json")
        if failure is not None:
            return {"state": "failed", "failure": failure}
        process: ProcessName | None = _read(self.folder / "process.json")  # type: ignore[assignment]
        if process is None:
            return {"state": "starting" if self.folder.is_dir() else "none"}
        if is_alive(process):
            return {"state": "running"}
        # It may have ended between the two looks.
        if self.result.is_file() or (self.folder / "failure.json").is_file():
            return self.state()
        if process["boot_id"] != boot_id():
            error = JobError(
                "measure",
                "the device rebooted while it measured",
                fix="Look at its power supply; the run may be repeated.",
                may_repeat=True,
            )
        else:
            said = self.said()
            error = JobError(
                "measure",
                "the measurement was killed on the device, as when memory runs out",
                fix=f"Its last output:\n  {said}" if said else "It left no output.",
                may_repeat=True,
            )
        return {"state": "failed", "failure": error.values}

    def said(self) -> str:
        """The end of what it printed."""
        try:
            text = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n  ".join(text.rstrip().splitlines()[-_LOG_LINES:])

    def make(self, values: Mapping[str, Any]) -> None:
        """Makes the folder, in place of an earlier one.

        Raises:
            OSError: If it cannot be written.
        """
        self.forget()
        self.folder.mkdir(parents=True)
        (self.folder / "job.json").write_text(json.dumps(values), encoding="utf-8")

    def forget(self) -> None:
        """Ends it where it runs, and removes the folder."""
        process: ProcessName | None = _read(self.folder / "process.json")  # type: ignore[assignment]
        if process is not None and is_alive(process):
            # Its workers have sessions of their own, and end when they lose it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGTERM)
            end = time.monotonic() + _STOP_SECONDS
            while is_alive(process) and time.monotonic() < end:
                time.sleep(0.05)
            if is_alive(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process["pid"], signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def work(self) -> None:
        """Does it. Whatever happens, a result or a failure is written at the end."""
        _write_whole(self.folder / "process.json", name_process())
        DeviceLock(self._root).note_job(self.key)
        values = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        name, outcome = "failure.json", {}
        try:
            with self.progress.open("a", encoding="utf-8") as file:

                def show(stage: str, subject: str, done: int, total: int) -> None:
                    _try_to_say(file.write, file.flush, [stage, subject, done, total])

                plan = self._plan(values)
                self._check_space()
                outcome = run_plan(plan, show).to_json()
                name = "result.json"
        except JobError as error:
            outcome = error.values
        except CsrError as error:
            outcome = JobError("measure", error.what, error.where, error.fix).values
        except Exception:
            # A defect: the host shows it, as it would show one of its own.
            trace = traceback.format_exc()
            outcome = JobError("measure", f"a defect of csr-deploy on the device:\n{trace}").values
        self._keep(name, outcome)

    def _plan(self, values: Mapping[str, Any]) -> BenchPlan:
        """The plan with this device's paths, after a look at every byte of it.

        Raises:
            JobError: If a file is not what was sent; it is removed, so that it is sent again.
        """
        store = BlobStore(self._root)
        subjects = []
        for each in values["subjects"]:
            tree, subject = self._root / each["tree"], each["subject"]
            for file, sha256 in each["files"].items():
                if _is(tree / file, sha256) or (file == MANIFEST and self._only_engines(tree, sha256)):
                    continue
                store.drop([sha256], [each["tree"]])
                raise JobError(
                    "verify",
                    f"{file} is not what was sent (its SHA-256 differs)",
                    subject["label"],
                    "Run it again: the file is sent again. If this stays, check the device's storage.",
                    may_repeat=True,
                )
            path = tree / subject["path"] if subject["path"] else tree
            subjects.append(BenchSubject(**{**subject, "path": path}))
        options = dict(values["options"])
        if values["data"] is not None:
            sha256 = values["data"]
            if not _is(store.path(sha256), sha256):
                store.drop([sha256])
                raise JobError(
                    "verify",
                    "the test images are not what was sent (their SHA-256 differs)",
                    fix="Run it again: they are sent again. If this stays, check the device's storage.",
                    may_repeat=True,
                )
            options["data"] = str(store.path(sha256))
        return BenchPlan(tuple(subjects), values["baseline"], BenchOptions(**options))

    def _only_engines(self, tree: Path, sha256: str) -> bool:
        """Whether a manifest differs from the one sent only by engines that were built on this device."""
        blob = BlobStore(self._root).path(sha256)
        if not _is(blob, sha256):
            return False
        try:
            sent = json.loads(blob.read_text(encoding="utf-8"))
            here = json.loads((tree / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return {**sent, "engines": None} == {**here, "engines": None}

    def _check_space(self) -> None:
        free = free_bytes(self.folder)
        if free < _RESERVE_BYTES:
            raise JobError(
                "transfer",
                f"the device's disk is full: {free >> 20} MiB are free, "
                f"{_RESERVE_BYTES >> 20} MiB are kept for the result",
                fix="Free space there: csr-device clean removes what csr-bench sent.",
            )

    def _keep(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Writes the outcome; where the disk is full, as soon as it no longer is."""
        end = time.monotonic() + _FULL_PATIENCE_S
        while True:
            try:
                return _write_whole(self.folder / name, outcome)
            except OSError as error:
                if error.errno not in FULL or time.monotonic() > end:
                    raise
            time.sleep(_FULL_PAUSE_S)


def _try_to_say(write: Callable[[str], object], flush: Callable[[], object], event: list[Any]) -> None:
    """Progress is not worth a measurement: on a full disk it is lost."""
    with contextlib.suppress(OSError):
        write(json.dumps(event) + "\n")
        flush()


def _is(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values


def _write_whole(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
