"""The report: what stands in it, that nothing in a result can run, and that bad files are refused."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="needs jinja2 for the report")
graph_objects = pytest.importorskip("plotly.graph_objects", reason="needs plotly for the report")

from csr_deploy.bench.html import write_report  # noqa: E402
from csr_deploy.bench.html.cells import GroupResult, Report, make_panels  # noqa: E402
from csr_deploy.bench.html.columns import CSV_HEAD  # noqa: E402
from csr_deploy.bench.html.devices import device_title  # noqa: E402
from csr_deploy.bench.html.figures.base import thinned  # noqa: E402
from csr_deploy.bench.html.figures.tradeoffs import pareto, wilson  # noqa: E402
from csr_deploy.bench.html.palette import COLOURS  # noqa: E402
from csr_deploy.bench.html.read import read_report  # noqa: E402
from csr_deploy.bench.html.verdicts import verdicts  # noqa: E402
from csr_deploy.bench.results import BenchResult, GpuTime  # noqa: E402
from csr_deploy.errors import BenchError, OptionError  # noqa: E402
from tests import report_results as made  # noqa: E402


class Page(HTMLParser):
    """What a browser would make of the page: elements with their attributes, and text outside scripts."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif not self._open or self._open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def figures(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scripts[0])
        return found


def page_of(results: Path, folder: Path) -> Page:
    out = folder / "report.html"
    write_report([results], out)
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.everything(tmp_path_factory.mktemp("results") / "all.jsonl")


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(results, tmp_path_factory.mktemp("report"))


def test_the_page_has_every_section_that_has_data(page: Page) -> None:
    sections = [a["id"] for a in page.all("section")]
    assert sections == (
        ["verdict", "summary", "ratios", "tradeoffs", "latency", "instructions", "memory", "microcontrollers"]
        + [
            "profile",
            "drift",
            "classes",
            "telemetry",
            "failures",
            "missing",
            "environment",
            "commands",
            "reading",
        ]
    )
    links = {a["href"] for a in page.all("a")}
    assert links == {f"#{name}" for name in sections}


def test_a_page_has_no_section_without_data(tmp_path: Path) -> None:
    bare = replace(made.measurement("resnet56", "onnx", 1.0), accuracy=None, memory=None)
    found = page_of(
        made.write(tmp_path / "r", [made.group_record("g", "local", made.result([bare]))]), tmp_path
    )
    assert [a["id"] for a in found.all("section")] == ["summary", "memory", "environment", "reading"]


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert not any("src" in attributes for _, attributes in page.elements)
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "@import" not in page.scripts[2]
    assert sum("plotly.js v" in s[:200] for s in page.scripts) == 1


def test_the_verdict_is_computed(page: Page) -> None:
    assert (
        "On Raspberry Pi 5 (emulated) (tflite-int8, litert) resnet56-csr2 needs 0.97 of the instructions, "
        "0.40 of the parameters, 0.40 of the model size and 0.40 of the private memory of resnet56, and is "
        "1.20 points less accurate on 10,000 images (±0.73)."
    ) in page.words
    assert "Its times are void: the machine was throttled: under-voltage." in page.words


def test_what_makes_figures_worth_less_comes_first(page: Page) -> None:
    head = page.words.split("Verdict")[0]
    for text in (
        "Void Times are void on Raspberry Pi 5 Model B Rev 1.0 (ssh://pi@kitchen): tflite-fp32, litert: the",
        "Failed 2 measurements failed",
        "Quick 1 of 5 comparisons were shortened: for a first look",
        "Missing 1 planned comparison not measured yet",
        "2 notes of the benchmarks on how they ran Left out of the plan: resnet56-mcu: an emulated",
        "Raspberry Pi 5 Model B Rev 1.0 (ssh://pi@kitchen), onnx-int8, ort: The machine was busy before.",
    ):
        assert text in head


def test_failures_say_what_to_do(page: Page) -> None:
    assert "all connect ssh://pi@cellar no route to host Check the cable" in page.words
    assert "resnet56-csr4-mcu build ld region FLASH overflowed by 2 KiB Take a smaller model." in page.words


def test_commands_are_those_of_a_shell(page: Page) -> None:
    assert "csr-bench run 'plan one.toml' --results pi.jsonl" in page.words
    assert "/home/me" not in page.words


def test_an_emulator_has_no_latency(page: Page) -> None:
    row = page.words.split("resnet56-csr2 Raspberry Pi 5 (emulated)")[1][:200]
    assert "not measured (emulated) 12.90 M ×0.97" in row


def test_void_times_are_in_no_comparison(results: Path) -> None:
    report = read_report([results])
    (void,) = [p for p in report.panels if p.void]
    assert all(c.latency_ns is None and c.latency_ratio is None for c in void.cells)
    assert void.cells[1].ratio_of("sizes.parameters") == pytest.approx(0.4, rel=1e-3)


def test_figures_are_what_plotly_knows(page: Page) -> None:
    assert len(page.figures) == len([a for a in page.all("div") if a.get("class") == "plot"])
    for figure in page.figures:
        # "@ink" is put in by the page.
        text = json.dumps(figure).replace('"@ink"', '"#000000"')
        graph_objects.Figure(**json.loads(text))


def test_every_figure_has_a_text_and_a_table(page: Page) -> None:
    plots = [a for a in page.all("div") if a.get("class") == "plot"]
    assert [a["data-figure"] for a in plots] == [str(i) for i in range(len(plots))]
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in plots)
    assert len(page.all("figure")) == len(plots)
    assert len(page.all("details")) == len(plots) + 1


def test_a_network_has_one_colour_everywhere(page: Page) -> None:
    def colours(value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, list):
            for each in value:
                yield from colours(each)
        elif isinstance(value, dict):
            marker = value.get("marker") or {}
            colour = marker.get("color") if value.get("type") in ("bar", "scatter") else None
            if colour and value.get("name", "").startswith("resnet56") and "," not in value["name"]:
                yield value["name"], colour
            for each in value.values():
                yield from colours(each)

    found = set(colours(page.figures))
    assert found == {
        ("resnet56", COLOURS[0]),
        ("resnet56-csr2", COLOURS[1]),
        ("resnet56-csr4", COLOURS[2]),
    }


def test_nothing_in_a_result_becomes_part_of_the_page(tmp_path: Path, page: Page) -> None:
    evil = page_of(made.evil(tmp_path / "evil"), tmp_path)
    assert len(evil.scripts) == len(page.scripts) == 3
    assert evil.scripts[1:] == page.scripts[1:]
    assert not evil.all("img")
    assert not [name for _, a in evil.elements for name in a if name.startswith("on")]
    assert "<" not in evil.scripts[0]
    assert "<script>alert(1)</script>" in evil.words
    # Plotly takes some HTML for markup; everything from a result is escaped once more for it.
    texts = [s for s in re.findall(r'"((?:[^"\\]|\\.)*)"', evil.scripts[0]) if "alert" in s]
    assert texts
    assert all("\\u0026lt;" in s and "\\u003cscript" not in s and "\\u003cimg" not in s for s in texts)


def test_nothing_in_a_result_becomes_a_formula_or_markup(tmp_path: Path) -> None:
    markdown, table = tmp_path / "r.md", tmp_path / "r.csv"
    write_report([made.evil(tmp_path / "evil")], tmp_path / "r.html", markdown=markdown, csv=table)
    text = markdown.read_text(encoding="utf-8")
    assert "<script" not in "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows[:5]}) == 1
    with table.open(newline="", encoding="utf-8") as file:
        assert all(len(row) == len(CSV_HEAD) for row in csv.reader(file))


@pytest.mark.parametrize("label", ["=1+1", "+1+1|cmd", "-2+3", "@SUM(A1)"])
def test_a_spreadsheet_takes_no_label_for_a_formula(label: str, tmp_path: Path) -> None:
    named = replace(made.measurement("resnet56", "onnx", 1.0), subject=label, network=label)
    results = made.write(tmp_path / "r", [made.group_record("g", "local", made.result([named]))])
    write_report([results], tmp_path / "r.html", csv=tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["network"] == f"'{label}"


def test_same_files_same_bytes(results: Path, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        folder = tmp_path / name
        write_report([results], folder / "r.html", markdown=folder / "r.md", csv=folder / "r.csv")
        written.append([(folder / f"r.{kind}").read_bytes() for kind in ("html", "md", "csv")])
    assert written[0] == written[1]


def test_csv_has_numbers_in_full(results: Path, tmp_path: Path) -> None:
    write_report([results], tmp_path / "r.html", csv=tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    report = read_report([results])
    assert [r["status"] for r in rows] == (
        ["measured"] * 3 + ["quick"] * 3 + ["void"] * 3 + ["measured"] * 4 + ["failed"] * 2 + ["missing"]
    )
    cell = report.cells[1]
    assert float(rows[1]["latency_median_ns"]) == cell.number("latency.median_ns")
    assert cell.latency_ratio is not None
    assert float(rows[1]["latency_ratio_low"]) == cell.latency_ratio.low
    assert rows[1]["accuracy_top1"] == repr(cell.number("accuracy.top1"))
    assert rows[1]["sha256"] == cell.values.sha256
    assert rows[13]["stage"] == "connect"


def test_markdown(results: Path, tmp_path: Path) -> None:
    write_report([results], tmp_path / "r.html", markdown=tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert text.startswith("# resnet56-csr2 and resnet56-csr4 against resnet56\n")
    assert "| network | device | setting | top-1 | latency |" in text
    assert "    csr-bench run 'plan one.toml' --results pi.jsonl\n" in text
    assert "> **VOID:** Times are void" in text


def test_the_older_json_of_one_benchmark(tmp_path: Path) -> None:
    found = made.timed("tflite-int8", 4e6)
    values = json.loads(json.dumps(found.to_json()))
    values["schema_version"] = 1
    for name in ("failures",):
        del values[name]
    for each in values["measurements"]:
        for name in ("profile", "drift", "instructions", "checkpoint_sha256"):
            del each[name]
        for name in ("top5", "agreement_with_float", "per_class", "predictions", "reused_from"):
            del each["accuracy"][name]
    file = tmp_path / "old.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    report = read_report([file])
    assert [c.network for c in report.cells] == ["resnet56", "resnet56-csr2", "resnet56-csr4"]
    assert report.cells[1].latency_ratio is not None
    words = page_of(file, tmp_path).words
    assert "resnet56-csr2 and resnet56-csr4 against resnet56" in words


def test_several_targets_in_one_benchmark_have_each_their_baseline(tmp_path: Path) -> None:
    one, two = made.timed("tflite-int8", 4e6), made.timed("onnx", 8e6)
    both = made.result([*one.measurements, *two.measurements])
    panels, _ = make_panels([GroupResult("local", both)])
    assert [p.setting for p in panels] == ["tflite-int8, litert", "onnx, ort"]
    assert [p.baseline.label for p in panels if p.baseline] == ["resnet56-tflite-int8", "resnet56-onnx"]
    # The file compares with the first of all; the report computes the ratio to the panel's own.
    own = panels[1].cells[1].latency_ratio
    assert own is not None
    assert own.low is not None
    assert own.high is not None
    assert own.low < own.ratio < own.high < 1


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    void, good = made.timed("onnx", 9e6, throttled=True), made.timed("onnx", 6e6)
    records = [
        made.failure_record("g", "local", "no route to host"),
        made.group_record("g", "local", void, 2),
        made.group_record("g", "local", good, 3),
    ]
    report = read_report([made.write(tmp_path / "r", records)])
    assert len(report.panels) == 1
    assert not report.failures
    assert report.panels[0].source.attempt == 3
    assert not report.panels[0].void


def test_files_are_merged_and_the_later_file_counts(tmp_path: Path) -> None:
    first = made.write(
        tmp_path / "1",
        [
            made.group_record("g1", "local", made.timed("onnx", 9e6)),
            made.failure_record("g2", "ssh://pi@kitchen", "no route to host"),
        ],
    )
    second = made.write(
        tmp_path / "2",
        [
            made.group_record("g2", "ssh://pi@kitchen", made.timed("onnx", 5e6)),
            made.group_record("g3", "local", made.timed("tflite-int8", 4e6)),
        ],
    )
    report = read_report([first, second])
    assert not report.failures
    assert sorted(p.title for p in report.panels) == [
        "Raspberry Pi 5 Model B Rev 1.0 (ssh://pi@kitchen): onnx, ort",
        "Raspberry Pi 5 Model B Rev 1.0: onnx, ort",
        "Raspberry Pi 5 Model B Rev 1.0: tflite-int8, litert",
    ]


def test_two_machines_never_share_a_name(tmp_path: Path) -> None:
    found = made.timed("onnx", 9e6)
    smaller = replace(found, environment=made.environment(cpus=2))
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    for file, each in zip(files, (found, smaller), strict=True):
        file.write_text(json.dumps(each.to_json()), encoding="utf-8")
    assert read_report(files).titles == (
        "Raspberry Pi 5 Model B Rev 1.0, machine 1",
        "Raspberry Pi 5 Model B Rev 1.0, machine 2",
    )


def test_a_cut_last_line_is_left_out_and_said(results: Path, tmp_path: Path) -> None:
    whole = made.write(
        tmp_path / "cut.jsonl",
        [
            made.group_record("g1", "local", made.timed("onnx", 9e6)),
            made.group_record("g2", "local", made.timed("tflite-int8", 4e6)),
        ],
    )
    whole.write_bytes(whole.read_bytes()[:-700])
    words = page_of(whole, tmp_path).words
    assert "onnx, ort" in words
    assert "tflite-int8" not in words
    assert "Note cut.jsonl ends in the middle of a line" in words


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"hello\n", "is damaged"),
        (b'{"record": "group", "schema_version": 99}\n', "schema version 99"),
        (b'{"schema_version": 99, "measurements": []}\n', "schema version 99"),
        (b'{"record": "run", "schema_version": 2, "ru', "has no whole record"),
        (b"\x00\xff\x00\xff", "is no record"),
    ],
)
def test_bad_files_are_refused(content: bytes, what: str, tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.write_bytes(content)
    out = tmp_path / "r.html"
    with pytest.raises(BenchError, match=what) as caught:
        write_report([file], out)
    assert str(file) in str(caught.value.where)
    assert not out.exists()


def test_a_file_without_results_yet(tmp_path: Path) -> None:
    file = made.write(tmp_path / "r", [made.run_record([("g1", "local")])])
    with pytest.raises(BenchError, match="there is no result in it yet"):
        write_report([file], tmp_path / "r.html")


def test_a_file_with_failures_only(tmp_path: Path) -> None:
    file = made.write(tmp_path / "r", [made.failure_record("g1", "ssh://pi@kitchen", "no route to host")])
    words = page_of(file, tmp_path).words
    assert "Nothing was measured" in words
    assert "no route to host" in words


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        write_report([tmp_path / "none"], tmp_path / "r.html")


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to report"):
        write_report([], tmp_path / "r.html")


def test_outputs_do_not_overwrite_each_other_or_the_results(results: Path, tmp_path: Path) -> None:
    before = results.read_bytes()
    for out, markdown in ((results, None), (tmp_path / "r", tmp_path / "r")):
        with pytest.raises(OptionError, match="one name"):
            write_report([results], out, markdown=markdown)
    assert results.read_bytes() == before


def test_many_samples_make_no_large_page(tmp_path: Path) -> None:
    found = made.timed("onnx", 1e5)
    many = []
    for each in found.measurements:
        assert each.latency is not None
        windows = tuple(tuple(range(100_000 + w, 300_000, 7)) for w in range(5))
        many.append(replace(each, latency=replace(each.latency, windows_ns=windows)))
    results = made.write(tmp_path / "r", [made.group_record("g", "local", made.result(many))])
    assert results.stat().st_size > 3_000_000
    page = page_of(results, tmp_path)
    assert len(page.scripts[0]) < 60_000


def test_a_sample_is_thinned_to_its_distribution() -> None:
    values = [float(v * v) for v in range(10_000)]
    few = thinned(values, 101)
    assert len(few) == 101
    assert (few[0], few[50], few[-1]) == (values[0], pytest.approx(values[5000], rel=1e-3), values[-1])
    assert thinned([3.0, 1.0, 2.0], 101) == [1.0, 2.0, 3.0]


def test_the_front() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 7.0), (3.0, 7.0), (4.0, 8.0)]
    assert pareto(points) == [0, 2, 4]
    assert pareto([]) == []


def test_wilson_against_its_table() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0, 20) == (pytest.approx(0, abs=1e-9), pytest.approx(0.1611, abs=1e-4))


@pytest.mark.parametrize(
    ("device", "machine", "title"),
    [
        ("local", "AMD EPYC", "AMD EPYC"),
        ("local", "", "this machine"),
        ("pi-emulated:pi4", "Cortex-A72", "Raspberry Pi 4 (emulated)"),
        ("pi-emulated", "", "Raspberry Pi 5 (emulated)"),
        ("qemu:cortex-m55", "mps3-an547", "Cortex-M55 (QEMU mps3-an547)"),
        ("qemu:m4", "", "Cortex-M4 (QEMU)"),
        ("ssh://pi@kitchen", "Raspberry Pi 5", "Raspberry Pi 5 (ssh://pi@kitchen)"),
        ("ssh://pi@kitchen", "", "ssh://pi@kitchen"),
        ("serial:/dev/ttyACM0", "", "serial:/dev/ttyACM0"),
    ],
)
def test_titles_of_devices(device: str, machine: str, title: str) -> None:
    assert device_title(device, machine) == title


def report_of(result: BenchResult) -> Report:
    panels, titles = make_panels([GroupResult("local", result)])
    return Report(tuple(panels), (), (), tuple(titles))


def test_a_difference_that_the_images_cannot_show_is_called_so() -> None:
    base = made.measurement("resnet56", "onnx", 1.0)
    other = made.measurement("resnet56-csr2", "onnx", 0.9)
    assert base.accuracy is not None
    assert other.accuracy is not None
    few = [
        replace(base, accuracy=replace(base.accuracy, images=100, top1=0.93)),
        replace(other, accuracy=replace(other.accuracy, images=100, top1=0.92)),
    ]
    (verdict,) = verdicts(report_of(made.result(few)))
    assert "1.00 points less accurate on 100 images (±7.30, no clear difference)" in verdict.text


def test_accuracies_on_different_images_are_not_compared() -> None:
    base = made.measurement("resnet56", "onnx", 1.0)
    other = made.measurement("resnet56-csr2", "onnx", 0.9)
    assert other.accuracy is not None
    other = replace(other, accuracy=replace(other.accuracy, images_sha256="cd" * 32))
    (verdict,) = verdicts(report_of(made.result([base, other])))
    assert "accurate" not in verdict.text


def test_settings_of_a_runtime_tell_panels_apart() -> None:
    base = made.measurement("resnet56", "tensorrt-fp16", 1.0)
    graph = replace(base, subject="other", settings={"cuda_graph": True, "copies": False, "wait": "spin"})
    panels, _ = make_panels([GroupResult("local", made.result([base, graph]))])
    assert [p.setting for p in panels] == [
        "tensorrt-fp16, ort",
        "tensorrt-fp16, ort, CUDA graph, without copies",
    ]


def test_times_of_a_gpu(tmp_path: Path) -> None:
    found = made.timed("tensorrt-fp16", 4e5)
    timed = []
    for each in found.measurements:
        assert each.latency is not None
        half = each.latency.median_ns / 2
        gpu = GpuTime(half, half, half, half, half, int(half), int(half), ((int(half),),))
        timed.append(replace(each, latency=replace(each.latency, gpu=gpu)))
    file = tmp_path / "r.json"
    file.write_text(json.dumps(made.result(timed).to_json()), encoding="utf-8")
    words = page_of(file, tmp_path).words
    assert "GPU time" in words
    assert f"{timed[0].latency.gpu.median_ns / 1e6:.3f} ms" in words  # type: ignore[union-attr]
