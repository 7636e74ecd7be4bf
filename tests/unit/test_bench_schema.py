"""The JSON Schema of results: current, complete, explained, and kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from csr_deploy.bench.accuracy import pack_predictions, unpack_predictions
from csr_deploy.bench.results import BenchResult
from csr_deploy.bench.schema import SCHEMA_FILE
from csr_deploy.bench.store import FailureRecord, GroupRecord, Plan, Record, RunRecord, encode
from csr_deploy.errors import BenchError
from tests.bench_values import full_result

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def validate(values: Any, definition: str | None = None) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    schema = SCHEMA if definition is None else {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{definition}"}]}
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(values, schema, cls=jsonschema.Draft202012Validator)


def test_the_file_is_what_the_dataclasses_say() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_schema.py", "--check"],
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == 0, "run: python tools/make_schema.py"


def records() -> Iterator[Record]:
    yield RunRecord("ab", "2026-01-01T00:00:00+00:00", ("csr-bench",), "0.1", Plan((), ("left out",)))
    yield GroupRecord(
        "ab", "cd" * 8, "local", 1, "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00", 60.0,
        ("hot",), ("third",), full_result().to_json(),
    )  # fmt: skip
    yield FailureRecord(
        "ab",
        "cd" * 8,
        "ssh://pi",
        1,
        "2026-01-01T00:00:00+00:00",
        "connect",
        "no route",
        None,
        None,
        "DeviceError",
    )


@pytest.mark.parametrize("record", list(records()), ids=lambda r: type(r).__name__)
def test_records_validate(record: Record) -> None:
    validate(json.loads(encode(record)))


def test_what_json_writes_validates() -> None:
    validate(json.loads(json.dumps(full_result().to_json())), "BenchResult")


def test_a_result_with_another_field_or_without_one_does_not() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    values = json.loads(json.dumps(full_result().to_json()))
    for broken in (
        {**values, "colour": "red"},
        {k: v for k, v in values.items() if k != "void"},
        {**values, "schema_version": 1},
        {**values, "measurements": [{**values["measurements"][0], "batch": "1"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validate(broken, "BenchResult")


def test_a_result_can_be_read_back() -> None:
    result = full_result()
    values = json.loads(json.dumps(result.to_json()))
    assert BenchResult.from_json(values) == result
    # A later csr-deploy may add fields.
    values["measurements"][0]["colour"] = "red"
    assert BenchResult.from_json(values) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99; this csr-deploy reads 1 and 2"),
        ({"measurements": None}, r"a result\.measurements: must be a list, is None"),
        ({"measurements": [{}]}, r"a result\.measurements\[0\]: lacks subject"),
        ({"quick": 1}, r"a result\.quick: must be true or false, is 1"),
        ({"comparisons": [{"metric": "x"}]}, "lacks subject"),
        ({"environment": []}, r"a result\.environment: must be an object"),
        ({"void": [3]}, r"a result\.void\[0\]: must be a string, is 3"),
    ],
)
def test_a_damaged_result_is_refused_by_path(change: dict[str, Any], message: str) -> None:
    values = json.loads(json.dumps(full_result().to_json()))
    with pytest.raises(BenchError, match=message):
        BenchResult.from_json({**values, **change})


def test_a_result_of_the_first_version_can_be_read() -> None:
    values = json.loads(json.dumps(full_result().to_json()))
    values["schema_version"] = 1
    del values["failures"]
    for measurement in values["measurements"]:
        for name in ("instructions", "profile", "drift", "checkpoint_sha256"):
            del measurement[name]
        for name in ("top5", "agreement_with_float", "per_class", "predictions", "reused_from"):
            del measurement["accuracy"][name]
        del measurement["sizes"]["compressed_bytes"]
        del measurement["latency"]["images_per_second"], measurement["latency"]["cpu_per_wall"]
    for comparison in values["comparisons"]:
        del comparison["metric"]
    read = BenchResult.from_json(values)
    assert read.failures == () and read.comparisons == full_result().comparisons[:1] + read.comparisons[1:]
    assert read.measurements[0].accuracy is not None and read.measurements[0].accuracy.top1 == 0.9


def test_predictions_survive_packing_and_damage_is_noticed() -> None:
    import numpy as np

    classes = np.asarray([0, 9, 999, 65535])
    assert list(unpack_predictions(pack_predictions(classes))) == list(classes)
    for damaged in ("x", "AAAA", "é"):
        with pytest.raises(BenchError, match="predictions of a result are damaged"):
            unpack_predictions(damaged)


def test_failures_become_the_errors_that_they_were() -> None:
    failed = replace(full_result(), failures=full_result().failures)
    (failure,) = failed.failures
    assert type(failure.to_error()).__name__ == "ParityError"
    with pytest.raises(BenchError):
        replace(failed, failures=(replace(failure, error="os"),)).demand_complete()


def documented_fields() -> Iterator[str]:
    """Every field of every record, as docs/results.md writes it: `Record.field`."""
    for name, definition in SCHEMA["$defs"].items():
        for field in definition["properties"]:
            yield f"{name}.{field}"


def test_every_field_is_documented_and_nothing_else() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    sections = re.split(r"^### `(\w+)`.*$", page, flags=re.M)
    documented = {
        f"{record}.{field}"
        for record, text in zip(sections[1::2], sections[2::2], strict=True)
        for field in re.findall(r"^\| `(\w+)` \|", text, flags=re.M)
    }
    assert documented == set(documented_fields())


def test_every_number_with_a_unit_has_it_in_its_name_or_in_the_table() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]+) \|$", page, flags=re.M)
    units = {
        "_ns": "ns",
        "_bytes": "bytes",
        "_mw": "mW",
        "_mhz": "MHz",
        "_c": "°C",
        "_percent": "%",
        "_mib": "MiB",
    }
    for field, unit, _ in rows:
        for suffix, wanted in units.items():
            if field.endswith(suffix):
                assert wanted in unit, (field, unit)


def test_plain_values_are_all_that_is_written() -> None:
    assert json.loads(json.dumps(asdict(full_result()))) is not None
