"""`csr-info`, through its own entry point."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from csr_deploy.artifact import Artifact, record_file, write_manifest
from csr_deploy.checkpoint import Checkpoint, save_checkpoint
from csr_deploy.cli.common import guarded
from csr_deploy.cli.info import info
from csr_deploy.data import Preprocessing
from csr_deploy.models import Architecture, architecture
from csr_deploy.types import TensorSpec

PREPROCESSING = Preprocessing(24, 16, (0.3,), (0.4,))


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(guarded(info))
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.output


def plan() -> Architecture:
    made = architecture("resnet8", num_classes=4, in_channels=1, modules=2, num_steps=3)
    return replace(made, cell="incremental")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = plan().build()
    with torch.no_grad():
        kernel = model.get_submodule("layer3.0.conv2.cell").get_parameter("u")
        kernel.view(-1)[:100] = 0
    path = tmp_path_factory.mktemp("run") / "pruned.safetensors"
    save_checkpoint(path, Checkpoint(plan(), model.state_dict(), ("a", "b", "c", "d"), PREPROCESSING))
    return path


def written(path: Path, source: object) -> Path:
    """An artifact as csr-export writes them, without a model that runs."""
    path.mkdir()
    (path / "model.c").write_text("int a;\n")
    spec = TensorSpec("x", (1, 1, 24, 16), "float32", "NCHW")
    write_manifest(
        Artifact(
            path,
            "small",
            "onnx",
            (record_file(path / "model.c"),),
            spec,
            TensorSpec("y", (1, 4), "float32", "NC"),
            PREPROCESSING,
            ("a", "b", "c", "d"),
            model={"macs": 123456, "arena_bytes": 7890},
            source={"architecture": source} if source else {},
            ledger={"weight_elements": 42, "stored_bytes": 99},
        )
    )
    return path


def test_a_preset_beside_its_backbone(tmp_path: Path) -> None:
    json_file, markdown_file = tmp_path / "a.json", tmp_path / "a.md"
    code, output = run("resnet20-csr", "--json", str(json_file), "--markdown", str(markdown_file))
    assert code == 0, output
    assert "117,064" in output
    assert "269,722" in output
    assert "layer3.2.conv2" in output
    values = json.loads(json_file.read_text())
    assert (values["parameters"], values["against"]["parameters"]) == (117_064, 269_722)
    assert values["macs"] == sum(layer["macs"] for layer in values["layers"])
    last = next(layer for layer in values["layers"] if layer["name"] == "layer3.2.conv2")
    assert last["recurrence"]["num_steps"] == 3
    assert last["recurrence"]["prop1"] == pytest.approx(2 / 9)
    assert values["memory"]["peak_fused"] == 49_152
    text = markdown_file.read_text()
    assert "| layer3.2.conv2 | CSRConv2d | 3×3 | 64×8×8 | 8,712 |" in text
    assert "| compression rate | 56.6 % |" in text


def test_a_pruned_checkpoint_counts_its_zeros(checkpoint: Path) -> None:
    code, output = run(str(checkpoint), "--json", "-")
    assert code == 0, output
    values = json.loads(output)
    assert values["name"] == "pruned"
    assert values["input_shape"] == [1, 24, 16]
    layer = next(v for v in values["layers"] if v["name"] == "layer3.0.conv2")
    assert layer["parameters"] - layer["nonzero"] == 100
    assert layer["recurrence"]["cell"] == "incremental"
    # Its backbone takes the same pictures and tells the same classes apart.
    assert values["against"]["input_shape"] == [1, 24, 16]
    assert values["against"]["layers"][-1]["shape"] == [4]
    assert values["against"]["nonzero"] is None


def test_against_any_other_network(checkpoint: Path) -> None:
    code, output = run("resnet8", "--against", str(checkpoint), "--no-layers", "--json", "-")
    assert code == 0, output
    assert json.loads(output)["against"]["name"] == "pruned"
    code, output = run("resnet8", "--no-layers")
    assert code == 0
    assert output.split("\n")[0].split() == ["figure", "resnet8"]
    assert "conv1" not in output


def test_an_artifact_and_what_it_says_of_itself(tmp_path: Path) -> None:
    record = {
        "backbone": "resnet8",
        "num_classes": 4,
        "in_channels": 1,
        "options": {},
        "csr_layers": {"layer3.0.conv2": 2},
        "channel_fill": "zero",
        "cell": "vanilla",
        "name": "resnet8-small",
    }
    path = written(tmp_path / "small-mcu", record)
    code, output = run(str(path), "--no-layers")
    assert code == 0, output
    assert "7,890" in output
    code, output = run(str(path), "--json", "-")
    values = json.loads(output)
    assert values["artifact"]["weight_elements"] == 42
    assert [layer["name"] for layer in values["layers"] if layer["recurrence"]] == ["layer3.0.conv2"]


def test_a_network_by_its_modules_and_cell() -> None:
    options = ("--csr-modules", "1", "--csr-steps", "2", "--cell", "gru", "--classes", "3")
    code, output = run("resnet8", *options, "--image-size", "16x20", "--json", "-")
    assert code == 0, output
    values = json.loads(output)
    assert values["name"] == "resnet8-m1t2-gru"
    assert values["input_shape"] == [3, 16, 20]
    assert values["layers"][-1]["shape"] == [3]


def test_table_2() -> None:
    code, output = run("--table2", "--json", "-")
    assert code == 0, output
    values = json.loads(output)
    assert len(values["rows"]) == 31
    assert values["backbones"]["resnet50"]["parameters"] == 25_557_032
    row = next(r for r in values["rows"] if r["preset"] == "mobilenetv2-imagenet-csr2")
    assert (row["parameters"], row["paper"]["millions"], row["num_steps"]) == (2_469_032, 2.47, [3, 4])
    code, output = run("--table2", "--markdown", "-")
    assert output.count("\n| ") == 31 + 8 + 3
    code, output = run("--table2")
    assert "densenet40-csr5" in output
    assert "why it differs" in output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "name a network, or give --table2"),
        (("resnet8", "--table2"), 2, "name a network, or give --table2"),
        (("--table2", "--csr-steps", "2"), 2, "takes no options of a network"),
        (("resnet8", "--json", "-", "--markdown", "-"), 2, "cannot both go"),
        (("resnet8", "--image-size", "a"), 2, "'a' is no size"),
        (("resnet65",), 1, "Did you mean resnet56"),
        (("resnet56-csr2", "--csr-modules", "2", "--csr-steps", "2"), 1, "already says"),
        (("resnet8", "--cell", "gru"), 1, "has no CSR-Convs"),
        (("resnet8", "--csr-modules", "1", "--csr-steps", "99"), 1, "is larger than the channels"),
        (("nowhere/model.pt",), 1, "does not exist"),
        (("resnet8", "--against", "resnet9"), 1, "unknown network 'resnet9'"),
        (("resnet8", "--json", "/"), 1, "cannot be written"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], code: int, message: str) -> None:
    made, output = run(*arguments)
    assert (made, message in " ".join(output.split())) == (code, True), output


def test_files_that_do_not_tell_what_they_are(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "without manifest.json" in run(str(tmp_path / "empty"))[1]
    assert "what network it was made from" in run(str(written(tmp_path / "compiled", None)))[1]
    strange = run(str(written(tmp_path / "strange", {"backbone": "resnet9"})))
    assert strange[0] == 1
    assert "cannot be built" in strange[1]
    code, output = run(str(checkpoint), "--classes", "3")
    assert code == 1
    assert "are in the file" in output
