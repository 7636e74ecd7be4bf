"""The results file: cut, damaged, locked, full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from csr_deploy.bench.store import (
    FailureRecord,
    GroupRecord,
    Plan,
    RunRecord,
    Store,
    encode,
    read_results,
    read_store,
)
from csr_deploy.errors import BenchError
from tests.bench_values import full_result, measurement, result

AT = "2026-01-01T00:00:00+00:00"
RUN = RunRecord("ab", AT, ("csr-bench", 'say "result": x'), "0.1", Plan(()))


def group(
    name: str, attempt: int = 1, void: tuple[str, ...] = (), failed: tuple[str, ...] = ()
) -> GroupRecord:
    values = result(measurement("net"), measurement("csr"), void=void).to_json()
    return GroupRecord("ab", name, "local", attempt, AT, AT, 1.5, void, failed, values)


def failure(name: str, attempt: int = 1) -> FailureRecord:
    return FailureRecord(
        "ab", name, "ssh://pi", attempt, AT, "connect", "no route", None, "Plug it in.", "DeviceError"
    )


def write(path: Path, *records: RunRecord | GroupRecord | FailureRecord) -> Path:
    with Store(path) as store:
        for record in records:
            store.append(record)
    return path


def test_the_last_attempt_at_a_group_counts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "new" / "r.jsonl",
        RUN, group("a", void=("hot",)), failure("b"), group("c", failed=("csr",)), group("a", 2),
        group("b", 2), failure("d"),
    )  # fmt: skip
    contents = read_store(path)
    assert {k: (a.number, a.status) for k, a in contents.attempts.items()} == {
        "a": (2, "passed"),
        "b": (2, "passed"),
        "c": (1, "incomplete"),
        "d": (1, "failed"),
    }
    assert contents.runs == (RUN,) and contents.cut == 0
    assert contents.attempts["d"].failure == failure("d") and contents.attempts["d"].result() is None
    read = contents.attempts["a"].result()
    assert read == result(measurement("net"), measurement("csr"))
    assert [device for device, _ in read_results(path)] == ["local"] * 3


@pytest.mark.parametrize("keep", [1, 11, 200, -2, -1])
def test_a_cut_last_line_is_dropped_and_nothing_else(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "r.jsonl", RUN, group("a"), group("b"))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    is_whole = keep == -1
    before = read_store(path)
    assert list(before.attempts) == (["a", "b"] if is_whole else ["a"])
    with Store(path) as store:
        assert store.contents.cut == (0 if is_whole else len(lines[2][:keep]))
        store.append(group("b" if not is_whole else "c"))
    assert list(read_store(path).attempts) == (["a", "b", "c"] if is_whole else ["a", "b"])
    if not is_whole:
        assert path.read_bytes() == whole


@pytest.mark.parametrize("keep", [1, 5, 20])
def test_a_file_that_was_cut_in_its_first_line_begins_anew(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(encode(RUN)[:keep])
    write(path, RUN)
    assert path.read_bytes() == encode(RUN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json\n", "line 1: is damaged"),
        (b'{"colour": "red"}\n', "line 1: is no record of csr-bench"),
        (b"[1, 2]\n", "line 1: is no record of csr-bench"),
        (encode(RUN) + b"{}\n" + encode(RUN), "line 2: is no record"),
        (encode(RUN) + encode(group("a"))[:300] + b"\n" + encode(RUN), "line 2: is "),
        (
            encode(RUN).replace(b'"schema_version": 2', b'"schema_version": 7'),
            "schema version 7; this csr-deploy",
        ),
        (encode(RUN).replace(b'"command"', b'"comand"'), "line 1: lacks command"),
        (b"some text that was never ours", "line 1: is no record"),
        (b"\n", "line 1: is damaged"),
        (b"\xff\xfe\x00\n", "line 1: is damaged"),
    ],
)
def test_a_file_that_is_no_results_file_is_never_changed(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=message), Store(path):
        pass
    with pytest.raises(BenchError, match=message):
        read_store(path)
    assert path.read_bytes() == content


def test_one_run_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    script = (
        "import sys; from pathlib import Path; from csr_deploy.bench.store import Store\n"
        "with Store(Path(sys.argv[1])): print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(BenchError, match="another csr-bench writes it"), Store(path):
            pass
    finally:
        other.communicate(b"", timeout=60)
    # A run that ended, in whatever way, leaves no lock.
    write(path, RUN)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    with Store(path) as store:
        store.append(RUN)
        size = path.stat().st_size

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        # The line is written, but does not reach the disk.
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(BenchError, match="No space left on device"):
            store.append(group("a"))
        monkeypatch.undo()
        assert path.stat().st_size == size
        store.append(group("b"))
    assert list(read_store(path).attempts) == ["b"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be written: Is a directory"), Store(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot be written: "), Store(tmp_path / "file" / "r.jsonl"):
        pass
    with pytest.raises(BenchError, match="cannot be read: No such file"):
        read_store(tmp_path / "nowhere")


def test_what_is_no_result_is_not_written(tmp_path: Path) -> None:
    good = group("a")
    broken = [
        ({}, "without schema_version, environment"),
        ({**good.result, "schema_version": 1}, "schema version 1, not 2"),
        ({**good.result, "quick": float("nan")}, "cannot be written: "),
        (None, "gave back no result"),
    ]
    path = tmp_path / "r.jsonl"
    with Store(path) as store:
        for values, message in broken:
            with pytest.raises(BenchError, match=message):
                store.append(replace(good, result=values))  # type: ignore[arg-type]
    assert path.read_bytes() == b""


def test_the_head_of_a_line_is_read_without_its_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", RUN, group("a"))
    content = path.read_bytes()
    # Its samples are no JSON any more; that matters to who reads the result only.
    path.write_bytes(content.replace(b"[[2000000", b"[[x000000"))
    attempt = read_store(path).attempts["a"]
    assert attempt.status == "passed"
    with pytest.raises(ValueError):
        attempt.result()


def test_results_of_json_and_of_results_files(tmp_path: Path) -> None:
    single = tmp_path / "single.json"
    single.write_text(json.dumps(full_result().to_json()))
    assert read_results(single) == [("local", full_result())]
    # A float network that was measured after the others is found too.
    narrow = measurement("net", predictions=[1] * 5 + [0] * 5)
    wide = measurement("net", target="onnx", predictions=[0] * 10)
    first = replace(group("a"), result=result(narrow).to_json())
    second = replace(group("b"), result=result(wide).to_json())
    (_, read), _ = read_results(write(tmp_path / "r.jsonl", RUN, first, second))
    accuracy = read.measurements[0].accuracy
    assert accuracy is not None and accuracy.agreement_with_float is not None
    assert accuracy.agreement_with_float.share == 0.5
    assert accuracy.agreement_with_float.reference == "net-onnx"
