"""What every exporter is: passes that make a graph fit its target, a writer, and what goes with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csr_deploy.artifact import Artifact
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
        labels: Class names.
        options: The target's own options, if it has some and they were given.
        signed_activations: Whether activations are int8 rather than uint8, in formats that have both.
    """

    graph: Graph
    quantized: QuantizedGraph | None
    weight_bits: int
    path: Path
    name: str
    free_batch: bool = False
    labels: tuple[str, ...] = ()
    options: object | None = None
    signed_activations: bool = False


@dataclass(frozen=True)
class ModelFile:
    """What was written.

    Attributes:
        input: Tensor at its border.
        output: Tensor at its border.
        ledger: Its weights as stored.
        figures: What else is known of it, plain values for the manifest.
    """

    input: TensorSpec
    output: TensorSpec
    ledger: Ledger
    figures: Mapping[str, Any] = field(default_factory=dict)


def no_companions(_: Artifact) -> tuple[Path, ...]:
    """What goes with a model that stands alone."""
    return ()


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        suffix: Of the model file.
        lowering: Default unrolling strategy, a key of `csr_deploy.unroll.lowering.LOWERINGS`, where there
            are no costs to choose by.
        legalise: Makes a lowered graph expressible in the format, function unchanged.
        write: Writes the file.
        distributions: Whose versions go into the manifest.
        scheme: What its integers can be.
        free_batch: Whether the batch size can be left open.
        file: Name of the model file in the artifact, with folders if need be; None for `<network><suffix>`.
        costs: Runtime whose cost models choose the lowering, see `csr_deploy.unroll.costs`; empty for none.
        companions: Writes more files into the artifact's directory, made from what the artifact holds so far,
            and returns them in the order of the manifest. The parity gate comes later, and may need them.
    """

    suffix: str
    lowering: str
    legalise: Callable[[Graph], Graph]
    write: Callable[[WriteRequest], ModelFile]
    distributions: tuple[str, ...]
    scheme: Scheme = AFFINE
    free_batch: bool = False
    file: str | None = None
    costs: str = ""
    companions: Callable[[Artifact], tuple[Path, ...]] = no_companions
