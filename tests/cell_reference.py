"""Every cell as its equations say, step by step, in NumPy and float64: nothing batched, nothing folded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from csr_deploy.nn import CSRConv2d

Array = NDArray[np.float64]
Pair = tuple[int, int]
Weights = Mapping[str, Array]


def convolve(x: Array, weight: Array, stride: Pair, padding: Pair, groups: int = 1) -> Array:
    """[N, C, H, W] * [O, C / groups, kh, kw] → [N, O, H', W'], one output pixel at a time."""
    n, channels, height, width = x.shape
    filters, _, kh, kw = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    rows = (height + 2 * padding[0] - kh) // stride[0] + 1
    cols = (width + 2 * padding[1] - kw) // stride[1] + 1
    out = np.zeros((n, filters, rows, cols))
    size_in, size_out = channels // groups, filters // groups
    for row in range(rows):
        for col in range(cols):
            top, left = row * stride[0], col * stride[1]
            window = padded[:, :, top : top + kh, left : left + kw]
            for group in range(groups):
                part = window[:, group * size_in : (group + 1) * size_in]
                kernels = weight[group * size_out : (group + 1) * size_out]
                result = np.tensordot(part, kernels, axes=((1, 2, 3), (1, 2, 3)))
                out[:, group * size_out : (group + 1) * size_out, row, col] = result
    return out


def same(h: Array, weight: Array, groups: int = 1) -> Array:
    """U * h."""
    return convolve(h, weight, (1, 1), (weight.shape[2] // 2, weight.shape[3] // 2), groups)


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


class _Recurrence:
    """h_t from V * x_t (with the bias, where a cell has one) and what the steps before left."""

    def __init__(self, weights: Weights, size: int) -> None:
        self.w, self.size = weights, size
        self.h: Array | None = None
        self.c: Array | None = None

    def part(self, value: Array, index: int) -> Array:
        return value[:, index * self.size : (index + 1) * self.size]


def vanilla(r: _Recurrence, term: Array) -> Array:
    h = np.zeros_like(term) if r.h is None else r.h
    return relu(term + same(h, r.w["u"]))


def gru(r: _Recurrence, term: Array) -> Array:
    h = np.zeros_like(r.part(term, 0)) if r.h is None else r.h
    u_z, u_r = r.w["u"][: r.size], r.w["u"][r.size :]
    update = logistic(r.part(term, 0) + same(h, u_z))
    reset = logistic(r.part(term, 1) + same(h, u_r))
    new = np.tanh(r.part(term, 2) + same(reset * h, r.w["u_n"]))
    return update * h + (1 - update) * new


def lstm(r: _Recurrence, term: Array) -> Array:
    h = np.zeros_like(r.part(term, 0)) if r.h is None else r.h
    c = np.zeros_like(h) if r.c is None else r.c
    sums = [r.part(term, k) + same(h, r.w["u"][k * r.size : (k + 1) * r.size]) for k in range(4)]
    inner, forget, outer = (logistic(s) for s in sums[:3])
    r.c = forget * c + inner * np.tanh(sums[3])
    return outer * np.tanh(r.c)


def fastrnn(r: _Recurrence, term: Array) -> Array:
    h = np.zeros_like(term) if r.h is None else r.h
    alpha, beta = logistic(r.w["alpha"]), logistic(r.w["beta"])
    return alpha * np.tanh(term + same(h, r.w["u"])) + beta * h


def incremental_rnn(r: _Recurrence, term: Array) -> Array:
    h = np.zeros_like(term) if r.h is None else r.h
    g = np.zeros_like(h)
    change = np.tanh(term + same(g + h, r.w["u"])) - r.w["alpha"] * (g + h)
    return g + r.w["eta"] * change


def lipschitz_rnn(r: _Recurrence, term: Array) -> Array:
    h = np.zeros_like(term) if r.h is None else r.h
    beta, gamma, epsilon = 0.75, 0.001, 0.5

    def times(m: Array) -> Array:
        adjoint = m.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
        mixed = (1 - beta) * same(h, m + adjoint) + beta * same(h, m - adjoint)
        return mixed - gamma * h

    return h + epsilon * times(r.w["m_a"]) + epsilon * np.tanh(times(r.w["m_w"]) + term)


def incremental(r: _Recurrence, term: Array, depthwise: bool = False) -> Array:
    if r.h is None:
        return term
    u = same(r.h, r.w["u"], r.size if depthwise else 1)
    return r.w["alpha"] * relu(term + u) - r.w["beta"] * u + u


def incremental_depthwise(r: _Recurrence, term: Array) -> Array:
    return incremental(r, term, depthwise=True)


def s_groupconv(r: _Recurrence, term: Array) -> Array:
    return relu(term)


STEPS: dict[str, Callable[[_Recurrence, Array], Array]] = {
    "vanilla": vanilla,
    "gru": gru,
    "lstm": lstm,
    "fastrnn": fastrnn,
    "incremental-rnn": incremental_rnn,
    "lipschitz-rnn": lipschitz_rnn,
    "incremental": incremental,
    "incremental-depthwise": incremental_depthwise,
    "s-groupconv": s_groupconv,
}


def reference(layer: CSRConv2d, x: Array) -> Array:
    """A CSR-Conv in float64: split, T steps, concatenation, the first C_out channels."""
    if layer.num_steps == 1:
        groups = layer.in_channels if layer.cell_name == "incremental-depthwise" else 1
        out = convolve(x, layer.conv.weight.detach().numpy(), layer.stride, layer.padding, groups)
        return out if layer.bias is None else out + layer.bias.detach().numpy()[:, None, None]
    weights = {name: value.detach().numpy() for name, value in layer.cell.named_parameters()}
    steps = layer.num_steps
    d, size = math.ceil(layer.in_channels / steps), math.ceil(layer.out_channels / steps)
    filled = np.zeros((x.shape[0], d * steps, *x.shape[2:]))
    filled[:, : x.shape[1]] = x
    if layer.channel_fill == "wrap":
        filled = np.concatenate([x, x], axis=1)[:, : d * steps]
    recurrence = _Recurrence(weights, size)
    states = []
    for t in range(steps):
        groups = d if layer.cell_name == "incremental-depthwise" else 1
        group = filled[:, t * d : (t + 1) * d]
        term = convolve(group, weights["v"], layer.stride, layer.padding, groups)
        if "b" in weights:
            term = term + weights["b"][:, None, None]
        recurrence.h = STEPS[layer.cell_name](recurrence, term)
        states.append(recurrence.h)
    out = np.concatenate(states, axis=1)[:, : layer.out_channels]
    return out if layer.bias is None else out + layer.bias.detach().numpy()[:, None, None]
