"""csr-prune: masks, training that keeps them, and zeros in what is exported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from csr_deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from csr_deploy.cli.prune import main
from csr_deploy.data import natural_preprocessing, open_dataset
from csr_deploy.errors import CheckpointError, CsrError, ModelError, OptionError
from csr_deploy.export import ExportOptions, Network, export, load_export_data
from csr_deploy.models import architecture
from csr_deploy.prune import (
    PruneOptions,
    apply_masks,
    artifact_size,
    count_nonzero,
    layer_sparsity,
    magnitude_masks,
    prunable,
    prune_and_train,
    prune_only,
)
from csr_deploy.recipe import Recipe
from csr_deploy.targets import find_target
from csr_deploy.train import TrainingData, TrainOptions, prepare_data, train

RECIPE = Recipe(epochs=2, batch_size=16, schedule="one-cycle", learning_rate=0.05, ema_decay=0.5)


@pytest.fixture(scope="module")
def data(image_folder: Path) -> TrainingData:
    images = open_dataset(image_folder, "train")
    return prepare_data(images, open_dataset(image_folder, "test"), natural_preprocessing(images))


@pytest.fixture(scope="module")
def trained(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSR network with two modules of T = 2."""
    out = tmp_path_factory.mktemp("trained")
    plan = architecture("resnet8", 3, 3, modules=2, num_steps=2)
    train(plan, RECIPE, data, TrainOptions(out, bf16=False))
    return out / "model.pt"


def network(modules: int | None = 2) -> nn.Module:
    torch.manual_seed(0)
    steps = None if modules is None else 2
    return architecture("resnet8", 3, 3, modules=modules, num_steps=steps).build()


def test_global_masks_drop_the_smallest_of_all_kernels() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = magnitude_masks(model, 0.3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any("_orig" in n or "_mask" in n for n in model.state_dict())
    kernels = {n: getattr(m, own) for n, (m, own) in prunable(model).items()}
    assert masks.keys() == kernels.keys()
    assert all(name.rpartition(".")[2] in ("u", "v") for name in masks)
    kept = torch.cat([kernels[n][masks[n]].abs().flatten() for n in masks])
    dropped = torch.cat([kernels[n][~masks[n]].abs().flatten() for n in masks])
    assert len(dropped) == round(0.3 * (len(kept) + len(dropped)))
    assert dropped.max() <= kept.min()


def test_masks_per_layer_drop_the_same_share_of_each() -> None:
    model = network()
    masks = magnitude_masks(model, 0.25, per_layer=True)
    for name, mask in masks.items():
        assert int((~mask).sum()) == round(0.25 * mask.numel()), name
    apply_masks(model, masks)
    layers = layer_sparsity(model)
    assert {layer.name for layer in layers} == masks.keys()
    assert all(abs(layer.sparsity - 0.25) < 0.01 for layer in layers)


def test_the_scope_says_which_convolutions() -> None:
    model = network()
    every, shared = prunable(model, "all"), prunable(model, "csr")
    assert shared.keys() < every.keys()
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert every.keys() - shared.keys() == {f"{n}.weight" for n in convolutions}
    with pytest.raises(ModelError, match="no CSR-Conv layers to prune") as error:
        prunable(network(None))
    assert "--scope all" in str(error.value)
    assert prunable(network(None), "all")


def test_nonzero_counts_shared_parameters_once_and_no_negative_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[0] = -0.0
    assert count_nonzero(model) == 6


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, 50.0, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(OptionError, match="out of range"):
        PruneOptions(sparsity)


def test_levels_remove_the_same_share_of_what_is_left() -> None:
    levels = PruneOptions(0.875, steps=3).levels()
    assert levels == pytest.approx([0.5, 0.75, 0.875])
    with pytest.raises(OptionError, match="0 pruning steps"):
        PruneOptions(0.5, steps=0)


@pytest.mark.parametrize("muon_rate", [0.0, 0.02])
def test_fine_tuning_keeps_exact_zeros_and_resumes(
    data: TrainingData, trained: Path, tmp_path: Path, muon_rate: float
) -> None:
    recipe = replace(RECIPE, muon_rate=muon_rate)
    options = PruneOptions(0.5, steps=2)
    whole = prune_and_train(trained, recipe, data, options, TrainOptions(tmp_path / "whole", bf16=False))
    record = whole.training["pruning"]
    values = sum(layer["values"] for layer in record["layers"].values())
    zeros = sum(layer["zeros"] for layer in record["layers"].values())
    assert zeros == round(0.5 * values)
    model = whole.build()
    assert record["nonzero"] == count_nonzero(model)
    assert sum(layer.zeros for layer in layer_sparsity(model)) == zeros
    for name in prunable(model):
        kernel = whole.state[name]
        assert not torch.signbit(kernel[kernel == 0]).any()
    # What was left did learn.
    before = load_checkpoint(trained).state["layer3.0.conv1.cell.v"]
    after = whole.state["layer3.0.conv1.cell.v"]
    assert not torch.equal(before[after != 0], after[after != 0])
    assert [round(step["sparsity"], 3) for step in record["steps"]] == [0.293, 0.5]

    class Stop(Exception):
        pass

    def stop(step: int, sparsity: float) -> None:
        if step == 1:
            raise Stop

    again = TrainOptions(tmp_path / "parts", bf16=False)
    with pytest.raises(Stop):
        prune_and_train(trained, recipe, data, options, again, on_start=stop)
    with pytest.raises(OptionError, match="already holds a run"):
        prune_and_train(trained, recipe, data, options, again)
    resumed = prune_and_train(trained, recipe, data, options, replace(again, resume=True))
    assert all(torch.equal(v, whole.state[k]) for k, v in resumed.state.items())


def test_a_resumed_step_needs_the_same_masks(data: TrainingData, trained: Path, tmp_path: Path) -> None:
    plan, masks = load_checkpoint(trained).architecture, {}
    model = load_checkpoint(trained).build()
    for share in (0.2, 0.4):
        masks[share] = magnitude_masks(model, share)
    options = TrainOptions(tmp_path, bf16=False, init=trained)
    train(plan, replace(RECIPE, epochs=1), data, options, masks=masks[0.2])
    with pytest.raises(OptionError, match="masks_sha256"):
        train(plan, replace(RECIPE, epochs=1), data, replace(options, resume=True), masks=masks[0.4])
    with pytest.raises(ModelError, match="fits no parameter"):
        train(
            plan,
            RECIPE,
            data,
            replace(options, out=tmp_path / "other"),
            masks={"layer3.0.conv1.cell.w": torch.ones(2, dtype=torch.bool)},
        )


def test_other_classes_are_refused(data: TrainingData, trained: Path, tmp_path: Path) -> None:
    other = replace(data, classes=("a", "b", "c"))
    with pytest.raises(CheckpointError, match=r"knows the classes .*, the data has a, b, c"):
        prune_and_train(trained, RECIPE, other, PruneOptions(0.5), TrainOptions(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def pruned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned")
    prune_only(trained, out, PruneOptions(0.6))
    return out / "model.pt"


def zeros_of(checkpoint: Checkpoint) -> dict[str, int]:
    return {layer.name: layer.zeros for layer in layer_sparsity(checkpoint.build())}


def test_zeros_survive_the_export(pruned: Path, image_folder: Path, tmp_path: Path) -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert to read .tflite")
    zeros = zeros_of(load_checkpoint(pruned))
    network = Network.from_checkpoint(pruned)
    options = ExportOptions(lowering="stepwise", calibration_images=32, parity_images=16, agreement=0.0)
    found: dict[str, dict[str, int]] = {}
    for target in ("onnx", "tflite-int8"):
        chosen = find_target(target)
        images = load_export_data(network, str(image_folder), options, quantized=chosen.quantized)
        found[target] = {}
        artifact = export(network, chosen, images, tmp_path / target, options)
        if target == "onnx":
            for tensor in onnx.load(artifact.model_file).graph.initializer:
                found[target][tensor.name] = int((numpy_helper.to_array(tensor) == 0).sum())
        else:
            interpreter = litert.Interpreter(
                str(artifact.model_file), experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF
            )
            interpreter.allocate_tensors()
            for tensor in interpreter.get_tensor_details():
                if tensor["name"] in zeros:
                    values = interpreter.get_tensor(tensor["index"])
                    assert values.dtype == np.int8
                    assert not tensor["quantization_parameters"]["zero_points"].any()
                    found[target][tensor["name"]] = int((values == 0).sum())
    for name, count in zeros.items():
        assert found["onnx"][name] == count
        # Small weights round to zero as well.
        assert found["tflite-int8"][name] >= count


def test_sparse_artifacts_deflate_better(trained: Path, pruned: Path, tmp_path: Path) -> None:
    options, sizes = ExportOptions(parity_images=16, agreement=0.0), []
    for path in (trained, pruned):
        network = replace(Network.from_checkpoint(path), name="model")
        folder = tmp_path / path.parent.name
        data = load_export_data(network, None, options, quantized=False)
        sizes.append(artifact_size(export(network, find_target("onnx"), data, folder, options).path))
    assert sizes[0].stored == sizes[1].stored
    assert sizes[1].compressed < 0.8 * sizes[0].compressed


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def csr_prune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["csr-prune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    monkeypatch.setenv("COLUMNS", "200")
    return run


def test_the_command_from_start_to_end(
    csr_prune: Run, trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = [trained, "--sparsity", 0.5, "-d", image_folder, "-o", out, "--epochs", 1, "--no-bf16"]
    arguments += ["--batch-size", 16, "--threads", 1, "--device", "cpu", "--teacher", trained]
    code, stdout, stderr = csr_prune(*arguments)
    assert code == 0, stderr
    checkpoint = load_checkpoint(out / "model.pt")
    record = checkpoint.training["pruning"]
    assert checkpoint.training["teacher"]
    assert record["from"]["network"] == "resnet8-m2t2"
    assert f"not zero: {count_nonzero(checkpoint.build()):,}" in stdout
    assert "step 1/1: 50.0% of the weights removed" in stderr
    code, _, stderr = csr_prune(*arguments)
    assert code == 1
    assert "already holds a run" in stderr
    assert csr_prune(*arguments, "--resume")[0] == 0


def test_the_command_without_training_reports_sizes(csr_prune: Run, trained: Path, tmp_path: Path) -> None:
    code, stdout, stderr = csr_prune(
        trained, "-s", 0.9, "--epochs", 0, "-o", tmp_path / "run", "-t", "tflite-fp32", "--json"
    )
    assert code == 0, stderr
    result = json.loads(stdout)
    sizes = result["artifacts"][0]
    assert sizes["after"]["compressed"] < sizes["before"]["compressed"]
    assert result["test_top1"] is None
    assert sum(layer["zeros"] for layer in result["layers"].values()) == round(
        0.9 * sum(layer["values"] for layer in result["layers"].values())
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "1.5", "--epochs", "0"], "out of range"),
        (["-s", "0.5"], "fine-tuning needs images"),
        (["-s", "0.5", "--epochs", "0", "--steps", "2"], "without fine-tuning there are no steps"),
        (["-s", "0.5", "--epochs", "0", "-t", "tflite-int8"], "needs images to calibrate"),
        (["-s", "0.5", "--epochs", "0", "-t", "onxn"], "unknown target"),
    ],
)
def test_bad_input(csr_prune: Run, trained: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, _, stderr = csr_prune(trained, "-o", tmp_path / "run", *arguments)
    assert code == 1
    assert message in stderr
    assert not (tmp_path / "run").exists()


def test_a_network_without_csr_layers(csr_prune: Run, trained: Path, tmp_path: Path) -> None:
    plain = architecture("resnet8", 3, 3)
    source = load_checkpoint(trained)
    path = tmp_path / "plain.pt"
    save_checkpoint(path, replace(source, architecture=plain, state=plain.build().state_dict()))
    code, _, stderr = csr_prune(path, "-s", 0.5, "--epochs", 0, "-o", tmp_path / "run")
    assert code == 1
    assert "no CSR-Conv layers to prune" in stderr
    assert csr_prune(path, "-s", 0.5, "--epochs", 0, "--scope", "all", "-o", tmp_path / "run")[0] == 0
    with pytest.raises(CsrError, match="already holds"):
        prune_only(path, tmp_path / "run", PruneOptions(0.5, "all"))
