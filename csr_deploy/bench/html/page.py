"""The report as one HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2

from csr_deploy.bench.html import facts, palette
from csr_deploy.bench.html.cells import Report
from csr_deploy.bench.html.columns import summary
from csr_deploy.bench.html.figures import Section, Style, sections
from csr_deploy.bench.html.verdicts import verdicts

_MOST_VERDICTS = 12


def render_html(report: Report) -> str:
    """The page: everything in it, nothing loaded from elsewhere."""
    style = Style(report)
    parts = sections(report, style)
    columns, rows = summary(report)
    said = verdicts(report)
    scripts = {"plotly": _plotly() if parts else "", "own": _file("report.js")}
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html").render(
        title=facts.title(report),
        dates=facts.dates(report),
        report=report,
        cautions=facts.cautions(report),
        notes=facts.notes(report),
        verdicts=said[:_MOST_VERDICTS],
        more_verdicts=said[_MOST_VERDICTS:],
        columns=columns,
        rows=rows,
        sections=parts,
        colours=style.networks,
        repeats=len(style.networks) > len(palette.COLOURS),
        machines=facts.machines(report),
        commands=facts.commands(report),
        how_to_read=facts.how_to_read(report),
        css=_file("report.css"),
        scripts=scripts,
        policy=_policy(list(scripts.values())),
        figures=_embedded(parts),
    )


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts run and no others, and nothing is loaded."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts if s]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    # Plotly sets styles of elements, and makes pictures to save from blobs.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _embedded(parts: Sequence[Section]) -> str:
    """Traces and layouts of all figures, in their order, as JSON that can stand in a script element."""
    plain: list[dict[str, Any]] = [{"data": f.data, "layout": f.layout} for s in parts for f in s.figures]
    text = json.dumps(plain, allow_nan=False, separators=(",", ":"))
    # Nothing in it may end the element or begin a comment.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    script = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    # Browsers hash a script with line feeds only.
    return script.replace("\r\n", "\n")


def _file(name: str) -> str:
    return (files("csr_deploy.bench.html") / "templates" / name).read_text(encoding="utf-8")
