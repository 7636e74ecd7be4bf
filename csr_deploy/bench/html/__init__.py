"""The report: results files to one HTML page that needs nothing else, and to Markdown and CSV.

The page draws with Plotly, whose script of 4.6 MB is in it once. Drawing SVG here would make it smaller and
take away what a reader wants from a plot: exact values on touch, zoom, and single networks on their own.
"""

from __future__ import annotations

import csv as csv_files
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from csr_deploy.atomic import atomic_write
from csr_deploy.errors import BenchError, MissingDependencyError, OptionError

__all__ = ["write_report"]


def write_report(
    results: Sequence[Path], out: Path, *, markdown: Path | None = None, csv: Path | None = None
) -> None:
    """Writes a report of results files; the same files give the same bytes.

    Of a group that was measured more than once the last attempt counts, and of one that stands in several
    files the last file's. A file that ends in the middle of a line is used up to there, and the report says
    so.

    Args:
        results: Files that csr-bench wrote with --results or --json.
        out: The HTML page.
        markdown: A Markdown page, None for none.
        csv: A table with a row a measurement, None for none.

    Raises:
        BenchError: If a file is none of csr-bench's, or of another version, or if there is no result at all.
        MissingDependencyError: If Jinja2 or Plotly is not installed.
        OptionError: If there are no files, or two outputs have one name.
        ExportError: If an output cannot be written.
    """
    if not results:
        raise OptionError("there is nothing to report", fix="Name files that csr-bench wrote.")
    outputs = [path for path in (out, markdown, csv) if path is not None]
    resolved = [path.resolve() for path in outputs]
    if len(set(resolved)) < len(resolved) or set(resolved) & {path.resolve() for path in results}:
        raise OptionError("two files of the report have one name", fix="Give every output a name of its own.")
    for package in ("jinja2", "plotly"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "report", "the report")
    from csr_deploy.bench.html.columns import CSV_HEAD, csv_rows
    from csr_deploy.bench.html.page import render_html
    from csr_deploy.bench.html.read import read_report
    from csr_deploy.bench.html.text import render_markdown

    report = read_report(results)
    if not report.cells and not report.failures:
        raise BenchError(
            "no subject of it was measured", where=", ".join(map(str, results)), fix="Run csr-bench again."
        )
    _write(out, render_html(report))
    if markdown is not None:
        _write(markdown, render_markdown(report))
    if csv is not None:
        text = io.StringIO()
        csv_files.writer(text, lineterminator="\n").writerows([CSV_HEAD, *csv_rows(report)])
        _write(csv, text.getvalue())


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode())
