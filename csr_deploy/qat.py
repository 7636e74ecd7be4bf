"""Quantisation-aware fine-tuning: the network trains with the rounding of the graph that will be exported.

The forward pass runs the unrolled graph of the network with its live parameters. Values are rounded where an
exported graph rounds them, with the same scale groups, weights per output channel; gradients go straight
through (Bengio et al. 2013), and stop where a value was clipped.

- BatchNorms keep their statistics, as they do in the graph; their gains and biases learn. A BatchNorm that
  export folds into a convolution scales whole output channels, so rounding per channel before it or after
  gives the same integers: no folding is needed here.
- Ranges come from the exporter's own procedure (least squares over training images), again and again as the
  weights move. So nothing of this has to be stored: the checkpoint is a normal one, which `csr-export`
  calibrates and corrects as any other, also for another scheme or lowering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from csr_deploy.data import Preprocessing
from csr_deploy.errors import ModelError
from csr_deploy.nn import CSRConv2d, StepCell
from csr_deploy.quantize.groups import fixed_groups, scale_groups, separate_fixed_scales
from csr_deploy.quantize.ranges import MOVES, Statistics, choose_scales
from csr_deploy.quantize.scheme import AFFINE, QMAX, QMIN
from csr_deploy.types import Quantization
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.evaluate import evaluate_node
from csr_deploy.unroll.graph import Graph, Node
from csr_deploy.unroll.passes.simplify import simplify
from csr_deploy.unroll.passes.unroll import unroll_stepwise

_CALIBRATION_IMAGES = 128
_BATCH = 32
_BIAS = ".nchw"
"""What the unroll passes append to the name of a CSR-Conv's bias where it takes the shape of a picture."""


@dataclass(frozen=True)
class QatOptions:
    """How a network is made aware of its quantisation.

    Attributes:
        ranges: As `QuantizeOptions.ranges`.
        equal_steps: As `QuantizeOptions.equal_steps`.
        joint: Round a step V*x + U*h once, with one weight scale for V and U, as the lowerings do that make
            it one convolution; otherwise both terms and their sum are rounded.
        seed: Fixes the samples that ranges are chosen from.
    """

    ranges: str = "least-squares"
    equal_steps: bool = False
    joint: bool = False
    seed: int = 0


class QuantizationAware(nn.Module):
    """A network that computes with the values its int8 export will have.

    Args:
        model: The network; its parameters are the ones that learn, in place.
        preprocessing: Gives the exact range of the input.
        images: Training images [N, H, W, C] uint8 that ranges are chosen from, some hundred.
        options: How.

    Raises:
        CaptureError: If the network cannot be captured.
        ModelError: If a parameter would be rounded in a way that no gradient follows.

    Shapes:
        input [N, C, H, W] → logits [N, classes], as the network.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
        options: QatOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or QatOptions()
        p = preprocessing
        captured = capture(model, (1, p.channels, p.height, p.width))
        # No pass that computes constants: they have to stay the network's own parameters.
        graph = separate_fixed_scales(simplify(unroll_stepwise(captured)), AFFINE)
        self.model = model
        self.options, self.preprocessing, self.graph = options, preprocessing, graph
        self.ranges: dict[str, Quantization] = {}
        self._images = torch.from_numpy(p.normalize(images[:_CALIBRATION_IMAGES]))
        self._groups = scale_groups(graph, AFFINE, equal_steps=options.equal_steps)
        self._inside = _values_inside_kernels(graph)
        self._partners: dict[str, tuple[str, str]] = {}
        """Weight → the two that share its scale."""
        if options.joint:
            for first, second in _joint_steps(graph):
                self._inside |= {first.output, second.output}
                pair = (first.inputs[1], second.inputs[1])
                self._partners.update(dict.fromkeys(pair, pair))
        # What is only moved was rounded where it was made.
        self._silent = self._inside | {
            n.output
            for n in graph.nodes
            if n.op in MOVES and self._groups[n.inputs[0]] == self._groups[n.output]
        }
        self._norms = {
            f"{name}.": module for name, module in model.named_modules() if isinstance(module, _BatchNorm)
        }
        live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._cells = {
            f"{name}.cell": module.cell
            for name, module in model.named_modules()
            if isinstance(module, CSRConv2d) and module.num_steps > 1
        }
        self._live = {name: name for name in graph.constants if name in live}
        """Constant → the parameter or buffer that it is, but for its shape."""
        for name in graph.constants:
            if name.endswith(_BIAS) and name.removesuffix(_BIAS) in live:
                self._live[name] = name.removesuffix(_BIAS)
        for name, value in graph.constants.items():
            known = name in self._live or self._norm_of(name) is not None
            if not known and self._cell_of(name) is None:
                self.register_buffer(_buffer(name), torch.from_numpy(np.asarray(value, np.float32)), False)
        self._check_reached(graph)
        self.calibrate()

    def _norm_of(self, constant: str) -> _BatchNorm | None:
        scope, _, kind = constant.rpartition(".")
        return self._norms.get(f"{scope}.") if kind in ("gain", "offset") else None

    def _cell_of(self, constant: str) -> StepCell | None:
        """The cell that computes a constant from its parameters."""
        scope, _, key = constant.rpartition(".")
        cell = self._cells.get(scope)
        return cell if cell is not None and constant not in self._live and key in cell.derived() else None

    def _check_reached(self, graph: Graph) -> None:
        reached = set(self._live.values())
        for constant in graph.constants:
            if self._norm_of(constant) is not None:
                scope = constant.rpartition(".")[0]
                reached.update((f"{scope}.weight", f"{scope}.bias"))
            cell = self._cell_of(constant)
            if cell is not None:
                scope = constant.rpartition(".")[0]
                reached.update(f"{scope}.{name}" for name, _ in cell.named_parameters())
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name not in reached:
                raise ModelError(
                    "is not a weight of the exported graph itself, so that it cannot learn its rounding",
                    where=name,
                    fix="Freeze it, or train without quantisation.",
                )

    def _constants(self) -> dict[str, Tensor]:
        """The graph's constants, computed from the parameters."""
        live = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        derived = {f"{s}.{k}": v for s, cell in self._cells.items() for k, v in cell.derived().items()}
        made: dict[str, Tensor] = {}
        for name, value in self.graph.constants.items():
            norm = self._norm_of(name)
            if name in self._live:
                made[name] = live[self._live[name]].reshape(value.shape)
            elif name in derived:
                made[name] = derived[name]
            elif norm is None:
                made[name] = getattr(self, _buffer(name))
            elif name.endswith(".gain"):
                made[name] = _gain(norm)
            else:
                centre = norm.running_mean * _gain(norm)  # type: ignore[operator]
                made[name] = -centre if norm.bias is None else norm.bias - centre
        return made

    def _run(self, x: Tensor, statistics: dict[str, Statistics] | None) -> Tensor:
        """Computes the graph: with rounding, or to see the ranges."""
        constants = self._constants()
        values: dict[str, Tensor] = {self.graph.input: x}
        generator = torch.Generator().manual_seed(self.options.seed)
        rounding = statistics is None

        def seen(name: str, value: Tensor) -> Tensor:
            if name in self._silent:
                return value
            group = self._groups[name]
            if statistics is not None:
                statistics.setdefault(group, Statistics()).observe(value.cpu(), generator)
                return value
            return _round(value, self.ranges[group])

        values[self.graph.input] = seen(self.graph.input, x)
        rounded: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            inputs = [values[i] if i in values else constants[i] for i in node.inputs]
            if rounding and node.op in AFFINE.weighted and node.inputs[0] not in self._inside:
                weight = node.inputs[1]
                if weight not in rounded:
                    pair = self._partners.get(weight, (weight,))
                    rounded[weight] = _round_weight(constants[weight], [constants[w] for w in pair])
                inputs[1] = rounded[weight]
            elif rounding and node.op in ("add", "sub", "mul"):
                inputs = [
                    v if i in values else _round_operand(v) for i, v in zip(node.inputs, inputs, strict=True)
                ]
            values[node.output] = seen(node.output, evaluate_node(node, inputs))
        return values[self.graph.output]

    def calibrate(self) -> None:
        """Chooses the ranges anew; call it at the start of every epoch."""
        found: dict[str, Statistics] = {}
        device = next(self.model.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for batch in torch.split(self._images, _BATCH):
                self._run(batch.to(device), found)
        fixed = fixed_groups(self.graph, self._groups, AFFINE)
        self.ranges = choose_scales(
            found,
            AFFINE,
            fixed,
            self._groups[self.graph.input],
            self._groups[self.graph.output],
            self.preprocessing,
            self.options.ranges,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch, as the int8 export would compute them but for bias correction."""
        # bfloat16 has as few digits as int8: rounding to one of them hides the other.
        with torch.autocast(x.device.type, enabled=False):
            return self._run(x.float(), None)


def _buffer(constant: str) -> str:
    return f"constant_{constant.replace('.', '_')}"


def _gain(norm: _BatchNorm) -> Tensor:
    scale = torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
    gain: Tensor = scale if norm.weight is None else scale * norm.weight
    return gain


def _round(value: Tensor, q: Quantization) -> Tensor:
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(value, q.scale, q.zero_point, QMIN, QMAX)
    return rounded


def _round_operand(value: Tensor) -> Tensor:
    """A constant that is added or multiplied, as the exporter rounds it."""
    low, high = torch.aminmax(value.detach())
    return _round(value, AFFINE.choose(float(low), float(high)))


def _round_weight(weight: Tensor, sharing: Sequence[Tensor]) -> Tensor:
    """As `quantize_weight`: symmetric, per output channel, over all weights that share the scale."""
    sizes = [w.detach().reshape(len(w), -1).abs().amax(1) for w in sharing]
    largest = torch.stack(sizes).amax(0)
    scales = torch.where(largest > 0, largest / QMAX, torch.ones_like(largest))
    zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -QMAX, QMAX)
    return rounded


def _values_inside_kernels(graph: Graph) -> frozenset[str]:
    """Values that no exported graph has: what a folded BatchNorm or a fused activation reads."""
    consumers, producers = graph.consumers(), graph.producers()
    inside: set[str] = set()
    for node in graph.nodes:
        source = producers.get(node.inputs[0])
        if source is None or source.output == graph.output or len(consumers[source.output]) != 1:
            continue
        if node.op in ("relu", "relu6"):
            fused = source.op in ("conv2d", "linear", "affine", "add", "sub", "mul")
        else:
            fused = node.op == "affine" and _owns_weights(source, consumers)
        if fused:
            inside.add(source.output)
    return frozenset(inside)


def _joint_steps(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs of convolutions that are only added."""
    consumers, producers = graph.consumers(), graph.producers()
    pairs = []
    for node in graph.nodes:
        found = [producers[i] for i in dict.fromkeys(node.inputs) if i in producers]
        if node.op != "add" or len(found) != 2:
            continue
        first, second = found
        tied = all(
            n.op == "conv2d" and n.output != graph.output and len(consumers[n.output]) == 1 for n in found
        )
        if tied and graph.shape(first.inputs[1])[2:] == graph.shape(second.inputs[1])[2:]:
            pairs.append((first, second))
    return pairs


def _owns_weights(node: Node, consumers: dict[str, list[Node]]) -> bool:
    return node.op in ("conv2d", "linear", "affine") and all(
        len(consumers.get(weight, [])) <= 1 for weight in node.inputs[1:]
    )
