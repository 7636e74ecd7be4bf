"""The microcontroller compiler on real networks of this toolkit: what it finds, shares, and refuses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
torch = pytest.importorskip("torch", reason="needs torch to read checkpoints")

import flatbuffers  # noqa: E402
from ai_edge_litert import schema_py_generated as schema  # noqa: E402

from csr_deploy.artifact import read_artifact  # noqa: E402
from csr_deploy.errors import ArtifactError, ExportError, OptionError  # noqa: E402
from csr_deploy.export import Network  # noqa: E402
from csr_deploy.exporters.base import WriteRequest  # noqa: E402
from csr_deploy.exporters.mcu.compiler import Program, compile_tflite, optimise  # noqa: E402
from csr_deploy.exporters.mcu.emit import KERNELS, model_header, model_source  # noqa: E402
from csr_deploy.exporters.mcu.exporter import TfliteSource, export_tflite  # noqa: E402
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor  # noqa: E402
from csr_deploy.exporters.mcu.ops import KINDS  # noqa: E402
from csr_deploy.exporters.mcu.options import McuOptions  # noqa: E402
from csr_deploy.exporters.mcu.reader import read_tflite  # noqa: E402
from csr_deploy.exporters.tflite import EXPORTER as TFLITE  # noqa: E402
from csr_deploy.exporters.tflite import TfliteWriter  # noqa: E402
from csr_deploy.quantize import QuantizeOptions, quantize  # noqa: E402
from csr_deploy.runtimes.mcu.build import find_sources  # noqa: E402
from csr_deploy.unroll.lowering import unroll  # noqa: E402
from tests.mcu_host import WARNINGS, HostCompiler  # noqa: E402
from tests.mcu_tflite import GraphBuilder, Spec, Value, one_op_model, run_tflm  # noqa: E402

STEPS, GROUP, FILTERS = 3, 4, 5


def _network(seed: int = 0, *, padded: bool = False, spare_state: bool = False) -> bytes:
    """A convolution, a channel-split recurrence, a gain per channel and a residual sum."""
    random = np.random.default_rng(seed)
    graph = GraphBuilder()

    def weights(*shape: int) -> np.ndarray:
        return random.integers(-127, 128, shape).astype(np.int8)

    def bias(count: int) -> np.ndarray:
        return random.integers(-2000, 2000, count).astype(np.int32)

    width = STEPS * GROUP
    x = graph.input((1, 8, 8, 3), (0.02, -3))
    front = graph.conv2d(
        x, weights(width, 3, 3, 3), [0.004] * width, bias(width), (0.05, -128), activation="RELU"
    )
    source, padding, stride = front, "SAME", (1, 1)
    if padded:
        source = graph.pad(front, [(0, 0), (1, 0), (1, 0), (0, 0)])
        padding, stride = "VALID", (2, 2)
    v, u = weights(FILTERS, 3, 3, GROUP), weights(FILTERS, 3, 3, FILTERS)
    states: list[Value] = []
    for t in range(STEPS):
        part = graph.slice(source, (0, 0, 0, t * GROUP), (*source.shape[:3], GROUP))
        first = not states
        term = graph.conv2d(
            part, v, [0.003] * FILTERS, bias(FILTERS), (0.06, -128) if first else (0.05, 4 + t),
            padding=padding, stride=stride, activation="RELU" if first else "NONE",
        )  # fmt: skip
        if not first:
            back = graph.conv2d(states[-1], u, [0.002] * FILTERS, bias(FILTERS), (0.04, -9 + t))
            term = graph.add(term, back, (0.06, -128), activation="RELU")
        states.append(term)
    joined = graph.concat(states, 3)
    scaled = graph.depthwise_conv2d(
        joined, weights(1, 1, 1, STEPS * FILTERS), [0.01] * (STEPS * FILTERS), bias(STEPS * FILTERS),
        (0.07, 0), padding="VALID",
    )  # fmt: skip
    total = graph.add(scaled, joined, (0.1, -20))
    if spare_state:
        total = graph.concat([total, graph.mul(states[1], states[1], (0.1, -20))], 3)
    return graph.build(graph.mean(total, (1, 2), (0.1, -20)))


def _compile(content: bytes, **options: object) -> Program:
    return compile_tflite(content, "test.tflite", McuOptions(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    return HostCompiler(tmp_path_factory.mktemp("host"))


@pytest.mark.parametrize("padded", [False, True])
def test_a_recurrence_becomes_one_call_with_one_u_and_one_v(padded: bool) -> None:
    program = _compile(_network(padded=padded))
    kernels = [c.kernel for c in program.calls]
    expected = ["csr_conv2d_s8", "csr_cell_s8", "csr_affine_s8", "csr_add_s8", "csr_mean_s8"]
    assert kernels == expected
    sizes = sorted(c.size for c in program.constants if c.kind == "weight" and c.name.startswith("weights_"))
    assert sizes == sorted([STEPS * GROUP * 27, FILTERS * 9 * GROUP, FILTERS * 9 * FILTERS, STEPS * FILTERS])


def test_a_state_that_is_read_elsewhere_keeps_its_steps() -> None:
    kernels = [c.kernel for c in _compile(_network(spare_state=True)).calls]
    assert "csr_cell_s8" not in kernels


@pytest.mark.parametrize("content", [_network(), _network(1, padded=True), _network(2, spare_state=True)])
def test_c_equals_tflite_micro(host: HostCompiler, content: bytes) -> None:
    inputs = np.random.default_rng(3).integers(-128, 128, (8, 1, 8, 8, 3)).astype(np.int8)
    expected = [out.reshape(-1) for out in run_tflm(content, *inputs)]
    assert len(np.unique(expected)) > 8
    for share in (0.0, 0.17, 5.0):
        assert np.array_equal(host.run(_compile(content, scratch_share=share), inputs), expected)


def test_more_scratch_is_used_and_the_share_is_kept() -> None:
    arenas = [_compile(_network(), scratch_share=share).arena for share in (0.0, 0.2, 5.0)]
    assert arenas[0] <= arenas[1] <= 1.2 * arenas[0] + 16
    assert arenas[2] > arenas[1]


def test_the_same_file_gives_the_same_bytes() -> None:
    sources = [model_source(_compile(_network()), "model") for _ in range(2)]
    assert sources[0] == sources[1]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_generated_c_compiles_without_warnings(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    program = _compile(_network())
    (tmp_path / "model.c").write_text(model_source(program, "model"))
    (tmp_path / "model.h").write_text(model_header(program, "model", 'odd "name" */ ???', ("a", 'b"', "ü")))
    for source in (tmp_path / "model.c", *sorted(KERNELS.glob("*.c"))):
        command = [compiler, *WARNINGS, "-pedantic", "-O2", "-fsyntax-only", f"-I{KERNELS}", f"-I{tmp_path}"]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cpu", ["cortex-m0", "cortex-m3", "cortex-m4", "cortex-m33", "cortex-m55"])
def test_kernels_compile_for_microcontrollers_without_warnings(cpu: str, tmp_path: Path) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("needs arm-none-eabi-gcc")
    for source in sorted(KERNELS.glob("*.c")):
        command = ["arm-none-eabi-gcc", f"-mcpu={cpu}", "-mthumb", *WARNINGS, "-O2", "-c", str(source)]
        done = subprocess.run(
            [*command, "-o", str(tmp_path / "x.o")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_export_of_a_tflite_file(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(_network())
    artifact = export_tflite(TfliteSource(path, "net"), tmp_path / "net-mcu")
    read = read_artifact(tmp_path / "net-mcu")
    assert read.files == artifact.files and read.parity["passed"]
    names = {f.name for f in read.files}
    assert {"src/model.c", "src/model.h", "Makefile", "CMakeLists.txt", "library.properties"} <= names
    assert "src/csr_softmax.c" not in names, "only the kernels it needs"
    assert read.model["arena_bytes"] == _compile(_network()).arena
    again = export_tflite(TfliteSource(path, "net"), tmp_path / "again")
    assert again.files == artifact.files
    # The project builds and classifies by itself.
    done = subprocess.run(["make", "-C", str(read.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    picture = np.zeros(192, np.int8).tobytes()
    ran = subprocess.run(
        [str(read.path / "build" / "example")], input=picture * 2, capture_output=True, check=True
    )
    best = int(np.argmax(run_tflm(_network(), np.zeros((1, 8, 8, 3), np.int8))[0]))
    assert ran.stdout.decode().split() == [str(best)] * 2


def test_rounding_once_is_closer_to_float(tmp_path: Path) -> None:
    """Against the same recurrence in float64, on the same integers."""
    path = tmp_path / "net.tflite"
    path.write_bytes(_network(5))
    artifact = export_tflite(TfliteSource(path, "net"), tmp_path / "once", McuOptions(fuse_requantize=True))
    assert artifact.parity["passed"] and artifact.options["mcu"]["fuse_requantize"]
    plain = _compile(_network(5))
    once = _compile(_network(5), fuse_requantize=True)
    assert [c.kernel for c in once.calls].count("csr_fused_cell_s8") == 1
    assert once.flash[1] < plain.flash[1]
    cells = [next(op for op in p.model.ops if op.kind == "CSR_CELL") for p in (plain, once)]
    model = plain.model
    x = np.random.default_rng(0).integers(-128, 128, (1, 8, 8, STEPS * GROUP)).astype(np.int8)
    parts = dict(zip(cells[0].inputs, np.split(x, STEPS, axis=3), strict=False))
    errors = []
    for cell in cells:
        inputs = [parts[n] if n in parts else model.tensors[n].data for n in cell.inputs]
        errors.append(
            np.abs(KINDS["CSR_CELL"].reference(cell, model, inputs) - _float_cell(model, cells[0], x)).mean()
        )
    assert errors[1] < errors[0]


def _float_cell(model: Model, cell: Op, x: np.ndarray) -> np.ndarray:
    """The recurrence in float64 on real values, in integers of the state that are not rounded."""
    state = model.tensors[cell.output]
    before = None
    states = []
    for part, (v, u, _) in zip(np.split(x, STEPS, axis=3), cell.attrs["steps"], strict=True):
        total = _real_conv(model, v, _real(model.tensors[v.inputs[0]], part))
        if before is not None:
            total = total + _real_conv(model, u, before)
        before = np.maximum(total, 0)
        states.append(np.clip(before / float(state.scale) + state.zero_point, -128, 127))
    return np.concatenate(states, axis=3)


def _real(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float64) - tensor.zero_point) * float(tensor.scale)


def _real_conv(model: Model, op: Op, x: np.ndarray) -> np.ndarray:
    weights, bias = model.tensors[op.inputs[1]], model.tensors[op.inputs[2]]
    assert weights.data is not None and weights.scales is not None and bias.data is not None
    scales = weights.scales.astype(np.float64)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    real = weights.data * scales[:, None, None, None]
    own = bias.data * scales * float(model.tensors[op.inputs[0]].scale)
    return np.einsum("nyxcij,oijc->nyxo", views, real) + own


def test_another_prefix(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(_network())
    artifact = export_tflite(TfliteSource(path, "net"), tmp_path / "out", McuOptions(prefix="door_bell"))
    header = (artifact.path / "src" / "door_bell.h").read_text()
    assert "int door_bell_run(door_bell_t *model);" in header and "#define DOOR_BELL_ARENA_BYTES" in header
    assert artifact.parity["passed"]
    with pytest.raises(ArtifactError, match=r"prefix 'door_bell'.*\n.*without --prefix"):
        find_sources(read_artifact(artifact.path))


# Bad input


def test_an_operation_without_a_kernel_is_named() -> None:
    content = one_op_model("NEG", [Spec((1, 4), (0.1, 0))], Spec((1, 4), (0.1, 0)))
    with pytest.raises(ExportError, match=r"NEG \(operator 0\), tensor .*has no microcontroller kernel"):
        _compile(content)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_model_of_another_type_is_refused(dtype: str) -> None:
    quant = None if dtype == "float32" else (0.1, 0)
    graph = GraphBuilder()
    a = graph.input((1, 4), quant, dtype)
    out = graph.value((1, 4), quant, dtype)
    graph.op("ADD", [a, a], [out], {})
    with pytest.raises(ExportError, match=rf"{dtype}.*\n?.*[Qq]uantise"):
        _compile(graph.build(out))


def test_missing_quantisation_is_refused() -> None:
    graph = GraphBuilder()
    a = graph.input((1, 4), None)
    out = graph.value((1, 4), (0.1, 0))
    graph.op("ADD", [a, a], [out], {})
    with pytest.raises(ExportError, match="lacks quantisation parameters"):
        _compile(graph.build(out))


def test_a_budget_that_is_too_small_names_what_breaks_it() -> None:
    with pytest.raises(
        ExportError, match=r"operator \d+ \w+.*needs an arena of [\d,]+ bytes, 512 are allowed"
    ):
        _compile(_network(), ram=512)
    with pytest.raises(ExportError, match=r"needs [\d,]+ bytes of constants, 100 are allowed"):
        _compile(_network(), flash=100)
    needed = _compile(_network(), scratch_share=0.0).arena
    assert _compile(_network(), scratch_share=5.0, ram=needed + 512).arena <= needed + 512


def test_an_arena_that_is_too_small_or_crooked_is_refused_at_run_time(tmp_path: Path) -> None:
    program = _compile(_network())
    main = """
#include "model.h"
int main(void)
{
    static unsigned char memory[MODEL_ARENA_BYTES + 16];
    unsigned char *const arena = memory + (16 - (uintptr_t)memory % 16) % 16;
    model_t model;
    if (model_init(&model, arena, MODEL_ARENA_BYTES - 1) != MODEL_ERROR_ARENA) return 1;
    if (model_run(&model) != MODEL_ERROR_ARENA) return 2;
    if (model_init(&model, arena + 1, MODEL_ARENA_BYTES) != MODEL_ERROR_ALIGNMENT) return 3;
    if (model_init(&model, NULL, MODEL_ARENA_BYTES) != MODEL_ERROR_NULL) return 4;
    if (model_init(NULL, arena, MODEL_ARENA_BYTES) != MODEL_ERROR_NULL) return 5;
    if (model_run(NULL) != MODEL_ERROR_NULL) return 7;
    for (size_t i = 0; i < sizeof memory; i++) if (memory[i]) return 6;
    return model_init(&model, arena, MODEL_ARENA_BYTES) || model_run(&model);
}
"""
    (tmp_path / "main.c").write_text(main)
    (tmp_path / "model.c").write_text(model_source(program, "model"))
    (tmp_path / "model.h").write_text(model_header(program, "model", "test", ()))
    sources = [str(tmp_path / "main.c"), str(tmp_path / "model.c"), *map(str, sorted(KERNELS.glob("*.c")))]
    binary = str(tmp_path / "main")
    subprocess.run(["gcc", f"-I{KERNELS}", f"-I{tmp_path}", *sources, "-o", binary], check=True)
    assert subprocess.run([binary], check=False).returncode == 0


@pytest.mark.parametrize("bias", [-(1 << 31) + 4000, -(1 << 30) - 7, 1 << 30, (1 << 31) - 5000])
@pytest.mark.parametrize("scale", [1e-9, 3e-10, 1e-11])
def test_a_bias_of_a_channel_without_weights_may_be_huge(host: HostCompiler, bias: int, scale: float) -> None:
    graph = GraphBuilder()
    x = graph.input((1, 8), (0.1, -3))
    weights = np.zeros((3, 8), np.int8)
    weights[0], weights[1, 2] = np.arange(8) - 4, 5
    biases = np.array([17, bias, bias], np.int32)
    out = graph.fully_connected(x, weights, [0.01, scale, scale], biases, (0.05, 9), activation="RELU")
    content = graph.build(out)
    inputs = np.random.default_rng(0).integers(-128, 128, (6, 1, 8)).astype(np.int8)
    expected = [out.reshape(-1) for out in run_tflm(content, *inputs)]
    assert np.array_equal(host.run(_compile(content), inputs), expected)


def test_an_accumulator_that_may_overflow_is_refused() -> None:
    features = 40_000
    graph = GraphBuilder()
    x = graph.input((1, features), (0.1, 0))
    weights = np.full((1, features), 127, np.int8)
    out = graph.fully_connected(x, weights, [0.01], None, (0.1, 0))
    with pytest.raises(ExportError, match="beyond 30 bits"):
        _compile(graph.build(out))


def test_options_that_make_no_sense() -> None:
    for options in ({"prefix": "9a"}, {"prefix": "a-b"}, {"scratch_share": -1.0}, {"ram": 0}):
        with pytest.raises(OptionError):
            McuOptions(**options)  # type: ignore[arg-type]


def test_passes_keep_what_they_cannot_fold() -> None:
    """A PAD with another value than the zero point stays a PAD."""
    graph = GraphBuilder()
    x = graph.input((1, 4, 4, 2), (0.1, 5))
    padded = graph.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], value=-7)
    weights = np.ones((2, 3, 3, 2), np.int8)
    out = graph.conv2d(padded, weights, [0.01, 0.01], None, (0.1, 0), padding="VALID")
    model = optimise(read_tflite(graph.build(out), "test"))
    assert [op.kind for op in model.ops] == ["PAD", "CONV_2D"]


@pytest.mark.parametrize("depthwise", [False, True])
def test_padding_before_a_gain_per_channel(host: HostCompiler, depthwise: bool) -> None:
    """What pads cannot be computed in place, whether it comes as a depth-wise convolution or as groups."""
    random = np.random.default_rng(0)
    graph = GraphBuilder()
    x = graph.input((1, 4, 5, 3), (0.1, 5))
    padded = graph.pad(x, [(0, 0), (1, 0), (0, 2), (0, 0)])
    gains, bias = random.integers(-127, 128, (1, 1, 1, 3)).astype(np.int8), np.array([900, -700, 5], np.int32)
    if depthwise:
        out = graph.depthwise_conv2d(padded, gains, [0.01] * 3, bias, (0.1, 0), padding="VALID")
    else:
        out = graph.conv2d(padded, gains.reshape(3, 1, 1, 1), [0.01] * 3, bias, (0.1, 0), padding="VALID")
    content = graph.build(out)
    program = _compile(content)
    assert [c.kernel for c in program.calls] == ["csr_depthwise_s8"]
    inputs = random.integers(-128, 128, (4, 1, 4, 5, 3)).astype(np.int8)
    expected = [out.reshape(-1) for out in run_tflm(content, *inputs)]
    assert np.array_equal(host.run(program, inputs), expected)


def test_an_operand_that_is_part_of_the_other_is_not_written_over(host: HostCompiler) -> None:
    random = np.random.default_rng(0)
    inputs = random.integers(-128, 128, (4, 1, 4, 4, 3)).astype(np.int8)
    for turned in (False, True):
        graph = GraphBuilder()
        x = graph.input((1, 4, 4, 3), (0.05, 3))
        size = graph.unary("ABS", x, (0.05, -3))
        part = (
            graph.transpose(size, (0, 2, 1, 3)) if turned else graph.slice(size, (0, 0, 0, 0), (1, 1, 1, 3))
        )
        content = graph.build(graph.sub(size, part, (0.1, 0)))
        expected = [out.reshape(-1) for out in run_tflm(content, *inputs)]
        assert np.array_equal(host.run(_compile(content), inputs), expected)


def test_groups_of_one_channel_share_weights_and_one_kernel() -> None:
    """The steps of a depth-wise recurrence have one filter bank."""
    graph = GraphBuilder()
    x = graph.input((1, 6, 6, 4), (0.05, 3))
    weights = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 1)).astype(np.int8)
    state = x
    for zero in (1, 2, 3):
        state = graph.conv2d(state, weights, [0.01] * 4, None, (0.05, zero))
    program = _compile(graph.build(state))
    assert [c.kernel for c in program.calls] == ["csr_depthwise_s8"] * 3
    assert [c.size for c in program.constants if c.kind == "weight"] == [36]


def _with_signature(signature: list[int]) -> bytes:
    graph = GraphBuilder()
    x = graph.input((1, 4), (0.1, 0))
    content = graph.build(graph.add(x, x, (0.1, 0)))
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    model.subgraphs[0].tensors[x.index].shapeSignature = signature
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_dynamic_shape_is_refused_and_an_open_batch_is_one() -> None:
    with pytest.raises(ExportError, match=r"dynamic shape \[1, -1\]"):
        _compile(_with_signature([1, -1]))
    assert _compile(_with_signature([-1, 4])).input.shape == (1, 4)


def test_a_malformed_file_is_refused() -> None:
    content = bytearray(_network())
    with pytest.raises(ExportError, match=r"test\.tflite"):
        _compile(bytes(content[: len(content) // 2]))
    content[0:4] = (len(content) + 64).to_bytes(4, "little")
    with pytest.raises(ExportError, match=r"test\.tflite"):
        _compile(bytes(content))


@pytest.mark.parametrize("name", ["resnet56-csr2", "fashion-resnet20-csr", "fashion-resnet20"])
def test_the_arena_is_within_five_percent_of_what_is_live(name: str) -> None:
    network = Network.from_checkpoint(Path(__file__).parents[2] / "demos" / "models" / f"{name}.pt")
    graph = TFLITE.legalise(unroll(network.model, network.input_shape(1), "stepwise"))
    batches = [torch.randn(network.input_shape(4), generator=torch.Generator().manual_seed(0))]
    options = QuantizeOptions("min-max", False, 0)
    quantized = quantize(graph, batches, network.preprocessing, options, TFLITE.scheme)
    content, _ = TfliteWriter(WriteRequest(quantized.graph, quantized, 8, Path("x"), name)).write()
    plan = compile_tflite(content, name).plan
    assert plan.size <= 1.05 * plan.lower_bound
