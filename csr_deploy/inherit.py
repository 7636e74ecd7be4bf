"""Starting weights: a whole checkpoint, or what a CSR network can take over from its trained backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csr_deploy.checkpoint import check_state, file_sha256, load_checkpoint
from csr_deploy.errors import CheckpointError
from csr_deploy.nn import CSRConv2d


@dataclass(frozen=True)
class Inheritance:
    """What a network started from.

    Attributes:
        source: Hash, training record and metrics of the checkpoint, plain values.
        modules: Names of the modules whose weights were taken over.
        complete: Whether that is all of them.
    """

    source: Mapping[str, Any]
    modules: tuple[str, ...]
    complete: bool

    def record(self, *, frozen: bool) -> dict[str, Any]:
        """Plain values for the training record."""
        return {**self.source, "modules": list(self.modules), "complete": self.complete, "frozen": frozen}


def inherit(model: nn.Module, path: Path, input_shape: Sequence[int]) -> Inheritance:
    """Gives a network the weights of a checkpoint.

    Where all tensors fit, all are taken. Otherwise those of the modules that run before the first module
    whose weights the checkpoint does not have: for a CSR network and its backbone, everything ahead of the
    first CSR-Conv. What comes behind was trained on other features and keeps its fresh initialisation.

    Args:
        model: Freshly initialised; changed in place.
        path: The checkpoint.
        input_shape: [N, C, H, W], to find the order in which modules run.

    Raises:
        CheckpointError: If nothing fits.
    """
    checkpoint = load_checkpoint(path)
    training = {k: v for k, v in checkpoint.training.items() if k not in ("versions", "curve")}
    source = {
        "sha256": file_sha256(path),
        "network": checkpoint.architecture.name,
        "metrics": dict(checkpoint.metrics),
        "training": training,
    }
    state = checkpoint.state
    order = _execution_order(model, input_shape)
    modules = dict(model.named_modules())
    taken: list[str] = []
    for name in order:
        own = modules[name].state_dict(prefix=f"{name}.")
        if not all(k in state and state[k].shape == v.shape for k, v in own.items()):
            break
        taken.append(name)
    if not taken:
        raise CheckpointError(
            "has no weights for the first layers of this network",
            where=str(path),
            fix="Start from a checkpoint of the same network, or of its backbone.",
        )
    if len(taken) == len(order):
        check_state(model, state)
    for name in taken:
        keys = modules[name].state_dict(prefix=f"{name}.")
        part: dict[str, Tensor] = {k.removeprefix(f"{name}."): state[k] for k in keys}
        modules[name].load_state_dict(part)
    return Inheritance(source, tuple(taken), len(taken) == len(order))


def freeze(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Stops modules from learning; their BatchNorm statistics must be kept too, by `eval()` on each."""
    modules = dict(model.named_modules())
    frozen = [modules[name] for name in names]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def _execution_order(model: nn.Module, input_shape: Sequence[int]) -> list[str]:
    """Names of the modules with weights of their own, in the order in which they first run."""
    order: list[str] = []
    handles = []
    inside_csr = {
        id(part)
        for module in model.modules()
        if isinstance(module, CSRConv2d)
        for part in module.modules()
        if part is not module
    }
    for name, module in model.named_modules():
        leaf = isinstance(module, CSRConv2d) or not any(True for _ in module.children())
        if not name or not leaf or id(module) in inside_csr or not module.state_dict():
            continue

        def note(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            if name not in order:
                order.append(name)

        handles.append(module.register_forward_pre_hook(note))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(tuple(input_shape)))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return order
