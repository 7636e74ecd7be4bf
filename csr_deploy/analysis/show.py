"""Figures as text: the same rows for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csr_deploy.analysis.layers import LayerFigures
from csr_deploy.analysis.network import NetworkFigures

_NOTHING = "–"
LAYER_HEADER = (
    "layer", "kind", "kernel", "output", "parameters", "non-zero", "MACs", "depth", "T", "d", "D",
    "parameters ÷ plain", "λ_M", "MACs ÷ plain", "λ_F",
)  # fmt: skip
TOTAL_HEADER = ("figure", "network", "against", "ratio")

_Row = tuple[str, ...]


def layer_rows(figures: NetworkFigures) -> list[_Row]:
    """One row a convolution or linear layer, by `LAYER_HEADER`; all BatchNorms together are the last."""
    rows = [_layer_row(layer) for layer in figures.layers if not layer.is_batch_norm]
    norms = [layer for layer in figures.layers if layer.is_batch_norm]
    if norms:
        nonzero = [layer.nonzero for layer in norms if layer.nonzero is not None]
        blank = [""] * (len(LAYER_HEADER) - 6)
        cells = [f"{sum(n.parameters for n in norms):,}", f"{sum(nonzero):,}" if nonzero else _NOTHING]
        rows.append((f"{len(norms)} layers", "BatchNorm", "", "", *cells, *blank))
    return rows


def _layer_row(layer: LayerFigures) -> _Row:
    r = layer.recurrence
    cell = f" ({r.cell})" if r and r.cell != "vanilla" else ""
    own: tuple[str, ...] = ("", "", "", "", "", "", "")
    if r is not None:
        own = (
            str(r.num_steps),
            str(r.group_in),
            str(r.group_out),
            f"{layer.parameters / r.plain_parameters:.3f}",
            f"{r.prop1:.3f}",
            f"{layer.macs / r.plain_macs:.3f}" if r.plain_macs else _NOTHING,
            f"{r.prop2:.3f}",
        )
    return (
        layer.name,
        layer.kind + cell,
        _times(layer.kernel),
        _times(layer.shape),
        f"{layer.parameters:,}",
        _count(layer.nonzero),
        f"{layer.macs:,}",
        _count(layer.depth),
        *own,
    )


def total_rows(figures: NetworkFigures, against: NetworkFigures | None) -> list[_Row]:
    """Totals of a network, beside those of its backbone, by `TOTAL_HEADER`."""
    others = {} if against is None else {label: value for label, value, _ in _totals(against)}
    rows: list[_Row] = []
    for label, value, unit in _totals(figures):
        other = others.get(label)
        ratio = f"{value / other:.3f}" if value is not None and other else _NOTHING
        rows.append((label, _count(value, unit), _count(other, unit), ratio))
    if against is not None:
        rate = 100 * (1 - figures.parameters / against.parameters)
        rows.insert(1, ("compression rate", f"{rate:.1f} %", "", ""))
    return rows


def _totals(figures: NetworkFigures) -> list[tuple[str, int | None, str]]:
    """Label, value and unit."""
    rows: list[tuple[str, int | None, str]] = [
        ("parameters", figures.parameters, ""),
        ("without BatchNorm", figures.parameters - figures.batch_norm_parameters, ""),
        ("MACs", figures.macs, ""),
        ("depth", figures.depth, ""),
    ]
    if figures.nonzero is not None:
        rows.insert(2, ("non-zero parameters", figures.nonzero, ""))
    if (memory := figures.memory) is not None:
        rows += [
            ("RAM at int8, a recurrence as one kernel", memory.peak_fused, " B"),
            ("RAM at int8, every step an operation", memory.peak_stepwise, " B"),
            ("flash at int8, without code", memory.flash, " B"),
        ]
    return rows


def stored_rows(stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an artifact says of itself."""
    labels = {
        "target": "target",
        "model_file": "model file",
        "model_bytes": "its bytes",
        "weight_elements": "weights stored",
        "stored_bytes": "constants, bytes",
        "constant_bytes": "constants in flash, bytes",
        "arena_bytes": "arena in RAM, bytes",
        "exported_macs": "MACs of the exported graph",
    }
    return [
        (label, f"{stored[key]:,}" if isinstance(stored[key], int) else str(stored[key]))
        for key, label in labels.items()
        if stored.get(key) is not None
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) + "\n"


def _count(value: int | None, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value:,}{unit}"


def _times(values: Sequence[int] | None) -> str:
    return "×".join(str(v) for v in values) if values else ""
