"""How far each state h_t of every recurrence is from float: where an exported graph's error arises.

The states are those that the module itself computes. In a lowered graph they are found by their content,
not by name: a lowering may rename values, join steps into one or put time into the batch axis, but somewhere
the channels of h_t have to be, since the next step reads them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csr_deploy.nn import CSRConv2d
from csr_deploy.nn.cells import State
from csr_deploy.quantize import QuantizedGraph, Simulation
from csr_deploy.unroll.evaluate import evaluate
from csr_deploy.unroll.graph import Graph, Node

DRIFT_IMAGES = 4
_PROBE_IMAGES = 2
_CHUNK = 4
_MOST_VALUES = 8_000_000
"""Of the states of all layers at once, 64 MB in float64: how many images go through together."""
_SAME = 1e-7

Steps = list[Tensor]
"""h_1 … h_T of one layer, [N, D, H, W] each."""


@dataclass(frozen=True)
class StepDrift:
    """Error of one state, rms(error) / rms(state) over all images and channels.

    Attributes:
        rms: Of the state itself, in float; next to nothing where a step has died in training.
        unroll: The unrolled float graph against the module, both in float64. Like the others None
            where the state is zero on the first images, or no value of the graph.
        conversion: The graph in the file's float arithmetic against float64.
        quantization: The integer graph against the float graph; None for float targets.
    """

    rms: float
    unroll: float | None
    conversion: float | None
    quantization: float | None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise in dB; None for float targets and where nothing is lost."""
        return -20 * math.log10(self.quantization) if self.quantization else None


@dataclass(frozen=True)
class Drift:
    """The drift of every recurrence of a network.

    Attributes:
        images: Number of images.
        layers: Module name → h_1 … h_T.
    """

    images: int
    layers: Mapping[str, tuple[StepDrift, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest; errors of float arithmetic are noise and get two digits."""
        return {
            "images": self.images,
            "layers": {
                name: {
                    "rms": [_rounded(s.rms, 4) for s in steps],
                    "unroll": [_rounded(s.unroll, 2) for s in steps],
                    "conversion": [_rounded(s.conversion, 2) for s in steps],
                    "quantization": [_rounded(s.quantization, 4) for s in steps],
                    "sqnr_db": [_rounded(s.sqnr_db, 4) for s in steps],
                }
                for name, steps in self.layers.items()
            },
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


@dataclass(frozen=True)
class _Place:
    """Where a state is: rows of a value whose batch slots and channels were put into one axis.

    Attributes:
        value: Name of the value.
        slots: Images' worth of batch that one image takes in it: 1, or T where time is in the batch axis.
        outer: Whether the slots are the slower part of the batch axis.
        first: Row of the state's first channel.
        channels: Channels of the state that are there; fewer than D where the last ones were cut.
    """

    value: str
    slots: int
    outer: bool
    first: int
    channels: int

    def read(self, value: Tensor) -> Tensor:
        """The state [N, channels, H, W] in a value of the graph."""
        return _rows(value, self.slots, self.outer)[:, self.first : self.first + self.channels]


def _rows(value: Tensor, slots: int, outer: bool) -> Tensor:
    """[N·slots, C, H, W] → [N, slots·C, H, W]."""
    if slots == 1:
        return value
    batch, channels, height, width = value.shape
    images = batch // slots
    if outer:
        split = value.reshape(slots, images, channels, height, width).transpose(0, 1)
    else:
        split = value.reshape(images, slots, channels, height, width)
    return split.reshape(images, slots * channels, height, width)


class _Recorder:
    """The network in float64, keeping the states of its recurrences."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).cpu().double().eval()
        self.states: dict[str, Steps] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, CSRConv2d) and module.num_steps > 1:
                module.register_forward_pre_hook(partial(self._begin, name))
                module.cell.step = partial(self._step, name, module.cell.step)  # type: ignore[method-assign]

    def run(self, x: Tensor) -> dict[str, Steps]:
        """States by layer; of a layer that runs several times, those of its last run."""
        self.states = {}
        with torch.no_grad():
            self.model(x.double())
        return self.states

    def _begin(self, name: str, _module: nn.Module, _inputs: object) -> None:
        self.states[name] = []

    def _step(
        self, name: str, step: Callable[[Tensor, State | None], State], term: Tensor, state: State | None
    ) -> State:
        made = step(term, state)
        self.states[name].append(made[0])
        return made


class _Finder:
    """Finds states among the values of a graph by random projections of their channels."""

    def __init__(self, states: Mapping[str, Steps]) -> None:
        self._directions: dict[int, Tensor] = {}
        self._states = {(layer, t): h for layer, steps in states.items() for t, h in enumerate(steps)}
        self._prints = {key: self._print(h) for key, h in self._states.items() if bool(h.any())}
        self._anywhere = False
        self.places: dict[tuple[str, int], _Place] = {}

    def find(self, graph: Graph, x: Tensor) -> None:
        """Looks at every value for images [N, C, H, W] float64, the ones that the states are of."""
        evaluate(graph, x, visit=self._visit)
        if len(self.places) < len(self._prints):
            self._anywhere = True
            evaluate(graph, x, visit=self._visit)

    def _visit(self, node: Node, value: Tensor) -> None:
        if value.ndim != 4:
            return
        seen: dict[tuple[int, bool], Tensor] = {}
        for (layer, t), wanted in self._prints.items():
            # Most states are values of nodes that know their layer; the others are sought everywhere.
            if not self._anywhere and layer != node.origin:
                continue
            state, known = self._states[layer, t], self.places.get((layer, t))
            if known is not None and known.channels == state.shape[1]:
                continue
            if value.shape[2:] != state.shape[2:] or value.shape[0] % len(state):
                continue
            slots = value.shape[0] // len(state)
            for outer in (False, True)[: 1 if slots == 1 else 2]:
                if (slots, outer) not in seen:
                    seen[slots, outer] = self._print(_rows(value, slots, outer))
                found = _match(wanted, seen[slots, outer])
                if found and (known is None or found[1] > known.channels):
                    self.places[layer, t] = known = _Place(node.output, slots, outer, *found)

    def _print(self, value: Tensor) -> Tensor:
        """Of each channel, its projections on two fixed random directions, [C, 2]."""
        rows = value.transpose(0, 1).reshape(value.shape[1], -1)
        size = rows.shape[1]
        if size not in self._directions:
            generator = torch.Generator().manual_seed(size)
            self._directions[size] = torch.randn(size, 2, dtype=rows.dtype, generator=generator)
        return rows @ self._directions[size]


def _match(state: Tensor, rows: Tensor) -> tuple[int, int] | None:
    """First row and number of channels of a state within rows, by their projections."""
    scale = float(state.abs().max())
    lead = int(state.abs().amax(1).argmax())
    starts = ((rows - state[lead]).abs().amax(1) <= _SAME * scale).nonzero()[:, 0] - lead
    best: tuple[int, int] | None = None
    for first in starts[starts >= 0].tolist():
        channels = min(len(state), len(rows) - first)
        difference = rows[first : first + channels] - state[:channels]
        if float(difference.abs().max()) <= _SAME * scale and (best is None or channels > best[1]):
            best = (first, channels)
    return best


@dataclass
class _Sums:
    """Sums of squares of one comparison of one state."""

    error: float = 0.0
    signal: float = 0.0

    def add(self, value: Tensor, reference: Tensor) -> None:
        self.error += float((value.double() - reference.double()).square().sum())
        self.signal += float(reference.double().square().sum())

    def ratio(self) -> float:
        return math.sqrt(self.error / self.signal) if self.signal else math.sqrt(self.error)


def measure_drift(
    model: nn.Module, graph: Graph, quantized: QuantizedGraph | None, images: Tensor, weight_bits: int = 32
) -> Drift:
    """Measures the error of every state on held-out images.

    Args:
        model: The network.
        graph: What was lowered from it, of the float target or before quantisation.
        quantized: The same graph with integers, for int8 targets.
        images: [N, C, H, W] float32, normalised.
        weight_bits: Of the target; 16 rounds the weights of the float graph.
    """
    if not any(isinstance(m, CSRConv2d) and m.num_steps > 1 for m in model.modules()):
        return Drift(len(images), {})
    recorder = _Recorder(model)
    graph = graph if quantized is None else quantized.graph
    probe = recorder.run(images[:_PROBE_IMAGES])
    finder = _Finder(probe)
    finder.find(graph, images[:_PROBE_IMAGES].double())
    values = sum(h[0].numel() for steps in probe.values() for h in steps) or 1
    chunk = max(1, min(_CHUNK, _MOST_VALUES // values))
    simulation = None if quantized is None else Simulation(quantized)
    narrow = graph if weight_bits != 16 else _half_weights(graph)
    sums = {key: (_Sums(), _Sums(), _Sums()) for key in finder.places}
    powers = {(layer, t): 0.0 for layer, steps in probe.items() for t in range(len(steps))}
    for x in torch.split(images, chunk):
        truth = recorder.run(x)
        for layer, t in powers:
            powers[layer, t] += float(truth[layer][t].square().mean((1, 2, 3)).sum())
        exact = _states(partial(evaluate, graph, x.double()), finder.places)
        real = _states(partial(evaluate, narrow, x), finder.places)
        integer = {} if simulation is None else _states(partial(simulation.run, x), finder.places)
        for (layer, t), (unroll, conversion, quantization) in sums.items():
            key = layer, t
            unroll.add(exact[key], truth[layer][t][:, : finder.places[key].channels])
            conversion.add(real[key], exact[key])
            if integer:
                quantization.add(integer[key], real[key])

    def step(layer: str, t: int) -> StepDrift:
        rms = math.sqrt(powers[layer, t] / len(images))
        if (layer, t) not in sums:
            return StepDrift(rms, None, None, None)
        unroll, conversion, quantization = (s.ratio() for s in sums[layer, t])
        return StepDrift(rms, unroll, conversion, None if simulation is None else quantization)

    layers = {name: tuple(step(name, t) for t in range(len(steps))) for name, steps in probe.items()}
    return Drift(len(images), layers)


def _states(
    run: Callable[..., object], places: Mapping[tuple[str, int], _Place]
) -> dict[tuple[str, int], Tensor]:
    """The states that a run of the graph computes."""
    wanted: dict[str, list[tuple[str, int]]] = {}
    for key, place in places.items():
        wanted.setdefault(place.value, []).append(key)
    found: dict[tuple[str, int], Tensor] = {}

    def visit(node: Node, value: Tensor) -> None:
        for key in wanted.get(node.output, ()):
            found[key] = places[key].read(value)

    run(visit=visit)
    return found


def _half_weights(graph: Graph) -> Graph:
    return replace(graph, constants={k: v.astype(np.float16) for k, v in graph.constants.items()})
