"""Networks that are nobody's preset: what the export demands of them, and what it says of those that fail."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from csr_deploy.artifact import read_artifact
from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.errors import ExportError, ModelError, ParityError
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.nn import CSRConv2d
from csr_deploy.parity import check_parity, compare
from csr_deploy.targets import TARGETS, Tolerance
from tests.networks import settle

SIZE = (8, 6)


class Small(nn.Module):
    """One CSR-Conv on gray pictures; `outputs` of them become the logits."""

    def __init__(self, outputs: int = 3, *, pooled: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.csr = CSRConv2d(6, 4, 3, 3, padding=1)
        self.head = nn.Conv2d(4, outputs, 1)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.csr(torch.relu(self.stem(x))))
        return y.mean((2, 3)) if self.pooled else y


def network(model: nn.Module, labels: int = 3) -> tuple[Network, ExportData]:
    preprocessing = Preprocessing(*SIZE, (0.3,), (0.35,))
    data = ExportData(
        sample(open_dataset("fashion-mnist", "train"), preprocessing, 16, 0),
        sample(open_dataset("fashion-mnist", "test"), preprocessing, 16, 0),
        labels=None,
    )
    return Network("own", model.eval(), tuple(str(i) for i in range(labels)), preprocessing), data


@pytest.mark.parametrize(
    ("model", "labels", "says"),
    [
        (Small(3), 10, r"gives \[1, 3\] where \[1, 10\]"),
        (Small(3, pooled=False), 3, r"gives \[1, 3, 8, 6\]"),
    ],
)
def test_outputs_must_be_one_logit_a_label(model: nn.Module, labels: int, says: str, tmp_path: Path) -> None:
    own, data = network(model, labels)
    with pytest.raises(ModelError, match=says):
        export(own, TARGETS["onnx"], data, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 5, (0.25,) * 5), ((0.5,) * 3, (0.25,))])
def test_pictures_are_gray_or_colour(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ModelError, match=r"(?s)means and \d standard.*gray pictures, or three"):
        Network("own", Small(), ("a", "b", "c"), Preprocessing(*SIZE, mean, std))


@pytest.mark.parametrize("target", ["onnx", "onnx-int8", "tflite-int8"])
def test_a_network_that_overflows_is_named_before_it_is_quantised(target: str, tmp_path: Path) -> None:
    model = Small()
    model.stem.weight.data.mul_(1e30)
    model.get_parameter("csr.cell.v").data.mul_(1e30)
    own, data = network(model)
    with pytest.raises(ModelError, match="the network itself gives logits that are infinite"):
        export(own, TARGETS[target], data, tmp_path / "own")


def test_values_beyond_float16_are_named(tmp_path: Path) -> None:
    model = Small()
    model.head.weight.data.mul_(1e7)
    own, data = network(model)
    with pytest.raises(ParityError, match=r"(?s)infinite or not a number.*float32"):
        export(own, TARGETS["tensorrt-fp16"], data, tmp_path / "own")


@pytest.mark.parametrize("target", ["onnx", "tflite-fp32", "tflite-int8"])
def test_a_network_without_a_layer_that_computes(target: str, tmp_path: Path) -> None:
    own, data = network(nn.Flatten(), SIZE[0] * SIZE[1])
    artifact = export(own, TARGETS[target], data, tmp_path / "own", ExportOptions(agreement=0.5))
    assert artifact.model["macs"] == 0


class Smooth(nn.Module):
    """An activation behind a plain convolution and between CSR-Convs of one split."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), activation,
            CSRConv2d(8, 8, 3, 4, padding=1), nn.BatchNorm2d(8), activation,
            CSRConv2d(8, 8, 3, 4, padding=1), nn.BatchNorm2d(8), activation,
        )  # fmt: skip
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean((2, 3)))
        return out


SMOOTH = (nn.GELU(), nn.GELU("tanh"), nn.ELU())


@pytest.mark.parametrize(
    ("target", "activation"),
    [(t, a) for t in TARGETS for a in SMOOTH if t != "tflm" or isinstance(a, nn.ELU)],
    ids=str,
)
def test_smooth_activations_on_every_target_that_has_them(
    target: str, activation: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own, data = network(settle(Smooth(activation), (1, 1, *SIZE)))
    artifact = export(own, TARGETS[target], data, tmp_path / "own", ExportOptions(agreement=0.0))
    # Of the range of the logits; float targets have limits of their own.
    assert artifact.parity["relative_error"] < 0.1


def test_tflite_micro_has_no_gelu(tmp_path: Path) -> None:
    own, data = network(Smooth(nn.GELU()))
    with pytest.raises(ExportError, match="TFLite Micro has no operation GELU"):
        export(own, TARGETS["tflm"], data, tmp_path / "own", ExportOptions(agreement=0.0))
    assert list(tmp_path.iterdir()) == []


def test_one_logit_agrees_where_its_sign_does() -> None:
    reference = np.asarray([[1.0], [-2.0], [3.0], [-4.0]], np.float32)
    tolerance = Tolerance(0.9, None)
    same = compare(reference, reference * 0.9, tolerance, runtime="", images_sha256="")
    assert same.top1_agreement == 1
    wrong = compare(reference, -reference, tolerance, runtime="", images_sha256="")
    assert wrong.top1_agreement == 0
    with pytest.raises(ParityError):
        check_parity(wrong, "own")


def test_the_page_about_own_networks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-network.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # It has learned nothing: the ranking of its logits is not worth a gate.
    code = code.replace("ExportOptions()", "ExportOptions(agreement=0.0)")
    exec(compile(code, "own-network.md", "exec"), {})
    for target in ("onnx", "tflite-int8"):
        artifact = read_artifact(tmp_path / "artifacts" / f"mine-{target}")
        assert artifact.input.shape[0] == 1
        assert any(name.startswith("3.cell.") for name in artifact.ledger["shared"])
