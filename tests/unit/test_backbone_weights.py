"""Weights that torchvision and timm saved: names and shapes as theirs, files of every kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csr_deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.errors import CheckpointError
from csr_deploy.models import Architecture, EfficientNet, ImageNetMobileNetV2, architecture
from csr_deploy.models.weights import load_backbone_weights, read_state_dict, timm_modules

# Digests of `name [shape]` lines, sorted, of models built with the libraries themselves.
RECORDS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "backbone_weights.json").read_text()
)


def their_names(library: str, model: nn.Module) -> dict[str, str]:
    """Our tensor → theirs."""
    if library == "timm" and isinstance(model, (EfficientNet, ImageNetMobileNetV2)):
        modules = timm_modules(model)
    else:
        modules = {}
    names = {}
    for key in model.state_dict():
        module, _, parameter = key.rpartition(".")
        names[key] = f"{modules.get(module, module)}.{parameter}"
    return names


@pytest.mark.parametrize("record", list(RECORDS))
def test_names_and_shapes_are_theirs(record: str) -> None:
    expected = RECORDS[record]
    with torch.device("meta"):
        model = architecture(expected["backbone"]).build()
    names = their_names(record.split("/")[0], model)
    lines = sorted(f"{names[k]} {list(v.shape)}" for k, v in model.state_dict().items())
    assert len(lines) == expected["tensors"]
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected["sha256"]


def small(backbone: str) -> nn.Module:
    options = {
        "resnet50": {"blocks": (1, 1, 1, 1), "width": 8},
        "efficientnetb0": {"width": 0.25, "repeats": (1, 2, 1, 1, 1, 1, 1)},
        "mobilenetv2-imagenet": {"width": 0.25},
    }[backbone]
    model = Architecture(backbone, num_classes=6, options=options).build()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.0)
    return model.eval()


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("backbone", ["resnet50", "efficientnetb0", "mobilenetv2-imagenet"])
def test_their_weights_load(backbone: str, library: str) -> None:
    torch.manual_seed(0)
    source, model = small(backbone), small(backbone)
    names = their_names(library, source)
    load_backbone_weights(model, {names[k]: v for k, v in source.state_dict().items()})
    own = model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in source.state_dict().items())


def save(path: Path, state: Mapping[str, Tensor], form: str) -> Path:
    if form == "safetensors":
        from safetensors.torch import save_file

        path = path.with_suffix(".safetensors")
        save_file({k: v.clone() for k, v in state.items()}, path)
    elif form == "before 1.6":
        torch.save(dict(state), path, _use_new_zipfile_serialization=False)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(dict(state), path)
    return path


@pytest.mark.parametrize("form", ["torch", "before 1.6", "wrapped", "safetensors"])
def test_files_of_every_kind(form: str, tmp_path: Path) -> None:
    source, model = small("resnet50"), small("resnet50")
    path = save(tmp_path / "weights.pth", source.state_dict(), form)
    load_backbone_weights(model, read_state_dict(path))
    assert torch.equal(model.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_counters_of_batch_norm_may_be_missing() -> None:
    source, model = small("resnet50"), small("resnet50")
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_backbone_weights(model, state)
    assert torch.equal(model.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_what_does_not_fit_is_named_and_nothing_is_changed() -> None:
    model = small("resnet50")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = dict(model.state_dict())
    state["layer1.0.conv9.weight"] = state.pop("layer1.0.conv1.weight")
    state["fc.weight"] = torch.zeros(1000, 256)
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(model, state)
    assert "missing: layer1.0.conv1.weight" in str(caught.value)
    assert "unexpected: layer1.0.conv9.weight" in str(caught.value)
    assert "fc.weight is [1000, 256] instead of [6, 256]" in str(caught.value)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Payload(), "pickled code; nothing in it was run"),
        ({"epoch": 3}, "holds no state_dict"),
        ([1, 2], "holds a list"),
        (b"PK\x03\x04 and no more", "damaged|cannot be read"),
    ],
)
def test_files_that_are_refused(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


def test_no_file_and_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        read_state_dict(tmp_path / "none.pth")
    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state_dict(damaged)


def test_a_backbone_becomes_a_checkpoint(tmp_path: Path) -> None:
    """What docs/networks.md shows."""
    plan = Architecture("resnet50", 6, options={"blocks": (1, 1, 1, 1), "width": 8}, name="resnet50")
    weights = save(tmp_path / "weights.pth", small("resnet50").state_dict(), "torch")
    model = plan.build()
    load_backbone_weights(model, read_state_dict(weights))
    preprocessing = Preprocessing(64, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    labels = tuple(str(i) for i in range(plan.num_classes))
    path = tmp_path / "resnet50.safetensors"
    save_checkpoint(path, Checkpoint(plan, model.state_dict(), labels, preprocessing))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(path).build()(x), model.eval()(x))
