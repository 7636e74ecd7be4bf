"""The report as Markdown."""

from __future__ import annotations

from csr_deploy.bench.html import facts
from csr_deploy.bench.html.cells import FailureRow, Report
from csr_deploy.bench.html.columns import Entry, markdown_cell, markdown_table, summary
from csr_deploy.bench.html.verdicts import verdicts


def render_markdown(report: Report) -> str:
    """Verdicts, the summary table, failures, environments and commands."""
    about = [", ".join(report.devices)]
    if facts.dates(report):
        about.append(facts.dates(report))
    lines = [f"# {markdown_cell(facts.title(report))}", "", markdown_cell("; ".join(about)) + ".", ""]
    lines += [f"> **{c.kind.upper()}:** {markdown_cell(c.text)}\n>" for c in facts.cautions(report)]
    lines += ["", *(f"- {markdown_cell(v.text)}" for v in verdicts(report)), ""]
    if facts.notes(report):
        lines += ["## Notes", "", *(f"- {markdown_cell(note)}" for note in facts.notes(report)), ""]
    columns, rows = summary(report)
    if rows:
        lines += ["## Summary", ""]
        align = [c.is_number for c in columns]
        lines += markdown_table([c.name for c in columns], [[_text(e) for e in row] for row in rows], align)
    if report.failures:
        lines += ["", "## Failures", ""]
        head = ("device", "subject", "stage", "reason", "what to do")
        lines += markdown_table(
            head, [(f.device, f.subject or "all", f.stage, _reason(f), f.fix or "") for f in report.failures]
        )
    if report.missing:
        lines += ["", "## Not measured yet", ""]
        lines += markdown_table(("device", "subjects"), [(d, s) for _, d, s in report.missing])
    lines += ["", "## Environment", ""]
    for machine in facts.machines(report):
        lines += [f"### {markdown_cell(machine.title)}", ""]
        lines += [f"- {name}: {markdown_cell(value)}" for name, value in machine.rows]
        lines.append("")
    if report.commands:
        # Indented, so that nothing in a command can end the block.
        lines += ["## Commands", "", *(f"    {' '.join(c.split())}" for c in facts.commands(report)), ""]
    lines += ["## How to read it", ""]
    lines += [f"- {name}: {markdown_cell(value)}" for name, value in facts.how_to_read(report)]
    return "\n".join(lines) + "\n"


def _text(entry: Entry) -> str:
    return f"{entry.text} ({entry.beside})" if entry.beside else entry.text


def _reason(failure: FailureRow) -> str:
    return f"{failure.where}: {failure.reason}" if failure.where else failure.reason
