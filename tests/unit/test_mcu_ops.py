"""Pools, means, softmax, tables and conversions: TFLite Micro = NumPy reference = C, byte for byte."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.mcu.layout import lay_out
from csr_deploy.exporters.mcu.lower import Lowering
from csr_deploy.exporters.mcu.ops import KINDS
from csr_deploy.exporters.mcu.ops.tables import table
from csr_deploy.exporters.mcu.passes.normalise import normalise
from csr_deploy.exporters.mcu.reader import read_tflite
from tests.mcu_machine import build_library, check, reference
from tests.mcu_tflite import GraphBuilder, Quant, Spec, Value, one_op_model

Array = NDArray[Any]

ALL = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 4, 16)
ALL_UNSIGNED = ALL.view(np.uint8)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_library(tmp_path_factory.mktemp("kernels"))


def scale(rng: np.random.Generator, low: float = -9, high: float = 1) -> float:
    return float(np.float32(2.0 ** rng.uniform(low, high)))


def zero(rng: np.random.Generator) -> int:
    return int(rng.integers(-128, 128))


def near(rng: np.random.Generator, quant: Quant) -> Quant:
    return float(np.float32(quant[0] * 2.0 ** rng.uniform(-2, 3))), zero(rng)


def pictures(rng: np.random.Generator, shape: tuple[int, ...], count: int = 2) -> list[Array]:
    return [rng.integers(-128, 128, shape).astype(np.int8) for _ in range(count)]


FIXED: Mapping[str, Quant] = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
UNARY = (
    "ABS",
    "ELU",
    "GELU",
    "HARD_SWISH",
    "LEAKY_RELU",
    "LOGISTIC",
    "QUANTIZE",
    "RELU",
    "RELU6",
    "RELU_N1_TO_1",
    "TANH",
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", UNARY)
def test_a_table_holds_what_tflite_micro_computes_for_all_256_values(
    library: ctypes.CDLL, kind: str, seed: int
) -> None:
    rng = np.random.default_rng([seed, *kind.encode()])
    quant = (scale(rng), zero(rng))
    same = kind == "RELU6" or (kind == "ABS" and seed == 0)
    out = FIXED.get(kind, quant if same else near(rng, quant))
    options: dict[str, Any] = {}
    if kind == "LEAKY_RELU":
        options["alpha"] = float(rng.uniform(-1, 1))
    elif kind == "GELU":
        options["approximate"] = seed % 2 == 0
    graph = GraphBuilder()
    content = graph.build(graph.unary(kind, graph.input(ALL.shape, quant), out, **options))
    check(library, content, ALL, tflm=kind not in ("RELU_N1_TO_1", "GELU"), litert=kind != "ELU")


@pytest.mark.parametrize("quant", [(4.0, 1), (8.0, 0), (20.0, -128), (2.0**-20, 127)])
@pytest.mark.parametrize("kind", ["LOGISTIC", "TANH"])
def test_saturating_functions_of_extreme_scales(library: ctypes.CDLL, kind: str, quant: Quant) -> None:
    graph = GraphBuilder()
    content = graph.build(graph.unary(kind, graph.input(ALL.shape, quant), FIXED[kind]))
    # TFLite Micro saturates from ±1 on at a scale of 4, and at 0 from 8.
    check(library, content, ALL, litert=quant[0] < 4)


@pytest.mark.parametrize("seed", range(3))
def test_bytes_with_and_without_sign(library: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    quant = (scale(rng), int(rng.integers(256)))
    graph = GraphBuilder()
    x = graph.input(ALL.shape, quant, "uint8")
    out = (quant[0], quant[1] - 128) if seed == 0 else near(rng, quant)
    check(library, graph.build(graph.unary("QUANTIZE", x, out)), ALL_UNSIGNED)
    graph = GraphBuilder()
    x = graph.input(ALL.shape, out)
    check(library, graph.build(graph.unary("QUANTIZE", x, quant, "uint8")), ALL)


def test_a_table_is_looked_up_in_parts_of_a_larger_buffer(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    graph = GraphBuilder()
    x = graph.input((1, 5, 6, 8), (0.05, 3))
    parts = [
        graph.unary("RELU", graph.slice(x, (0, 1, 0, 2), (1, 4, 6, 3)), (0.05, -128)),
        graph.unary("RELU", graph.slice(x, (0, 0, 0, 0), (1, 4, 6, 2)), (0.05, -128)),
    ]
    check(library, graph.build(graph.concat(parts, 3)), *pictures(rng, x.shape))


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_floats_are_quantised_halves_away_from_zero(
    library: ctypes.CDLL, seed: int, overlapped: bool
) -> None:
    rng = np.random.default_rng(seed)
    quant = (scale(rng, -6, 0), zero(rng))
    x = (rng.normal(0, 60, (1, 1001)) * quant[0]).astype(np.float32)
    x[0, :200] = (np.arange(200, dtype=np.float32) - 99.5) * np.float32(quant[0])
    graph = GraphBuilder()
    made = graph.unary("QUANTIZE", graph.input(x.shape, None, "float32"), quant)
    check(library, graph.build(made), x, overlapped=overlapped)


def test_what_no_int8_can_hold_is_saturated(library: ctypes.CDLL) -> None:
    x = np.array(
        [[np.inf, 1e30, 3e9, 200, 127.5, -128.5, -200, -3e9, -np.inf, np.nan, 0.49999997]], np.float32
    )
    graph = GraphBuilder()
    made = graph.unary("QUANTIZE", graph.input(x.shape, None, "float32"), (1.0, 0))
    check(library, graph.build(made), x, tflm=False, litert=False)
    model = normalise(read_tflite(graph.build(made), "test"))
    assert reference(model, x).tolist() == [[127, 127, 127, 127, 127, -128, -128, -128, -128, -128, 0]]


@pytest.mark.parametrize("overlapped", [False, True])
def test_bytes_become_floats(library: ctypes.CDLL, overlapped: bool) -> None:
    graph = GraphBuilder()
    made = graph.unary("DEQUANTIZE", graph.input(ALL.shape, (0.0371, -7)), None, "float32")
    check(library, graph.build(made), ALL, overlapped=overlapped)


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_pools(library: ctypes.CDLL, kind: str, seed: int, overlapped: bool) -> None:
    rng = np.random.default_rng([seed, kind == "MAX_POOL_2D"])
    shape = (1, int(rng.integers(3, 12)), int(rng.integers(3, 12)), int(rng.integers(1, 21)))
    graph = GraphBuilder()
    made = graph.pool(
        kind,
        graph.input(shape, (scale(rng, -6, -2), zero(rng))),
        (int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        stride=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        padding=("SAME", "VALID")[seed % 2],
        activation=("NONE", "RELU", "RELU6")[seed % 3],
    )
    check(library, graph.build(made), *pictures(rng, shape), overlapped=overlapped)


@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_a_window_over_a_whole_picture_of_one_value(library: ctypes.CDLL, kind: str) -> None:
    graph = GraphBuilder()
    made = graph.pool(kind, graph.input((1, 20, 17, 6), (0.1, 0)), (20, 17), padding="VALID")
    lows = np.full((1, 20, 17, 6), -128, np.int8)
    check(library, graph.build(made), lows, -1 - lows, *pictures(np.random.default_rng(0), lows.shape))


def test_a_pool_of_channels_in_a_larger_buffer(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    graph = GraphBuilder()
    x = graph.input((2, 6, 7, 9), (0.05, 3))
    parts = [
        graph.pool("MAX_POOL_2D", graph.slice(x, (0, 0, 1, 1), (2, 6, 6, 5)), (2, 2), stride=(2, 2)),
        graph.pool("AVERAGE_POOL_2D", graph.slice(x, (0, 0, 0, 6), (2, 6, 6, 3)), (3, 3), stride=(2, 2)),
    ]
    check(library, graph.build(graph.concat(parts, 3)), *pictures(rng, x.shape))


AXES = [(1, 2), (2, 1), (1,), (2,), (3,), (0,), (-1,), (0, 1), (1, 3), (2, 3), (1, 2, 3), (0, 1, 2, 3)]


@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize("axes", AXES)
def test_means_over_any_axes(library: ctypes.CDLL, axes: tuple[int, ...], keep_dims: bool) -> None:
    rng = np.random.default_rng([len(axes), axes[0] + 1, keep_dims])
    shape = (1, *(int(n) for n in rng.integers(2, 9, 3)))
    quant = (scale(rng), zero(rng))
    for out in (quant, (quant[0], zero(rng)), near(rng, quant)):
        graph = GraphBuilder()
        made = graph.mean(graph.input(shape, quant), axes, out, keep_dims=keep_dims)
        lows = np.full(shape, -128, np.int8)
        check(library, graph.build(made), lows, -1 - lows, *pictures(rng, shape))


def test_a_mean_of_part_of_a_buffer(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    graph = GraphBuilder()
    x = graph.input((1, 6, 7, 9), (0.05, 3))
    parts = [
        graph.mean(graph.slice(x, (0, 0, 1, 1), (1, 6, 6, 5)), (1, 2), (0.04, 1), keep_dims=True),
        graph.mean(graph.slice(x, (0, 2, 0, 6), (1, 4, 6, 3)), (1, 2), (0.04, 1), keep_dims=True),
    ]
    check(library, graph.build(graph.concat(parts, 3)), *pictures(rng, x.shape))


@pytest.mark.parametrize("seed", range(6))
def test_softmax(library: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = ((2, int(rng.integers(2, 300))), (1, 3, 2, 10), (1, 1))[seed % 3]
    graph = GraphBuilder()
    made = graph.softmax(
        graph.input(shape, (scale(rng, -8, 1), zero(rng))), float(rng.choice([1.0, 0.5, 2.0]))
    )
    peaked = np.clip(rng.normal(0, 30, shape), -128, 127).astype(np.int8)
    flat = rng.integers(-3, 4, shape).astype(np.int8)
    check(library, graph.build(made), np.zeros(shape, np.int8), flat, peaked, *pictures(rng, shape))


def test_softmax_of_a_row_in_a_larger_buffer(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    graph = GraphBuilder()
    x = graph.input((1, 4, 5, 6), (0.1, 3))
    parts = [
        graph.softmax(graph.slice(x, (0, 0, 1, 1), (1, 4, 4, 5))),
        graph.softmax(graph.slice(x, (0, 0, 0, 0), (1, 4, 4, 2))),
    ]
    check(library, graph.build(graph.concat(parts, 3)), *pictures(rng, x.shape))


@pytest.mark.parametrize("classes", [511, 600, 1000, 4095])
def test_softmax_of_more_classes_than_tflite_can_sum(library: ctypes.CDLL, classes: int) -> None:
    graph = GraphBuilder()
    content = graph.build(graph.softmax(graph.input((1, classes), (0.1, 0))))
    equal = np.zeros((1, classes), np.int8)
    one = equal.copy()
    one[0, 7] = 127
    # Where equal values sum up to 512 or more, TFLite ends the process.
    check(library, content, equal, tflm=classes < 512, litert=classes < 512)
    check(library, content, one)


def test_equal_tables_are_stored_once_and_short_ones_are_short() -> None:
    graph = GraphBuilder()
    x = graph.input((1, 10), (0.25, 0))
    model = normalise(read_tflite(graph.build(graph.softmax(x)), "test"))
    low = Lowering(model, lay_out(model))
    lower = KINDS["SOFTMAX"].lower
    assert lower is not None
    lower(low, model.ops[0])
    (exponentials,) = [c for c in low.constants.values() if c.is_array]
    # exp(−14) is too small for twelve integer bits.
    assert 54 <= len(exponentials.values) <= 57


def _unary(kind: str, quant: Quant, out: Quant | None, **options: Any) -> bytes:
    return one_op_model(kind, [Spec((1, 8), quant)], Spec((1, 8), out), options)


def _binary(kind: str, a: Quant, b: Quant, out: Quant, shape: tuple[int, ...] = (1, 8)) -> bytes:
    return one_op_model(kind, [Spec(shape, a), Spec((1, 8), b, data=ALL.reshape(-1)[:8])], Spec((1, 8), out))


def _pool(change: Mapping[str, Any], out: Quant = (0.1, 0)) -> bytes:
    options = {"padding": 1, "strideH": 1, "strideW": 1, "filterHeight": 2, "filterWidth": 2, **change}
    return one_op_model("MAX_POOL_2D", [Spec((1, 4, 4, 2), (0.1, 0))], Spec((1, 3, 3, 2), out), options)


def _mean(axes: list[int], shape: tuple[int, ...]) -> bytes:
    axis = Spec((len(axes),), dtype="int32", data=np.array(axes, np.int32))
    return one_op_model("MEAN", [Spec((1, 4, 4, 2), (0.1, 0)), axis], Spec(shape, (0.1, 0)))


REFUSED = [
    (_unary("RELU6", (0.1, 0), (0.2, 0)), "different scales"),
    (_unary("LOGISTIC", (0.1, 0), (1 / 255, -128)), "TFLite fixes"),
    (_unary("TANH", (0.1, 0), (1 / 128, 1)), "TFLite fixes"),
    (_unary("TANH", (1e-20, 0), (1 / 128, 0)), "an input scale of 1e-20"),
    (_unary("HARD_SWISH", (1.0, 0), (0.001, 0)), "beyond its 16-bit arithmetic"),
    (_unary("RELU", (100.0, 0), (1e-7, 0)), "times that of its output"),
    (_unary("ABS", (0.1, 0), None), "lacks quantisation parameters"),
    (_unary("SOFTMAX", (0.1, 0), (1 / 255, -128), beta=1.0), "TFLite fixes"),
    (_unary("SOFTMAX", (1e-9, 0), (1 / 256, -128), beta=1.0), "has beta"),
    (
        one_op_model("SOFTMAX", [Spec((1, 4096), (0.1, 0))], Spec((1, 4096), (1 / 256, -128)), {"beta": 1.0}),
        "4,096",
    ),
    (_binary("ADD", (100.0, 0), (1.0, 0), (1e-6, 0)), "times that of its output"),
    (_binary("MUL", (100.0, 0), (1.0, 0), (1e-3, 0)), "times that of its output"),
    (_binary("PRELU", (100.0, 0), (1.0, 0), (1e-3, 0)), "times that of its output"),
    (_binary("PRELU", (0.1, 0), (0.1, 0), (0.1, 0), (1, 1)), "repeats its input"),
    (_binary("MAXIMUM", (0.1, 0), (0.1, 0), (0.1, 1)), "another scale than its output"),
    (_binary("MINIMUM", (0.1, 0), (0.2, 0), (0.1, 0)), "another scale than its output"),
    (_binary("SUB", (0.1, 0), (0.1, 0), (0.1, 0), (1, 3)), "cannot combine"),
    (_pool({"filterWidth": 3}), "the file says"),
    (_pool({}, (0.2, 0)), "Quantise the model so that both"),
    (_pool({}, (0.1, 1)), "Quantise the model so that both"),
    (_pool({"strideH": 0}), "outside 1"),
    (_pool({"fusedActivationFunction": 4}), "fused activation 4"),
    (_mean([1, 4], (1, 4, 2)), "has axes"),
    (_mean([1, 2], (1, 4)), "turns"),
    (one_op_model("QUANTIZE", [Spec((1, 8), None, "float32")], Spec((1, 8), (0.1, 0), "uint8")), "uint8"),
    (one_op_model("DEQUANTIZE", [Spec((1, 8), (0.1, 0), "uint8")], Spec((1, 8), None, "float32")), "uint8"),
    (
        one_op_model("QUANTIZE", [Spec((1, 8), (0.1, 0))], Spec((1, 8), (0.1, 0), "int32")),
        "turns int8 into int32",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[m.replace(" ", "-") for _, m in REFUSED])
def test_what_cannot_be_computed_alike_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        normalise(read_tflite(content, "test"))
    assert message in str(caught.value)
    assert "operator 0" in str(caught.value)


def test_a_mean_over_parts_that_cannot_be_walked_is_refused() -> None:
    graph = GraphBuilder()
    x = graph.input((2, 3, 4, 5, 6), (0.1, 0))
    made = graph.mean(x, (0, 2, 4), (0.1, 0))
    model = normalise(read_tflite(graph.build(made), "test"))
    lower = KINDS["MEAN"].lower
    assert lower is not None
    with pytest.raises(ExportError, match="3 parts"):
        lower(Lowering(model, lay_out(model)), model.ops[0])


def test_a_table_follows_the_byte_not_its_sign() -> None:
    graph = GraphBuilder()
    x: Value = graph.input((1, 8), (0.1, 0))
    model = normalise(read_tflite(graph.build(graph.unary("RELU6", x, (0.1, 0))), "test"))
    (op,) = model.ops
    made = table(lambda op, x, out, q: q, op, model.tensors[op.inputs[0]], model.tensors[op.output])
    assert made[0] == 0 and made[127] == 127 and made[128] == -128 and made[255] == -1
