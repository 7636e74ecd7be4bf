"""The networks a search chooses from: the paper's grid {1, T}^L from the last module backwards, and beyond.

Parameters and multiply-accumulates of any of them are known without building it: a layer's count depends on
its own T alone, so one network a T gives the table from which all others are summed.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csr_deploy.errors import ModelError, OptionError
from csr_deploy.models import BACKBONES, Architecture, count_parameters
from csr_deploy.models.architecture import unknown_name
from csr_deploy.models.modules import CountsModules
from csr_deploy.nn import CSRConv2d, csrify
from csr_deploy.nn.cells import find_cell

_MOST_LISTED = 20_000
"""Spaces with more networks are drawn from, not listed."""


@dataclass(frozen=True)
class Candidate:
    """One network of a space.

    Attributes:
        steps: T of each of the backbone's modules, first to last; 1 for a plain one.
        cell: Name of the step cell.
        width: Factor of the channels.
    """

    steps: tuple[int, ...]
    cell: str = "vanilla"
    width: float = 1.0

    @property
    def modules(self) -> int:
        """Modules with T > 1."""
        return sum(t > 1 for t in self.steps)

    @property
    def is_backbone(self) -> bool:
        """Whether nothing was changed."""
        return not self.modules and self.width == 1.0


@dataclass(frozen=True)
class Counts:
    """What a candidate has and does.

    Attributes:
        parameters: Parameters, BatchNorm included.
        macs: Multiply-accumulates of one inference.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class _Table:
    """Counts of one cell and width: the plain network, and (module, T) → what changes; None if impossible."""

    plain: Counts
    changes: Mapping[tuple[int, int], Counts | None]


class Space:
    """A backbone and what may be changed of it.

    Args:
        backbone: Key of `BACKBONES`.
        steps: Choices of T besides 1.
        per_module: Choose T for every module; otherwise one T for the last modules.
        max_modules: Most modules that become CSR-Convs, from the last backwards; None for all.
        cells: Names of cells.
        widths: Factors of the channels.
        num_classes: Number of logits.
        input_shape: [1, C, H, W].
        target_compression: Least compression in percent; None for any.

    Raises:
        ModelError: If the backbone or a cell is unknown, or the backbone does not count its modules or does
            not take such an input.
        OptionError: If the backbone has no width, or no network reaches the compression.
    """

    def __init__(
        self,
        backbone: str,
        *,
        steps: Sequence[int] = (2, 3, 4),
        per_module: bool = False,
        max_modules: int | None = None,
        cells: Sequence[str] = ("vanilla",),
        widths: Sequence[float] = (1.0,),
        num_classes: int = 10,
        input_shape: Sequence[int] = (1, 3, 32, 32),
        target_compression: float | None = None,
    ) -> None:
        if backbone not in BACKBONES:
            raise unknown_name(backbone, BACKBONES, "backbone")
        for cell in cells:
            find_cell(cell)
        self.backbone = backbone
        self.choices = tuple(sorted(set(steps)))
        self.per_module = per_module
        self.cells = tuple(dict.fromkeys(cells))
        self.widths = tuple(sorted(set(widths)))
        for width in self.widths:
            _width_options(backbone, width)
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.target_compression = target_compression
        self._layers = self._find_layers()
        self.free = len(self._layers) if max_modules is None else min(max_modules, len(self._layers))
        self._tables: dict[tuple[str, float], _Table] = {}
        if target_compression is not None:
            best = self.nearest()
            if self.compression(best) < target_compression:
                raise OptionError(
                    f"a compression of {target_compression:g} % cannot be reached here; the nearest is "
                    f"{self.compression(best):.1f} % by {self.name(best)} with "
                    f"{self.counts(best).parameters:,} parameters",
                    where="--target-compression",
                    fix="Lower it, or allow larger T, more modules or smaller widths.",
                )

    def _find_layers(self) -> list[tuple[str, ...]]:
        """Convolutions of each module, first module to last."""
        with torch.device("meta"):
            model = Architecture(self.backbone, self.num_classes, self.input_shape[1]).build()
        if not isinstance(model, CountsModules):
            raise ModelError(
                f"backbone '{self.backbone}' does not count its modules",
                fix="Search on one that does: resnet20, vgg16, mobilenetv2, …",
            )
        found: list[tuple[str, ...]] = []
        known: set[str] = set()
        for modules in itertools.count(1):
            try:
                layers = model.csr_layers(modules)
            except ModelError:
                break
            found.insert(0, tuple(layer for layer in layers if layer not in known))
            known.update(layers)
        return found

    @property
    def modules(self) -> int:
        """Modules of the backbone."""
        return len(self._layers)

    def distributions(self) -> dict[str, Any]:
        """The space in Optuna's terms: name → distribution, the same for every trial."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        found: dict[str, Any] = {}
        if self.per_module:
            for index in range(self.modules - self.free, self.modules):
                found[f"T of module {index + 1}"] = CategoricalDistribution(self._valid(index))
        else:
            found["modules"] = IntDistribution(0, self.free)
            found["T"] = CategoricalDistribution(self.choices)
        found["cell"] = CategoricalDistribution(self.cells)
        found["width"] = CategoricalDistribution(self.widths)
        return found

    def _valid(self, module: int) -> list[int]:
        tables = [self._table(cell, width) for cell in self.cells for width in self.widths]
        return [1, *(t for t in self.choices if all(x.changes[module, t] is not None for x in tables))]

    def candidate(self, parameters: Mapping[str, Any]) -> Candidate:
        """The network of a trial's parameters, in the one form it has."""
        if self.per_module:
            steps = [1] * (self.modules - self.free)
            steps += [
                int(parameters[f"T of module {i + 1}"]) for i in range(self.modules - self.free, self.modules)
            ]
        else:
            count = int(parameters["modules"])
            steps = [1] * (self.modules - count) + [int(parameters["T"])] * count
        return self._canonical(tuple(steps), str(parameters["cell"]), float(parameters["width"]))

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """A trial's parameters for a network: `candidate` the other way round."""
        found: dict[str, Any] = {"cell": candidate.cell, "width": candidate.width}
        if candidate.cell not in self.cells:
            found["cell"] = self.cells[0]
        if self.per_module:
            for index in range(self.modules - self.free, self.modules):
                found[f"T of module {index + 1}"] = candidate.steps[index]
        else:
            found["modules"] = candidate.modules
            found["T"] = candidate.steps[-1] if candidate.modules else self.choices[0]
        return found

    def _canonical(self, steps: tuple[int, ...], cell: str, width: float) -> Candidate:
        # Without a CSR-Conv the cell makes no difference.
        return Candidate(steps, cell if any(t > 1 for t in steps) else "vanilla", width)

    def name(self, candidate: Candidate) -> str:
        """What a network is called; no two of the space have the same name."""
        steps = candidate.steps
        first = next((i for i, t in enumerate(steps) if t > 1), len(steps))
        text = self.backbone
        if candidate.modules and len(set(steps[first:])) == 1:
            text += f"-m{candidate.modules}t{steps[-1]}"
        elif candidate.modules:
            text += "-t" + ".".join(map(str, steps[first:]))
        if candidate.cell != "vanilla":
            text += f"-{candidate.cell}"
        if candidate.width != 1.0:
            text += f"-w{candidate.width:g}"
        return text

    def architecture(self, candidate: Candidate) -> Architecture:
        """What to build."""
        layers = {
            layer: t
            for module, t in zip(self._layers, candidate.steps, strict=True)
            for layer in module
            if t > 1
        }
        return Architecture(
            self.backbone,
            self.num_classes,
            self.input_shape[1],
            _width_options(self.backbone, candidate.width),
            layers,
            cell=candidate.cell,
            name=self.name(candidate),
        )

    def counts(self, candidate: Candidate) -> Counts:
        """Parameters and multiply-accumulates.

        Raises:
            ModelError: If a module cannot have that T.
        """
        found = self._counts(candidate)
        if found is None:
            raise ModelError("a module of this network cannot have that T", where=self.name(candidate))
        return found

    def _counts(self, candidate: Candidate) -> Counts | None:
        cell = candidate.cell if candidate.cell in self.cells else self.cells[0]
        table = self._table(cell, candidate.width)
        parameters, macs = table.plain.parameters, table.plain.macs
        for module, t in enumerate(candidate.steps):
            if t > 1:
                change = table.changes[module, t]
                if change is None:
                    return None
                parameters, macs = parameters + change.parameters, macs + change.macs
        return Counts(parameters, macs)

    @cached_property
    def backbone_counts(self) -> Counts:
        """Those of the unchanged backbone."""
        return self._table(self.cells[0], 1.0).plain

    def compression(self, candidate: Candidate) -> float:
        """How many percent of the backbone's parameters a network does without, as in Table 2."""
        return 100 * (1 - self.counts(candidate).parameters / self.backbone_counts.parameters)

    def allows(self, candidate: Candidate) -> bool:
        """Whether a network can be built and reaches the compression."""
        if self._counts(candidate) is None:
            return False
        return self.target_compression is None or self.compression(candidate) >= self.target_compression

    def nearest(self) -> Candidate:
        """The network of the space with the fewest parameters."""
        if not self.per_module:
            return min((c for c in self._all() if self._counts(c)), key=lambda c: self.counts(c).parameters)
        best = []
        for cell, width in itertools.product(self.cells, self.widths):
            table = self._table(cell, width)
            steps = [1] * (self.modules - self.free)
            for module in range(self.modules - self.free, self.modules):
                changes = {1: 0}
                for t in self._valid(module)[1:]:
                    change = table.changes[module, t]
                    assert change is not None
                    changes[t] = change.parameters
                steps.append(min(changes, key=lambda t: changes[t]))
            best.append(self._canonical(tuple(steps), cell, width))
        return min(best, key=lambda c: self.counts(c).parameters)

    @property
    def combinations(self) -> int:
        """Combinations of choices; different ones can be the same network."""
        each = (
            math.prod(len(self._valid(i)) for i in range(self.modules - self.free, self.modules))
            if self.per_module
            else (self.free + 1) * len(self.choices)
        )
        return each * len(self.cells) * len(self.widths)

    @cached_property
    def listed(self) -> Mapping[str, Candidate] | None:
        """All networks that are allowed, by name; None if there are too many to list."""
        if self.combinations > _MOST_LISTED:
            return None
        return {self.name(c): c for c in self._all() if self.allows(c)}

    def _all(self) -> Iterator[Candidate]:
        if self.per_module:
            choices = [self._valid(i) for i in range(self.modules - self.free, self.modules)]
            head = (1,) * (self.modules - self.free)
            arrangements = [head + steps for steps in itertools.product(*choices)]
        else:
            arrangements = [(1,) * self.modules] + [
                (1,) * (self.modules - count) + (t,) * count
                for t in self.choices
                for count in range(1, self.free + 1)
            ]
        seen = set()
        for steps, cell, width in itertools.product(arrangements, self.cells, self.widths):
            candidate = self._canonical(steps, cell, width)
            if candidate not in seen:
                seen.add(candidate)
                yield candidate

    def _table(self, cell: str, width: float) -> _Table:
        if (cell, width) not in self._tables:
            self._tables[cell, width] = self._count(cell, width)
        return self._tables[cell, width]

    def _count(self, cell: str, width: float) -> _Table:
        options = _width_options(self.backbone, width)
        architecture = Architecture(self.backbone, self.num_classes, self.input_shape[1], options)
        with torch.device("meta"):
            plain, per_layer = self._measure(architecture.build())
        changes: dict[tuple[int, int], Counts | None] = {}
        for t in self.choices:
            possible = set()
            with torch.device("meta"):
                model = architecture.build()
                for index, layers in enumerate(self._layers):
                    # It changes nothing where it cannot replace them all.
                    with contextlib.suppress(ModelError):
                        csrify(model, dict.fromkeys(layers, t), cell=cell)
                        possible.add(index)
                _, changed = self._measure(model)
            for index, layers in enumerate(self._layers):
                changes[index, t] = (
                    Counts(
                        sum(changed[n].parameters - per_layer[n].parameters for n in layers),
                        sum(changed[n].macs - per_layer[n].macs for n in layers),
                    )
                    if index in possible
                    else None
                )
        return _Table(plain, changes)

    def _measure(self, model: nn.Module) -> tuple[Counts, dict[str, Counts]]:
        """Counts of a whole network and of each layer that may be replaced; nothing is computed."""
        counter = FlopCounterMode(display=False)
        try:
            with counter, torch.inference_mode():
                model.eval()(torch.empty(self.input_shape, device="meta"))
        except RuntimeError as error:
            raise ModelError(
                f"{self.backbone} does not take an input of shape {list(self.input_shape)}: {error}"
            ) from error
        root, by_module = type(model).__name__, counter.get_flop_counts()
        modules = dict(model.named_modules())

        def count(name: str) -> Counts:
            module = modules[name]
            assert isinstance(module, (nn.Conv2d, CSRConv2d))
            return Counts(count_parameters(module), sum(by_module.get(f"{root}.{name}", {}).values()) // 2)

        whole = Counts(count_parameters(model), int(counter.get_total_flops()) // 2)
        return whole, {name: count(name) for module in self._layers for name in module}


def _width_options(backbone: str, width: float) -> dict[str, Any]:
    """Options of a backbone with its channels times `width`.

    Raises:
        OptionError: If it has no such option.
    """
    if width == 1.0:
        return {}
    known = inspect.signature(BACKBONES[backbone].make).parameters
    if "width" in known:
        return {"width": width}
    if "widths" in known:
        widths: tuple[int, ...] = known["widths"].default
        return {"widths": tuple(max(1, round(w * width)) for w in widths)}
    raise OptionError(
        f"the backbone '{backbone}' has one width only",
        where="--width",
        fix="Leave --width out, or search on vgg16 or mobilenetv2.",
    )
