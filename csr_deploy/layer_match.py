"""Matching a state_dict of the authors' layout with a backbone, by order and shape.

The authors released modules, not a file format: what exists is the state_dict of a MobileNet-V2 whose
convolutions are in `nn.Sequential`s, some of them CSR-Convs with the tensors `param_u` (our V), `param_v`
(our U), `alpha` and `beta`. Names of modules in between are anybody's choice. So layers are recognised by the
tensors they have, and matched by their order and shapes, convolutions, BatchNorms and linear layers each by
themselves; T of a CSR-Conv follows from the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from csr_deploy.errors import CheckpointError
from csr_deploy.models import Architecture, architecture

AUTHORS_BACKBONES = ("mobilenetv2", "mobilenetv2-imagenet")
"""Backbones that the authors released a network of: the CIFAR form and the ImageNet form."""
_COUNTER = "num_batches_tracked"
"""A buffer that files of old torch versions lack."""

_CELL, _DEPTHWISE_CELL, _FILL = "incremental", "incremental-depthwise", "wrap"
_RECURRENT = frozenset({"param_u", "param_v"})
_CSR = _RECURRENT | {"alpha", "beta"}
_NORM = frozenset({"weight", "bias", "running_mean", "running_var"})
_LISTED = 20

State = Mapping[str, Tensor]


@dataclass
class _Layers:
    """Layers with tensors, by kind, in the order of their registration: name → tensors by last name part."""

    convolutions: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    norms: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    linears: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def counts(self) -> tuple[int, int, int]:
        """Of convolutions, BatchNorms and linear layers."""
        return len(self.convolutions), len(self.norms), len(self.linears)


def has_recurrences(state: State) -> bool:
    """Whether some of the tensors are those of the authors' CSR-Convs."""
    return any(key.rpartition(".")[2] in _RECURRENT for key in state)


def match_layers(state: State, network: str | None) -> tuple[Architecture, dict[str, Tensor]]:
    """The network that a state_dict is of, and its tensors under our names.

    Args:
        state: Tensors in the order in which their modules were registered.
        network: Backbone, or None for one of `AUTHORS_BACKBONES`.

    Raises:
        CheckpointError: If keys do not match, naming them.
        ModelError: If there is no such backbone.
    """
    found = _layers(state)
    if found.unknown:
        raise CheckpointError(
            f"its keys do not match: {_listing(found.unknown)}",
            fix="A CSR-Conv of the authors has param_u, param_v, alpha and beta; besides there may be "
            "convolutions, BatchNorms and linear layers.",
        )
    candidates = AUTHORS_BACKBONES if network is None else (network,)
    seen = []
    for name in candidates:
        plan = architecture(name, *_classes_and_channels(found))
        with torch.device("meta"):
            model = plan.build()
        ours = _modules(model)
        if tuple(len(kind) for kind in ours) != found.counts():
            seen.append(f"{name} {_described(tuple(len(kind) for kind in ours))}")
            continue
        return _Matcher(plan, model, found).run()
    raise CheckpointError(
        f"has {_described(found.counts())}; that is none of: {'; '.join(seen)}. "
        f"Its layers: {_listing([*found.convolutions, *found.linears])}",
        fix="Import a MobileNet-V2 in the authors' layout, or name the backbone with --network.",
    )


def _described(counts: tuple[int, ...]) -> str:
    return f"{counts[0]} convolutions, {counts[1]} BatchNorms, {counts[2]} linear layers"


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest


def _layers(state: State) -> _Layers:
    """Groups tensors by the module they belong to."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        scope, _, leaf = key.rpartition(".")
        modules.setdefault(scope, {})[leaf] = tensor
    found = _Layers()
    for scope, tensors in modules.items():
        kinds = tensors.keys()
        weight = tensors.get("weight")
        if kinds & _RECURRENT:
            found.convolutions[scope] = tensors
            found.unknown += [f"{scope}.{leaf} is missing" for leaf in sorted(_CSR - kinds)]
            found.unknown += [f"{scope}.{leaf} is not known" for leaf in sorted(kinds - _CSR)]
        elif weight is not None and weight.ndim == 4 and kinds <= {"weight", "bias"}:
            found.convolutions[scope] = tensors
        elif kinds - {_COUNTER} == _NORM:
            found.norms[scope] = tensors
        elif weight is not None and weight.ndim == 2 and kinds <= {"weight", "bias"}:
            found.linears[scope] = tensors
        else:
            names = [f"{scope}.{leaf}" if scope else leaf for leaf in tensors]
            found.unknown += [f"{name} belongs to no known layer" for name in names]
    return found


def _classes_and_channels(found: _Layers) -> tuple[int, int]:
    first = next(iter(found.convolutions.values()), {})
    last = list(found.linears.values())[-1:]
    if not first or not last or "weight" not in first:
        raise CheckpointError(
            f"has {_described(found.counts())}, but no plain convolution first and no linear layer last"
        )
    return len(last[0]["weight"]), first["weight"].shape[1]


def _modules(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module], dict[str, nn.Module]]:
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, _BatchNorm, nn.Linear)
    found: tuple[dict[str, nn.Module], dict[str, nn.Module], dict[str, nn.Module]] = ({}, {}, {})
    for name, module in model.named_modules():
        for kind, modules in zip(kinds, found, strict=True):
            if isinstance(module, kind):
                modules[name] = module
    return found


def plain(tensor: Tensor) -> Tensor:
    """A tensor as checkpoints hold it: float32, or integers."""
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


class _Matcher:
    """Takes the tensors of a file as those of a backbone, layer by layer."""

    def __init__(self, plan: Architecture, model: nn.Module, found: _Layers) -> None:
        self.plan, self.model, self.found = plan, model, found
        self.state: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}
        self.cells: dict[str, str] = {}
        self.problems: list[str] = []

    def run(self) -> tuple[Architecture, dict[str, Tensor]]:
        """The network and its tensors.

        Raises:
            CheckpointError: Naming every layer that does not fit.
        """
        ours = _modules(self.model)
        theirs = (self.found.convolutions, self.found.norms, self.found.linears)
        for modules, groups in zip(ours, theirs, strict=True):
            for (name, module), (scope, tensors) in zip(modules.items(), groups.items(), strict=True):
                if "param_u" in tensors and isinstance(module, nn.Conv2d):
                    self._recurrence(name, module, scope, tensors)
                else:
                    self._same(name, module, scope, tensors)
        if self.problems:
            raise CheckpointError(
                f"its tensors do not fit '{self.plan.backbone}': {_listing(self.problems)}",
                fix="Name another backbone with --network, or check that the layers stand in the order "
                "in which the network uses them.",
            )
        name = f"{self.plan.backbone}-{_CELL}" if self.steps else self.plan.backbone
        plan = Architecture(
            self.plan.backbone,
            self.plan.num_classes,
            self.plan.in_channels,
            self.plan.options,
            self.steps,
            _FILL if self.steps else self.plan.channel_fill,
            _CELL if self.steps else self.plan.cell,
            name,
            self.cells,
        )
        return plan, self.state

    def _same(self, name: str, module: nn.Module, scope: str, tensors: Mapping[str, Tensor]) -> None:
        expected = module.state_dict()
        for leaf in tensors.keys() - expected.keys():
            self.problems.append(f"{scope}.{leaf} has no counterpart in {name}")
        for leaf, wanted in expected.items():
            if leaf == _COUNTER and leaf not in tensors:
                self.state[f"{name}.{leaf}"] = torch.zeros((), dtype=torch.int64)
            elif leaf not in tensors:
                self.problems.append(f"{scope}.{leaf} is missing for {name}.{leaf}")
            elif tensors[leaf].shape != wanted.shape:
                shapes = f"{list(tensors[leaf].shape)} instead of {list(wanted.shape)}"
                self.problems.append(f"{scope}.{leaf} is {shapes} of {name}.{leaf}")
            else:
                self.state[f"{name}.{leaf}"] = plain(tensors[leaf])

    def _recurrence(self, name: str, conv: nn.Conv2d, scope: str, tensors: Mapping[str, Tensor]) -> None:
        v, u = tensors["param_u"], tensors["param_v"]
        depthwise = conv.groups == conv.in_channels > 1
        steps = _steps(conv, v, u)
        scalars = {leaf: tensors[leaf] for leaf in ("alpha", "beta")}
        if steps is None:
            self.problems.append(
                f"{scope}.param_u {list(v.shape)} and {scope}.param_v {list(u.shape)} are V and U for no T "
                f"of {name}, {conv.in_channels} → {conv.out_channels} channels"
            )
            return
        if wrong := [leaf for leaf, value in scalars.items() if value.numel() != 1]:
            self.problems.append(f"{scope}.{wrong[0]} is no scalar but {list(scalars[wrong[0]].shape)}")
            return
        if steps == 1:
            # h_1 = V * x_1 is all there is: a plain convolution, whose U was never used.
            self.state[f"{name}.weight"] = plain(v)
            return
        self.steps[name] = steps
        if depthwise:
            self.cells[name] = _DEPTHWISE_CELL
        self.state[f"{name}.cell.v"], self.state[f"{name}.cell.u"] = plain(v), plain(u)
        for leaf, value in scalars.items():
            self.state[f"{name}.cell.{leaf}"] = plain(value).reshape(())


def _steps(conv: nn.Conv2d, v: Tensor, u: Tensor) -> int | None:
    """The least T that a CSR-Conv in place of a convolution has with these weights.

    Where rounding up makes a greater one possible too, its further states have no channel in the output.
    """
    depthwise = conv.groups == conv.in_channels > 1
    if (conv.groups != 1 and not depthwise) or conv.bias is not None or v.ndim != 4 or u.ndim != 4:
        return None
    size = tuple(conv.kernel_size)
    for steps in range(1, min(conv.in_channels, conv.out_channels) + 1):
        d, states = math.ceil(conv.in_channels / steps), math.ceil(conv.out_channels / steps)
        inner, recurrent = (1, 1) if depthwise else (d, states)
        if tuple(v.shape) == (states, inner, *size) and tuple(u.shape) == (states, recurrent, *size):
            return steps
    return None
