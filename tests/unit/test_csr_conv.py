"""CSRConv2d against a plain reference, step by step, in NumPy and float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.nn import CSRConv2d, VanillaCell, parameter_ratio


def convolve(
    x: np.ndarray, weight: np.ndarray, stride: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """[N, C, H, W] * [O, C, kh, kw] → [N, O, H', W'], one output pixel at a time."""
    n, _, height, width = x.shape
    out_channels, _, kh, kw = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    rows = (height + 2 * padding[0] - kh) // stride[0] + 1
    cols = (width + 2 * padding[1] - kw) // stride[1] + 1
    out = np.zeros((n, out_channels, rows, cols))
    for row in range(rows):
        for col in range(cols):
            top, left = row * stride[0], col * stride[1]
            window = padded[:, :, top : top + kh, left : left + kw]
            out[:, :, row, col] = np.tensordot(window, weight, axes=((1, 2, 3), (1, 2, 3)))
    return out


def reference(layer: CSRConv2d, x: np.ndarray) -> np.ndarray:
    """Eq. 2 of the paper, h_t = relu(V * x_t + U * h_{t-1}), for t = 1..T; then the first C_out channels."""
    assert isinstance(layer.cell, VanillaCell)
    v, u = (p.detach().numpy() for p in (layer.cell.v, layer.cell.u))
    steps, group = layer.num_steps, math.ceil(layer.in_channels / layer.num_steps)
    filled = np.zeros((x.shape[0], group * steps, *x.shape[2:]))
    filled[:, : x.shape[1]] = x
    if layer.channel_fill == "wrap":
        filled = np.concatenate([x, x], axis=1)[:, : group * steps]
    states: list[np.ndarray] = []
    for t in range(steps):
        term = convolve(filled[:, t * group : (t + 1) * group], v, layer.stride, layer.padding)
        if states:
            same = (u.shape[2] // 2, u.shape[3] // 2)
            term = term + convolve(states[-1], u, (1, 1), same)
        states.append(np.maximum(term, 0))
    out = np.concatenate(states, axis=1)[:, : layer.out_channels]
    return out if layer.bias is None else out + layer.bias.detach().numpy()[:, None, None]


@st.composite
def layers(draw: st.DrawFn) -> tuple[CSRConv2d, torch.Tensor]:
    in_channels = draw(st.integers(2, 11))
    out_channels = draw(st.integers(2, 11))
    steps = draw(st.integers(2, min(in_channels, out_channels)))
    kernel = (draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3])))
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer = CSRConv2d(
        in_channels,
        out_channels,
        kernel,
        steps,
        (draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        bias=draw(st.booleans()),
        channel_fill=draw(st.sampled_from(["zero", "wrap"])),
    ).double()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    size = (draw(st.integers(5, 8)), draw(st.integers(3, 7)))
    return layer, torch.randn(draw(st.integers(1, 2)), in_channels, *size, dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(layers())
def test_equals_the_plain_recurrence(case: tuple[CSRConv2d, torch.Tensor]) -> None:
    layer, x = case
    expected = reference(layer, x.numpy())
    found = layer(x).detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))


def test_rounding_up_can_leave_whole_states_over() -> None:
    layer = CSRConv2d(5, 5, 3, num_steps=4, padding=1).double()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    assert (layer.group_out, layer.used_steps) == (2, 3)
    np.testing.assert_allclose(layer(x).detach().numpy(), reference(layer, x.numpy()), atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"),
    [(3, 1, 1, False), (2, 2, 0, True), ((1, 3), (2, 1), (0, 1), True)],
)
def test_one_step_is_a_plain_convolution(kernel: int, stride: int, padding: int, bias: bool) -> None:
    plain = nn.Conv2d(4, 6, kernel, stride, padding, bias=bias)
    layer = CSRConv2d(4, 6, kernel, 1, stride, padding, bias=bias)
    layer.conv.weight.data.copy_(plain.weight.data)
    if layer.bias is not None and plain.bias is not None:
        layer.bias.data.copy_(plain.bias.data)
    x = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(layer(x), plain(x))


@given(d=st.integers(1, 8), big_d=st.integers(1, 8), steps=st.integers(2, 6), k=st.sampled_from([1, 3, 5]))
@settings(max_examples=40, deadline=None)
def test_parameter_ratio_is_proposition_1(d: int, big_d: int, steps: int, k: int) -> None:
    csr = sum(p.numel() for p in CSRConv2d(d * steps, big_d * steps, k, steps).parameters())
    plain = d * steps * big_d * steps * k * k
    assert csr / plain == pytest.approx(parameter_ratio(d, big_d, steps))


@pytest.mark.parametrize("fill", ["zero", "wrap"])
def test_gradients_reach_every_weight_and_channel(fill: str) -> None:
    layer = CSRConv2d(7, 7, 3, num_steps=3, padding=1, bias=True, channel_fill=fill).double()  # type: ignore[arg-type]
    x = torch.randn(2, 7, 5, 5, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().sum(dim=(0, 2, 3)) > 0).all())
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.abs().sum() > 0)


def test_gradients_are_the_derivative() -> None:
    torch.manual_seed(1)
    layer = CSRConv2d(5, 4, 3, num_steps=2, stride=2, padding=1).double()
    x = torch.randn(1, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_later_channels_do_not_reach_earlier_states() -> None:
    layer = CSRConv2d(6, 6, 3, num_steps=3, padding=1)
    x = torch.randn(1, 6, 5, 5)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(layer(x)[:, :4], layer(changed)[:, :4], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((4, 4, 3, 0), {}, "num_steps"),
        ((4, 8, 3, 5), {}, "larger than the channels"),
        ((8, 8, 2, 2), {}, "is even"),
        ((8, 8, (3, 4), 2), {}, "is even"),
        ((8, 8, 3, 2), {"channel_fill": "mirror"}, "channel_fill 'mirror'"),
        ((8, 8, 3, 2), {"cell": "lsmt"}, "cell 'lsmt'"),
        ((8, 8, 2, 2), {"cell": "gru"}, "is even"),
        ((8, 12, 3, 4), {"cell": "incremental-depthwise"}, "states of 3 channels from groups of 2"),
        ((8, 12, 3, 1), {"cell": "incremental-depthwise"}, "no multiple of 8"),
    ],
)
def test_impossible_layers_are_refused(
    arguments: tuple[int, int, int, int], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        CSRConv2d(*arguments, **options)  # type: ignore[arg-type]
    assert caught.value.fix


def test_channels_last_gives_the_same() -> None:
    layer = CSRConv2d(7, 9, 3, num_steps=3, padding=1, channel_fill="wrap").double()
    x = torch.randn(2, 7, 6, 6, dtype=torch.float64)
    other = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(layer(x), other, rtol=1e-12, atol=1e-12)
