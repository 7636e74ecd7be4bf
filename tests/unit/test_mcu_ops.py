"""Pools, means, softmax, tables and conversions: TFLite Micro = NumPy reference = C, byte for byte.

The C kernels are compiled into a library with the undefined-behaviour sanitizer, and called as the compiler's
calls say, on buffers with guards around them.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.mcu.ir import Model
from csr_deploy.exporters.mcu.layout import View, lay_out
from csr_deploy.exporters.mcu.lower import Call, Lowering
from csr_deploy.exporters.mcu.ops import KINDS
from csr_deploy.exporters.mcu.ops.tables import table
from csr_deploy.exporters.mcu.passes.normalise import normalise
from csr_deploy.exporters.mcu.reader import read_tflite
from tests.mcu_tflite import GraphBuilder, Quant, Spec, Value, one_op_model, run_litert, run_tflm

Array = NDArray[Any]

KERNELS = Path(__file__).resolve().parents[2] / "runtimes" / "mcu" / "c"
SOURCES = ("csr_table", "csr_pool", "csr_mean", "csr_softmax", "csr_convert", "csr_copy", "csr_fill")
GUARD = 64
ALL = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 4, 16)
ALL_UNSIGNED = ALL.view(np.uint8)


def _struct(fields: str) -> type[ctypes.Structure]:
    """A C structure from `type name name, …`."""
    made = []
    for part in fields.split(","):
        ctype, *names = part.split()
        made += [(name, getattr(ctypes, f"c_{ctype}")) for name in names]
    return type("Struct", (ctypes.Structure,), {"_fields_": made})


STRUCTS = {
    "csr_loops": _struct("uint16 rows pixels, uint32 span, int32 ar ap br bp or op, uint8 element"),
    "csr_mean": _struct(
        "int32 multiplier bias, uint32 outer channels rows pixels, int32 io ic row pixel oo oc, int8 left z"
    ),
    "csr_pool": _struct("void_p window, int8 low high"),
    "csr_softmax": _struct("void_p exponential, uint16 known classes, uint32 rows, int32 in_row out_row"),
    "csr_window": _struct(
        "uint16 ih iw c oh ow, int16 top left, uint8 kh kw sh sw dh dw, int32 in_row in_pixel o_row o_pixel"
    ),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC"]
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    command = [compiler, *flags, "-o", str(path), *(str(KERNELS / f"{s}.c") for s in SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path))


class Machine:
    """Runs the calls of a program on one block of memory.

    Args:
        library: The kernels.
        model: After `normalise`.
        overlapped: Lets the output overlap the input as far as the only call allows.
    """

    def __init__(self, library: ctypes.CDLL, model: Model, *, overlapped: bool = False) -> None:
        self.library = library
        self.model = model
        self.layout = lay_out(model)
        self.low = Lowering(model, self.layout)
        for step, op in enumerate(model.ops):
            if step not in self.layout.aliases:
                lower = KINDS[op.kind].lower
                assert lower is not None
                self.low.step = step
                lower(self.low, op)
        self.places = self._apart()
        if overlapped:
            (call,) = self.low.calls
            assert call.overlap is not None
            source, target, distance = call.overlap
            start = GUARD + max(0, -distance)
            self.places = {target: start, source: start + distance}
        ends = [self.places[b] + self.layout.sizes[b] for b in self.places]
        self.memory = np.full(max(ends) + GUARD, 0x5A, np.uint8)
        # ctypes frees what nobody refers to.
        self.kept: dict[str, Any] = {}

    def _apart(self) -> dict[str, int]:
        places, at = {}, GUARD
        for name, size in self.layout.sizes.items():
            places[name] = at
            at += -(-size // 16) * 16 + GUARD
        return places

    def _constant(self, name: str) -> Any:
        if name not in self.kept:
            constant = next(c for c in self.low.constants.values() if c.name == name)
            if constant.is_array:
                element = {"int8_t": ctypes.c_int8, "int32_t": ctypes.c_int32}[constant.ctype]
                self.kept[name] = (element * len(constant.values))(*constant.values)
            else:
                fields = [self._field(v) for v in constant.values]
                self.kept[name] = STRUCTS[constant.ctype](*fields)
        return self.kept[name]

    def _field(self, value: Any) -> Any:
        return ctypes.addressof(self._constant(value.removeprefix("&"))) if isinstance(value, str) else value

    def _argument(self, value: str | View) -> Any:
        if isinstance(value, View):
            return ctypes.c_void_p(self.memory.ctypes.data + self.places[value.buffer] + value.offset)
        if value.startswith("&"):
            return ctypes.byref(self._constant(value[1:]))
        if value.endswith("f"):
            return ctypes.c_float(float(value[:-1]))
        if value.lstrip("-").rstrip("u").isdigit():
            return int(value.rstrip("u"))
        return self._constant(value)

    def _bytes(self, view: View) -> Array:
        start = self.places[view.buffer] + view.offset
        assert view.is_contiguous
        return self.memory[start : start + int(np.prod(view.shape)) * view.element]

    def _call(self, call: Call) -> None:
        getattr(self.library, call.kernel)(*(self._argument(a) for a in call.arguments))

    def run(self, x: Array) -> Array:
        """The output; asserts that guards are as they were."""
        self.memory[:] = 0x5A
        self._bytes(self.layout.views[self.model.input])[:] = x.reshape(-1).view(np.uint8)
        for call in self.low.calls:
            self._call(call)
        out = self.model.tensors[self.model.output]
        result = self._bytes(self.layout.views[out.name]).copy().view(out.dtype).reshape(out.shape)
        free = np.ones(len(self.memory), bool)
        for name, place in self.places.items():
            free[place : place + self.layout.sizes[name]] = False
        assert (self.memory[free] == 0x5A).all()
        return result


def reference(model: Model, x: Array) -> Array:
    values: dict[str, Array] = {model.input: x}
    for op in model.ops:
        inputs = [values[n] if n in values else model.tensors[n].data for n in op.inputs]
        values[op.output] = KINDS[op.kind].reference(op, model, inputs)  # type: ignore[arg-type]
    return values[model.output]


def check(
    library: ctypes.CDLL,
    content: bytes,
    *pictures: Array,
    litert: bool = True,
    tflm: bool = True,
    overlapped: bool = False,
) -> None:
    """Demands the same bytes of all."""
    model = normalise(read_tflite(content, "test"))
    machine = Machine(library, model, overlapped=overlapped)
    wanted = [reference(model, x) for x in pictures]
    for run in ([run_tflm] if tflm else []) + ([run_litert] if litert else []):
        for theirs, ours in zip(run(content, *pictures), wanted, strict=True):
            np.testing.assert_array_equal(theirs, ours)
    for x, ours in zip(pictures, wanted, strict=True):
        np.testing.assert_array_equal(machine.run(x), ours)


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
    options: dict[str, Any] = {"alpha": float(rng.uniform(-1, 1))} if kind == "LEAKY_RELU" else {}
    graph = GraphBuilder()
    content = graph.build(graph.unary(kind, graph.input(ALL.shape, quant), out, **options))
    check(library, content, ALL, tflm=kind != "RELU_N1_TO_1", litert=kind != "ELU")


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
