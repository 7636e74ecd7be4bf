"""Training on views: what is mixed, what the teacher is asked, and that interrupting changes nothing."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csr_deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from csr_deploy.data import natural_preprocessing, open_dataset
from csr_deploy.errors import DataError
from csr_deploy.models import architecture
from csr_deploy.train import TrainingData, prepare_data

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("views")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("distill_views")


@pytest.fixture(scope="module")
def data(image_folder: Path) -> TrainingData:
    train_set, test_set = (open_dataset(image_folder, s) for s in ("train", "test"))
    return prepare_data(train_set, test_set, natural_preprocessing(train_set))


def test_a_mixed_view_has_the_shares_it_is_labelled_with(views: Any) -> None:
    count = 400
    drawn = views.Views.drawn(3, 0, count, 16, 12)
    images = torch.zeros(count, 16, 12, 3, dtype=torch.uint8)
    images[::2] = 200
    seen = drawn.render(images, torch.arange(count)).float().mean((1, 2, 3))
    own, other = images[:, 0, 0, 0].float(), images[drawn.partner, 0, 0, 0].float()
    torch.testing.assert_close(seen, drawn.first * own + (1 - drawn.first) * other, atol=0.51, rtol=0)
    cut, mixed = drawn.box.sum(1) > 0, drawn.first < 1
    assert 0.4 < mixed.float().mean() < 0.6
    assert 0.15 < (mixed & cut).float().mean() < 0.35
    assert not (cut & ~mixed).any()


def test_a_moved_and_mirrored_view_is_of_the_same_pixels(views: Any) -> None:
    images = torch.randint(
        0, 256, (40, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    drawn, chosen = views.Views.drawn(0, 1, 40, 16, 16), torch.arange(40)
    assert torch.equal(drawn.render(images, chosen), drawn.render(images, chosen))
    whole = (drawn.first == 1).nonzero().flatten()
    moved = drawn.render(images, whole, torch.Generator().manual_seed(2))
    for one, other in zip(drawn.render(images, whole), moved, strict=True):
        inner = other[2:-2, 2:-2]
        places = [one[2 + r : 14 + r, 2 + c : 14 + c] for r in (-1, 0, 1) for c in (-1, 0, 1)]
        assert any(torch.equal(inner, p) or torch.equal(inner, p.flip(1)) for p in places)


def test_views_can_be_chosen_image_by_image(views: Any) -> None:
    drawn = [views.Views.drawn(0, i, 30, 8, 8) for i in range(3)]
    which = torch.arange(30) % 3
    mixed = views.Views.chosen(drawn, which)
    images = torch.randint(
        0, 256, (30, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    for i, view in enumerate(drawn):
        of = (which == i).nonzero().flatten()
        assert torch.equal(mixed.render(images, of), view.render(images, of))
    assert {f.name for f in fields(mixed)} == {"partner", "first", "tops", "lefts", "mirrored", "box"}


def test_answers_of_other_images_are_refused(views: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    views.ViewTargets(np.zeros((1, 2, 3), np.float16), 0, "one", "made for the test").write(path)
    assert views.ViewTargets.read(path, "one").teacher == "made for the test"
    with pytest.raises(DataError, match="other training images"):
        views.ViewTargets.read(path, "two")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no file of answers"):
        views.ViewTargets.read(path, "one")


@pytest.fixture
def arguments(tool: Any, data: TrainingData, tmp_path: Path) -> Callable[[str], argparse.Namespace]:
    """Arguments of a training, from what the tool's own teacher says."""
    torch.manual_seed(0)
    plan = architecture("resnet8", num_classes=3, modules=2, num_steps=2)
    state = plan.build().state_dict()
    start = Checkpoint(plan, dict(state), data.classes, data.preprocessing, {}, {})
    save_checkpoint(tmp_path / "start.pt", start)
    save_file(tool.Wide(data.preprocessing.channels, 3).state_dict(), tmp_path / "wide.safetensors")
    asked = argparse.Namespace(
        wide=tmp_path / "wide.safetensors", views=3, seed=0, out=tmp_path / "views.npz"
    )
    tool.make_targets(asked, data)
    return lambda name: argparse.Namespace(
        init=tmp_path / "start.pt", targets=tmp_path / "views.npz", out=tmp_path / name, seed=0,
        epochs=4, frozen=2, plain=1, batch_size=16, muon_lr=0.02,
    )  # fmt: skip


def test_a_resumed_run_equals_one_that_was_not_interrupted(
    tool: Any, data: TrainingData, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.Run(arguments("whole"), data).train()
    epoch = tool.Run._epoch
    for stop in (1, 2, 3):

        def interrupted(self: Any, number: int, stop: int = stop) -> Any:
            if number == stop:
                raise KeyboardInterrupt
            return epoch(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(tool.Run, "_epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                tool.Run(arguments(f"part{stop}"), data).train()
        tool.Run(arguments(f"part{stop}"), data).train()
        whole, part = (load_checkpoint(arguments(n).out / "model.pt") for n in ("whole", f"part{stop}"))
        assert all(torch.equal(v, part.state[k]) for k, v in whole.state.items())
        assert part.training["epochs_done"] == 4
    with pytest.raises(SystemExit, match="other settings"):
        tool.Run(argparse.Namespace(**{**vars(arguments("whole")), "muon_lr": 0.01}), data)


def test_a_frozen_stage_stays_as_it_was(tool: Any, data: TrainingData, arguments: Any) -> None:
    given = arguments("frozen")
    given.frozen = given.epochs
    tool.Run(given, data).train()
    before, after = load_checkpoint(given.init).state, load_checkpoint(given.out / "model.pt").state
    front = [k for k in before if k.startswith(("conv1.", "bn1.", "layer1."))]
    assert front and all(torch.equal(before[k], after[k]) for k in front)
    assert not torch.equal(before["layer3.0.conv1.cell.v"], after["layer3.0.conv1.cell.v"])
