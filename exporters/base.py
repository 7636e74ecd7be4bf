"""What every exporter is: passes that make a graph fit its target, and a writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from csr_deploy.ledger import Ledger
from csr_deploy.quantize.scheme import AFFINE, QuantizedGraph, Scheme
from csr_deploy.types import TensorSpec
from csr_deploy.unroll.graph import Graph


@dataclass(frozen=True)
class WriteRequest:
    """What a writer writes.

    Attributes:
        graph: The legalised float graph.
        quantized: The same graph with integer parameters, for int8 targets.
        weight_bits: 32, 16 or 8.
        path: The model file to write.
        name: Name of the network.
        free_batch: Leave the batch size open; the graph's is that of the usual batch.
    """

    graph: Graph
    quantized: QuantizedGraph | None
    weight_bits: int
    path: Path
    name: str
    free_batch: bool = False


@dataclass(frozen=True)
class ModelFile:
    """What was written: the tensors at its border, and its weights as stored."""

    input: TensorSpec
    output: TensorSpec
    ledger: Ledger


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        suffix: Of the model file.
        lowering: Default unrolling strategy, a key of `csr_deploy.unroll.lowering.LOWERINGS`.
        legalise: Makes a lowered graph expressible in the format, function unchanged.
        write: Writes the file.
        distributions: Whose versions go into the manifest.
        scheme: What its integers can be.
        free_batch: Whether the batch size can be left open.
    """

    suffix: str
    lowering: str
    legalise: Callable[[Graph], Graph]
    write: Callable[[WriteRequest], ModelFile]
    distributions: tuple[str, ...]
    scheme: Scheme = AFFINE
    free_batch: bool = False
