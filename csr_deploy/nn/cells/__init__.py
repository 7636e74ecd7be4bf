"""Step cells: what happens at one step of the recurrence over channel groups.

An entry in `CELLS` makes a cell known to checkpoints and the command line.
"""

from __future__ import annotations

import difflib

from csr_deploy.errors import ModelError
from csr_deploy.nn.cells.base import ConvolvedInputCell, Names, Pair, State, StepCell
from csr_deploy.nn.cells.fastrnn import FastRnnCell
from csr_deploy.nn.cells.gru import GruCell
from csr_deploy.nn.cells.incremental import DepthwiseIncrementalCell, IncrementalCell
from csr_deploy.nn.cells.incremental_rnn import IncrementalRnnCell
from csr_deploy.nn.cells.lipschitz_rnn import LipschitzRnnCell
from csr_deploy.nn.cells.lstm import LstmCell
from csr_deploy.nn.cells.s_groupconv import SharedGroupConvCell
from csr_deploy.nn.cells.vanilla import VanillaCell

__all__ = [
    "CELLS",
    "ConvolvedInputCell",
    "DepthwiseIncrementalCell",
    "FastRnnCell",
    "GruCell",
    "IncrementalCell",
    "IncrementalRnnCell",
    "LipschitzRnnCell",
    "LstmCell",
    "Names",
    "Pair",
    "SharedGroupConvCell",
    "State",
    "StepCell",
    "VanillaCell",
    "find_cell",
]

CELLS: dict[str, type[StepCell]] = {
    cell.name: cell
    for cell in (
        VanillaCell,
        GruCell,
        LstmCell,
        FastRnnCell,
        IncrementalRnnCell,
        LipschitzRnnCell,
        IncrementalCell,
        DepthwiseIncrementalCell,
        SharedGroupConvCell,
    )
}


def find_cell(name: str) -> type[StepCell]:
    """The cell of that name.

    Raises:
        ModelError: If there is none, with the closest names.
    """
    if name in CELLS:
        return CELLS[name]
    close = difflib.get_close_matches(name, CELLS, n=2)
    raise ModelError(
        f"unknown cell '{name}'",
        fix=f"Did you mean {' or '.join(close)}?" if close else f"Known cells: {', '.join(CELLS)}.",
    )
