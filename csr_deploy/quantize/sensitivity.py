"""Which layers int8 costs most: how far the logits move when one layer alone is quantised."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from csr_deploy.errors import OptionError
from csr_deploy.quantize.scheme import QuantizedGraph
from csr_deploy.quantize.simulate import Simulation
from csr_deploy.unroll.evaluate import evaluate
from csr_deploy.unroll.graph import Graph

_IMAGES = 16


def layer_nodes(graph: Graph) -> dict[str, frozenset[str]]:
    """Modules with convolutions or linear layers → outputs of all nodes that come from them."""
    names = dict.fromkeys(n.origin for n in graph.nodes if n.op in ("conv2d", "linear") and n.origin)
    made: dict[str, set[str]] = {name: set() for name in names}
    for node in graph.nodes:
        if node.origin in made:
            made[node.origin].add(node.output)
    return {name: frozenset(outputs) for name, outputs in made.items()}


def check_layers(names: Collection[str], layers: Mapping[str, object]) -> None:
    """Demands that layers exist.

    Raises:
        OptionError: Naming the first that does not, with the closest names.
    """
    for name in names:
        if name not in layers:
            close = difflib.get_close_matches(name, layers, n=3)
            raise OptionError(
                f"there is no layer '{name}' with weights",
                fix=f"Did you mean {', '.join(close)}?" if close else f"Layers: {', '.join(layers)}.",
            )


def sensitivity(quantized: QuantizedGraph, images: Sequence[Tensor]) -> dict[str, float]:
    """Relative RMS error of the logits when one layer alone is quantised, worst layer first.

    Args:
        quantized: All layers quantised.
        images: Batches [N, C, H, W] float32, normalised; the first few images are used.
    """
    graph = quantized.graph
    x = torch.cat(list(images))[:_IMAGES]
    exact = evaluate(graph, x)[graph.output]
    simulation = Simulation(quantized)
    errors = {
        name: float(
            (simulation.run(x, only=nodes) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        )
        for name, nodes in layer_nodes(graph).items()
        if not nodes & quantized.real_nodes
    }
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
