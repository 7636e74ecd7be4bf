"""The stock converters' command: options, rows and reports. No converter runs here."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from csr_deploy.checkpoint import Checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.errors import ExportError, MissingDependencyError
from csr_deploy.models import architecture
from tests.mcu_tflite import Spec, one_op_model

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("peers.stock_peer")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options that name a small checkpoint and two pictures."""
    plan = architecture("resnet8", num_classes=3, modules=1, num_steps=2)
    torch.manual_seed(0)
    preprocessing = Preprocessing(16, 16, (0.5,) * 3, (0.25,) * 3)
    save_checkpoint(
        tmp_path / "net.pt", Checkpoint(plan, plan.build().state_dict(), ("a", "b", "c"), preprocessing)
    )
    np.save(tmp_path / "images.npy", np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3))
    return [
        "--checkpoint", str(tmp_path / "net.pt"),
        "--calibration", str(tmp_path / "images.npy"),
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_an_int8_format_brings_its_float_one_in_front(peer: Any, files: list[str]) -> None:
    assert peer.parse(files).formats == ["onnx", "onnx-int8", "tflite", "tflite-int8"]
    assert peer.parse([*files, "--formats", "tflite-nhwc-int8", "onnx"]).formats == [
        "onnx",
        "tflite-nhwc",
        "tflite-nhwc-int8",
    ]


@pytest.mark.parametrize("wrong", [["--formats", "tensorrt"], ["--images", "0"], ["--formats"]])
def test_wrong_options_are_refused(peer: Any, files: list[str], wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        peer.parse([*files, *wrong])
    assert stopped.value.code == 2


def test_the_report_has_a_row_a_format_and_is_not_made_twice(
    peer: Any, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def worker(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        kind = command[command.index("--worker") + 1]
        started.append(kind)
        if kind == "tflite":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: no lowering of x\n")
        options = peer.parse(files)
        key = peer._key(options.checkpoint, options.calibration, options.images)
        (options.out / f"net{peer.SUFFIXES[kind]}").write_bytes(b"model")
        row = peer.StockModel(kind, str(options.out), 5, tied=True, key=key)
        (options.out / f"net.{kind}.json").write_text(json.dumps(dataclasses.asdict(row)))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(peer.subprocess, "run", worker)
    assert peer.main(files) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["network"] == "net"
    assert report["kernel_elements"] < report["parameters"]
    rows = {row["format"]: row for row in report["rows"]}
    assert list(rows) == ["onnx", "onnx-int8", "tflite", "tflite-int8"]
    assert all(set(row) == {f.name for f in dataclasses.fields(peer.StockModel)} for row in rows.values())
    assert rows["onnx"]["error"] == ""
    assert rows["tflite"]["error"] == "status 1: RuntimeError: no lowering of x"
    assert rows["tflite-int8"]["error"].startswith("needs tflite, which failed: status 1")
    assert started == ["onnx", "onnx-int8", "tflite"]
    # What failed is tried again; what was made is not.
    assert peer.main(files) == 1
    assert started[3:] == ["tflite"]
    # Other pictures make other models.
    images = Path(files[3])
    np.save(images, np.load(images)[:1])
    peer.main(files)
    assert started[4:] == ["onnx", "onnx-int8", "tflite"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 16, 16), np.float32), "float32"),
        (np.zeros((2, 8, 8, 3), np.uint8), "takes"),
        (np.zeros((0, 16, 16, 3), np.uint8), "uint8"),
    ],
)
def test_unfit_pictures_are_told(
    peer: Any, files: list[str], images: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(files[3], images)
    assert peer.main(files) == 2
    assert message in capsys.readouterr().err


def test_a_kernel_stored_twice_is_seen(peer: Any) -> None:
    kernel = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    nodes = [
        helper.make_node("Conv", [x, w], [y])
        for x, w, y in (("a", "v", "b"), ("b", "v", "c"), ("c", "w", "d"))
    ]
    border = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, None, None]) for n in ("a", "d")]
    stored = [numpy_helper.from_array(kernel, n) for n in ("v", "w")]
    model = helper.make_model(helper.make_graph(nodes, "g", border[:1], border[1:], stored))
    contents = peer.read_onnx(model.SerializeToString())
    assert (contents.elements, contents.duplicates, contents.ops) == (18, 9, {"Conv": 3})


def test_kernels_of_a_tflite_file(peer: Any) -> None:
    kernel = np.arange(18, dtype=np.int8).reshape(2, 3, 3, 1)
    options = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1, "padding": 1}
    content = one_op_model(
        "CONV_2D",
        [Spec((1, 5, 5, 1), (0.1, 0)), Spec(kernel.shape, (0.1, 0), data=kernel)],
        Spec((1, 3, 3, 2), (0.1, 0)),
        options,
    )
    contents = peer.read_tflite(content)
    assert (contents.elements, contents.duplicates, contents.ops) == (18, 0, {"CONV_2D": 1})


def test_the_other_interpreter(peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(ran: subprocess.CompletedProcess[str]) -> Any:
        monkeypatch.setattr(peer.subprocess, "run", lambda command, **_: ran)
        return peer.convert(tmp_path / "m.pt", tmp_path / "i.npy", tmp_path, "python")

    row = peer.StockModel("onnx", "x.onnx", 7)
    report = json.dumps({"rows": [dataclasses.asdict(row)]})
    assert convert(subprocess.CompletedProcess([], 0, report, "")) == [row]
    with pytest.raises(MissingDependencyError, match="pip install torch"):
        convert(subprocess.CompletedProcess([], 1, "", "ModuleNotFoundError: No module named 'torch'"))
    with pytest.raises(ExportError, match="does not exist"):
        convert(subprocess.CompletedProcess([], 2, "", "m.pt: does not exist\n"))


def test_an_interpreter_that_is_not_there(peer: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="pip install torch"):
        peer.convert(tmp_path / "m.pt", tmp_path / "i.npy", tmp_path, str(tmp_path / "no-python"))
