"""Channels without variance: silenced in what training gives, and nowhere else."""

from __future__ import annotations

import torch
from torch import nn

from csr_deploy.nn.dead_channels import silence_dead_channels


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6, affine=False)
    )
    for _ in range(30):
        model(torch.randn(16, 3, 8, 8))
    return model.eval()


def test_a_dead_channel_becomes_its_bias() -> None:
    model = network()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_mean[2] = 0.0  # type: ignore[index]
        norm.running_var[2] = 1e-16  # type: ignore[index]
        norm.bias[2] = 0.25
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, count = silence_dead_channels(model, model.state_dict())
    assert count == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the model is as it was"
    x = torch.randn(4, 3, 8, 8)
    loud = model[:2](x)  # type: ignore[index]
    model.load_state_dict(state)
    quiet = model[:2](x)  # type: ignore[index]
    assert loud[:, 2].abs().max() > 100
    assert torch.equal(quiet[:, 2], torch.full_like(quiet[:, 2], 0.25))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(quiet[:, others], loud[:, others])


def test_living_channels_and_silent_ones_are_left_alone() -> None:
    model = network()
    state, count = silence_dead_channels(model, model.state_dict())
    assert count == 0
    assert all(state[k] is v or torch.equal(state[k], v) for k, v in model.state_dict().items())
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_var[1] = 0.0  # type: ignore[index]
        norm.weight[1] = 0.0
    assert silence_dead_channels(model, model.state_dict())[1] == 0


def test_a_batch_norm_that_is_the_whole_model() -> None:
    model = nn.BatchNorm1d(2)
    model.running_var = torch.tensor([1e-9, 1.0])
    state, count = silence_dead_channels(model, model.state_dict())
    assert count == 1
    assert state["weight"].tolist() == [0.0, 1.0]
