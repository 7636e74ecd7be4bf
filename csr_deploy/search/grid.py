"""The paper's grid {1, T}^L: for each T, from the last module backwards, which networks are small enough."""

from __future__ import annotations

from dataclasses import dataclass

from csr_deploy.search.space import Space


@dataclass(frozen=True)
class GridRow:
    """One network of the grid.

    Attributes:
        network: Its name.
        modules: CSR-Conv modules, from the last backwards.
        steps: T.
        cell: Name of the cell.
        width: Factor of the channels.
        parameters: Parameters.
        compression: Percent of the backbone's parameters it does without.
        macs: Multiply-accumulates of one inference.
        mac_ratio: Those over the backbone's.
        fewest: Whether no network of the same T, cell and width has fewer modules.
    """

    network: str
    modules: int
    steps: int
    cell: str
    width: float
    parameters: int
    compression: float
    macs: int
    mac_ratio: float
    fewest: bool


def list_grid(space: Space) -> list[GridRow]:
    """All networks of a grid that reach its compression, by T, cell and width, then by modules.

    Args:
        space: One T for the last modules, not one a module.
    """
    listed = space.listed
    assert listed is not None and not space.per_module
    found = [(c.steps[-1], c.cell, c.width, c.modules, name, c) for name, c in listed.items()]
    rows: list[GridRow] = []
    seen: set[tuple[int, str, float]] = set()
    for steps, cell, width, modules, name, candidate in sorted(found, key=lambda f: f[:5]):
        counts = space.counts(candidate)
        group = (steps, cell, width)
        rows.append(
            GridRow(
                name,
                modules,
                steps,
                cell,
                width,
                counts.parameters,
                space.compression(candidate),
                counts.macs,
                counts.macs / space.backbone_counts.macs,
                group not in seen,
            )
        )
        seen.add(group)
    return rows
