"""The plots of a report, one file a section."""

from __future__ import annotations

from dataclasses import replace

from csr_deploy.bench.html.cells import Report
from csr_deploy.bench.html.figures.bars import instruction_section, memory_section, microcontroller_section
from csr_deploy.bench.html.figures.base import Figure, Section, Style
from csr_deploy.bench.html.figures.classes import class_section
from csr_deploy.bench.html.figures.drift import drift_section
from csr_deploy.bench.html.figures.latency import latency_section
from csr_deploy.bench.html.figures.profile import profile_section
from csr_deploy.bench.html.figures.ratios import ratio_section
from csr_deploy.bench.html.figures.telemetry import telemetry_section
from csr_deploy.bench.html.figures.tradeoffs import tradeoff_section

_SECTIONS = (
    ratio_section,
    tradeoff_section,
    latency_section,
    instruction_section,
    memory_section,
    microcontroller_section,
    profile_section,
    drift_section,
    class_section,
    telemetry_section,
)
_MOST = 48
"""Figures of a section: a page with more is of no use to a reader, and the CSV file has every number."""

__all__ = ["Figure", "Section", "Style", "sections"]


def sections(report: Report, style: Style) -> list[Section]:
    """Those for which there is data."""
    made = [section for make in _SECTIONS if (section := make(report, style)) is not None]
    return [replace(s, figures=s.figures[:_MOST], hidden=max(len(s.figures) - _MOST, 0)) for s in made]
