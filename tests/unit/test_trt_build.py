"""Building engines with NVIDIA's own parser and builder: what comes out, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from csr_deploy.errors import (
    CsrError,
    ExportError,
    MissingDependencyError,
    OptionError,
    RuntimeUnavailableError,
)
from csr_deploy.runtimes.trt.build import (
    BuildOptions,
    build_plan,
    check_options,
    failure,
    resolve_capabilities,
)
from csr_deploy.runtimes.trt.device import DeviceInfo
from csr_deploy.runtimes.trt.library import RTX, TENSORRT, Message, TensorRT, load_tensorrt
from csr_deploy.runtimes.trt.program import Layer, read_program
from csr_deploy.runtimes.trt.report import BuildReport, inspected_layers, report_text
from csr_deploy.runtimes.trt.weights import count_copies, read_initializers
from tests.trt_models import SHAPE, model, recurrence, rtx

ORIN = DeviceInfo("Orin", "8.7", "R36.4.3", "6.2")
JETPACK_6 = TensorRT(ModuleType("tensorrt"), TENSORRT, "10.3.0")


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return rtx()


# What is built


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_builds_ahead_of_time(library: TensorRT, capability: str) -> None:
    built = build_plan(recurrence(1, shared=True), library, compute_capabilities=[capability])
    report = built.report
    assert f"sm{capability.replace('.', '')} ".encode() in built.plan
    assert report.compute_capabilities == (capability,)
    assert report.plan_bytes == len(built.plan)
    assert report.library == library.name
    assert report.device is None


def test_the_report_tells_layers_precision_and_sizes(library: TensorRT) -> None:
    report = build_plan(recurrence(3, shared=True), library, compute_capabilities=["8.6"]).report
    assert report.layers is not None
    convolutions = [layer for layer in report.layers if layer.kind == "convolution"]
    assert len(convolutions) == 4
    assert {layer.precision for layer in convolutions} == {"float32"}
    assert report.precisions == {"float32": len(report.layers)}
    assert report.layers_from == "program text in the plan"
    assert report.weight_bytes == 4 * (16 * 3 * 9 + 16 * 16 * 9)
    assert report.constant_bytes is not None
    assert report.weight_bytes <= report.constant_bytes < report.plan_bytes
    assert report.sources is not None
    assert report.source_bytes is not None
    assert 0 < report.source_bytes < report.bytes_beyond_weights
    assert report.device_memory_bytes is None
    assert any("GPU memory" in note for note in report.notes)


def test_shared_weights_are_in_the_plan_once(library: TensorRT) -> None:
    steps = 4
    shared, unshared = (
        build_plan(recurrence(steps, shared=s), library, compute_capabilities=["8.6"]).report
        for s in (True, False)
    )
    assert (shared.distinct_weights, shared.weighted_calls) == (2, steps + 1)
    assert (unshared.distinct_weights, unshared.weighted_calls) == (steps + 1, steps + 1)
    assert (shared.weights_once, shared.weights_several) == (2, 0)
    more = (steps - 1) * 4 * 16 * 16 * 9
    assert unshared.weight_bytes - shared.weight_bytes == more
    assert (unshared.constant_bytes or 0) - (shared.constant_bytes or 0) == more
    assert unshared.plan_bytes - shared.plan_bytes >= more


def test_one_plan_serves_several_capabilities(library: TensorRT) -> None:
    onnx_model = recurrence(1, shared=True)
    one = build_plan(onnx_model, library, compute_capabilities=["8.6"])
    several = build_plan(onnx_model, library, compute_capabilities=["12.0", "8.6", "8.6"])
    assert several.report.compute_capabilities == ("8.6", "12.0")
    assert len(several.plan) < 1.1 * len(one.plan)


def test_the_same_model_gives_the_same_plan(library: TensorRT) -> None:
    plans = {build_plan(recurrence(1, shared=True), library, None, ["8.6"]).plan for _ in range(2)}
    assert len(plans) == 1


def test_options_reach_the_builder(library: TensorRT) -> None:
    options = BuildOptions(optimization_level=1, workspace_mib=32)
    built = build_plan(recurrence(1, shared=True), library, options, ["8.6"])
    budget = next(line for line in built.plan.split(b"\n") if b"memory_budget" in line)
    assert int(budget.split()[-1]) < 64 << 20


def test_dynamic_batch(library: TensorRT) -> None:
    dynamic = model([helper.make_node("Relu", ["x"], ["y"])], shape=["N", *SHAPE[1:]])
    built = build_plan(dynamic, library, BuildOptions(batch_profile=(1, 4, 8)), ["8.6"])
    assert built.plan
    with pytest.raises(OptionError, match="no batch profile"):
        build_plan(dynamic, library, None, ["8.6"])
    with pytest.raises(OptionError, match="fixed at 1"):
        build_plan(recurrence(1, shared=True), library, BuildOptions(batch_profile=(1, 4, 8)), ["8.6"])
    rest = model([helper.make_node("Relu", ["x"], ["y"])], shape=["N", 3, "H", 8])
    with pytest.raises(ExportError, match=r"dynamic beyond its batch: \[-1, 3, -1, 8\]"):
        build_plan(rest, library, BuildOptions(batch_profile=(1, 4, 8)), ["8.6"])


def test_progress_is_told(library: TensorRT) -> None:
    heard: list[tuple[str, int, int]] = []
    build_plan(recurrence(1, shared=True), library, None, ["8.6"], lambda *step: heard.append(step))
    assert len({phase for phase, _, _ in heard}) > 2
    assert all(0 <= done <= total for _, done, total in heard)


def test_ctrl_c_ends_the_build(library: TensorRT) -> None:
    steps = 0

    def interrupt(phase: str, done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_plan(recurrence(8, shared=True), library, None, ["8.6"], interrupt)
    # The library is as good as before.
    assert build_plan(recurrence(1, shared=True), library, None, ["8.6"]).plan


# What is refused


def quantized(zero_point: np.generic) -> bytes:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize"),
    ]
    return model(nodes, {"scale": np.float32(0.1), "zero": np.asarray(zero_point)})


def int32_bias() -> bytes:
    nodes = [
        helper.make_node("DequantizeLinear", ["bias", "scale"], ["b"], name="the_bias"),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    return model(nodes, {"bias": np.zeros((3, 1, 1), np.int32), "scale": np.float32(0.1)})


def add(constant: np.ndarray) -> bytes:
    return model([helper.make_node("Add", ["x", "c"], ["y"], name="sum")], {"c": constant})


REFUSED = {
    "no such operation": (
        model([helper.make_node("Det", ["x"], ["y"], name="the_det")]),
        ["'the_det' (Det)", "unsupported node", "replace Det"],
    ),
    "a custom operation": (
        model([helper.make_node("Foo", ["x"], ["y"], name="mine", domain="my")], domain="my"),
        ["'mine' (Foo)", "replace Foo"],
    ),
    "a zero point": (
        quantized(np.int8(3)),
        ["'quantize' (QuantizeLinear)", "Non-zero zero point", "tensorrt-int8"],
    ),
    "unsigned": (quantized(np.uint8(3)), ["'quantize' (QuantizeLinear)", "tensorrt-int8"]),
    "a quantised bias": (
        int32_bias(),
        ["'the_bias' (DequantizeLinear)", "Int32", "biases in floating point"],
    ),
    "mixed types": (add(np.ones((3, 1, 1), np.float16)), ["'sum' (Add)", "Float and Half", "cast one"]),
    "shapes that do not fit": (add(np.ones((5, 1, 1), np.float32)), ["'sum' (Add)", "conformable"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_parser_says_which_node_why_and_what_to_do(library: TensorRT, what: str) -> None:
    content, words = REFUSED[what]
    with pytest.raises(ExportError) as caught:
        build_plan(content, library, None, ["8.6"])
    text = str(caught.value)
    for word in words:
        assert word in text
    # What a machine without a GPU lacks is not what is wrong with the model.
    assert "cudaError" not in text


@pytest.mark.parametrize("content", [b"", b"not a model", recurrence(1, shared=True)[:-100]])
def test_a_damaged_model_is_refused(library: TensorRT, content: bytes) -> None:
    with pytest.raises(ExportError):
        build_plan(content, library, None, ["8.6"])


@pytest.mark.parametrize("capability", ["8.7", "9.0", "86", "eight"])
def test_unknown_capabilities_are_refused_with_the_known_ones(library: TensorRT, capability: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_plan(b"", library, None, ["8.6", capability])
    assert f"'{capability}'" in caught.value.what
    assert "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in str(caught.value.fix)


def test_without_a_gpu_something_must_be_named(library: TensorRT) -> None:
    with pytest.raises(RuntimeUnavailableError, match="no GPU here") as caught:
        resolve_capabilities(library, [], None)
    assert "--compute-capability" in str(caught.value.fix)
    assert resolve_capabilities(library, [], DeviceInfo("RTX 4090", "8.9")) == ("8.9",)


def test_tensorrt_builds_for_its_own_gpu_alone() -> None:
    with pytest.raises(RuntimeUnavailableError, match="GPU of this machine, and there is none"):
        resolve_capabilities(JETPACK_6, ["8.7"], None)
    assert resolve_capabilities(JETPACK_6, [], ORIN) == ("8.7",)
    assert resolve_capabilities(JETPACK_6, ["8.7"], ORIN) == ("8.7",)
    with pytest.raises(OptionError, match=r"only \(Orin, compute capability 8.7\), not for 8.6"):
        resolve_capabilities(JETPACK_6, ["8.6"], ORIN)


def test_rtx_has_no_timing_cache(library: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no timing cache"):
        check_options(library, BuildOptions(timing_cache=tmp_path / "cache"))


@pytest.mark.parametrize(
    "options",
    [
        {"optimization_level": 6},
        {"optimization_level": -1},
        {"workspace_mib": 0},
        {"batch_profile": (2, 1, 4)},
        {"batch_profile": (0, 1, 4)},
    ],
)
def test_options_without_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        BuildOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("Cuda Runtime (out of memory)", RuntimeUnavailableError, ["not enough memory", "--workspace"]),
        ("[virtualMemoryBuffer.cpp] OutOfMemory (Requested size was 8589934592 bytes.)",
         RuntimeUnavailableError, ["not enough memory", "Jetson"]),
        ("Cuda Runtime (cudaError 35: CUDA driver version is insufficient)",
         RuntimeUnavailableError, ["cannot use the GPU", "driver"]),
        ("Could not find any implementation for node conv_1", ExportError, ["conv_1", "--workspace"]),
        (None, ExportError, ["gives no reason"]),
    ],
)  # fmt: skip
def test_failures_of_the_builder(said: str | None, kind: type[CsrError], words: list[str]) -> None:
    messages = [Message("WARNING", "unrelated")]
    if said:
        messages += [Message("ERROR", said)] * 2
    error = failure(JETPACK_6, "no engine", messages)
    assert type(error) is kind
    assert "unrelated" not in str(error)
    for word in words:
        assert word in str(error)
    if said:
        assert str(error).count(said) == 1


# Finding the library


def module(name: str, **values: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(values)
    return made


def test_prefers_tensorrt(monkeypatch: pytest.MonkeyPatch, library: TensorRT) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", module("tensorrt", Builder=object, __version__="10.3.0"))
    found = load_tensorrt()
    assert (found.flavour, found.version, found.name) == (TENSORRT, "10.3.0", "tensorrt 10.3.0")
    assert load_tensorrt(RTX).name == library.name


def test_type_stubs_are_no_library(monkeypatch: pytest.MonkeyPatch, library: TensorRT) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", module("tensorrt"))
    assert load_tensorrt().name == library.name
    with pytest.raises(MissingDependencyError, match="--system-site-packages"):
        load_tensorrt(TENSORRT)


def test_says_what_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="JetPack brings it"):
        load_tensorrt()
    with pytest.raises(MissingDependencyError, match="tensorrt_rtx_cu13"):
        load_tensorrt(RTX)
    with pytest.raises(OptionError, match="unknown library"):
        load_tensorrt("tensorrt-rt")
    monkeypatch.setitem(sys.modules, "tensorrt", module("tensorrt", Builder=object, __version__="8.6.1"))
    with pytest.raises(RuntimeUnavailableError, match="too old"):
        load_tensorrt()


def test_a_library_that_does_not_load_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(RuntimeUnavailableError, match="libnvinfer.so.10"):
        load_tensorrt(TENSORRT)


# Reading plans, weights and what the inspector says


def test_reads_initializers_as_onnx_does() -> None:
    content = recurrence(2, shared=False)
    wanted = onnx.load_from_string(content).graph.initializer
    found = read_initializers(content)
    assert [i.shape for i in found] == [tuple(t.dims) for t in wanted]
    assert [i.content for i in found] == [numpy_helper.to_array(t).tobytes() for t in wanted]


def test_counts_copies_in_either_order() -> None:
    content = recurrence(2, shared=False)
    first, second, third = (i.content for i in read_initializers(content))
    last = np.frombuffer(second, np.float32).reshape(16, 16, 3, 3).transpose(0, 2, 3, 1).tobytes()
    copies = count_copies(content, b"..".join([first, last, b"-", last]))
    assert (copies.searched, copies.once, copies.several, copies.absent) == (3, 1, 1, 1)
    assert third not in (first, second)


@pytest.mark.parametrize("plan", [b"", b"ftrt\x00\x01", b"header {\n  version = 5\n}\0", b"header {\n"])
def test_a_plan_without_a_program_tells_nothing(plan: bytes) -> None:
    assert read_program(plan) is None


def test_layers_of_the_engine_inspector() -> None:
    # As TensorRT 10 writes it with detailed verbosity.
    text = json.dumps(
        {
            "Layers": [
                {
                    "Name": "quantize",
                    "LayerType": "Reformat",
                    "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
                    "Outputs": [
                        {"Name": "q", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}
                    ],
                },
                {
                    "Name": "V + Conv_9 + Relu_10",
                    "LayerType": "CaskConvolution",
                    "Inputs": [{"Name": "q", "Format/Datatype": "Int8"}],
                    "Outputs": [{"Name": "h", "Format/Datatype": "Channel major FP16 format"}],
                    "Weights": {"Type": "Int8", "Count": 864},
                },
                {"Name": "sum", "LayerType": "kgen", "Inputs": [], "Outputs": [{"Format/Datatype": "Half"}]},
                {"Name": "signal", "LayerType": "signal", "Inputs": [], "Outputs": []},
            ],
            "Bindings": ["x", "y"],
        }
    )
    assert inspected_layers(text) == (
        Layer("quantize", "Reformat", "int8"),
        Layer("V + Conv_9 + Relu_10", "CaskConvolution", "int8"),
        Layer("sum", "kgen", "float16"),
        Layer("signal", "signal", None),
    )
    assert inspected_layers('{"Layers": ["Conv_9", "sum"]}') == (
        Layer("Conv_9", "unknown", None),
        Layer("sum", "unknown", None),
    )
    for nothing in ("", "null", "{}", '{"Layers": []}'):
        assert inspected_layers(nothing) is None


def test_a_report_survives_the_manifest(library: TensorRT) -> None:
    report = build_plan(recurrence(2, shared=True), library, None, ["8.6"]).report
    assert BuildReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    text = report_text("net.engine", report)
    assert "2 weights serve 3 layers" in text
    assert "compute capability 8.6" in text
    packed = BuildReport("tensorrt 10.3.0", ("8.7",), "Orin", 1.0, 9000, 4000, 3, 0, 0)
    assert "cannot be seen" in report_text("net.engine", packed)
    with pytest.raises(CsrError, match="build report is damaged"):
        BuildReport.from_json({"library": "x"})
