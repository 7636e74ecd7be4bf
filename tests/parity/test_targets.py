"""One body for every network × target: parity with float, tied weights, same bytes, no private text."""

from __future__ import annotations

import getpass
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.export import ExportData, ExportOptions, Network, export, load_export_data
from csr_deploy.exporters.native.exporter import OPTIONS as NATIVE_OPTIONS
from csr_deploy.runtimes import RuntimeOptions, open_runtime
from csr_deploy.runtimes.golden import verify_golden
from csr_deploy.targets import TARGETS, Target
from csr_deploy.unroll.lowering import WEIGHT_BUDGET
from tests.networks import NETWORKS

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted((REPOSITORY / "demos" / "models").glob("fashion-*.pt"))


def shipped(path: Path) -> tuple[Network, ExportData, ExportOptions]:
    network = Network.from_checkpoint(path)
    options = ExportOptions(parity_images=200)
    return network, load_export_data(network, "fashion-mnist", options, quantized=True), options


def untrained(name: str) -> tuple[Network, ExportData, ExportOptions]:
    """A network of tests/networks.py on real pictures of its size; its classes mean nothing."""
    build, (channels, height, width) = NETWORKS[name]
    preprocessing = Preprocessing(height, width, (0.3,) * channels, (0.35,) * channels)
    model = build()
    classes = {"odd": 5, "curved": 5}.get(name, 10)
    network = Network(name, model, tuple(str(i) for i in range(classes)), preprocessing)
    pictures = open_dataset("fashion-mnist", "test")
    data = ExportData(
        sample(open_dataset("fashion-mnist", "train"), preprocessing, 64, 0),
        sample(pictures, preprocessing, 40, 0),
        labels=None,
    )
    # Untrained logits lie close together: what int8 must keep here is the figures below, not the ranking.
    return network, data, ExportOptions(agreement=0.0)


SUBJECTS = {**{p.stem: (shipped, p) for p in SHIPPED}, **{n: (untrained, n) for n in NETWORKS}}
SLOW = {"vgg16-csr4"}


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[pytest.mark.full] * (n in SLOW)) for n in SUBJECTS]
)
def subject(request: pytest.FixtureRequest) -> tuple[Network, ExportData, ExportOptions]:
    make, argument = SUBJECTS[request.param]
    return make(argument)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


@pytest.fixture(scope="module")
def artifact(
    subject: tuple[Network, ExportData, ExportOptions],
    target: Target,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    network, data, options = subject
    out = tmp_path_factory.mktemp("artifact") / f"{network.name}-{target.name}"
    return export(network, target, data, out, options)


def test_parity(artifact: Artifact, target: Target) -> None:
    report = artifact.parity
    assert report["passed"]
    if target.tolerance.relative_error is not None:
        assert report["relative_error"] <= target.tolerance.relative_error
    assert report["relative_error"] < 0.25
    if artifact.path.name.startswith("fashion"):
        assert report["images"] >= 200
        assert report["top1_agreement"] >= target.tolerance.top1_agreement
        assert report["exported_top1"] >= report["float_top1"] - 0.01


def test_weights_are_stored_once(
    subject: tuple[Network, ExportData, ExportOptions], target: Target, tmp_path: Path
) -> None:
    network, data, options = subject
    plain = replace(options, lowering="stepwise")
    ledger = export(network, target, data, tmp_path / "plain", plain).ledger
    kernels = sum(p.numel() for p in network.model.parameters() if p.ndim > 1)
    assert ledger["weight_elements"] <= kernels
    for name, module in network.model.named_modules():
        if getattr(module, "num_steps", 1) > 1:
            assert ledger["shared"][f"{name}.cell.v"] == module.used_steps


def test_weights_stay_tied_in_every_lowering(
    artifact: Artifact, subject: tuple[Network, ExportData, ExportOptions]
) -> None:
    kernels = sum(p.numel() for p in subject[0].model.parameters() if p.ndim > 1)
    stored, shared = artifact.ledger["weight_elements"], artifact.ledger["shared"]
    assert stored <= 2 * WEIGHT_BUDGET * kernels
    for name, module in subject[0].model.named_modules():
        if getattr(module, "num_steps", 1) > 2:
            used = [uses for weight, uses in shared.items() if weight.startswith(f"{name}.cell.")]
            assert max(used) >= module.used_steps - 1


def test_the_artifact_reads_back_and_its_golden_vectors_hold(artifact: Artifact, target: Target) -> None:
    again = read_artifact(artifact.path)
    assert again.manifest() == artifact.manifest()
    with open_runtime(target.verifier, again) as runtime:
        report = verify_golden(runtime)
    assert report.exact


def test_same_input_same_bytes(
    artifact: Artifact, subject: tuple[Network, ExportData, ExportOptions], target: Target, tmp_path: Path
) -> None:
    network, data, options = subject
    again = export(network, target, data, tmp_path / "again", options)
    for record in (*artifact.files, None):
        name = record.name if record else "manifest.json"
        assert (artifact.path / name).read_bytes() == (again.path / name).read_bytes()


def test_nothing_private_is_inside(artifact: Artifact) -> None:
    paths = [p for p in artifact.path.rglob("*") if p.is_file()]
    recorded = {f.name for f in artifact.files}
    assert {p.relative_to(artifact.path).as_posix() for p in paths} == {*recorded, "manifest.json"}
    private = [str(Path.home()), str(REPOSITORY), str(artifact.path.parent), "/tmp/", "site-packages", ".py"]
    if getpass.getuser() != "root":
        private.append(getpass.getuser())
    for path in paths:
        content = path.read_bytes()
        for text in private:
            assert text.encode() not in content, f"{path.name} contains {text}"


def test_int8_is_the_same_in_every_integer_runtime(
    artifact: Artifact,
    subject: tuple[Network, ExportData, ExportOptions],
    target: Target,
    tmp_path: Path,
) -> None:
    if target.name not in ("tflite-int8", "tflm", "mcu", "native"):
        assert artifact.input.dtype == "float32"
        return
    assert (artifact.input.dtype, artifact.output.dtype) == ("int8", "int8")
    network, data, options = subject
    images = data.parity.images[:40]
    flatbuffer = artifact
    if target.name in ("mcu", "native"):
        # The graph that C is made from.
        plain = replace(options, lowering="stepwise")
        flatbuffer = export(network, TARGETS["tflite-int8"], data, tmp_path / "flatbuffer", plain)
        if target.name == "native":
            # By default a step of a recurrence is rounded once there.
            thrice = replace(NATIVE_OPTIONS, fuse_requantize=False)
            options = replace(options, target_options={"native": thrice})
            artifact = export(network, target, data, tmp_path / "thrice", options)
        with open_runtime(target.name, artifact) as compiled:
            outputs = compiled.logits(images)
    with open_runtime("litert", flatbuffer, RuntimeOptions(kernels="reference")) as reference:
        expected = reference.logits(images)
    with open_runtime("tflm", flatbuffer) as micro:
        assert np.array_equal(micro.logits(images), expected)
    if target.name in ("mcu", "native"):
        assert np.array_equal(outputs, expected)


@pytest.mark.parametrize("name", ["odd", "resnet20-5x3"])
@pytest.mark.parametrize("lowering", ["stepwise", "time-major", "wide"])
@pytest.mark.parametrize(
    "target_name",
    ["onnx", "onnx-int8", "tflite-fp32", "tflite-int8", "tflm", "mcu", "native", "tensorrt-int8"],
)
def test_every_lowering_exports(name: str, lowering: str, target_name: str, tmp_path: Path) -> None:
    network, data, _ = untrained(name)
    options = ExportOptions(agreement=0.0, lowering=lowering, batch=2)
    made = export(network, TARGETS[target_name], data, tmp_path / "a", options)
    assert made.input.shape[0] == 2
    assert made.options["lowering"] == lowering
    assert made.parity["relative_error"] < 0.25
