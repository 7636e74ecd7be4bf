"""The operations of the static graph: arguments, attributes and shape inference.

| op | inputs | attributes |
|---|---|---|
| conv2d | x [N,C,H,W], w [O,C/g,kh,kw], bias [O]? | stride, padding, dilation, groups, activation |
| linear | x [N,I], w [O,I], bias [O]? | activation |
| affine | x [N,C,…], gain [C], bias [C] | activation |
| add, sub, mul | x, y of one shape, or one of them with axes of size 1 that broadcast | activation |
| relu, relu6, sigmoid, tanh, hard_sigmoid, hard_swish, elu | x | – |
| leaky_relu | x | slope |
| gelu | x | tanh: whether it is the approximation by tanh |
| prelu | x [N,C,…], slope [1,C,1,…] | – |
| softmax | x | axis |
| max_pool2d, avg_pool2d | x | kernel, stride, padding; average counts no padding unless count_padding |
| mean_hw | x [N,C,H,W] → [N,C,1,1] | – |
| slice | x | starts, stops, steps (one per axis) |
| pad | x | pads ((before, after) per axis), zeros, or what never is a maximum where lowest is set |
| concat | x… | axis |
| reshape | x | shape |
| transpose | x | perm |
| channels_to_width | x [N,b·C,H,W] → [N,C,H,b·W], out[c, h, b·w + j] = x[j·C + c, h, w] | block b |
| width_to_channels | x [N,C,H,b·W] → [N,b·C,H,W], its inverse | block b |
| csr_conv2d | x, weights… | layer (a `CsrLayer`), removed by the unroll pass |

Padding is (top, left, bottom, right).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csr_deploy.errors import GraphError

Shape = tuple[int, ...]
ACTIVATIONS = (None, "relu", "relu6")
"""Activations that a compute node may carry."""


ACTIVATION_OPS = frozenset(
    {"relu", "relu6", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "elu", "leaky_relu", "gelu"}
)
"""Operations that make each value from one value, wherever it stands."""


@dataclass(frozen=True)
class Op:
    """One operation: how to infer its output's shape, and whether it may carry an activation."""

    infer: Callable[[Sequence[Shape], Mapping[str, Any]], Shape]
    fuses_activation: bool = False


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


def _window(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    span = size + before + after - dilation * (kernel - 1) - 1
    _need(span >= 0, f"a window of {kernel} does not fit into {size} + {before} + {after}")
    return span // stride + 1


def _check_activation(attrs: Mapping[str, Any]) -> None:
    _need(attrs.get("activation") in ACTIVATIONS, f"unknown activation {attrs.get('activation')!r}")


def _conv2d(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    _check_activation(attrs)
    x, w = shapes[0], shapes[1]
    groups = attrs["groups"]
    _need(len(x) == 4 and len(w) == 4, f"takes 4-D tensors, got {x} and {w}")
    _need(x[1] == w[1] * groups, f"input has {x[1]} channels, weights take {w[1]} × {groups}")
    _need(w[0] % groups == 0, f"{w[0]} filters in {groups} groups")
    _need(len(shapes) < 3 or shapes[2] == (w[0],), f"bias {shapes[-1]} does not fit {w[0]} filters")
    top, left, bottom, right = attrs["padding"]
    (sh, sw), (dh, dw) = attrs["stride"], attrs["dilation"]
    return (
        x[0],
        w[0],
        _window(x[2], w[2], sh, top, bottom, dh),
        _window(x[3], w[3], sw, left, right, dw),
    )


def _linear(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    _check_activation(attrs)
    x, w = shapes[0], shapes[1]
    _need(len(x) == 2 and len(w) == 2 and x[1] == w[1], f"{x} does not fit weights {w}")
    _need(len(shapes) < 3 or shapes[2] == (w[0],), f"bias {shapes[-1]} does not fit {w[0]} outputs")
    return (x[0], w[0])


def _affine(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    _check_activation(attrs)
    x, gain, bias = shapes
    _need(gain == bias == (x[1],), f"gain {gain} and bias {bias} do not fit {x}")
    return x


def _prelu(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x, slope = shapes
    _need(slope == (1, x[1], *[1] * (len(x) - 2)), f"slope {slope} does not fit {x}")
    return x


def _elementwise(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    _check_activation(attrs)
    x, y = shapes
    _need(len(x) == len(y), f"{x} and {y} have different ranks")
    _need(
        all(a == b or a == 1 or b == 1 for a, b in zip(x, y, strict=True)), f"{x} and {y} cannot be broadcast"
    )
    return tuple(max(a, b) for a, b in zip(x, y, strict=True))


def _same(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    return shapes[0]


def _pool(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x = shapes[0]
    _need(len(x) == 4, f"takes a 4-D tensor, got {x}")
    top, left, bottom, right = attrs["padding"]
    (kh, kw), (sh, sw) = attrs["kernel"], attrs["stride"]
    return (x[0], x[1], _window(x[2], kh, sh, top, bottom), _window(x[3], kw, sw, left, right))


def _mean_hw(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x = shapes[0]
    _need(len(x) == 4, f"takes a 4-D tensor, got {x}")
    return (x[0], x[1], 1, 1)


def _slice(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x = shapes[0]
    starts, stops, steps = attrs["starts"], attrs["stops"], attrs["steps"]
    _need((starts[0], stops[0], steps[0]) == (0, x[0], 1), "cuts the batch")
    _need(len(starts) == len(stops) == len(steps) == len(x), f"slices {len(starts)} of {len(x)} axes")
    for size, start, stop, step in zip(x, starts, stops, steps, strict=True):
        _need(0 <= start < stop <= size and step >= 1, f"slice {start}:{stop}:{step} of {size}")
    return tuple(-(-(b - a) // s) for a, b, s in zip(starts, stops, steps, strict=True))


def _pad(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x, pads = shapes[0], attrs["pads"]
    _need(len(pads) == len(x) and all(a >= 0 and b >= 0 for a, b in pads), f"pads {pads} of {x}")
    return tuple(size + a + b for size, (a, b) in zip(x, pads, strict=True))


def _concat(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    axis = attrs["axis"]
    first = shapes[0]
    for shape in shapes[1:]:
        _need(
            len(shape) == len(first)
            and all(a == b for i, (a, b) in enumerate(zip(first, shape, strict=True)) if i != axis),
            f"{shapes} cannot be joined along axis {axis}",
        )
    return tuple(sum(s[i] for s in shapes) if i == axis else d for i, d in enumerate(first))


def _reshape(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    shape = tuple(attrs["shape"])
    _need(math.prod(shape) == math.prod(shapes[0]), f"{shapes[0]} cannot become {shape}")
    return shape


def _transpose(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    perm = attrs["perm"]
    _need(sorted(perm) == list(range(len(shapes[0]))), f"{perm} is no permutation of {shapes[0]}")
    return tuple(shapes[0][p] for p in perm)


def _channels_to_width(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x, block = shapes[0], attrs["block"]
    _need(len(x) == 4 and x[1] % block == 0, f"{x} has no {block} groups of channels")
    return (x[0], x[1] // block, x[2], x[3] * block)


def _width_to_channels(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x, block = shapes[0], attrs["block"]
    _need(len(x) == 4 and x[3] % block == 0, f"the width of {x} is no multiple of {block}")
    return (x[0], x[1] * block, x[2], x[3] // block)


def _csr_conv2d(shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> Shape:
    x, layer = shapes[0], attrs["layer"]
    (kh, kw), (sh, sw), (ph, pw) = layer.kernel_size, layer.stride, layer.padding
    _need(len(x) == 4 and x[1] == layer.in_channels, f"{x} does not fit {layer.in_channels} channels")
    return (x[0], layer.out_channels, _window(x[2], kh, sh, ph, ph), _window(x[3], kw, sw, pw, pw))


OPS: dict[str, Op] = {
    "conv2d": Op(_conv2d, True),
    "linear": Op(_linear, True),
    "affine": Op(_affine, True),
    "add": Op(_elementwise, True),
    "sub": Op(_elementwise, True),
    "mul": Op(_elementwise, True),
    "relu": Op(_same),
    "relu6": Op(_same),
    "sigmoid": Op(_same),
    "tanh": Op(_same),
    "hard_sigmoid": Op(_same),
    "hard_swish": Op(_same),
    "elu": Op(_same),
    "leaky_relu": Op(_same),
    "gelu": Op(_same),
    "prelu": Op(_prelu),
    "softmax": Op(_same),
    "max_pool2d": Op(_pool),
    "avg_pool2d": Op(_pool),
    "mean_hw": Op(_mean_hw),
    "slice": Op(_slice),
    "pad": Op(_pad),
    "concat": Op(_concat),
    "reshape": Op(_reshape),
    "transpose": Op(_transpose),
    "channels_to_width": Op(_channels_to_width),
    "width_to_channels": Op(_width_to_channels),
    "csr_conv2d": Op(_csr_conv2d),
}
