"""Checkpoints: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from csr_deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.errors import CheckpointError, ExportError
from csr_deploy.models import architecture

LABELS = ("cat", "dog", "eel")


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    plan = architecture("resnet8", num_classes=3, in_channels=1, modules=2, num_steps=3)
    return Checkpoint(
        plan,
        plan.build().state_dict(),
        LABELS,
        Preprocessing(28, 28, (0.5,), (0.25,)),
        {"recipe": {"epochs": 3}, "curve": [{"epoch": 1, "train_loss": 0.5}]},
        {"test_top1": 0.75},
    )


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_round_trip(tmp_path: Path, checkpoint: Checkpoint, name: str) -> None:
    save_checkpoint(tmp_path / name, checkpoint)
    read = load_checkpoint(tmp_path / name)
    assert replace(read, state={}) == replace(checkpoint, state={})
    assert read.state.keys() == checkpoint.state.keys()
    assert all(torch.equal(read.state[k], v) for k, v in checkpoint.state.items())
    model = read.build()
    assert not model.training
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_options_of_a_preset_survive(tmp_path: Path) -> None:
    plan = architecture("vgg16-csr4")
    saved = Checkpoint(
        plan, plan.build().state_dict(), tuple("0123456789"), Preprocessing(32, 32, (0.5,) * 3, (0.2,) * 3)
    )
    save_checkpoint(tmp_path / "model.pt", saved)
    assert load_checkpoint(tmp_path / "model.pt").architecture == plan


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_same_content_gives_the_same_bytes(tmp_path: Path, checkpoint: Checkpoint, name: str) -> None:
    for folder in ("a", "b"):
        save_checkpoint(tmp_path / folder / name, checkpoint)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_records_hold_plain_values_only(tmp_path: Path, checkpoint: Checkpoint) -> None:
    # torch.__version__ is a class of torch's own, which weights_only would refuse as code.
    save_checkpoint(tmp_path / "model.pt", replace(checkpoint, training={"torch": torch.__version__}))
    assert type(load_checkpoint(tmp_path / "model.pt").training["torch"]) is str
    with pytest.raises(TypeError, match="cannot hold a PosixPath"):
        save_checkpoint(tmp_path / "other.pt", replace(checkpoint, training={"path": tmp_path}))


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.marker),))


def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path: Path, checkpoint: Checkpoint) -> None:
    marker = tmp_path / "ran"
    content = {**checkpoint.record(), "state": dict(checkpoint.state), "extra": Payload(marker)}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="contains pickled code; it was refused and nothing") as caught:
        load_checkpoint(tmp_path / "model.pt")
    assert caught.value.where == str(tmp_path / "model.pt")
    assert not marker.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="contains pickled code"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(CheckpointError, match="is not a csr-deploy checkpoint"):
        load_checkpoint(tmp_path / "model.pt")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_truncated_anywhere(tmp_path: Path, checkpoint: Checkpoint, name: str) -> None:
    path = tmp_path / name
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    for length in (0, 1, 4, 7, 8, 50, 300, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    weights = zipfile.ZipFile(path).getinfo("archive/data/0")
    broken = bytearray(whole)
    broken[weights.header_offset + 200] ^= 0x10
    path.write_bytes(broken)
    with pytest.raises(CheckpointError, match=r"checksum of 'archive/data/0' differs"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_overwritten_bytes_never_end_in_another_error(
    tmp_path: Path, checkpoint: Checkpoint, name: str
) -> None:
    path = tmp_path / name
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    draw = random.Random(0)
    # The first part holds the record; the end of a .pt its directory.
    places = [draw.randrange(4000) for _ in range(40)] + [
        len(whole) - draw.randrange(1, 3000) for _ in range(20)
    ]
    for place in places:
        broken = bytearray(whole)
        broken[place : place + 6] = draw.randbytes(6)
        path.write_bytes(broken[: len(whole)])
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert error.where == str(path)


def damage_record(path: Path, **changes: Any) -> None:
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save({k: v for k, v in content.items() if v is not ...}, path)


PLAIN = {"backbone": "resnet8", "num_classes": 3, "in_channels": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has checkpoint version 2; this csr-deploy reads version 1"),
        ({"version": 7, "state": [1]}, "version 7"),
        ({"version": ...}, "version None"),
        ({"format": "other"}, "not a csr-deploy checkpoint"),
        ({"state": {"a": 3}}, "no tensors"),
        ({"state": ...}, "no tensors"),
        ({"labels": ["a", "b"]}, "2 labels for 3 classes"),
        ({"labels": ...}, "record is damaged"),
        ({"labels": 3}, "record is damaged"),
        ({"training": 3}, "record is damaged"),
        ({"architecture": [1]}, "record is damaged"),
        ({"architecture": {**PLAIN, "backbone": "resnet9"}}, "unknown backbone 'resnet9'"),
        ({"architecture": {**PLAIN, "backbone": 3}}, "no text"),
        ({"architecture": {**PLAIN, "num_classes": 3.5}}, "no positive integer"),
        ({"architecture": {**PLAIN, "num_classes": -1}}, "no positive integer"),
        ({"architecture": {**PLAIN, "colour": 1}}, "record is damaged"),
        ({"architecture": {**PLAIN, "csr_layers": {"conv7": 2}}}, "no layer 'conv7'"),
        ({"architecture": {**PLAIN, "csr_layers": {"layer1.0.conv1": 99}}}, "cannot be built"),
        ({"architecture": {**PLAIN, "csr_layers": [1]}}, "record is damaged"),
        ({"architecture": {**PLAIN, "options": {"depth": 4}}}, "cannot be built"),
        (
            {"architecture": {**PLAIN, "channel_fill": "mirror", "csr_layers": {"conv1": 1}}},
            "cannot be built",
        ),
        ({"preprocessing": {}}, "preprocessing record is damaged"),
        (
            {"preprocessing": {"height": 0, "width": 2, "mean": [0.5], "std": [0.5]}},
            "preprocessing record makes no sense",
        ),
        (
            {"preprocessing": {"height": 2, "width": 2, "mean": [0.5], "std": [float("nan")]}},
            "preprocessing record makes no sense",
        ),
        (
            {"preprocessing": {"height": 2, "width": 2, "mean": [0.5] * 3, "std": [0.5] * 3}},
            "gives 3 channels, the network takes 1",
        ),
    ],
)
def test_records_that_do_not_fit(
    tmp_path: Path, checkpoint: Checkpoint, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, checkpoint)
    damage_record(path, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert caught.value.where == str(path)


def without(state: dict[str, torch.Tensor]) -> None:
    del state["conv1.weight"]


def extra(state: dict[str, torch.Tensor]) -> None:
    state["conv9.weight"] = torch.zeros(1)


def reshaped(state: dict[str, torch.Tensor]) -> None:
    state["fc.weight"] = state["fc.weight"][:2]


def not_a_number(state: dict[str, torch.Tensor]) -> None:
    state["fc.bias"] = torch.full_like(state["fc.bias"], float("nan"))


def infinite(state: dict[str, torch.Tensor]) -> None:
    state["bn1.running_var"] = torch.full_like(state["bn1.running_var"], float("inf"))


def integer(state: dict[str, torch.Tensor]) -> None:
    state["fc.bias"] = state["fc.bias"].int()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, "missing tensors: conv1.weight"),
        (extra, "unexpected tensors: conv9.weight"),
        (reshaped, r"fc.weight is \[2, 64\] instead of \[3, 64\]"),
        (not_a_number, "NaN or infinite values in fc.bias"),
        (infinite, "NaN or infinite values in bn1.running_var"),
        (integer, "fc.bias is torch.int32"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path,
    checkpoint: Checkpoint,
    name: str,
    damage: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    state = dict(checkpoint.state)
    damage(state)
    path = tmp_path / name
    save_checkpoint(path, replace(checkpoint, state=state))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert caught.value.where == str(path)
    with pytest.raises(CheckpointError, match=message):
        replace(checkpoint, state=state).build()


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a csr-deploy checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "some.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "some.pt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="not a csr-deploy checkpoint") as caught:
        load_checkpoint(tmp_path / "state.pt")
    assert "save_checkpoint" in str(caught.value)
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="not a csr-deploy checkpoint"):
        load_checkpoint(tmp_path / "tensor.pt")


def test_other_safetensors_files_are_no_checkpoints(tmp_path: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(dict(checkpoint.state), path)
    with pytest.raises(CheckpointError, match="without a csr-deploy record"):
        load_checkpoint(path)
    record = {**checkpoint.record(), "version": 3}
    for text, message in (
        ("{", "record is damaged"),
        ("[]", "record is damaged"),
        (json.dumps(record), "version 3"),
    ):
        save_file(dict(checkpoint.state), path, metadata={"csr-deploy-checkpoint": text})
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, checkpoint: Checkpoint, name: str) -> None:
    path = tmp_path / name
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(ExportError, match="cannot be written"):
            save_checkpoint(path, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_missing_safetensors_names_the_extra(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, checkpoint)
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from csr_deploy.checkpoint import load_checkpoint\n"
        "from csr_deploy.errors import MissingDependencyError\n"
        f"try: load_checkpoint({str(path)!r})\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'csr-deploy[" in done.stdout
