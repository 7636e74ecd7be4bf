"""Element-wise operations: TFLite Micro = NumPy reference = C for every byte, at random scales."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("tflite_micro", reason="needs tflite-micro")

from csr_deploy.errors import ExportError  # noqa: E402
from csr_deploy.exporters.mcu.passes.normalise import normalise  # noqa: E402
from csr_deploy.exporters.mcu.reader import read_tflite  # noqa: E402
from tests.mcu_machine import build_library, check  # noqa: E402
from tests.mcu_tflite import GraphBuilder, Quant, Shape, Value  # noqa: E402

Array = NDArray[Any]

ALL = np.arange(-128, 128).astype(np.int8)
EVERY_BYTE = ALL.reshape(1, 4, 4, 16)
FIRST = np.repeat(ALL, 256).reshape(1, 1, 256, 256)
SECOND = np.tile(ALL, 256).reshape(1, 1, 256, 256)
FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
# Not ELU: its exponential is that of a C library, which may round otherwise.
UNARY = ("ABS", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "QUANTIZE", "RELU", "RELU6", "TANH")
BINARY = ("ADD", "SUB", "MUL", "MINIMUM", "MAXIMUM", "PRELU")

ZEROS = st.integers(-128, 127)


def scales(low: float, high: float) -> st.SearchStrategy[float]:
    """Float32 numbers between two powers of two, even in their logarithms."""
    return st.floats(low, high).map(lambda bits: float(np.float32(2.0**bits)))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_library(tmp_path_factory.mktemp("kernels"))


def _assume_taken(content: bytes) -> None:
    try:
        normalise(read_tflite(content, "test"))
    except ExportError:
        assume(False)


@pytest.mark.parametrize("kind", UNARY)
@settings(max_examples=40, deadline=None)
@given(x_scale=scales(-14, 3), x_zero=ZEROS, ratio=scales(-4, 4), out_zero=ZEROS, alpha=st.floats(-2, 2))
def test_all_256_values_of_a_unary_operation(
    library: ctypes.CDLL, kind: str, x_scale: float, x_zero: int, ratio: float, out_zero: int, alpha: float
) -> None:
    quant = (x_scale, x_zero)
    out = FIXED.get(kind, quant if kind == "RELU6" else (float(np.float32(x_scale * ratio)), out_zero))
    options = {"alpha": alpha} if kind == "LEAKY_RELU" else {}
    graph = GraphBuilder()
    content = graph.build(graph.unary(kind, graph.input(EVERY_BYTE.shape, quant), out, **options))
    _assume_taken(content)
    # LiteRT rounds some halves of these otherwise.
    check(library, content, EVERY_BYTE, litert=kind not in ("LEAKY_RELU", "LOGISTIC", "TANH"))


@pytest.mark.parametrize("kind", BINARY)
@settings(max_examples=25, deadline=None)
@given(
    a_scale=scales(-10, 2), a_zero=ZEROS, b_ratio=scales(-9, 9), b_zero=ZEROS, ratio=scales(-4, 6),
    out_zero=ZEROS, activation=st.sampled_from(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"]),
    second=st.booleans(),
)  # fmt: skip
def test_all_65536_pairs_of_a_binary_operation(
    library: ctypes.CDLL, kind: str, a_scale: float, a_zero: int, b_ratio: float, b_zero: int, ratio: float,
    out_zero: int, activation: str, second: bool,
) -> None:  # fmt: skip
    a, b = (a_scale, a_zero), (float(np.float32(a_scale * b_ratio)), b_zero)
    larger = max(a[0], b[0]) if kind in ("ADD", "SUB") else a[0] * (b[0] if kind == "MUL" else 1) * 16
    out = (float(np.float32(larger * ratio)), out_zero)
    if kind in ("MINIMUM", "MAXIMUM"):
        b = out = a
    graph = GraphBuilder()
    x, y = graph.input(FIRST.shape, a), graph.constant(SECOND, b)
    swapped = second and kind != "PRELU"
    pair = (y, x) if swapped else (x, y)
    content = graph.build(graph.binary(kind, *pair, out, activation=activation))
    _assume_taken(content)
    # LiteRT multiplies two scales in float32.
    check(library, content, FIRST, litert=kind not in ("MUL", "PRELU"))


Operand = tuple[Shape, bool]
"""Its shape, and whether it is computed (a part of the input) instead of constant."""
WHOLE: Shape = (2, 3, 4, 5)
PAIRS: list[tuple[Operand | None, Operand | None]] = [
    (None, ((1, 1, 1, 5), False)), (None, ((5,), False)), (None, ((), False)), (None, ((1,), False)),
    (None, ((1, 1, 1, 1), True)), (None, ((2, 1, 1, 5), True)), (None, ((2, 1, 1, 5), False)),
    (None, ((2, 3, 4, 1), True)), (None, ((1, 3, 1, 5), True)), (None, ((2, 1, 4, 1), False)),
    (None, ((2, 3, 4, 5), False)), (((1, 1, 1, 5), False), None), (((2, 1, 1, 5), True), None),
    (((2, 3, 4, 1), True), None), (((), False), None),
    (((1, 3, 1, 5), True), ((2, 1, 4, 5), False)), (((2, 3, 1, 1), True), ((1, 1, 4, 5), True)),
    (((2, 1, 4, 1), True), ((1, 3, 1, 5), True)), (((2, 3, 1, 5), True), ((1, 1, 4, 1), False)),
    (((2, 3, 4, 1), True), ((2, 3, 4, 1), True)), (((2, 3, 4, 2), True), ((2, 3, 4, 1), True)),
]  # fmt: skip


CASES = [(kind, *pair) for kind in BINARY for pair in PAIRS if kind != "PRELU" or pair[0] is None]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("kind", "first", "second"), CASES, ids=str)
def test_broadcasting(
    library: ctypes.CDLL, kind: str, first: Operand | None, second: Operand | None, in_place: bool
) -> None:
    rng = np.random.default_rng(0)
    graph = GraphBuilder()
    same = kind in ("MINIMUM", "MAXIMUM")
    quants: list[Quant] = [(0.05, -3), (0.05, -3) if same else (0.07, 11)]
    x = graph.input(WHOLE, (0.05, -3))
    # What the operation may write over is no input that a caller could want again.
    x = graph.unary("ABS", x, (0.05, -3)) if in_place else x

    def operand(given: Operand | None, quant: Quant) -> Value:
        if given is None:
            return x
        shape, computed = given
        if computed:
            begin = [int(rng.integers(0, n - m + 1)) for n, m in zip(WHOLE, shape, strict=True)]
            return graph.slice(x, begin, shape)
        return graph.constant(rng.integers(-128, 128, shape).astype(np.int8), quant)

    a, b = operand(first, quants[0]), operand(second, quants[1])
    out = (0.05, -3) if same else (0.11, 4)
    content = graph.build(graph.binary(kind, a, b, out))
    check(library, content, *rng.integers(-128, 128, (3, *WHOLE)).astype(np.int8))
