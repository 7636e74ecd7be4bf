"""Which parameters an optimizer moves, and how."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from csr_deploy.errors import OptionError
from csr_deploy.optimizer import RecipeOptimizer
from csr_deploy.recipe import Recipe

MUON = Recipe(
    epochs=1, schedule="one-cycle", learning_rate=0.1, muon_rate=0.5, muon_decay=0.0, weight_decay=0.0
)


def network(*, channels_last: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, 2),
    )
    if channels_last:
        layers = layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layers


def step(model: nn.Module, optimizer: RecipeOptimizer) -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_moves_kernels_by_orthogonal_matrices(channels_last: bool) -> None:
    model = network(channels_last=channels_last)
    optimizer = RecipeOptimizer(model, MUON)
    optimizer.set_rate(0.1)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    step(model, optimizer)
    for name, value in model.named_parameters():
        change = before[name] - value.detach()
        assert change.abs().max() > 0, name
        if name in ("0.weight", "3.weight"):
            # Newton-Schulz brings the singular values near 1, not to 1.
            singular = torch.linalg.svdvals(change.flatten(1)) / 0.5
            assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_does_not_change_what_is_learnt(channels_last: bool) -> None:
    plain, other = network(channels_last=False), network(channels_last=channels_last)
    for model in (plain, other):
        optimizer = RecipeOptimizer(model, MUON)
        for _ in range(3):
            step(model, optimizer)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        # Newton-Schulz runs in bfloat16, whose sums depend on the order of the columns.
        assert torch.allclose(a, b, atol=0.05)


def test_muon_keeps_its_share_of_the_rate() -> None:
    model = network(channels_last=False)
    optimizer = RecipeOptimizer(model, MUON)
    optimizer.set_rate(0.0)
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_frozen_parameters_stay() -> None:
    model = network(channels_last=True)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    step(model, RecipeOptimizer(model, MUON))
    assert torch.equal(before, model[0].weight)


def test_sgd_alone_has_no_muon() -> None:
    optimizer = RecipeOptimizer(network(channels_last=True), Recipe(epochs=1))
    assert sorted(optimizer.state_dict()) == ["sgd"]


def test_a_torch_without_muon_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(OptionError, match="--muon-lr 0"):
        RecipeOptimizer(network(channels_last=True), MUON)
    RecipeOptimizer(network(channels_last=True), Recipe(epochs=1))
