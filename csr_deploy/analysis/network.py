"""All figures of one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from csr_deploy.analysis.layers import LayerFigures, layer_figures
from csr_deploy.analysis.macs import count_macs
from csr_deploy.analysis.memory import MemoryFigures, memory_figures
from csr_deploy.errors import CaptureError
from csr_deploy.models import count_parameters
from csr_deploy.unroll.capture import capture


@dataclass(frozen=True)
class NetworkFigures:
    """What `analyse` finds.

    Attributes:
        name: Of the network.
        input_shape: [C, H, W].
        parameters: All of them, each shared one once.
        batch_norm_parameters: Those of BatchNorms among them.
        nonzero: Parameters that are not zero; None where the weights are not trained.
        macs: Multiply-accumulates for one image, by torch's counter.
        layers: Layer by layer.
        memory: At int8; None where the network cannot be captured.
        problem: Why it cannot be.
    """

    name: str
    input_shape: tuple[int, ...]
    parameters: int
    batch_norm_parameters: int
    nonzero: int | None
    macs: int
    layers: tuple[LayerFigures, ...]
    memory: MemoryFigures | None
    problem: str = ""

    @property
    def depth(self) -> int | None:
        """Convolutions and matrix products on the longest way through the network."""
        return max(self.memory.depth.values(), default=0) if self.memory else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        memory = values["memory"]
        if memory is not None:
            del memory["depth"]
        return {**values, "input_shape": list(self.input_shape), "depth": self.depth}


def analyse(
    model: nn.Module, name: str, input_shape: Sequence[int], *, trained: bool = False
) -> NetworkFigures:
    """Counts a network.

    Args:
        model: On any device; left as it is.
        name: What to call it.
        input_shape: [C, H, W] of one image.
        trained: Whether its weights mean something, so that zeros in them are counted.

    Raises:
        ModelError: If the network does not take such an input.
    """
    shape = (1, *input_shape)
    layers = layer_figures(model, shape, trained=trained)
    memory, problem = None, ""
    try:
        memory = memory_figures(capture(model, shape))
        layers = tuple(replace(layer, depth=memory.depth.get(layer.name)) for layer in layers)
    except CaptureError as error:
        problem = str(error)
    total = count_parameters(model)
    return NetworkFigures(
        name,
        tuple(input_shape),
        total,
        total - count_parameters(model, batch_norm=False),
        # A parameter that several modules share is in the rows of all of them.
        sum(int((p != 0).sum()) for p in model.parameters()) if trained else None,
        count_macs(model, shape),
        layers,
        memory,
        problem,
    )
