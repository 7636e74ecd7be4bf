"""The 31 CSR networks of the paper's Table 2 beside what the presets give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from csr_deploy.analysis.layers import layer_figures
from csr_deploy.models import PRESETS, architecture, count_parameters
from csr_deploy.models.paper import PAPER_BACKBONES, TABLE_2, WITHOUT_BATCH_NORM, PaperRow


@dataclass(frozen=True)
class Comparison:
    """One network.

    Attributes:
        preset: Its name.
        backbone: That of the network it was made from.
        parameters: Ours, counted as the paper counts this backbone: VGG-16 without BatchNorm.
        compression: Ours in per cent, against our backbone.
        macs: Multiply-accumulates for one image of the backbone's size; FLOPs are twice as many.
        backbone_macs: Those of the backbone.
        csr_layers: Convolutions that are CSR-Convs.
        modules: Modules that are CSR-Convs.
        num_steps: Every T that occurs.
        paper: The printed row.
        note: Why ours differs.
    """

    preset: str
    backbone: str
    parameters: int
    compression: float
    macs: int
    backbone_macs: int
    csr_layers: int
    modules: int
    num_steps: tuple[int, ...]
    paper: PaperRow
    note: str

    @property
    def agrees(self) -> bool:
        """Whether all that is printed comes out, to the last printed digit."""
        return (
            round(self.parameters / 1e6, 2) == self.paper.millions
            and abs(self.compression - self.paper.compression) <= 0.05 + 1e-9
            and (self.modules, self.num_steps) == (self.paper.modules, (self.paper.num_steps,))
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "num_steps": list(self.num_steps), "agrees": self.agrees}


@cache
def _figures(name: str) -> tuple[int, int]:
    """Parameters as the paper counts them, and multiply-accumulates."""
    plan = architecture(name)
    with torch.device("meta"):
        model = plan.build()
    counted = count_parameters(model, batch_norm=plan.backbone not in WITHOUT_BATCH_NORM)
    layers = layer_figures(model, (1, plan.in_channels, *plan.image_size))
    return counted, sum(layer.macs for layer in layers)


def compare_row(row: PaperRow) -> Comparison:
    """One row of the table."""
    preset = PRESETS[row.preset]
    steps = architecture(row.preset).csr_layers
    parameters, macs = _figures(row.preset)
    backbone_parameters, backbone_macs = _figures(preset.backbone)
    return Comparison(
        row.preset,
        preset.backbone,
        parameters,
        100 * (1 - parameters / backbone_parameters),
        macs,
        backbone_macs,
        len(steps),
        preset.modules,
        tuple(sorted(set(steps.values()))),
        row,
        preset.note,
    )


def compare_table_2() -> tuple[Comparison, ...]:
    """All rows, in the paper's order."""
    return tuple(compare_row(row) for row in TABLE_2)


def to_json(rows: Sequence[Comparison]) -> dict[str, Any]:
    """Plain values of the whole table."""
    backbones = {
        name: dict(zip(("parameters", "macs"), _figures(name), strict=True), paper_millions=millions)
        for name, millions in PAPER_BACKBONES.items()
    }
    return {"backbones": backbones, "rows": [row.to_json() for row in rows]}


HEADER = (
    "network", "parameters, M", "paper", "compression, %", "paper", "MACs, M", "of backbone",
    "modules", "paper", "T", "paper", "why it differs",
)  # fmt: skip


def cells(row: Comparison) -> tuple[str, ...]:
    """One row as text, by `HEADER`."""
    digits = 3 if row.parameters < 10e6 else 2
    return (
        row.preset,
        f"{row.parameters / 1e6:.{digits}f}",
        f"{row.paper.millions:.2f}",
        f"{row.compression:.1f}",
        f"{row.paper.compression:.1f}",
        f"{row.macs / 1e6:,.1f}",
        f"{row.macs / row.backbone_macs:.2f}",
        str(row.modules),
        str(row.paper.modules),
        ", ".join(str(t) for t in row.num_steps),
        str(row.paper.num_steps),
        "" if row.agrees else row.note,
    )


def backbone_lines() -> list[tuple[str, ...]]:
    """Backbones as text: name, parameters in millions, the paper's, MACs in millions."""
    lines: list[tuple[str, ...]] = []
    for name, millions in PAPER_BACKBONES.items():
        parameters, macs = _figures(name)
        lines.append((name, f"{parameters / 1e6:.3f}", f"{millions:.2f}", f"{macs / 1e6:,.1f}"))
    return lines


def markdown(rows: Sequence[Comparison]) -> str:
    """The table as Markdown, backbones first."""
    return "\n".join(
        [
            *_table(("backbone", "parameters, M", "paper", "MACs, M"), backbone_lines()),
            "",
            *_table(HEADER, [cells(row) for row in rows]),
            "",
        ]
    )


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    if header[-1] == HEADER[-1]:
        rule[-1] = "---"
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *lines)]
