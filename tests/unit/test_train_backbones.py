"""csr-train on the networks that came last: one epoch on tiny pictures, and on from a trained backbone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from csr_deploy.checkpoint import load_checkpoint
from csr_deploy.cli.train import main
from csr_deploy.nn import CSRConv2d

TINY = (
    "--recipe",
    "short",
    "--epochs",
    "1",
    "--batch-size",
    "36",
    "--no-bf16",
    "--threads",
    "1",
    "--no-plot",
)


def train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["csr-train", *map(str, arguments), *TINY])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.mark.parametrize(
    ("network", "csr_layers"),
    [
        ("densenet40-csr1", 5),
        ("efficientnetb0-csr1", 9),
        pytest.param("mobilenetv2-imagenet-csr1", 4, marks=pytest.mark.full),
    ],
)
def test_one_epoch(
    network: str, csr_layers: int, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(monkeypatch, "--network", network, "--data", image_folder, "--out", tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "model.pt")
    assert checkpoint.architecture.name == network
    assert checkpoint.labels == ("blue", "green", "red")
    model = checkpoint.build()
    assert sum(isinstance(m, CSRConv2d) for m in model.modules()) == csr_layers


def test_on_from_a_backbone(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--data", image_folder)
    train(monkeypatch, "--network", "densenet40", *data, "--out", tmp_path / "plain")
    plain = tmp_path / "plain" / "model.pt"
    options = ("--init", plain, "--freeze")
    train(monkeypatch, "--network", "densenet40-csr1", *data, *options, "--out", tmp_path / "csr")
    one, other = load_checkpoint(plain).state, load_checkpoint(tmp_path / "csr" / "model.pt").state
    assert one["block3.6.conv.weight"].equal(other["block3.6.conv.weight"])
    assert "block3.7.conv.cell.v" in other
