"""Writes the JSON Schema of results and the tables of docs/results.md from the dataclasses they are made of.

The docstrings are the descriptions. `tests/unit/test_bench_schema.py` checks that both files are current.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csr_deploy.bench import results, store
from csr_deploy.bench.schema import SCHEMA_FILE

_PAGE = Path(__file__).parents[1] / "docs" / "results.md"
_FIELDS = "## Fields"
_ORDER = (
    "RunRecord", "Plan", "PlannedGroup", "PlannedSubject", "GroupRecord", "FailureRecord", "BenchResult",
    "Measurement", "Sizes", "Golden", "Accuracy", "ClassAccuracy", "Agreement", "Latency", "GpuTime",
    "Memory", "OpTime", "Drift", "LayerDrift", "Instructions", "Microcontroller", "Energy", "Comparison",
    "Failure",
    "Environment", "MachineState", "Telemetry", "TelemetrySample", "PowerMode", "TimedWindow",
)  # fmt: skip
_UNITS = {
    "_ns": "ns", "_ms": "ms", "_s": "s", "_bytes": "bytes", "_mw": "mW", "_mhz": "MHz", "_c": "°C", "_v": "V",
    "_percent": "%", "_mib": "MiB", "_rpm": "1/min", "_per_second": "1/s", "_db": "dB",
}  # fmt: skip
# Of numbers whose names say no unit.
_NAMED_UNITS = {
    "arena": "bytes", "attempt": "count", "batch": "images", "busiest_thread": "instructions",
    "confidence": "0..1", "conversion": "ratio", "cpu_per_wall": "processors", "cpus": "count",
    "cycles": "cycles", "damaged": "images", "events": "count", "first": "instructions",
    "float_agreement": "0..1", "high": "ratio", "images": "images", "inferences": "inferences",
    "instructions": "instructions", "instructions_per_mac": "instructions", "load": "instructions",
    "load_average": "tasks", "low": "ratio", "macs": "multiply-accumulates", "malformed": "readings",
    "max_difference": "counts, or share of the range", "millijoules": "mJ", "mode_id": "number of a mode",
    "ns": "ns", "parameters": "count", "per_inference": "instructions", "quantization": "ratio",
    "ratio": "ratio", "rms": "of the activations", "sampled": "samples", "samples": "readings",
    "schema_version": "version", "seconds": "s", "share": "0..1", "threads": "count",
    "tolerance": "counts, or share of the range", "top1": "0..1", "top5": "0..1", "unroll": "ratio",
    "warmup_runs": "inferences",
}  # fmt: skip
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean"}


class _Schema:
    """Collects the definitions of dataclasses."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of(self, hint: Any) -> dict[str, Any]:
        """The schema of a type."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            (inner,) = (a for a in arguments if a is not type(None))
            found = self.of(inner)
            if set(found) == {"type"}:
                return {"type": [found["type"], "null"]}
            return {"anyOf": [found, {"type": "null"}]}
        if origin is tuple:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin is typing.Literal:
            return {"enum": list(arguments)}
        if isinstance(origin, type) and issubclass(origin, Mapping):
            values = {} if arguments[1] is Any else {"additionalProperties": self.of(arguments[1])}
            return {"type": "object", **values}
        if dataclasses.is_dataclass(hint):
            return self._reference(hint)
        return {"type": _SCALARS[hint]}

    def _reference(self, kind: Any) -> dict[str, Any]:
        name = kind.__name__
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self._object(kind)
        return {"$ref": f"#/$defs/{name}"}

    def _object(self, kind: Any) -> dict[str, Any]:
        hints = typing.get_type_hints(kind)
        summary, texts = read_docstring(kind)
        fields = dataclasses.fields(kind)
        properties: dict[str, Any] = {}
        if kind in _VERSIONED:
            properties["schema_version"] = {
                "const": results.SCHEMA_VERSION,
                "description": "Version of this schema.",
            }
        if kind is results.BenchResult:
            properties["timed_region"] = {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "What is inside each figure, in words.",
            }
        for field in fields:
            properties[field.name] = {**self.of(hints[field.name])}
            if text := texts.get(field.name):
                properties[field.name]["description"] = text
        return {
            "description": summary,
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


_VERSIONED = (results.BenchResult,)


def read_docstring(kind: type) -> tuple[str, dict[str, str]]:
    """The summary of a class and the descriptions of its attributes, a line each."""
    text = inspect.cleandoc(kind.__doc__ or "")
    head, _, body = text.partition("\nAttributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in body.splitlines():
        if match := re.fullmatch(r" {4}(\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name:
            found[name] += " " + line.strip()
    texts: dict[str, str] = {}
    before = ""
    for key, value in found.items():
        # In JSON it is null, and a table has no line above that a reader would see first.
        before = texts[key] = before if value == "Likewise." else re.sub(r"\bNone\b", "null", value.strip())
    return " ".join(head.split()), texts


def make_schema() -> dict[str, Any]:
    """The whole schema."""
    schema = _Schema()
    schema.of(results.BenchResult)
    records = [schema.of(kind) for kind in store.RECORDS.values()]
    for name, kind in store.RECORDS.items():
        made = schema.definitions[kind.__name__]
        made["properties"] = {
            "record": {"const": name, "description": "What this line is."},
            "schema_version": {"const": results.SCHEMA_VERSION, "description": "Version of this schema."},
            **made["properties"],
        }
        made["required"] = list(made["properties"])
    schema.definitions["GroupRecord"]["properties"]["result"] = {"$ref": "#/$defs/BenchResult"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Results of csr-bench, version {results.SCHEMA_VERSION}",
        "description": "A line of a results file (JSON lines). What --json writes is a BenchResult.",
        "oneOf": records,
        "$defs": dict(sorted(schema.definitions.items())),
    }


def make_fields(schema: Mapping[str, Any]) -> str:
    """The tables of every record, in Markdown."""
    definitions = schema["$defs"]
    if set(definitions) != set(_ORDER):
        raise SystemExit(f"_ORDER is not current: {set(definitions) ^ set(_ORDER)}")
    parts = [_FIELDS, ""]
    for name in _ORDER:
        definition = definitions[name]
        parts += [f"### `{name}`", "", definition["description"], "", "| field | type and unit | meaning |"]
        parts.append("|---|---|---|")
        for field, about in definition["properties"].items():
            text = about.get("description", "").replace("|", "\\|")
            if not text and "$ref" not in about:
                raise SystemExit(f"{name}.{field} has no description")
            parts.append(f"| `{field}` | {_type(field, about)} | {text or 'What was measured.'} |")
        parts.append("")
    return "\n".join(parts)


def _type(field: str, about: Mapping[str, Any]) -> str:
    """The type of a field in words, with the unit of a number."""
    if "anyOf" in about:
        inner = next(a for a in about["anyOf"] if a != {"type": "null"})
        return f"{_type(field, inner)}, or null"
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[`{name}`](#{name.lower()})"
    if "enum" in about:
        return " or ".join(f'"{value}"' for value in about["enum"])
    if "const" in about:
        return _number(field) if isinstance(about["const"], int) else f'"{about["const"]}"'
    kind = about["type"]
    if isinstance(kind, list):
        return f"{_type(field, {**about, 'type': kind[0]})}, or null"
    if kind == "array":
        return f"list: {_type(field, about['items'])}"
    if kind == "object":
        values = about.get("additionalProperties")
        return f"by name: {_type(field, values)}" if isinstance(values, dict) else "plain values"
    return {"string": "text", "boolean": "true or false"}.get(kind) or _number(field)


def _number(field: str) -> str:
    """The unit of a number."""
    unit = _NAMED_UNITS.get(field)
    if unit is None:
        unit = next(
            (_UNITS[suffix] for suffix in sorted(_UNITS, key=len)[::-1] if field.endswith(suffix)), None
        )
    if unit is None:
        raise SystemExit(f"which unit has {field}? Say so in _NAMED_UNITS.")
    return unit


def main() -> int:
    """Writes the files, or says that one is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if one differs")
    check = parser.parse_args().check
    schema = make_schema()
    page = _PAGE.read_text(encoding="utf-8").partition(_FIELDS)[0]
    files = {SCHEMA_FILE: json.dumps(schema, indent=2) + "\n", _PAGE: page + make_fields(schema)}
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            print(f"{path} is not current", file=sys.stderr)
        else:
            path.write_text(files[path], encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
