"""Float simulation of an int8 graph: every value is rounded to what its integers can represent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from csr_deploy.quantize.scheme import QMAX, QMIN, QuantizedGraph
from csr_deploy.types import Quantization
from csr_deploy.unroll.evaluate import evaluate_node, torch_constants
from csr_deploy.unroll.graph import Node

Visit = Callable[[Node, Tensor], None]


def fake_quantize(value: Tensor, q: Quantization) -> Tensor:
    """Rounds a float tensor to the values that the quantisation can represent."""
    integers = torch.round(value / q.scale) + q.zero_point
    return (integers.clamp_(QMIN, QMAX) - q.zero_point) * q.scale


def rounded_constants(quantized: QuantizedGraph) -> dict[str, Tensor]:
    """The graph's constants as what its integers represent, float32; those that stay real as they are."""
    constants = dict(torch_constants(quantized.graph, torch.float32))
    for name, weight in quantized.weights.items():
        constants[name] = torch.from_numpy(weight.dequantize())
    for name in quantized.graph.constants:
        if name in quantized.activations:
            constants[name] = fake_quantize(constants[name], quantized.activations[name])
    return constants


class Simulation:
    """Runs a quantised graph in float32.

    Convolutions sum exactly what the integers represent, so that an int8 kernel differs by the rounding of
    its requantisation only: a count here and there.
    """

    def __init__(self, quantized: QuantizedGraph) -> None:
        self.quantized = quantized
        self._real = torch_constants(quantized.graph, torch.float32)
        self._rounded = rounded_constants(quantized)
        self._last: dict[str, int] = {}
        for index, node in enumerate(quantized.graph.nodes):
            self._last.update(dict.fromkeys(node.inputs, index))
        self._biases = {
            node.output: torch.from_numpy(
                (quantized.biases[node.output] * quantized.bias_scales(node).astype(np.float64)).astype(
                    np.float32
                )
            )
            for node in quantized.graph.nodes
            if node.output in quantized.biases
        }

    def run(self, x: Tensor, *, visit: Visit | None = None, only: Collection[str] | None = None) -> Tensor:
        """The output for a batch.

        Args:
            x: [N, C, H, W] float32, normalised; N may be any number.
            visit: Called with every node and its value, rounded unless the node computes with real numbers.
            only: Values whose nodes are quantised, what they read included; all others stay real. None for
                all that the scheme quantises.
        """
        graph = self.quantized.graph
        # The model's border is integer, whatever reads it.
        values = {graph.input: self._as_integer(graph.input, x) if only is None else x}
        rounded: dict[str, Tensor] = {}
        with torch.no_grad():
            for index, node in enumerate(graph.nodes):
                if node.output in self.quantized.real_nodes or not (only is None or node.output in only):
                    value = evaluate_node(
                        node, [values[i] if i in values else self._real[i] for i in node.inputs]
                    )
                else:
                    for name in node.inputs:
                        if name in values and name not in rounded:
                            rounded[name] = self._as_integer(name, values[name])
                    value = self._as_integer(node.output, self._compute(node, rounded))
                    rounded[node.output] = value
                values[node.output] = value
                if visit:
                    visit(node, value)
                for name in set(node.inputs):
                    if self._last[name] == index and name != graph.output:
                        values.pop(name, None)
                        rounded.pop(name, None)
        out = values[graph.output]
        return self._as_integer(graph.output, out) if only is None else out

    def _as_integer(self, name: str, value: Tensor) -> Tensor:
        q = self.quantized.activations.get(name)
        return value if q is None else fake_quantize(value, q)

    def _compute(self, node: Node, rounded: Mapping[str, Tensor]) -> Tensor:
        inputs = [rounded[i] if i in rounded else self._rounded[i] for i in node.inputs]
        if self.quantized.is_weighted(node):
            bias = self._biases.get(node.output)
            inputs = [*inputs[:2], torch.zeros(len(inputs[1])) if bias is None else bias]
        return evaluate_node(node, inputs)
