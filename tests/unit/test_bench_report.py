"""How a result is shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from rich.console import Console

from csr_deploy.bench.report import markdown, rows, table, to_json
from csr_deploy.bench.results import (
    Accuracy,
    BenchResult,
    Comparison,
    Environment,
    Golden,
    Latency,
    MachineState,
    Measurement,
    Memory,
    Sizes,
)


def measurement(name: str, factor: int) -> Measurement:
    milliseconds = 1_000_000 * factor
    return Measurement(
        name,
        name,
        "tflite-int8",
        "model.tflite",
        "ab" * 32,
        "litert",
        "ai-edge-litert 2.0",
        "optimized",
        1,
        1,
        Sizes(100_000 * factor, 50_000_000 * factor, 2**19 * factor, 2**18 * factor, None),
        Golden(8, factor == 1, 0.0 if factor == 1 else 1.0, 2.0, 1.0),
        Accuracy("data", 10_000, "cd" * 32, 0, 0.93 - 0.01 * (2 - factor)),
        Latency(
            5 * milliseconds,
            3 * milliseconds,
            10,
            *([2.0 * milliseconds] * 5),
            milliseconds,
            milliseconds,
            ((1,),),
        ),
        Memory(3 * 2**20 * factor, 2**20, 50 * 2**20, 20 * 2**20, 5, "smaps_rollup"),
        {"top1_agreement": 0.985, "images": 200},
    )


RESULT = BenchResult(
    False,
    {"threads": 1, "windows": 5},
    Environment("x86_64", "Some CPU", 4, "Linux 6", "3.11.7", 2**30, None, {}),
    MachineState(0.1, None, None),
    MachineState(0.2, None, None),
    "net",
    (measurement("net", 2), measurement("net|csr", 1)),
    (Comparison("net|csr", "net", 0.5, 0.49, 0.512, 0.95),),
    ("The machine was busy.",),
)


def cells(result: BenchResult, name: str) -> tuple[str, ...]:
    return next(row.cells for row in rows(result) if row.name == name)


def test_figures_stand_beside_the_baseline_s() -> None:
    assert cells(RESULT, "parameters") == ("200,000", "100,000 (×0.50)")
    assert cells(RESULT, "MACs") == ("100.0 M", "50.0 M (×0.50)")
    assert cells(RESULT, "model file") == ("1.00 MiB", "512.0 KiB (×0.50)")
    assert cells(RESULT, "top-1 (10,000 images)") == ("93.00%", "92.00% (−1.00 points)")
    assert cells(RESULT, "golden outputs") == ("8 within 1 count", "8 equal")
    assert cells(RESULT, "same top-1 as float, at export") == ("98.5% of 200", "98.5% of 200")
    assert cells(RESULT, "latency, median of windows") == ("4.000 ms", "2.000 ms")
    assert cells(RESULT, "latency ratio (95% interval)") == ("–", "0.500 (0.490–0.512)")
    assert cells(RESULT, "private memory") == ("6.00 MiB", "3.00 MiB (×0.50)")


def test_rows_that_nobody_has_are_left_out() -> None:
    bare = tuple(
        replace(m, accuracy=None, latency=None, memory=None, golden=None, parity={})
        for m in RESULT.measurements
    )
    names = [row.name for row in rows(replace(RESULT, measurements=bare, comparisons=()))]
    assert names == ["runtime", "parameters", "MACs", "stored weights", "model file"]


def test_a_figure_that_one_lacks_is_a_dash() -> None:
    base, csr = RESULT.measurements
    unknown = replace(base, sizes=replace(base.sizes, macs=None))
    assert cells(replace(RESULT, measurements=(unknown, csr)), "MACs") == ("–", "50.0 M")


def test_markdown_is_one_table_and_the_notes() -> None:
    text = markdown(RESULT)
    lines = text.splitlines()
    assert lines[0] == "|  | net (baseline) | net\\|csr |"
    assert lines[1] == "| --- | ---: | ---: |"
    assert "| parameters | 200,000 | 100,000 (×0.50) |" in lines
    assert "Some CPU (x86_64), 4 CPUs" in text and "ai-edge-litert 2.0" in text
    assert lines[-1] == "Note: The machine was busy."


def test_the_table_can_be_printed() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(RESULT))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "net (baseline)" in text and "0.500 (0.490–0.512)" in text and "The machine was busy." in text


def test_json_holds_every_sample() -> None:
    values = json.loads(to_json(RESULT))
    assert values["measurements"][1]["latency"]["windows_ns"] == [[1]]
    assert values["notes"] == ["The machine was busy."]
    assert values["quick"] is False
