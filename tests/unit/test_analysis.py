"""Multiply-accumulates, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from csr_deploy.analysis import count_macs
from csr_deploy.errors import ModelError
from csr_deploy.models import architecture
from csr_deploy.nn import CSRConv2d


def test_plain_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    expected = 8 * 3 * 9 * 6 * 5 + 8 * 2 * 9 * 4 * 3 + 8 * 5
    assert count_macs(model, (1, 3, 12, 10)) == expected
    assert count_macs(model, (2, 3, 12, 10)) == 2 * expected


@pytest.mark.parametrize(("c_in", "c_out", "steps"), [(12, 18, 3), (10, 11, 4), (8, 8, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_csr_conv_is_t_times_v_and_t_minus_1_times_u(c_in: int, c_out: int, steps: int, stride: int) -> None:
    layer = CSRConv2d(c_in, c_out, 3, steps, stride, 1)
    d, big_d = -(-c_in // steps), -(-c_out // steps)
    area = (8 // stride) ** 2
    expected = (steps * d * big_d + (steps - 1) * big_d * big_d) * 9 * area
    assert count_macs(layer, (1, c_in, 8, 8)) == expected


def test_networks_of_the_paper() -> None:
    macs = {
        n: count_macs(architecture(n).build(), (1, 3, 32, 32)) for n in ("resnet56", "vgg16", "vgg16-csr4")
    }
    # He et al. and the CIFAR literature: 125 M and 313 M.
    assert macs["resnet56"] == 125_485_696
    assert macs["vgg16"] == 313_463_808
    assert abs(macs["vgg16-csr4"] / macs["vgg16"] - 0.61) < 0.005


def test_the_network_is_left_as_it_was() -> None:
    model = architecture("resnet20").build().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_macs(model, (1, 3, 32, 32))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not take an input of shape \[1, 4, 32, 32\]"):
        count_macs(architecture("resnet20").build(), (1, 4, 32, 32))
