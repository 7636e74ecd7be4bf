"""Steps of a recurrence are joined only where int8 can afford one scale for x and h."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from csr_deploy.data import Preprocessing
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.nn import CSRConv2d
from csr_deploy.quantize import QuantizeOptions, quantize
from csr_deploy.quantize.joining import GOOD_ERROR, ScaleLimit, logit_error, lower_and_quantize
from csr_deploy.quantize.scheme import AFFINE
from csr_deploy.unroll.cost import CostModel
from csr_deploy.unroll.lowering import JoinRule, Lowered, lower
from tests.networks import settle

SHAPE = (1, 3, 8, 8)
PREPROCESSING = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
COSTS = CostModel("test", True, (16, 4), {"conv": 100.0, "conv.mac": 1.0, "copy": 50.0, "elementwise": 80.0})


class Net(nn.Module):
    """Residual blocks of one CSR-Conv each, whose states grow from step to step by about `growth`."""

    def __init__(self, growth: float, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.csr = nn.ModuleList(CSRConv2d(16, 16, 3, 4, padding=1) for _ in range(blocks))
        self.norm = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(blocks))
        self.head = nn.Linear(16, 10)
        with torch.no_grad():
            for csr in self.csr:
                csr.cell.u.zero_()
                csr.cell.u[..., 1, 1] = growth * torch.eye(csr.cell.u.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for csr, norm in zip(self.csr, self.norm, strict=True):
            x = torch.relu(x + norm(csr(x)))
        return self.head(x.mean((2, 3)))


def images(count: int = 32) -> Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


def made(growth: float) -> tuple[nn.Module, partial[Lowered]]:
    torch.manual_seed(0)
    model = settle(Net(growth), SHAPE)
    return model, partial(lower, model, SHAPE, "auto", legalise, COSTS, 99.0)


def chosen(free: Lowered, lower_again: partial[Lowered]) -> tuple[Lowered, float, JoinRule | None]:
    lowered, quantized, rule = lower_and_quantize(
        free, lower_again, [images()], PREPROCESSING, QuantizeOptions(), AFFINE
    )
    return lowered, logit_error(quantized, images()), rule


def test_states_that_grow_are_not_joined_with_their_input() -> None:
    _, lower_again = made(8.0)
    free = lower_again()
    assert free.figures["joined_steps"]
    alone = logit_error(quantize(free.graph, [images()], PREPROCESSING, QuantizeOptions()), images())
    assert alone > GOOD_ERROR
    lowered, error, rule = chosen(free, lower_again)
    assert error < 0.67 * alone
    assert isinstance(rule, ScaleLimit)
    assert lowered.figures["joined_up_to_scales"] == rule.most
    assert lowered.figures["int8_error"] == pytest.approx(error, abs=1e-3)
    assert lowered.figures["joined_steps"] < free.figures["joined_steps"]


def test_states_of_their_inputs_size_are_joined_and_nothing_else_is_tried() -> None:
    _, lower_again = made(0.5)
    free = lower_again()
    assert free.figures["joined_steps"]

    def never(rule: JoinRule) -> Lowered:
        raise AssertionError("lowered again")

    lowered, quantized, rule = lower_and_quantize(
        free, never, [images()], PREPROCESSING, QuantizeOptions(), AFFINE
    )
    assert rule is None
    assert lowered.graph is free.graph
    assert lowered.figures["int8_error"] == pytest.approx(logit_error(quantized, images()), abs=1e-3)


@pytest.mark.parametrize(("most", "joined"), [(0.0, False), (1e9, True)])
def test_a_limit_that_forbids_all_or_nothing(most: float, joined: bool) -> None:
    _, lower_again = made(8.0)
    limit = ScaleLimit(images(), PREPROCESSING, QuantizeOptions(), AFFINE, most)
    assert bool(lower_again(limit).figures["joined_steps"]) is joined
    assert lower_again(limit).figures["joined_steps"] in (0, lower_again().figures["joined_steps"])


def test_a_network_without_recurrences_is_quantised_as_it_is() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)), SHAPE)
    free = lower(model, SHAPE, "auto", legalise, COSTS)
    lowered, _, rule = chosen(free, partial(lower, model, SHAPE, "auto", legalise, COSTS, 99.0))
    assert lowered is free
    assert rule is None
    assert "int8_error" not in lowered.figures
