"""Optimizers of a recipe: SGD for everything, or Muon for convolution kernels and SGD for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from csr_deploy.errors import OptionError
from csr_deploy.recipe import Recipe


class RecipeOptimizer:
    """Updates the parameters of a network that ask for a gradient, as a recipe says.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix. A kernel [O, I, kh, kw] is taken as the
    matrix [O, I·kh·kw]; depth-wise kernels, which are no matrices between channels, stay with SGD.

    Args:
        model: Network, in its final memory format and on its device.
        recipe: Chooses the optimizer, its rates, momentum and weight decay.

    Raises:
        OptionError: If the recipe asks for Muon and this torch has none.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        learning = [p for p in model.parameters() if p.requires_grad]
        self._kernels = [p for p in learning if p.ndim == 4 and p.shape[1] > 1] if recipe.muon_rate else []
        others = {id(p) for p in learning} - {id(p) for p in self._kernels}
        self._recipe = recipe
        self._sgd = torch.optim.SGD(
            _groups([p for p in learning if id(p) in others], recipe),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
        )
        self._matrices = [nn.Parameter(_as_matrix(p.detach(), p)) for p in self._kernels]
        self._muon: torch.optim.Optimizer | None = None
        if self._kernels:
            if not hasattr(torch.optim, "Muon"):
                raise OptionError(
                    f"torch {torch.__version__} has no Muon",
                    fix="Install torch 2.9 or later, or give --muon-lr 0 to train with SGD alone.",
                )
            self._muon = torch.optim.Muon(
                self._matrices,
                lr=recipe.muon_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.muon_decay,
            )

    def set_rate(self, rate: float) -> None:
        """Sets SGD's learning rate; Muon's keeps its share of it."""
        for group in self._sgd.param_groups:
            group["lr"] = rate
        if self._muon:
            for group in self._muon.param_groups:
                group["lr"] = rate * self._recipe.muon_rate / self._recipe.learning_rate

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        self._sgd.zero_grad(set_to_none=True)
        for kernel in self._kernels:
            kernel.grad = None

    def step(self) -> None:
        """Updates the network by its gradients."""
        self._sgd.step()
        if self._muon is None:
            return
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad, kernel)
        self._muon.step()

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, as plain values and tensors."""
        muon = {"muon": self._muon.state_dict()} if self._muon else {}
        return {"sgd": self._sgd.state_dict(), **muon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            KeyError: If the state lacks a part.
            ValueError: If it is another network's.
        """
        self._sgd.load_state_dict(state["sgd"])
        if self._muon:
            self._muon.load_state_dict(state["muon"])


def _as_matrix(tensor: Tensor, kernel: Tensor) -> Tensor:
    """[O, I, kh, kw] → [O, ...] in the order of the kernel's memory, so that the kernel's is a view."""
    if kernel.is_contiguous():
        return tensor.reshape(len(tensor), -1)
    return tensor.movedim(1, -1).reshape(len(tensor), -1)


def _groups(learning: list[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """All parameters decayed alike (the paper), or BatchNorm and biases exempt (one-cycle)."""
    if recipe.schedule != "one-cycle":
        return [{"params": learning, "weight_decay": recipe.weight_decay}]
    decayed = [p for p in learning if p.ndim > 1]
    exempt = [p for p in learning if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
