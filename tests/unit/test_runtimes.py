"""Runtimes: the real packages on small real models."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csr_deploy.artifact import GOLDEN, Artifact, write_golden
from csr_deploy.errors import (
    ArtifactError,
    MissingDependencyError,
    OptionError,
    ParityError,
    RuntimeUnavailableError,
)
from csr_deploy.runtimes import RUNTIMES, Runtime, RuntimeOptions, find_runtime, open_runtime
from csr_deploy.runtimes.golden import verify_golden
from csr_deploy.types import TensorSpec
from tests import onnx_artifact
from tests.tflite_artifact import make_int8

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sine:
    """The float model that TFLite Micro's wheel brings: sin(x) for one x."""

    model_file: Path
    name: str = "sine"
    input: TensorSpec = TensorSpec("dense_input", (1, 1), "float32", "NC")
    output: TensorSpec = TensorSpec("dense_2", (1, 1), "float32", "NC")

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        return images.reshape(-1, 1).astype(np.float32) / 100


@pytest.fixture(scope="module")
def sine() -> Sine:
    package = pytest.importorskip("tflite_micro", reason="needs tflite-micro, whose sample model it runs")
    return Sine(Path(package.runtime.__file__).parent / "sine_float.tflite")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return onnx_artifact.make_artifact(tmp_path_factory.mktemp("runtimes") / "colours")


def test_every_runtime_of_the_table_exists() -> None:
    for name in RUNTIMES:
        found = find_runtime(name)
        assert issubclass(found, Runtime) and found.name == name


def test_a_mistyped_runtime_gets_a_suggestion(colours: Artifact) -> None:
    with pytest.raises(OptionError, match="unknown runtime 'litrt'\nDid you mean litert"):
        open_runtime("litrt", colours)
    with pytest.raises(OptionError, match="Runtimes: litert, mcu, native, ort"):
        open_runtime("zzz", colours)


def test_importing_the_table_imports_no_runtime() -> None:
    code = (
        "import sys, csr_deploy.runtimes, csr_deploy.runtimes.golden, csr_deploy.bench.worker\n"
        "for name in csr_deploy.runtimes.RUNTIMES: csr_deploy.runtimes.find_runtime(name)\n"
        "print({'torch', 'onnxruntime', 'ai_edge_litert', 'tflite_micro'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("runtime", "extra", "blocked"),
    [
        ("ort", "pi", ["onnxruntime"]),
        ("litert", "pi", ["ai_edge_litert", "tflite_runtime"]),
        ("tflm", "mcu", ["tflite_micro"]),
    ],
)
def test_a_missing_package_names_its_extra(
    colours: Artifact,
    sine: Sine,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    extra: str,
    blocked: list[str],
) -> None:
    # What Python itself does for a module that is known not to exist.
    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)
    subject = colours if runtime == "ort" else sine
    with pytest.raises(MissingDependencyError) as caught:
        open_runtime(runtime, subject).prepare()
    assert caught.value.extra == extra
    assert f"pip install 'csr-deploy[{extra}]'" in str(caught.value)


def test_ort_computes_the_network(colours: Artifact) -> None:
    images, labels = onnx_artifact.pictures(9, seed=1)
    with open_runtime(None, colours) as runtime:
        assert runtime.name == "ort"
        assert runtime.version.startswith("onnxruntime ")
        assert runtime.load_nanoseconds > 0
        assert runtime.arena is None
        outputs = runtime.logits(images)
    np.testing.assert_allclose(outputs, onnx_artifact.reference(images), rtol=1e-5)
    np.testing.assert_array_equal(outputs.argmax(1), labels)


def test_a_last_batch_that_is_short_is_filled_and_cut(tmp_path: Path) -> None:
    artifact = onnx_artifact.make_artifact(tmp_path / "four", batch=4)
    images, _ = onnx_artifact.pictures(6)
    with open_runtime(None, artifact) as runtime:
        np.testing.assert_allclose(runtime.logits(images), onnx_artifact.reference(images), rtol=1e-5)
        assert runtime.logits(images[:0]).shape == (0, 3)


def test_outputs_are_not_overwritten_by_the_next_run(colours: Artifact, sine: Sine) -> None:
    images, _ = onnx_artifact.pictures(2)
    for name, subject, inputs in (
        ("ort", colours, [colours.encode(images[i : i + 1]) for i in (0, 1)]),
        ("litert", sine, [np.full((1, 1), v, np.float32) for v in (0.5, 1.5)]),
        ("tflm", sine, [np.full((1, 1), v, np.float32) for v in (0.5, 1.5)]),
    ):
        with open_runtime(name, subject) as runtime:
            first = runtime.run(inputs[0]).output
            kept = first.copy()
            second = runtime.run(inputs[1]).output
            np.testing.assert_array_equal(first, kept)
            assert not np.array_equal(first, second)


@pytest.mark.parametrize("runtime", ["litert", "tflm"])
def test_tflite_runtimes_compute_the_network(sine: Sine, runtime: str) -> None:
    with open_runtime(runtime, sine) as opened:
        for value in (0.0, 0.7, 1.5, 3.0):
            run = opened.run(np.full((1, 1), value, np.float32))
            assert abs(float(run.output[0, 0]) - np.sin(value)) < 0.15
            assert run.nanoseconds > 0


def test_litert_has_both_kinds_of_kernels(sine: Sine) -> None:
    x = np.full((1, 1), 0.7, np.float32)
    outputs = []
    for kernels in ("optimized", "reference"):
        with open_runtime("litert", sine, RuntimeOptions(2, kernels)) as runtime:
            assert runtime.kernels == kernels
            outputs.append(runtime.run(x).output)
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5)


def test_tflm_tells_its_arena(sine: Sine) -> None:
    with open_runtime("tflm", sine) as runtime:
        assert runtime.kernels == "reference"
        arena = runtime.arena
        assert arena is not None and 1000 < arena < 3000
        assert runtime.arena == arena


@pytest.mark.parametrize(
    ("runtime", "options", "message"),
    [
        ("ort", RuntimeOptions(kernels="reference"), "has no reference kernels, only optimized"),
        ("tflm", RuntimeOptions(kernels="optimized"), "has no optimized kernels, only reference"),
        ("tflm", RuntimeOptions(threads=2), "has one thread, 2 were asked for"),
    ],
)
def test_options_that_a_runtime_does_not_have_are_refused(
    colours: Artifact, sine: Sine, runtime: str, options: RuntimeOptions, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        open_runtime(runtime, colours if runtime == "ort" else sine, options)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(OptionError, match="threads is 0"):
        RuntimeOptions(threads=0)
    with pytest.raises(OptionError, match="unknown kernels 'fast'"):
        RuntimeOptions(kernels="fast")


@pytest.mark.parametrize("runtime", ["litert", "tflm", "torch"])
def test_a_file_of_another_kind_is_refused(colours: Artifact, runtime: str) -> None:
    with pytest.raises(OptionError, match=r"this is model\.onnx"):
        open_runtime(runtime, colours)


def test_an_input_of_another_shape_or_type_is_refused(colours: Artifact) -> None:
    with open_runtime(None, colours) as runtime:
        with pytest.raises(OptionError, match=r"float32\[1, 3, 8, 8\]"):
            runtime.run(np.zeros((1, 3, 8, 8), np.float32))
        with pytest.raises(OptionError, match="float64"):
            runtime.run(np.zeros((1, 3, 16, 16)))


def test_a_closed_runtime_says_so(colours: Artifact) -> None:
    runtime = open_runtime(None, colours)
    with pytest.raises(RuntimeUnavailableError, match="not open"):
        runtime.logits(onnx_artifact.pictures(1)[0])
    with runtime:
        pass
    with pytest.raises(RuntimeUnavailableError, match="not open"):
        runtime.logits(onnx_artifact.pictures(1)[0])


@pytest.mark.parametrize("runtime", ["litert", "tflm", "ort"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no model", bytes(2000), b"....TFL3...."],
    ids=["empty", "text", "zeros", "head"],
)
def test_a_damaged_model_file_is_an_error(
    tmp_path: Path, colours: Artifact, sine: Sine, runtime: str, content: bytes
) -> None:
    subject: Any = colours if runtime == "ort" else sine
    file = tmp_path / f"model{subject.model_file.suffix}"
    file.write_bytes(content)
    broken = Sine(file, input=subject.input, output=subject.output)
    with pytest.raises(RuntimeUnavailableError, match="cannot load it"), open_runtime(runtime, broken):
        pass


@pytest.mark.parametrize("runtime", ["litert", "tflm"])
def test_a_record_that_is_not_the_model_s_is_refused(sine: Sine, runtime: str) -> None:
    wrong = replace(sine, input=replace(sine.input, shape=(1, 2)))
    with (
        pytest.raises(ArtifactError, match=r"float32\[1, 1\] in the model file"),
        open_runtime(runtime, wrong),
    ):
        pass


def test_ort_checks_the_record_too(colours: Artifact) -> None:
    wrong = replace(colours, output=replace(colours.output, shape=(1, 4)))
    with pytest.raises(ArtifactError, match=r"'logits' is float32\[1, 3\]"), open_runtime(None, wrong):
        pass


def test_torch_runs_a_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from csr_deploy.checkpoint import Checkpoint, save_checkpoint
    from csr_deploy.models import architecture
    from csr_deploy.runtimes.torch import read_checkpoint_subject

    torch.manual_seed(0)
    plan = architecture("resnet20-csr", num_classes=3)
    model = plan.build().eval()
    preprocessing = onnx_artifact.PREPROCESSING
    save_checkpoint(
        tmp_path / "net.pt", Checkpoint(plan, model.state_dict(), onnx_artifact.CLASSES, preprocessing)
    )
    images, _ = onnx_artifact.pictures(3)
    with torch.inference_mode():
        expected = model(torch.from_numpy(preprocessing.normalize(images))).numpy()
    threads = torch.get_num_threads()
    for batch in (1, 2):
        subject = read_checkpoint_subject(tmp_path / "net.pt", batch)
        assert subject.name == "resnet20-csr"
        with open_runtime(None, subject) as runtime:
            assert runtime.name == "torch"
            np.testing.assert_allclose(runtime.logits(images), expected, atol=1e-5)
            with pytest.raises(OptionError, match="only an artifact has golden vectors"):
                verify_golden(runtime)
        assert torch.get_num_threads() == threads
    with pytest.raises(OptionError, match="reference kernels"):
        open_runtime("torch", subject, RuntimeOptions(kernels="reference"))
    with pytest.raises(OptionError, match=r"runs \.onnx files, this is net\.pt"):
        open_runtime("ort", subject)


def test_golden_outputs_are_verified(colours: Artifact) -> None:
    with open_runtime(None, colours) as runtime:
        report = verify_golden(runtime)
    assert report.images == 6
    assert report.max_difference <= report.tolerance == 1e-4
    assert report.float_agreement == 1.0


def test_floats_out_of_int8_arithmetic_may_differ_by_counts(colours: Artifact) -> None:
    # ONNX Runtime rounds differently on every processor, and the network's last layer gives floats.
    with open_runtime(None, replace(colours, target="onnx-int8")) as runtime:
        assert verify_golden(runtime).tolerance == pytest.approx(8 / 255)


def changed_golden(tmp_path: Path, change: Any) -> Artifact:
    """An artifact whose golden outputs went through `change`."""
    artifact = onnx_artifact.make_artifact(tmp_path / "changed")
    golden = artifact.golden()
    write_golden(artifact.path / GOLDEN, replace(golden, outputs=change(golden.outputs)))
    return onnx_artifact.rewrite(artifact)


def test_equal_outputs_are_called_exact(tmp_path: Path, colours: Artifact) -> None:
    with open_runtime(None, colours) as runtime:
        own = runtime.logits(colours.golden().images)
    with open_runtime(None, changed_golden(tmp_path, lambda _: own)) as runtime:
        report = verify_golden(runtime)
    assert report.exact and report.max_difference == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o + np.float32(0.01), "differs by"),
        (lambda o: -o, "differs by"),
        (lambda o: np.where(np.arange(6)[:, None] == 4, np.float32(np.nan), o), "differs by"),
        (lambda o: o[:, :2], "gives outputs of shape"),
    ],
)
def test_other_golden_outputs_are_a_parity_error(tmp_path: Path, change: Any, message: str) -> None:
    artifact = changed_golden(tmp_path, change)
    with open_runtime(None, artifact) as runtime, pytest.raises(ParityError, match=message) as caught:
        verify_golden(runtime)
    assert str(artifact.path) in str(caught.value) and "onnxruntime" in str(caught.value)


@pytest.mark.parametrize("change", [lambda o: o[:3], lambda o: o.astype(np.int8), lambda o: o[:0]])
def test_golden_vectors_that_do_not_fit_are_refused(tmp_path: Path, change: Any) -> None:
    artifact = changed_golden(tmp_path, change)
    with (
        open_runtime(None, artifact) as runtime,
        pytest.raises(ArtifactError, match="its golden vectors hold"),
    ):
        verify_golden(runtime)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Artifact:
    return make_int8(tmp_path_factory.mktemp("int8") / "random", image_folder)


def outputs_of(artifact: Artifact, runtime: str, kernels: str | None = None) -> NDArray[Any]:
    images, _ = onnx_artifact.pictures(24, seed=3)
    with open_runtime(runtime, artifact, RuntimeOptions(1, kernels)) as opened:
        return opened.logits(images)


def test_tflm_gives_the_bytes_of_the_reference_kernels(int8: Artifact) -> None:
    pytest.importorskip("tflite_micro", reason="needs tflite-micro")
    reference = outputs_of(int8, "litert", "reference")
    assert reference.dtype == np.int8 and len(np.unique(reference)) > 20
    np.testing.assert_array_equal(outputs_of(int8, "tflm"), reference)


@pytest.mark.parametrize(("runtime", "kernels"), [("litert", None), ("litert", "reference"), ("tflm", None)])
def test_every_tflite_runtime_gives_the_golden_outputs(
    int8: Artifact, runtime: str, kernels: str | None
) -> None:
    if runtime == "tflm":
        pytest.importorskip("tflite_micro", reason="needs tflite-micro")
    with open_runtime(runtime, int8, RuntimeOptions(1, kernels)) as opened:
        report = verify_golden(opened)
        if runtime == "tflm":
            assert opened.arena is not None and opened.arena > 10_000
    own = runtime == "litert" and kernels is None
    assert report.tolerance == (2 if own else 8)
    assert report.exact or not own


def test_integers_may_differ_by_counts_only(tmp_path: Path, int8: Artifact) -> None:
    golden = int8.golden()
    for change, accepted in ((2, True), (3, False), (20, False)):
        copy = shutil.copytree(int8.path, tmp_path / str(change))
        moved = np.clip(golden.outputs.astype(int) - change, -128, 127).astype(np.int8)
        write_golden(copy / GOLDEN, replace(golden, outputs=moved))
        artifact = onnx_artifact.rewrite(replace(int8, path=copy))
        with open_runtime(None, artifact) as runtime:
            if accepted:
                assert verify_golden(runtime).max_difference == change
            else:
                with pytest.raises(ParityError, match=f"differs by {change} counts"):
                    verify_golden(runtime)


@pytest.mark.parametrize(("share", "accepted"), [(0.4e-4, True), (0.9e-4, False)])
def test_another_top_1_class_is_a_tie_or_an_error(
    tmp_path: Path, colours: Artifact, share: float, accepted: bool
) -> None:
    artifact = onnx_artifact.make_artifact(tmp_path / "tie")
    golden = artifact.golden()
    images = golden.images.copy()
    images[0] = 100  # Gray: all three classes have the same logit, and the first is the top-1.
    with open_runtime(None, colours) as runtime:
        outputs = runtime.logits(images)
    assert len(set(outputs[0])) == 1
    step = np.float32(share * np.ptp(outputs))
    outputs[0] += np.array([-step, step, 0], np.float32)
    write_golden(artifact.path / GOLDEN, replace(golden, images=images, outputs=outputs))
    with open_runtime(None, onnx_artifact.rewrite(artifact)) as runtime:
        if accepted:
            assert not verify_golden(runtime).exact
        else:
            with pytest.raises(ParityError, match="another top-1 class on image 0"):
                verify_golden(runtime)
