"""csrify on models that are not ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.nn import CSRConv2d, csrify


class PaddedConv2d(nn.Conv2d):
    """A convolution that pads its input first, as libraries have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.blocks = nn.ModuleDict(
            {"left": nn.Conv2d(8, 12, 3, 2, "valid"), "right": nn.Conv2d(8, 12, 3, 2)}
        )
        self.head = nn.Sequential(nn.Sequential(nn.Conv2d(12, 6, (1, 3), padding="same", bias=False)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        out: torch.Tensor = self.head(self.blocks["left"](x) + self.blocks["right"](x))
        return out


def test_replaces_nested_layers_and_keeps_shapes() -> None:
    model = Branch()
    x = torch.randn(2, 3, 9, 9)
    shape = model(x).shape
    right = model.blocks["right"]
    assert csrify(model, ["blocks.left", "head.0.0"], 3) is model
    left, head = model.get_submodule("blocks.left"), model.get_submodule("head.0.0")
    assert isinstance(left, CSRConv2d)
    assert (left.num_steps, left.stride, left.padding, left.kernel_size) == (3, (2, 2), (0, 0), (3, 3))
    assert isinstance(head, CSRConv2d)
    assert (head.padding, head.bias) == ((0, 1), None)
    assert model.blocks["right"] is right
    assert model(x).shape == shape
    model(x).sum().backward()


def test_keeps_bias_dtype_and_mode() -> None:
    model = Branch().double().eval()
    bias = model.blocks["left"].bias.detach().clone()  # type: ignore[union-attr,operator]
    csrify(model, {"blocks.left": 2})
    layer = model.get_submodule("blocks.left")
    assert isinstance(layer, CSRConv2d)
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.detach(), bias)
    assert layer.bias.dtype == torch.float64
    assert not layer.training


def test_a_mapping_gives_each_layer_its_own_t() -> None:
    model = csrify(Branch(), {"blocks.left": 2, "blocks.right": 4}, channel_fill="wrap")
    steps = {n: (m.num_steps, m.channel_fill) for n, m in model.named_modules() if isinstance(m, CSRConv2d)}
    assert steps == {"blocks.left": (2, "wrap"), "blocks.right": (4, "wrap")}


def test_a_single_name_is_one_layer() -> None:
    assert isinstance(csrify(Branch(), "blocks.left", 2).get_submodule("blocks.left"), CSRConv2d)


def test_a_layer_used_twice_stays_one_layer() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    csrify(model, ["b.0"], 2)
    assert isinstance(model.get_submodule("a.0"), CSRConv2d)
    assert model.get_submodule("a.0") is model.get_submodule("b.0")


@pytest.mark.parametrize(
    ("layers", "steps", "message"),
    [
        (["blocks.lefd"], 2, "Did you mean blocks.left"),
        (["zzz"], 2, "Its convolutions: first.0, blocks.left"),
        (["first.1"], 2, "first.1: a ReLU cannot"),
        (["blocks.left"], 9, "num_steps .T = 9. is larger"),
        (["blocks.left"], 0, "blocks.left: num_steps .T. is 0\nT counts"),
        (["blocks.left"], -3, "blocks.left: num_steps .T. is -3"),
        (["blocks.left"], 2.5, "blocks.left: num_steps .T. is 2.5\nGive a whole number"),
        (["blocks.left"], True, "blocks.left: num_steps .T. is True"),
        (["blocks.left"], None, "no num_steps"),
        ([""], 2, "the model itself"),
    ],
)
def test_refusals_name_the_layer_and_change_nothing(layers: list[str], steps: Any, message: str) -> None:
    model = Branch()
    before = dict(model.named_modules())
    with pytest.raises(ModelError, match=message):
        csrify(model, ["head.0.0", *layers] if type(steps) is int and steps == 2 else layers, steps)
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "0: .*grouped .2 groups"),
        (nn.Conv2d(4, 4, 3, groups=4), "depth-wise\n.*incremental-depthwise"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilated .2, 2"),
        (PaddedConv2d(4, 4, 3), "PaddedConv2d computes more than nn.Conv2d"),
        (nn.Conv2d(4, 4, 3, groups=2, dilation=2), "grouped .2 groups. and it is dilated"),
        (nn.ConvTranspose2d(4, 4, 3), "0: a transposed convolution cannot"),
        (nn.Conv1d(4, 4, 3), "0: a Conv1d cannot"),
        (CSRConv2d(4, 4, 3, 2), "0: this layer is a CSR-Conv already"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding mode is 'reflect'"),
        (nn.Conv2d(4, 4, 2, padding="same"), "even kernel"),
    ],
)
def test_convolutions_it_cannot_express_are_refused(conv: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        csrify(nn.Sequential(conv), ["0"], 2)


def test_a_model_with_many_layers_does_not_list_them_all() -> None:
    model = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(30)])
    with pytest.raises(ModelError, match="Its convolutions: 0, 1, .*, 11 and 18 more"):
        csrify(model, ["stem"], 2)


def test_t_as_large_as_the_smaller_number_of_channels_is_allowed() -> None:
    layer = csrify(nn.Sequential(nn.Conv2d(6, 4, 3, padding=1)), ["0"], 4)[0]  # type: ignore[index]
    assert layer(torch.randn(1, 6, 5, 5)).shape == (1, 4, 5, 5)
    with pytest.raises(ModelError, match="Give T ≤ 4"):
        csrify(nn.Sequential(nn.Conv2d(6, 4, 3, padding=1)), ["0"], 5)
