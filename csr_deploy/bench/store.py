"""The results file: JSON lines, appended and on the disk before the next group begins.

`csr_deploy/bench/schema/results.schema.json` is the shape of a line. A line is written in one piece and ends
with a line feed; a run that is killed, or a disk that is full, can cut the last line only. The next run drops
a cut line and says so. Nothing else in the file is ever changed.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from csr_deploy.bench.accuracy import is_float, with_agreement
from csr_deploy.bench.plain import read_plain
from csr_deploy.bench.results import READABLE_VERSIONS, SCHEMA_VERSION, BenchResult
from csr_deploy.errors import BenchError

if TYPE_CHECKING:
    from typing_extensions import Self

# Parsed by its head alone where only that is needed: samples make up nearly all of a line.
_RESULT_KEY = b', "result": '


@dataclass(frozen=True)
class PlannedSubject:
    """A subject of a planned group.

    Attributes:
        label: Its name in tables.
        path: Artifact directory or checkpoint file, as given.
        kind: "artifact" or "checkpoint".
        network: Name of the network; of a checkpoint, which is not opened for the plan, its label.
        target: Target of the artifact, or "checkpoint".
        content: SHA-256 over the records of the artifact's files, or of the checkpoint.
    """

    label: str
    path: str
    kind: str
    network: str
    target: str
    content: str


@dataclass(frozen=True)
class PlannedGroup:
    """A group as it was planned.

    Attributes:
        id: 16 hex digits of SHA-256 over the device, the options, the baseline and every subject's label and
            content.
        device: Where it is measured: "local", "ssh://user@host:port", "pi-emulated:pi4", …
        baseline: Label of the subject the others are compared with.
        subjects: In the order of their turns.
        options: How they are measured; plain values of `csr_deploy.bench.plan.BenchOptions`.
    """

    id: str
    device: str
    baseline: str
    subjects: tuple[PlannedSubject, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a run was to do.

    Attributes:
        groups: In the order of the plan.
        left_out: Combinations of the plan that mean nothing, and why; in words.
    """

    groups: tuple[PlannedGroup, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """A start of csr-bench, or a resumption.

    Attributes:
        run: Random id of this start; later records name it.
        started: Wall clock, ISO 8601 in UTC. A label: nothing is computed from it.
        command: The command line.
        csr_deploy: Version of csr-deploy on the machine that plans.
        plan: Everything that was to be there at the end; what an earlier run measured is not repeated.
    """

    run: str
    started: str
    command: tuple[str, ...]
    csr_deploy: str
    plan: Plan


@dataclass(frozen=True)
class GroupRecord:
    """An attempt to measure a group. The last attempt counts.

    Attributes:
        run: Id of the run that measured it.
        group: Id of the group.
        device: Its device.
        attempt: 1 and up, counted over all runs.
        started: Wall clock, ISO 8601 in UTC. A label.
        finished: Likewise.
        seconds: Time between the two in s, by a monotonic clock.
        void: Why its latencies are void, as in the result; empty where they are good.
        failed: Labels of subjects that were not measured to the end.
        result: What was measured.
    """

    run: str
    group: str
    device: str
    attempt: int
    started: str
    finished: str
    seconds: float
    void: tuple[str, ...]
    failed: tuple[str, ...]
    result: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class FailureRecord:
    """A group that as a whole could not be measured.

    Attributes:
        run: Id of the run.
        group: Id of the group.
        device: Its device.
        attempt: 1 and up, counted over all runs.
        at: Wall clock, ISO 8601 in UTC. A label.
        stage: "connect", "setup", "transfer", "verify", "measure", …: what the device was doing.
        reason: What is wrong.
        where: File, machine or option concerned; None where nothing is to be named.
        fix: What the user can do about it; None where nothing is known.
        error: Name of the class in `csr_deploy.errors`.
    """

    run: str
    group: str
    device: str
    attempt: int
    at: str
    stage: str
    reason: str
    where: str | None
    fix: str | None
    error: str


Record: TypeAlias = "RunRecord | GroupRecord | FailureRecord"
RECORDS: Mapping[str, type[RunRecord] | type[GroupRecord] | type[FailureRecord]] = {
    "run": RunRecord,
    "group": GroupRecord,
    "failure": FailureRecord,
}


@dataclass(frozen=True)
class Attempt:
    """What the file holds of the last attempt at a group.

    Attributes:
        group: Id.
        device: Its device.
        number: How many there were.
        status: "passed", "void", "incomplete" (a subject failed) or "failed" (the group could not run).
        failure: Where it failed as a whole.
        line: The record's line without its end, to be read by `result`; None where it failed as a whole.
    """

    group: str
    device: str
    number: int
    status: str
    failure: FailureRecord | None = None
    line: bytes | None = field(default=None, repr=False)

    def values(self) -> dict[str, Any] | None:
        """The result as plain values; None where the group as a whole failed."""
        if self.line is None:
            return None
        result: dict[str, Any] = json.loads(self.line)["result"]
        return result

    def result(self) -> BenchResult | None:
        """The result; None where the group as a whole failed.

        Raises:
            BenchError: If it is damaged.
        """
        values = self.values()
        return None if values is None else BenchResult.from_json(values, f"the result of group {self.group}")


@dataclass(frozen=True)
class Contents:
    """What a results file holds.

    Attributes:
        path: The file.
        runs: Every start.
        attempts: The last attempt at each group, by id, in the order of their first appearance.
        cut: Bytes of a cut last line that was left out; 0 where there is none.
    """

    path: Path
    runs: tuple[RunRecord, ...]
    attempts: Mapping[str, Attempt]
    cut: int = 0

    def planned(self) -> dict[str, PlannedGroup]:
        """Every group that any run planned, by id."""
        return {group.id: group for run in self.runs for group in run.plan.groups}


def read_store(path: Path) -> Contents:
    """Reads a results file without changing it; a cut last line is left out.

    Raises:
        BenchError: If there is no such file, or it is no results file, or a line in its middle is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchError(
            f"cannot be read: {error.strerror or error}",
            where=str(path),
            fix="Name a file that csr-bench --results wrote.",
        ) from error
    return _read(path, content)


def _read(path: Path, content: bytes) -> Contents:
    runs: list[RunRecord] = []
    attempts: dict[str, Attempt] = {}
    *lines, rest = content.split(b"\n")
    cut = 0
    if rest:
        # Without its end a line was cut, unless only that is missing.
        if _is_whole(rest):
            lines.append(rest)
        else:
            cut = len(rest)
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        head = _head(line, where)
        kind = str(head.get("record"))
        if kind not in RECORDS or head.get("schema_version") not in READABLE_VERSIONS:
            raise _no_record(where, head)
        record = read_plain(RECORDS[kind], head, where)
        if isinstance(record, RunRecord):
            runs.append(record)
            continue
        # Attempts are counted, the earliest first: of a group that stands in the file twice the last counts.
        attempts[record.group] = _attempt(record, line)
    if cut and not lines and not content.startswith(b'{"record": '[: len(content)]):
        raise _no_record(f"{path}, line 1", None)
    return Contents(path, tuple(runs), attempts, cut)


def _attempt(record: GroupRecord | FailureRecord, line: bytes) -> Attempt:
    if isinstance(record, FailureRecord):
        return Attempt(record.group, record.device, record.attempt, "failed", failure=record)
    status = "void" if record.void else "incomplete" if record.failed else "passed"
    return Attempt(record.group, record.device, record.attempt, status, line=line)


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _head(line: bytes, where: str) -> dict[str, Any]:
    """A record without what was measured."""
    at = line.find(_RESULT_KEY)
    shown = line if at < 0 else line[:at] + _RESULT_KEY + b"{}}"
    try:
        head = json.loads(shown)
    except ValueError as error:
        raise BenchError(
            f"is damaged: {error}",
            where=where,
            fix="It was changed by something else than csr-bench. Remove the line to measure that again.",
        ) from error
    if not isinstance(head, dict) or (at >= 0 and not line.endswith(b"}}")):
        raise _no_record(where, head)
    return head


def _no_record(where: str, head: Any) -> BenchError:
    version = head.get("schema_version") if isinstance(head, dict) else None
    if version is not None and version not in READABLE_VERSIONS:
        return BenchError(
            f"has schema version {version!r}; this csr-deploy reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}",
            where=where,
            fix="Use another results file, or the csr-deploy that wrote it.",
        )
    return BenchError(
        "is no record of csr-bench",
        where=where,
        fix="Name a file that csr-bench --results wrote, or a new one.",
    )


class Store:
    """An open results file, to be entered with `with`; one run writes it at a time.

    Args:
        path: The file; it is made if there is none.

    Attributes:
        contents: What it held on entering.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents = Contents(path, (), {})
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Opens and locks the file, and drops a cut last line.

        Raises:
            BenchError: If it cannot be written, another run writes it, or it is no results file.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            content = file.readall()
            self.contents = _read(self.path, content)
            if self.contents.cut:
                file.truncate(len(content) - self.contents.cut)
            elif content and not content.endswith(b"\n"):
                file.write(b"\n")
            os.fsync(file.fileno())
        except BlockingIOError as error:
            file.close()
            raise BenchError(
                "another csr-bench writes it at this moment",
                where=str(self.path),
                fix="Wait for it, or name another results file.",
            ) from error
        except OSError as error:
            file.close()
            raise self._unwritable(error) from error
        except BenchError:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, record: Record) -> None:
        """Writes a record and waits until it is on the disk. Threads may call it at the same time.

        Raises:
            BenchError: If it cannot be written, say because the disk is full; a part that was written is
                taken back. Or if the result of a device is none.
        """
        line = encode(record)
        with self._lock:
            if self._file is None:
                raise BenchError("the results file is not open", where=str(self.path))
            size = self._file.seek(0, os.SEEK_END)
            try:
                _write_all(self._file, line)
                os.fsync(self._file.fileno())
            except OSError as error:
                self._file.truncate(size)
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> BenchError:
        return BenchError(
            f"cannot be written: {error.strerror or error}",
            where=str(self.path),
            fix="Free space or choose another place; --resume then measures only what is missing.",
        )


def _write_all(file: BinaryIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def encode(record: Record) -> bytes:
    """A record as a line, its end included.

    Raises:
        BenchError: If it holds a result that is none, or a number that JSON does not have.
    """
    kind = next(name for name, cls in RECORDS.items() if isinstance(record, cls))
    result: Mapping[str, Any] | None = None
    if isinstance(record, GroupRecord):
        result = record.result
        check_result(result, record.device)
    # A deep copy of a hundred thousand samples would be for nothing.
    plain = _plain(record)
    try:
        text = json.dumps(
            {"record": kind, "schema_version": SCHEMA_VERSION, **plain}
            | ({} if result is None else {"result": result}),
            allow_nan=False,
        )
    except ValueError as error:
        raise BenchError(f"a result cannot be written: {error}") from error
    return text.encode() + b"\n"


def _plain(record: Record) -> dict[str, Any]:
    if isinstance(record, GroupRecord):
        return {k: v for k, v in vars(record).items() if k != "result"}
    return asdict(record)


_RESULT_FIELDS = (
    "schema_version",
    "environment",
    "baseline",
    "measurements",
    "comparisons",
    "failures",
    "void",
)


def check_result(values: object, device: str) -> None:
    """A cheap look at what a device gave back; the schema is checked in tests.

    Args:
        values: Plain values of a `BenchResult`.
        device: For messages.

    Raises:
        BenchError: If they are none, or of another version.
    """
    if not isinstance(values, Mapping):
        raise BenchError("gave back no result", where=device)
    lacking = [name for name in _RESULT_FIELDS if name not in values]
    if lacking:
        raise BenchError(f"gave back a result without {', '.join(lacking)}", where=device)
    if values["schema_version"] != SCHEMA_VERSION:
        raise BenchError(
            f"gave back a result of schema version {values['schema_version']!r}, not {SCHEMA_VERSION}",
            where=device,
            fix="Install the same csr-deploy there: csr-device setup.",
        )


def read_results(path: Path) -> list[tuple[str, BenchResult]]:
    """The results in a file of --results, one for the last attempt at every group, or in one of --json.

    Agreements with float networks that were measured after the subjects themselves are filled in.

    Args:
        path: The file.

    Returns:
        Devices and results. Groups that as a whole failed have none.

    Raises:
        BenchError: If it is neither.
    """
    single = _single(path)
    if single is not None:
        return [(device_of(single), BenchResult.from_json(single, str(path)))]
    found = [(a.device, a.result()) for a in read_store(path).attempts.values()]
    results = [(device, result) for device, result in found if result is not None]
    floats = [m for _, result in results for m in result.measurements if is_float(m)]
    return [
        (device, replace(result, measurements=with_agreement(result.measurements, floats)))
        for device, result in results
    ]


def device_of(values: Mapping[str, Any]) -> str:
    """The device of a result of --json, which does not name it where it is this machine."""
    device = values.get("options", {}).get("device")
    return "local" if device in (None, "host") else str(device)


def _single(path: Path) -> dict[str, Any] | None:
    """The one result that --json wrote; None where the file holds something else."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
            if b'"schema_version"' not in start or start.startswith(b'{"record"'):
                return None
            values = json.loads(start + file.read())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and "measurements" in values else None
