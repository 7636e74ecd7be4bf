"""The TensorRT runtime: real errors here, order and release on a stand-in, results and leaks on a GPU."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.bench.measure import _start, run_plan
from csr_deploy.bench.plan import QUICK, BenchOptions, make_plan
from csr_deploy.bench.report import rows
from csr_deploy.bench.results import GpuTime
from csr_deploy.cli.bench import app as bench_app
from csr_deploy.errors import (
    ArtifactError,
    CsrError,
    MissingDependencyError,
    OptionError,
    RuntimeUnavailableError,
)
from csr_deploy.runtimes import RuntimeOptions, open_runtime
from csr_deploy.runtimes.golden import verify_golden
from csr_deploy.runtimes.trt import engines
from csr_deploy.runtimes.trt import runtime as module
from csr_deploy.runtimes.trt.build import BuildOptions, BuiltPlan, Progress
from csr_deploy.runtimes.trt.cuda import Device, open_device
from csr_deploy.runtimes.trt.device import DeviceInfo
from csr_deploy.runtimes.trt.library import TensorRT, load_tensorrt
from tests import onnx_artifact
from tests.fake_gpu import FakeDriver, FakeTensorRt, Status
from tests.unit.test_bench_report import RESULT

SETTINGS = [
    RuntimeOptions(cuda_graph=graph, copies=copies, wait=wait)
    for graph in (False, True)
    for copies in (False, True)
    for wait in ("spin", "block")
]


def make_artifact(path: Path, target: str = "tensorrt-fp32", batch: int = 1) -> Artifact:
    return onnx_artifact.rewrite(onnx_artifact.make_artifact(path, batch=batch), target=target)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "colours")


# Options


@pytest.mark.parametrize(
    ("options", "lack"),
    [
        (RuntimeOptions(cuda_graph=True), "no CUDA graphs"),
        (RuntimeOptions(cuda_graph=False), "no CUDA graphs"),
        (RuntimeOptions(copies=False), "no copies that could be left out"),
        (RuntimeOptions(wait="spin"), "no choice of how to wait"),
    ],
)
def test_other_runtimes_refuse_the_options_of_a_gpu(
    artifact: Artifact, options: RuntimeOptions, lack: str
) -> None:
    with pytest.raises(OptionError, match=f"the ort runtime has {lack}\n.*The trt runtime has it"):
        open_runtime("ort", artifact, options)
    tflite = replace(artifact, files=(replace(artifact.files[0], name="model.tflite"),))
    with pytest.raises(OptionError, match=f"the litert runtime has {lack}"):
        open_runtime("litert", tflite, options)


def test_options_that_make_no_sense_are_refused(artifact: Artifact) -> None:
    with pytest.raises(OptionError, match="unknown way to wait 'sleep'"):
        RuntimeOptions(wait="sleep")
    with pytest.raises(OptionError, match="unknown way to wait 'sleep'"):
        BenchOptions(wait="sleep")
    with pytest.raises(OptionError, match="the trt runtime has one thread, 2 were asked for"):
        open_runtime("trt", artifact, RuntimeOptions(threads=2))
    with pytest.raises(OptionError, match="the trt runtime has no reference kernels"):
        open_runtime("trt", artifact, RuntimeOptions(kernels="reference"))


def test_only_artifacts_of_its_targets_are_run(tmp_path: Path) -> None:
    plain = onnx_artifact.make_artifact(tmp_path / "plain")
    with pytest.raises(OptionError, match="runs artifacts of the tensorrt targets only"):
        open_runtime("trt", plain)


def test_it_is_the_runtime_of_the_tensorrt_targets(artifact: Artifact) -> None:
    assert open_runtime(None, artifact).name == "trt"


# What is missing here


def test_without_tensorrt_the_error_says_how_to_get_it(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Python itself does for a module that is known not to exist.
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="--system-site-packages"):
        open_runtime(None, artifact).prepare()


def test_without_cuda_bindings_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    open_device.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"needs the package 'cuda-bindings'") as caught:
        open_device()
    assert caught.value.extra == "jetson"


def has_gpu() -> bool:
    try:
        open_device()
    except CsrError:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here: CUDA's own refusal cannot be seen")
def test_without_a_gpu_cuda_s_own_refusal_is_passed_on(artifact: Artifact) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings")
    with pytest.raises(RuntimeUnavailableError) as caught:
        open_device()
    assert "there is no CUDA driver on this machine" in caught.value.what or "NO_DEVICE" in caught.value.what
    assert "GPU" in (caught.value.fix or "") or "--gpus all" in (caught.value.fix or "")
    # And no other way is tried: neither the CPU nor a runtime that has one.
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT for RTX")
    with pytest.raises(RuntimeUnavailableError), open_runtime(None, artifact):
        pass


# Order and release, on the stand-in for CUDA and TensorRT


class Fakes:
    """The stand-ins, and an artifact whose engine they load."""

    def __init__(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
        self.artifact = artifact
        self.driver = FakeDriver()
        self.device = Device(self.driver)
        self.module = FakeTensorRt(self.driver, artifact.input, artifact.output)
        self.built = 0
        library = TensorRT(self.module, "tensorrt", "10.3.0")  # type: ignore[arg-type]
        monkeypatch.setattr(module, "load_tensorrt", lambda: library)
        monkeypatch.setattr(module, "open_device", lambda: self.device)
        monkeypatch.setattr(engines, "local_device", lambda: DeviceInfo("Fake GPU", "8.7", "R36.4.3"))
        monkeypatch.setattr(engines, "build_plan", self.build)

    def build(
        self, onnx: bytes, library: TensorRT, options: object, capabilities: object, progress: Progress | None
    ) -> BuiltPlan:
        self.built += 1
        if progress is not None:
            progress("phase", 1, 2)
        return BuiltPlan(b"plan", SimpleNamespace(to_json=dict))  # type: ignore[arg-type]

    def open(self, options: RuntimeOptions | None = None) -> module.TrtRuntime:
        return module.TrtRuntime(self.artifact, options)

    @property
    def calls(self) -> list[str]:
        return self.driver.calls


@pytest.fixture
def fakes(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(artifact, monkeypatch)


def sums(images: NDArray[np.float32], outputs: int) -> NDArray[np.float32]:
    """What the stand-in's engine computes."""
    flat = images.ravel()
    return np.asarray([[flat[n::outputs].sum() for n in range(outputs)]], np.float32)


@pytest.mark.parametrize("options", SETTINGS)
def test_a_run_makes_the_same_calls_every_time(fakes: Fakes, options: RuntimeOptions) -> None:
    inputs = [fakes.artifact.encode(onnx_artifact.pictures(1, seed)[0]) for seed in (0, 1)]
    execution = "cuGraphLaunch" if options.cuda_graph else "execute"
    timed = ["cuEventRecord", execution, "cuEventRecord"]
    fetched = ["cuMemcpyDtoHAsync", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime"]
    expected = [
        "cuCtxSetCurrent",
        "cuMemcpyHtoDAsync",
        *(timed if options.copies else ["cuStreamSynchronize", *timed, "cuEventSynchronize"]),
        *fetched,
    ]
    with fakes.open(options) as runtime:
        for image in (*inputs, inputs[0]):
            fakes.calls.clear()
            run = runtime.run(image)
            assert fakes.calls == expected
            np.testing.assert_array_equal(run.output, sums(image, 3))
            assert run.gpu_nanoseconds == 250_000
            assert run.nanoseconds > 0
        assert runtime.settings == {
            "copies": options.copies,
            "cuda_graph": options.cuda_graph,
            "wait": options.wait,
            "gpu": "Fake GPU",
            "cuda_driver": "12.6",
            "engine": runtime.subject.engines[0].file.name,
            "engine_sha256": hashlib.sha256(b"plan").hexdigest(),
        }
        assert runtime.version == "tensorrt 10.3.0"
        sizes = [2 * 4 * int(np.prod(spec.shape)) for spec in (fakes.artifact.input, fakes.artifact.output)]
        assert runtime.device_bytes == sum(sizes)
    assert fakes.driver.event_flags == {1 if options.wait == "block" else 0}
    # The other flags of the context are left as they were.
    assert fakes.driver.context_flags == 0x10 | (4 if options.wait == "block" else 1)
    assert not fakes.driver.live and not fakes.module.contexts


def test_defaults_are_with_copies_without_a_graph_and_spinning(fakes: Fakes) -> None:
    with fakes.open() as runtime:
        settings = runtime.settings
    assert (settings["copies"], settings["cuda_graph"], settings["wait"]) == (True, False, "spin")


def test_outputs_are_not_overwritten_by_the_next_run(fakes: Fakes) -> None:
    images, _ = onnx_artifact.pictures(2)
    with fakes.open() as runtime:
        first = runtime.run(fakes.artifact.encode(images[:1])).output
        kept = first.copy()
        runtime.run(fakes.artifact.encode(images[1:]))
        np.testing.assert_array_equal(first, kept)


def test_the_engine_is_built_once_and_said_so(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with module.TrtRuntime(read_artifact(fakes.artifact.path)):
            pass
    assert fakes.built == 1
    said = capsys.readouterr().err
    assert "Building the engine of colours-tensorrt-fp32 for Fake GPU with tensorrt 10.3.0." in said
    assert said.count("\n") == 1


def test_a_caller_with_a_progress_bar_gets_no_message(
    fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []
    fakes.open().build(lambda done, total: told.append((done, total)))
    assert fakes.built == 1 and told == [(1, 2)] and not capsys.readouterr().err


def test_an_engine_is_taken_whatever_options_it_was_built_with(fakes: Fakes) -> None:
    runtime = fakes.open()
    runtime.prepare()
    library, options = runtime._library, BuildOptions(optimization_level=5)
    engines.build_engine_for(
        fakes.artifact, library, engines.identify(fakes.artifact, library, options), options
    )
    with module.TrtRuntime(read_artifact(fakes.artifact.path)):
        pass
    assert fakes.built == 1


def test_a_changed_engine_is_refused_not_rebuilt(fakes: Fakes) -> None:
    with fakes.open() as runtime:
        file = fakes.artifact.path / str(runtime.settings["engine"])
    file.write_bytes(b"evil")
    changed = module.TrtRuntime(read_artifact(fakes.artifact.path))
    with pytest.raises(ArtifactError, match="an engine is executable code"), changed:
        pass
    assert fakes.built == 1 and not fakes.driver.live


@pytest.mark.parametrize(
    "name",
    [
        "cuDevicePrimaryCtxSetFlags",
        "cuMemGetInfo",
        "cuStreamCreate",
        "cuEventCreate",
        "cuMemHostAlloc",
        "cuMemAlloc",
        "cuStreamSynchronize",
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
    ],
)
def test_what_was_taken_is_given_back_when_loading_fails(fakes: Fakes, name: str) -> None:
    fakes.driver.fail[name] = Status.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(RuntimeUnavailableError) as caught, fakes.open(RuntimeOptions(cuda_graph=True)):
        pass
    assert f"{name} failed with CUDA_ERROR_OUT_OF_MEMORY: cuda_error_out_of_memory" in caught.value.what
    assert "End other programs that use the GPU" in str(caught.value.fix)
    assert not fakes.driver.live
    # The error's frames hold the context, and nothing else does.
    del caught
    assert not fakes.module.contexts


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("deserialize", "cannot load the engine: deserialize: no memory left"),
        ("create", "cannot make room for its tensors: create: no memory left"),
        ("set_input_shape", "cannot take a batch of 1"),
        ("set_tensor_address", "cannot use the memory of 'input'"),
        ("execute", "cannot execute: execute: no memory left"),
    ],
)
def test_what_tensorrt_says_is_passed_on(fakes: Fakes, name: str, what: str) -> None:
    fakes.module.fail.add(name)
    with pytest.raises(RuntimeUnavailableError, match=f"tensorrt 10.3.0 {what}") as caught:  # noqa: SIM117
        with fakes.open(RuntimeOptions(cuda_graph=True)):
            pass
    assert "export with a smaller batch" in str(caught.value.fix)
    assert not fakes.driver.live and fakes.driver.captured is None


def test_a_capture_that_fails_is_ended(fakes: Fakes) -> None:
    runtime = fakes.open(RuntimeOptions(cuda_graph=True))
    runtime.prepare()
    failing = fakes.module.failing
    # Only the execution that is captured fails, not the one before it.
    fakes.module.failing = lambda name: (
        name == "execute" and fakes.driver.captured is not None or failing(name)
    )  # type: ignore[method-assign]
    with pytest.raises(RuntimeUnavailableError, match="cannot execute"), runtime:
        pass
    assert "cuStreamEndCapture" in fakes.calls and "cuGraphInstantiate" not in fakes.calls
    assert fakes.driver.captured is None


def test_an_engine_that_cannot_be_captured_is_refused(fakes: Fakes) -> None:
    fakes.driver.fail["cuStreamEndCapture"] = Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    with pytest.raises(RuntimeUnavailableError, match="leave --cuda-graph out"):  # noqa: SIM117
        with fakes.open(RuntimeOptions(cuda_graph=True)):
            pass


def test_an_error_while_running_gives_everything_back(fakes: Fakes) -> None:
    image = fakes.artifact.encode(onnx_artifact.pictures(1)[0])
    with pytest.raises(RuntimeUnavailableError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):  # noqa: SIM117
        with fakes.open(RuntimeOptions(cuda_graph=True)) as runtime:
            # After such an error CUDA answers every call with it.
            for name in ("cuEventSynchronize", "cuMemFree", "cuCtxSetCurrent", "cuStreamDestroy"):
                fakes.driver.fail[name] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
            runtime.run(image)
    for name in ("cuGraphExecDestroy", "cuMemFree", "cuMemFreeHost", "cuEventDestroy", "cuStreamDestroy"):
        assert name in fakes.calls


def test_the_engine_s_tensors_must_be_those_of_the_artifact(fakes: Fakes) -> None:
    for change, message in (
        ({"shapes": {"input": (1, 3, 8, 8), "logits": (1, 3)}}, r"'input' is float32\[1, 3, 8, 8\]"),
        ({"shapes": {"input": (1, 3, 16, 16), "logits": (1, 4)}}, r"'logits' is float32\[1, 4\]"),
        ({"shapes": {"x": (1, 3, 16, 16), "logits": (1, 3)}}, "its engine has the tensors logits, x"),
        ({"dtypes": {"input": "BF16", "logits": "FLOAT"}}, r"'input' is BF16\[1, 3, 16, 16\]"),
    ):
        before = dict(vars(fakes.module))
        vars(fakes.module).update(change)
        with pytest.raises(ArtifactError, match=message), fakes.open():
            pass
        vars(fakes.module).update(before)
    assert not fakes.driver.live


def test_a_dynamic_batch_becomes_the_artifact_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(make_artifact(tmp_path / "four", batch=4), monkeypatch)
    fakes.module.shapes = {"input": (-1, 3, 16, 16), "logits": (-1, 3)}
    with fakes.open() as runtime:
        assert runtime.run(np.ones((4, 3, 16, 16), np.float32)).output.shape == (4, 3)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here: TensorRT's own refusal cannot be seen")
def test_tensorrt_s_own_refusal_of_a_missing_driver_is_passed_on(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library and a real engine; only the GPU that it is loaded for is made up."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT for RTX")
    library = load_tensorrt("tensorrt-rtx")
    built = engines.build_engine_for(
        artifact, library, engines.identify(artifact, library, compute_capabilities=["8.6", "8.9"])
    )
    device = Device(FakeDriver())
    monkeypatch.setattr(module, "load_tensorrt", lambda: library)
    monkeypatch.setattr(module, "open_device", lambda: device)
    monkeypatch.setattr(engines, "local_device", lambda: DeviceInfo("Fake GPU", "8.9"))
    with pytest.raises(RuntimeUnavailableError, match="cannot load the engine: .*cudaError 35") as caught:  # noqa: SIM117
        with module.TrtRuntime(built):
            pass
    assert "The driver here is that of CUDA 12.6: update it" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"version": 11040}, "the CUDA driver is too old: it is that of CUDA 11.4", "JetPack 6"),
        ({"missing": {"cuInit"}}, "there is no CUDA driver on this machine", "JetPack"),
        ({"missing": {"cuDeviceGetName"}}, "the CUDA driver has no cuDeviceGetName", "cuda-bindings<13"),
        ({"fail": {"cuInit": Status.CUDA_ERROR_NO_DEVICE}}, "CUDA_ERROR_NO_DEVICE", "--gpus all"),
        (
            {"fail": {"cuDevicePrimaryCtxRetain": Status.CUDA_ERROR_OUT_OF_MEMORY}},
            "cuDevicePrimaryCtxRetain failed with CUDA_ERROR_OUT_OF_MEMORY",
            "shares the main memory",
        ),
    ],
)
def test_every_reason_that_a_gpu_cannot_be_used_has_its_remedy(
    change: dict[str, object], what: str, fix: str
) -> None:
    driver = FakeDriver()
    vars(driver).update(change)
    with pytest.raises(RuntimeUnavailableError) as caught:
        Device(driver)
    assert what in caught.value.what and fix in str(caught.value.fix)


def test_the_device_is_named() -> None:
    device = Device(FakeDriver())
    assert (device.name, device.driver_version) == ("Fake GPU", "12.6")


# In a benchmark


def test_a_benchmark_passes_the_options_on_and_the_runtime_refuses_them(tmp_path: Path) -> None:
    path = onnx_artifact.make_artifact(tmp_path / "a").path
    plan = make_plan([path], replace(QUICK, cuda_graph=False, copies=False, wait="block"))
    asked: dict[str, object] = {}
    _start(plan, plan.subjects[0], SimpleNamespace(ask=lambda *_, **given: asked.update(given)))  # type: ignore[arg-type]
    assert (asked["cuda_graph"], asked["copies"], asked["wait"]) == (False, False, "block")
    with pytest.raises(OptionError, match="the ort runtime has no CUDA graphs"):
        run_plan(plan, lambda *parts: None).demand_complete()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--cuda-graph", {"cuda_graph": True}),
        ("--no-cuda-graph", {"cuda_graph": False}),
        ("--no-copies", {"copies": False}),
        ("--wait=block", {"wait": "block"}),
    ],
)
def test_the_command_line_has_the_options(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, option: str, value: dict[str, object]
) -> None:
    asked: list[BenchOptions] = []

    def plan(subjects: object, options: BenchOptions, baseline: object, find: object) -> None:
        asked.append(options)
        raise OptionError("that was all")

    monkeypatch.setattr("csr_deploy.bench.expand.make_plan", plan)
    CliRunner().invoke(bench_app, [str(artifact.path), option])
    assert asked == [replace(BenchOptions(), **value)]  # type: ignore[arg-type]


def test_gpu_times_and_settings_are_in_the_report() -> None:
    first, second = RESULT.measurements
    assert first.latency is not None and first.memory is not None
    measured = replace(
        first,
        latency=replace(first.latency, gpu=GpuTime(*[500_000.0] * 5, 400_000, 900_000, ((500_000,),))),
        memory=replace(first.memory, device_bytes=3 * 2**20),
        settings={"copies": False, "cuda_graph": True, "wait": "block"},
    )
    shown = {row.name: row.cells for row in rows(replace(RESULT, measurements=(measured, second)))}
    assert shown["run and timed"] == ("without copies, CUDA graph, CPU blocks", "–")
    assert shown["GPU time, median of windows"] == ("0.500 ms", "–")
    assert shown["GPU time p99"] == ("0.500 ms", "–")
    assert shown["GPU memory"] == ("3.00 MiB", "–")
    assert not {"run and timed", "GPU memory", "GPU time p99"} & {row.name for row in rows(RESULT)}


# On a GPU


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """An artifact with the engine of this machine's GPU, built by the runtime itself."""
    open_device.cache_clear()
    try:
        load_tensorrt()
        open_device()
    except (MissingDependencyError, RuntimeUnavailableError) as error:
        pytest.skip(f"needs TensorRT and a CUDA GPU: {error.what}")
    with open_runtime(None, make_artifact(tmp_path_factory.mktemp("gpu") / "colours")) as runtime:
        assert isinstance(runtime, module.TrtRuntime)
        yield runtime._artifact


@pytest.mark.gpu
@pytest.mark.parametrize("options", SETTINGS)
def test_a_gpu_computes_what_onnx_runtime_computes(engine: Artifact, options: RuntimeOptions) -> None:
    images, labels = onnx_artifact.pictures(20, seed=1)
    with open_runtime("ort", engine) as reference:
        expected = reference.logits(images)
    with open_runtime("trt", engine, options) as runtime:
        outputs = runtime.logits(images)
        assert verify_golden(runtime).images == 6
        run = runtime.run(engine.encode(images[:1]))
    assert np.abs(outputs - expected).max() <= 5e-3 * np.ptp(expected)
    np.testing.assert_array_equal(outputs.argmax(1), labels)
    assert run.gpu_nanoseconds is not None and 0 < run.gpu_nanoseconds < run.nanoseconds


@pytest.mark.gpu
def test_a_cuda_graph_changes_no_bit(engine: Artifact) -> None:
    images, _ = onnx_artifact.pictures(20)
    outputs = []
    for graph in (False, True):
        with open_runtime("trt", engine, RuntimeOptions(cuda_graph=graph)) as runtime:
            outputs.append(runtime.logits(images))
    np.testing.assert_array_equal(*outputs)


@pytest.mark.gpu
def test_the_engine_is_kept_and_a_changed_one_refused(
    engine: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = make_artifact(tmp_path / "own")
    with open_runtime("trt", own):
        assert "Building the engine" in capsys.readouterr().err
    again = read_artifact(own.path)
    with open_runtime("trt", again):
        assert not capsys.readouterr().err
    file = again.path / again.engines[0].file.name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError), open_runtime("trt", again):
        pass


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_ten_thousand_runs_leak_nothing(engine: Artifact, graph: bool) -> None:
    image = engine.encode(onnx_artifact.pictures(1)[0])
    process = psutil.Process()
    with open_runtime("trt", engine, RuntimeOptions(cuda_graph=graph)) as runtime:
        for _ in range(1000):
            runtime.run(image)
        free, resident = open_device().free_bytes(), process.memory_info().rss
        for _ in range(10_000):
            runtime.run(image)
        assert free - open_device().free_bytes() < 2**20
        assert process.memory_info().rss - resident < 4 * 2**20


@pytest.mark.gpu
def test_opening_and_closing_leaks_nothing(engine: Artifact) -> None:
    image = engine.encode(onnx_artifact.pictures(1)[0])
    for turn in range(30):
        with open_runtime("trt", engine, RuntimeOptions(cuda_graph=True)) as runtime:
            runtime.run(image)
        if turn == 9:
            free = open_device().free_bytes()
    assert free - open_device().free_bytes() < 2**21


@pytest.mark.gpu
def test_any_thread_may_run_it(engine: Artifact) -> None:
    images, _ = onnx_artifact.pictures(2)
    found: list[NDArray[np.float32]] = []
    with open_runtime("trt", engine) as runtime:
        thread = threading.Thread(target=lambda: found.append(runtime.logits(images)))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(found[0], runtime.logits(images))


@pytest.mark.gpu
def test_a_benchmark_has_gpu_times_settings_and_gpu_memory(engine: Artifact) -> None:
    options = replace(QUICK, cuda_graph=True, wait="block")
    result = run_plan(make_plan([engine.path, engine.path], options), lambda *parts: None)
    for measured in result.measurements:
        assert measured.latency is not None and isinstance(measured.latency.gpu, GpuTime)
        assert [len(w) for w in measured.latency.gpu.windows_ns] == [
            len(w) for w in measured.latency.windows_ns
        ]
        assert measured.latency.gpu.median_ns < measured.latency.median_ns
        assert measured.settings["cuda_graph"] is True and measured.settings["wait"] == "block"
        assert measured.memory is not None and measured.memory.device_bytes is not None
    assert {"GPU time, median of windows", "run and timed", "GPU memory"} <= {
        row.name for row in rows(result)
    }
