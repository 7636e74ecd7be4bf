"""Training on a tiny set: it learns, and interrupting changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csr_deploy.augment import Augmenter
from csr_deploy.checkpoint import load_checkpoint
from csr_deploy.curve import EpochRecord, read_curve, write_curve
from csr_deploy.data import ArrayDataset, Preprocessing, natural_preprocessing, open_dataset
from csr_deploy.distributed import native_bf16, pick_device
from csr_deploy.errors import CheckpointError, DataError, ExportError, ModelError, OptionError
from csr_deploy.models import architecture
from csr_deploy.recipe import RECIPES, Recipe
from csr_deploy.train import TrainingData, TrainOptions, prepare_data, train
from csr_deploy.train_plot import draw_curves

PLAN = architecture("resnet8", num_classes=3, modules=2, num_steps=2)
SHORT = replace(RECIPES["short"], epochs=4, batch_size=16, learning_rate=0.1)


@pytest.fixture(scope="module")
def data(image_folder: Path) -> TrainingData:
    train_set, test_set = (open_dataset(image_folder, s) for s in ("train", "test"))
    return prepare_data(train_set, test_set, natural_preprocessing(train_set))


def options(out: Path, **changes: Any) -> TrainOptions:
    return replace(TrainOptions(out, bf16=False), **changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(path).state)


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [k for k, v in first.items() if not torch.equal(v, second[k])]
    assert not different


def interrupting(epoch: int, step: int) -> Callable[[int, int, int, float], None]:
    def on_step(at_epoch: int, at_step: int, steps: int, loss: float) -> None:
        if (at_epoch, at_step) == (epoch, step):
            raise KeyboardInterrupt

    return on_step


def accuracy(path: Path, data: TrainingData) -> float:
    checkpoint = load_checkpoint(path)
    with torch.no_grad():
        x = torch.from_numpy(checkpoint.preprocessing.normalize(data.test_images))
        hits = checkpoint.build()(x).argmax(1).numpy() == data.test_labels
    return float(hits.mean())


def test_learns_and_writes_its_files(tmp_path: Path, data: TrainingData) -> None:
    out = tmp_path / "some" / "run"
    seen: list[EpochRecord] = []
    steps: list[tuple[int, int, int]] = []
    made = train(
        PLAN,
        SHORT,
        data,
        options(out, seed=1),
        on_step=lambda epoch, step, count, loss: steps.append((epoch, step, count)),
        on_epoch=seen.append,
    )
    assert sorted(p.name for p in out.iterdir()) == ["metrics.csv", "model.pt", "resume.pt"]
    assert read_curve(out / "metrics.csv") == seen
    assert steps == [(e, s, 4) for e in range(4) for s in range(1, 5)]
    assert seen[-1].test_top1 >= 0.9
    read = load_checkpoint(out / "model.pt")
    assert replace(read, state={}) == replace(made, state={})
    assert read.labels == ("blue", "green", "red")
    assert read.architecture == PLAN
    assert read.metrics == {
        "test_top1": seen[-1].test_top1,
        "test_loss": seen[-1].test_loss,
        "test_images": 24,
    }
    assert read.training["epochs_done"] == 4
    assert Recipe(**read.training["recipe"]) == SHORT
    assert [EpochRecord(**r) for r in read.training["curve"]] == seen
    assert accuracy(out / "model.pt", data) == pytest.approx(seen[-1].test_top1)


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPES["paper"], epochs=3, batch_size=16),
        replace(SHORT, epochs=3, ema_decay=0.9),
        replace(SHORT, epochs=3, muon_rate=0.02),
    ],
    ids=["paper", "short with EMA", "Muon"],
)
@pytest.mark.parametrize("moment", [(1, 2), (2, 4)])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    tmp_path: Path, data: TrainingData, recipe: Recipe, moment: tuple[int, int]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(PLAN, recipe, data, options(whole, seed=5))
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, recipe, data, options(broken, seed=5), on_step=interrupting(*moment))
    assert load_checkpoint(broken / "model.pt").training["epochs_done"] == moment[0]
    # What happened to the random state in between must not matter.
    torch.rand(3)
    train(PLAN, recipe, data, options(broken, seed=5, resume=True))
    assert_same_weights(whole / "model.pt", broken / "model.pt")
    untimed = [[replace(r, seconds=0.0) for r in read_curve(out / "metrics.csv")] for out in (whole, broken)]
    assert untimed[0] == untimed[1]
    optimizers = [torch.load(out / "resume.pt", weights_only=True)["optimizer"] for out in (whole, broken)]
    assert sorted(optimizers[0]) == (["muon", "sgd"] if recipe.muon_rate else ["sgd"])
    for name, optimizer in optimizers[0].items():
        for key, value in optimizer["state"].items():
            assert torch.equal(value["momentum_buffer"], optimizers[1][name]["state"][key]["momentum_buffer"])


def test_seeds_differ(tmp_path: Path, data: TrainingData) -> None:
    recipe = replace(SHORT, epochs=1)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(PLAN, recipe, data, options(tmp_path / name, seed=seed))
    assert_same_weights(tmp_path / "a" / "model.pt", tmp_path / "b" / "model.pt")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a" / "model.pt", tmp_path / "c" / "model.pt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: TrainingData) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(PLAN, replace(SHORT, epochs=1), data, options(out))
    return out


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_run_is_not_overwritten(finished: Path, data: TrainingData) -> None:
    before = (finished / "model.pt").read_bytes()
    with pytest.raises(OptionError, match="already holds a run(.|\n)*--resume"):
        train(PLAN, SHORT, data, options(finished))
    assert (finished / "model.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": replace(SHORT, epochs=2)}, "recipe.epochs was 1, is 2"),
        ({"recipe": replace(SHORT, epochs=1, learning_rate=0.2)}, "recipe.learning_rate was 0.1, is 0.2"),
        ({"architecture": architecture("resnet8", num_classes=3)}, "architecture.csr_layers.*was 2, is None"),
        ({"options": {"seed": 3}}, "seed was 0, is 3"),
        ({"options": {"bf16": True}}, "bf16 was False, is True"),
        ({"data": "other"}, "data_sha256 was"),
    ],
)
def test_a_changed_run_is_not_resumed(
    finished: Path, data: TrainingData, change: dict[str, Any], message: str
) -> None:
    if "data" in change:
        data = replace(data, train_labels=data.train_labels[::-1].copy())
    with pytest.raises(OptionError, match=message):
        train(
            change.get("architecture", PLAN),
            change.get("recipe", replace(SHORT, epochs=1)),
            data,
            options(finished, resume=True, **change.get("options", {})),
        )


def test_nothing_to_resume(tmp_path: Path, data: TrainingData) -> None:
    with pytest.raises(OptionError, match="holds no run to resume"):
        train(PLAN, SHORT, data, options(tmp_path / "none", resume=True))
    assert not (tmp_path / "none").exists()


def test_files_lost_between_two_epochs_are_written_again(
    tmp_path: Path, finished: Path, data: TrainingData
) -> None:
    out = copied(finished, tmp_path / "run")
    (out / "model.pt").unlink()
    (out / "metrics.csv").unlink()
    train(PLAN, replace(SHORT, epochs=1), data, options(out, resume=True))
    assert_same_weights(out / "model.pt", finished / "model.pt")
    assert read_curve(out / "metrics.csv") == read_curve(finished / "metrics.csv")


def test_a_run_started_before_bf16_was_recorded_is_resumed(
    tmp_path: Path, finished: Path, data: TrainingData
) -> None:
    out = copied(finished, tmp_path / "run")
    content = torch.load(out / "resume.pt", weights_only=True)
    del content["identity"]["bf16"]
    torch.save(content, out / "resume.pt")
    train(PLAN, replace(SHORT, epochs=1), data, options(out, resume=True))


def cut(content: dict[str, Any], path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def other_form(content: dict[str, Any], path: Path) -> None:
    torch.save([1, 2], path)


def no_records(content: dict[str, Any], path: Path) -> None:
    torch.save({**content, "records": [{"epoch": 1}]}, path)


def other_optimizer(content: dict[str, Any], path: Path) -> None:
    torch.save({**content, "optimizer": {"state": {}, "param_groups": []}}, path)


def not_finite(content: dict[str, Any], path: Path) -> None:
    content["model"]["fc.bias"][0] = math.nan
    torch.save(content, path)


@pytest.mark.parametrize("damage", [cut, other_form, no_records, other_optimizer, not_finite])
def test_a_damaged_run_is_not_resumed(
    tmp_path: Path, finished: Path, data: TrainingData, damage: Callable[[dict[str, Any], Path], None]
) -> None:
    out = copied(finished, tmp_path / "run")
    before = (out / "model.pt").read_bytes()
    damage(torch.load(out / "resume.pt", weights_only=True), out / "resume.pt")
    with pytest.raises(CheckpointError) as caught:
        train(PLAN, replace(SHORT, epochs=1), data, options(out, resume=True))
    assert caught.value.where == str(out / "resume.pt")
    assert (out / "model.pt").read_bytes() == before


def test_a_run_that_diverges_keeps_the_epochs_before(tmp_path: Path, data: TrainingData) -> None:
    recipe = replace(RECIPES["paper"], epochs=30, batch_size=16, learning_rate=1e9)
    with pytest.raises(OptionError, match="the loss became (nan|inf)(.|\n)*Lower --lr"):
        train(PLAN, recipe, data, options(tmp_path / "run"))
    if (tmp_path / "run" / "model.pt").exists():
        load_checkpoint(tmp_path / "run" / "model.pt")


def test_an_output_that_cannot_be_made(tmp_path: Path, data: TrainingData) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OptionError, match="cannot be used for a run"):
        train(PLAN, SHORT, data, options(tmp_path / "file" / "run"))


def test_small_sets_and_small_images(tmp_path: Path, data: TrainingData) -> None:
    few = replace(data, train_images=data.train_images[:10], train_labels=data.train_labels[:10])
    made = train(PLAN, replace(SHORT, epochs=1), few, options(tmp_path / "few"))
    assert made.training["recipe"]["batch_size"] == 10
    one = replace(data, train_images=data.train_images[:1], train_labels=data.train_labels[:1])
    with pytest.raises(DataError, match="1 training images .* too few"):
        train(PLAN, SHORT, one, options(tmp_path / "one"))
    with pytest.raises(ModelError, match=r"vgg16 cannot take training crops of 12×12(.|\n)*--no-progressive"):
        recipe = replace(SHORT, progressive=True)
        train(architecture("vgg16", num_classes=3), recipe, data, options(tmp_path / "small"))


def test_bf16_and_memory_format_train_too(tmp_path: Path, data: TrainingData) -> None:
    recipe = replace(SHORT, epochs=1)
    made = train(PLAN, recipe, data, options(tmp_path / "run", bf16=True, channels_last=False))
    assert made.training["bf16"] is True
    assert all(v.dtype in (torch.float32, torch.int64) for v in made.state.values())


# Data for training


def sets(classes: tuple[str, ...], train_labels: list[int], test_labels: list[int]) -> list[ArrayDataset]:
    return [
        ArrayDataset(
            name, classes, np.zeros((len(labels), 8, 8, 1), np.uint8), np.asarray(labels, dtype=np.int64)
        )
        for name, labels in (("train", train_labels), ("test", test_labels))
    ]


def test_sets_that_cannot_be_trained_on() -> None:
    size = Preprocessing(8, 8, (0.0,), (1.0,))
    with pytest.raises(DataError, match="only one class"):
        prepare_data(*sets(("a",), [0], [0]), size)
    with pytest.raises(DataError, match="no training image of class b"):
        prepare_data(*sets(("a", "b", "c"), [0, 2], [0, 1]), size)
    with pytest.raises(DataError, match="train part has no class folders"):
        prepare_data(*sets((), [-1], [-1]), size)
    train_set, _ = sets(("a", "b"), [0, 1], [0])
    with pytest.raises(DataError, match="different classes: b, c"):
        prepare_data(train_set, sets(("a", "c"), [0], [0])[1], size)
    with pytest.raises(DataError, match="test part has no class folders"):
        prepare_data(train_set, sets((), [], [-1])[1], size)


# Recipes


def test_paper_recipe_is_the_papers() -> None:
    paper = RECIPES["paper"]
    assert (paper.batch_size, paper.momentum, paper.weight_decay, paper.flip) == (128, 0.9, 5e-4, True)
    rates = [paper.rate(epoch * 391, 391) for epoch in (0, 29, 30, 60)]
    assert rates == [0.05, 0.05, 0.025, 0.0125]
    imagenet = RECIPES["paper-imagenet"]
    assert [imagenet.rate(e * 7, 7) for e in (0, 10, 20)] == pytest.approx([0.05, 0.005, 0.0005])


def test_one_cycle_rises_and_falls() -> None:
    recipe = replace(RECIPES["short"], epochs=4)
    rates = [recipe.rate(step, 10) for step in range(40)]
    peak = int(np.argmax(rates))
    assert peak == 10
    assert rates[peak] == recipe.learning_rate
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert rates[-1] < 0.01 * recipe.learning_rate


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"ema_decay": 1.0},
        {"crop_padding": -1},
        {"warmup": 0.0},
        {"schedule": "cosine"},
        {"nesterov": True, "momentum": 0.0},
    ],
)
def test_recipes_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="makes no sense"):
        Recipe(**{"epochs": 1, **values})


def test_seeds_out_of_range(tmp_path: Path) -> None:
    for seed in (-1, 2**63):
        with pytest.raises(OptionError, match="out of range"):
            TrainOptions(tmp_path, seed=seed)


def test_crops_are_windows_of_the_reflected_image() -> None:
    recipe = Recipe(epochs=30, crop_padding=2, progressive=True)
    size = Preprocessing(8, 8, (0.0,), (1.0,))
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    batch = torch.from_numpy(np.repeat(image[None, :, :, None], 200, axis=0))
    for epoch, side in ((0, 6), (29, 8)):
        padded = np.pad(image, recipe.border(epoch), mode="reflect").astype(np.float32) / 255
        views, mirrored = Augmenter(recipe, size)(batch, epoch, torch.Generator().manual_seed(0))
        crops = views.numpy()
        assert 60 < int(mirrored.sum()) < 140
        straight = {np.ascontiguousarray(c).tobytes() for c in crops[~mirrored.numpy(), 0]}
        assert crops.shape == (200, 1, side, side)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).reshape(-1, side, side)
        known = {w.tobytes() for w in windows} | {np.ascontiguousarray(w[:, ::-1]).tobytes() for w in windows}
        assert straight <= {w.tobytes() for w in windows}
        drawn = {crop.tobytes() for crop in crops[:, 0]}
        assert drawn <= known
        assert len(drawn) > 0.5 * len(known)


def test_devices_are_never_replaced_by_others() -> None:
    assert pick_device("cpu").type == "cpu"
    assert isinstance(native_bf16(pick_device("cpu")), bool)
    for name in ("gpu", "meta"):
        with pytest.raises(OptionError, match=name):
            pick_device(name)
    with pytest.raises(OptionError, match="torch sees"):
        pick_device("cuda:99")


# Curves


def test_curves_are_drawn(tmp_path: Path, finished: Path) -> None:
    records = read_curve(finished / "metrics.csv")
    draw_curves(records, tmp_path / "one.png", "one epoch")
    many = [replace(records[0], epoch=e, train_loss=1 / e) for e in range(1, 60)]
    draw_curves(many, tmp_path / "many.png", "many epochs")
    from PIL import Image

    for name in ("one.png", "many.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500
    with pytest.raises(DataError, match="no epoch"):
        draw_curves([], tmp_path / "none.png", "none")
    assert not (tmp_path / "none.png").exists()


def test_curves_read_and_write(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    records = [EpochRecord(1, 0.1, 1 / 3, 0.5, 2.5, 0.25, 1.5)]
    write_curve(path, records)
    assert read_curve(path) == records
    path.write_text("epoch,colour\n1,red\n")
    with pytest.raises(DataError, match="no metrics.csv"):
        read_curve(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_curve(tmp_path / "none.csv")
    with pytest.raises(ExportError):
        write_curve(path / "below.csv", records)


def _small_data(channels: int = 3) -> TrainingData:
    random = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = random.integers(0, 100, (64, 16, 16, channels)).astype(np.uint8)
    images[labels == 1] += 120
    return TrainingData(
        images, labels, images[:16], labels[:16], ("dark", "light"), Preprocessing.from_images(images), "test"
    )


_BRIEF = Recipe(epochs=2, batch_size=16, schedule="one-cycle", learning_rate=0.05)


def test_a_csr_network_takes_over_the_layers_ahead_of_its_first_csr_conv(tmp_path: Path) -> None:
    data = _small_data()
    backbone = architecture("resnet8", num_classes=2)
    train(backbone, _BRIEF, data, TrainOptions(tmp_path / "backbone"))
    source = tmp_path / "backbone" / "model.pt"
    plan = architecture("resnet8", num_classes=2, modules=1, num_steps=2)
    options = TrainOptions(tmp_path / "csr", init=source, freeze=True)
    trained = train(plan, _BRIEF, data, options)
    first, last = load_checkpoint(source).state, trained.state
    ahead = [k for k in first if k.startswith(("conv1", "bn1", "layer1", "layer2"))]
    assert ahead
    assert all(torch.equal(first[k], last[k]) for k in ahead), "frozen, BatchNorm statistics too"
    assert not torch.equal(first["fc.weight"], last["fc.weight"]), (
        "behind the CSR-Convs nothing is taken over"
    )
    record = trained.training["init"]
    assert record["frozen"]
    assert "layer2.0.conv2" in record["modules"]
    assert not any(m.startswith(("layer3", "fc")) for m in record["modules"])

    again = train(plan, _BRIEF, data, TrainOptions(tmp_path / "free", init=source))
    assert not torch.equal(first["conv1.weight"], again.state["conv1.weight"])


def test_a_run_starts_from_a_checkpoint_of_the_same_network(tmp_path: Path) -> None:
    data = _small_data()
    plan = architecture("resnet8", num_classes=2, modules=1, num_steps=2)
    train(plan, _BRIEF, data, TrainOptions(tmp_path / "first"))
    source = tmp_path / "first" / "model.pt"
    still = replace(_BRIEF, epochs=1, learning_rate=1e-12, weight_decay=0.0)
    trained = train(plan, still, data, TrainOptions(tmp_path / "second", init=source))
    before = load_checkpoint(source).state
    weights = [k for k in before if k.endswith((".v", ".u", "weight"))]
    assert all(torch.allclose(before[k], trained.state[k], atol=1e-6) for k in weights)
    assert trained.training["init"]["complete"]
    with pytest.raises(OptionError, match="nothing would be trained"):
        train(plan, still, data, TrainOptions(tmp_path / "third", init=source, freeze=True))


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    gray = _small_data(channels=1)
    train(architecture("resnet8", 2, 1), _BRIEF, gray, TrainOptions(tmp_path / "gray"))
    with pytest.raises(CheckpointError, match="first layers"):
        options = TrainOptions(tmp_path / "rgb", init=tmp_path / "gray" / "model.pt")
        train(architecture("resnet8", 2, 3), _BRIEF, _small_data(), options)
    with pytest.raises(OptionError, match="--init"):
        TrainOptions(tmp_path / "x", freeze=True)


def test_quantisation_aware_training_is_resumed_exactly_too(tmp_path: Path, data: TrainingData) -> None:
    recipe = replace(SHORT, epochs=3, learning_rate=0.01)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    made = train(PLAN, recipe, data, options(whole, qat=True))
    assert made.training["qat"] is True
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, recipe, data, options(broken, qat=True), on_step=interrupting(1, 2))
    with pytest.raises(OptionError, match="other settings"):
        train(PLAN, recipe, data, options(broken, resume=True))
    train(PLAN, recipe, data, options(broken, qat=True, resume=True))
    assert_same_weights(whole / "model.pt", broken / "model.pt")
