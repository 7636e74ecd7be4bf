"""What `--target tflm` writes beside the model: sources that compile and say what the model is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csr_deploy.artifact import Artifact, read_artifact, record_file
from csr_deploy.data import ImageSet, Preprocessing
from csr_deploy.errors import ExportError
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.exporters import tflm
from csr_deploy.nn import CSRConv2d
from csr_deploy.runtimes import open_runtime
from csr_deploy.targets import TARGETS
from tests.networks import OneLayer, settle

pytest.importorskip("tflite_micro", reason="needs tflite-micro")

NAME = "2 nets-ü.CSR"
FILES = ["net_2_nets_csr_model.h", "net_2_nets_csr_model.cc", "net_2_nets_csr_ops.h"]


@pytest.fixture(scope="module")
def data() -> ExportData:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(24, np.int64), "random", "00")
    return ExportData(images, images, None)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    model = settle(OneLayer(CSRConv2d(6, 5, 3, 3, padding=1)), (1, 3, 8, 8))
    return Network(NAME, model, tuple("abcd"), Preprocessing(8, 8, (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def artifact(network: Network, data: ExportData, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("tflm") / "net-tflm"
    return export(network, TARGETS["tflm"], data, out, ExportOptions(agreement=0.0))


def text(artifact: Artifact, suffix: str) -> str:
    return (artifact.path / next(f for f in FILES if f.endswith(suffix))).read_text(encoding="ascii")


def constant(header: str, name: str) -> int:
    found = re.search(rf"^constexpr std::size_t {name} = (\d+);$", header, re.MULTILINE)
    assert found, name
    return int(found[1])


def test_the_model_is_that_of_tflite_int8(
    artifact: Artifact, network: Network, data: ExportData, tmp_path: Path
) -> None:
    options = ExportOptions(lowering="stepwise", agreement=0.0)
    plain = export(network, TARGETS["tflite-int8"], data, tmp_path / "plain", options)
    assert artifact.model_file.read_bytes() == plain.model_file.read_bytes()


def test_every_file_is_in_the_manifest(artifact: Artifact) -> None:
    assert [f.name for f in artifact.files] == [f"{NAME}.tflite", *FILES, "golden.npz"]
    assert read_artifact(artifact.path).files == artifact.files
    assert {p.name for p in artifact.path.iterdir()} == {f.name for f in artifact.files} | {"manifest.json"}
    assert "tflite-micro" in artifact.tools


def test_the_array_is_the_model(artifact: Artifact) -> None:
    source = text(artifact, "_model.cc")
    body = source[source.index("{") : source.index("}")]
    assert (
        bytes(int(v, 16) for v in re.findall(r"0x([0-9a-f]{2})\b", body)) == artifact.model_file.read_bytes()
    )
    assert "alignas(16) const unsigned char net_2_nets_csr_model[] = {" in source
    size = constant(text(artifact, "_model.h"), "kNet2NetsCsrModelBytes")
    assert size == artifact.model_file.stat().st_size


def test_the_arena_is_the_least_that_works(artifact: Artifact) -> None:
    arena = constant(text(artifact, "_model.h"), "kNet2NetsCsrArenaBytes")
    with open_runtime("tflm", artifact) as runtime:
        recorded = runtime.arena
    assert recorded
    # Planning the few activations of this network takes more than they do.
    assert recorded < arena < recorded + 8192
    load = "import sys; from tflite_micro import runtime; content = sys.stdin.buffer.read(); "
    load += "runtime.Interpreter.from_bytes(content, arena_size=int(sys.argv[1])).invoke()"
    for size, works in ((arena, True), (arena - 16, False)):
        ran = subprocess.run(
            [sys.executable, "-c", load, str(size)],
            input=artifact.model_file.read_bytes(),
            capture_output=True,
            check=False,
        )
        assert (ran.returncode == 0) == works, ran.stderr


def test_an_arena_that_cannot_be_measured_is_an_error(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tflm, "_PROBE", "import os; os.abort()")
    with pytest.raises(ExportError, match="ended with code -6 while its arena was measured"):
        tflm.least_arena(artifact)


def test_the_operations_are_those_of_the_model(artifact: Artifact) -> None:
    content = artifact.model_file.read_bytes()
    used = tflm.operations(content)
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SLICE", "CONCATENATION", "MEAN", "RESHAPE"} <= set(used)
    calls = re.findall(r"resolver\.(\w+)\(\)", text(artifact, "_ops.h"))
    assert calls == list(tflm.resolver_methods(used, NAME))
    assert f"MicroMutableOpResolver<{len(used)}>" in text(artifact, "_ops.h")


def test_method_names_are_those_of_the_resolver() -> None:
    names = {
        "CONV_2D": "AddConv2D",
        "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
        "AVERAGE_POOL_2D": "AddAveragePool2D",
        "SPACE_TO_DEPTH": "AddSpaceToDepth",
        "SPACE_TO_BATCH_ND": "AddSpaceToBatchNd",
        "SPLIT_V": "AddSplitV",
        "PADV2": "AddPadV2",
        "CUMSUM": "AddCumSum",
        "L2_NORMALIZATION": "AddL2Normalization",
        "BATCH_MATMUL": "AddBatchMatMul",
        "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
        "RELU6": "AddRelu6",
    }
    assert tflm.resolver_methods(list(names), "net") == tuple(names.values())
    # Every method is one of an operation that there is.
    known = {name.replace("_", "") for name in tflm._OPERATIONS.values()}
    assert set(tflm._BY_OPERATION) <= known


def test_an_operation_without_a_kernel_is_named() -> None:
    with pytest.raises(ExportError, match=r"net: TFLite Micro has no operation CONV_3D, GELU") as caught:
        tflm.resolver_methods(["ADD", "CONV_3D", "GELU"], "net")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet56-csr2", "resnet56_csr2"),
        ("56", "net_56"),
        ("--", "network"),
        ("网络", "network"),
        ("A__b", "a_b"),
        ('x"\\\n*/', "x"),
    ],
)
def test_any_name_becomes_an_identifier(name: str, expected: str) -> None:
    assert tflm.identifier(name) == expected


def test_a_model_without_a_kernel_leaves_no_sources(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / artifact.files[0].name
    shutil.copy(artifact.model_file, model)
    monkeypatch.delitem(tflm._BY_OPERATION, "CONV2D")
    with pytest.raises(ExportError, match="no operation CONV_2D"):
        tflm.write_sources(replace(artifact, path=tmp_path, files=(record_file(model),)))
    assert list(tmp_path.iterdir()) == [model]


# As much of TFLite Micro's header as the sources use: the resolver counts, and refuses one too many.
STUB = """
#pragma once
#include <cstddef>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
namespace tflite {
OPEN
template <unsigned int kMost>
class MicroMutableOpResolver {
 public:
METHODS
  unsigned int count() const { return count_; }

 private:
  TfLiteStatus Take() { return count_ < kMost ? (++count_, kTfLiteOk) : kTfLiteError; }
  unsigned int count_ = 0;
};
CLOSE
}  // namespace tflite
"""
MAIN = """
#include <cstdint>
#include <cstdio>
#include "net_2_nets_csr_model.h"
#include "net_2_nets_csr_ops.h"
#include "net_2_nets_csr_model.h"

int main() {
  net_2_nets_csr_ops::Resolver resolver;
  if (net_2_nets_csr_ops::RegisterOps(resolver) != kTfLiteOk) return 1;
  if (reinterpret_cast<std::uintptr_t>(net_2_nets_csr_model) % 16 != 0) return 2;
  unsigned long sum = 0;
  for (std::size_t i = 0; i < kNet2NetsCsrModelBytes; ++i) sum += (i % 251 + 1) * net_2_nets_csr_model[i];
  std::printf("%lu %u\\n", sum, resolver.count());
  return 0;
}
"""


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("inner", ["", "micro"])
def test_the_sources_compile(artifact: Artifact, tmp_path: Path, compiler: str, inner: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    methods = re.findall(r"resolver\.(\w+)\(\)", text(artifact, "_ops.h"))
    header = STUB.replace("METHODS", "\n".join(f"  TfLiteStatus {m}() {{ return Take(); }}" for m in methods))
    header = header.replace("OPEN", f"namespace {inner} {{" if inner else "").replace(
        "CLOSE", "}" * bool(inner)
    )
    folder = tmp_path / "tensorflow" / "lite" / "micro"
    folder.mkdir(parents=True)
    (folder / "micro_mutable_op_resolver.h").write_text(header)
    (tmp_path / "main.cc").write_text(MAIN)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{tmp_path}", f"-I{artifact.path}"]
    model = artifact.path / "net_2_nets_csr_model.cc"
    program = tmp_path / "program"
    made = subprocess.run(
        [compiler, *flags, tmp_path / "main.cc", model, "-o", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    ran = subprocess.run([program], capture_output=True, text=True, check=True)
    content = artifact.model_file.read_bytes()
    assert ran.stdout.split() == [
        str(sum((i % 251 + 1) * v for i, v in enumerate(content))),
        str(len(methods)),
    ]
