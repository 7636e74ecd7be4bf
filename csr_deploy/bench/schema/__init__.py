"""The JSON Schema of results, `results.schema.json`, written by tools/make_schema.py from the dataclasses."""

from __future__ import annotations

from pathlib import Path

SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
