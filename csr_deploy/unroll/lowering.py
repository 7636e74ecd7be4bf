"""From a module to the static graph an exporter writes: capture, then a list of passes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from csr_deploy.errors import OptionError
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.graph import Graph
from csr_deploy.unroll.ops import Shape
from csr_deploy.unroll.passes.absorb_truncation import absorb_truncation
from csr_deploy.unroll.passes.fold_affine import fold_affine
from csr_deploy.unroll.passes.fuse_activation import fuse_activation
from csr_deploy.unroll.passes.lift_vectors import lift_vectors
from csr_deploy.unroll.passes.simplify import simplify
from csr_deploy.unroll.passes.unroll import unroll_stepwise, unroll_time_major

Pass = Callable[[Graph], Graph]

LOWERINGS: dict[str, Pass] = {"stepwise": unroll_stepwise, "time-major": unroll_time_major}
"""Strategies by name: how a CSR-Conv becomes plain operations."""

OPTIMISATIONS: tuple[Pass, ...] = (
    simplify,
    absorb_truncation,
    simplify,
    fold_affine,
    fuse_activation,
    lift_vectors,
    simplify,
)


def unroll(model: nn.Module, input_shape: Shape, lowering: str = "stepwise") -> Graph:
    """Turns a network into a static graph of plain operations.

    Args:
        model: Any torch module with one image input and one tensor output.
        input_shape: [N, C, H, W].
        lowering: Key of `LOWERINGS`.

    Raises:
        OptionError: If the strategy is unknown.
        CaptureError: If the model cannot be captured.
    """
    if lowering not in LOWERINGS:
        raise OptionError(f"unknown lowering '{lowering}'", fix=f"Known: {', '.join(LOWERINGS)}.")
    graph = LOWERINGS[lowering](capture(model, input_shape))
    for optimise in OPTIMISATIONS:
        graph = optimise(graph)
    return graph
