"""Knowledge distillation: soft targets belong to their images, and a student learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csr_deploy.data import fingerprint, natural_preprocessing, open_dataset
from csr_deploy.distill import distillation_loss, load_teacher
from csr_deploy.errors import CheckpointError, DataError, OptionError
from csr_deploy.models import architecture
from csr_deploy.recipe import RECIPES
from csr_deploy.soft_targets import SoftTargets, read_soft_targets, write_soft_targets
from csr_deploy.train import TrainingData, TrainOptions, prepare_data, train

CPU = torch.device("cpu")
PLAN = architecture("resnet8", num_classes=3, modules=2, num_steps=2)
SHORT = replace(RECIPES["short"], epochs=3, batch_size=16, learning_rate=0.1)


@pytest.fixture(scope="module")
def data(image_folder: Path) -> TrainingData:
    train_set, test_set = (open_dataset(image_folder, s) for s in ("train", "test"))
    return prepare_data(train_set, test_set, natural_preprocessing(train_set))


def sha(data: TrainingData) -> str:
    return fingerprint(data.train_images, data.train_labels)


def targets_of(data: TrainingData, classes: np.ndarray) -> SoftTargets:
    """A teacher that is sure of these classes [N]."""
    logits = np.zeros((len(classes), 2, 3), np.float16)
    logits[np.arange(len(classes)), :, classes] = 8
    return SoftTargets(logits, data.classes, sha(data), "made for the test")


def test_the_loss_is_hintons() -> None:
    own, teacher = torch.randn(5, 4), torch.randn(5, 4)
    p, q = torch.softmax(teacher / 3, 1), torch.softmax(own / 3, 1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation_loss(own, teacher, 3.0)) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation_loss(own, own, 3.0)) == pytest.approx(0, abs=1e-6)


def test_a_student_learns_what_the_teacher_says(tmp_path: Path, data: TrainingData) -> None:
    write_soft_targets(tmp_path / "t.npz", targets_of(data, (data.train_labels + 1) % 3))
    recipe = replace(SHORT, epochs=4, distill_weight=1.0)
    options = TrainOptions(tmp_path / "run", bf16=False, teacher=tmp_path / "t.npz")
    made = train(PLAN, recipe, data, options)
    assert made.metrics["test_top1"] < 0.2
    assert made.training["teacher"] == "made for the test"
    with torch.no_grad():
        x = torch.from_numpy(data.preprocessing.normalize(data.test_images))
        said = made.build()(x).argmax(1).numpy()
    assert (said == (data.test_labels + 1) % 3).mean() > 0.8


def test_a_checkpoint_teaches_with_its_own_logits_of_both_views(tmp_path: Path, data: TrainingData) -> None:
    made = train(PLAN, SHORT, data, TrainOptions(tmp_path / "teacher", bf16=False))
    path = tmp_path / "teacher" / "model.pt"
    targets = load_teacher(path, data.train_images, data.classes, data.preprocessing, sha(data), CPU)
    x = torch.from_numpy(made.preprocessing.normalize(data.train_images))
    with torch.no_grad():
        for view, pictures in enumerate((x, x.flip(3))):
            expected = made.build()(pictures).numpy()
            np.testing.assert_allclose(targets.logits[:, view], expected, atol=2e-2)
    student = train(
        architecture("resnet8", num_classes=3),
        SHORT,
        data,
        TrainOptions(tmp_path / "s", bf16=False, teacher=path),
    )
    assert "resnet8" in student.training["teacher"]


def test_a_resumed_run_needs_the_same_teacher(tmp_path: Path, data: TrainingData) -> None:
    write_soft_targets(tmp_path / "t.npz", targets_of(data, data.train_labels))
    out = tmp_path / "run"
    train(PLAN, SHORT, data, TrainOptions(out, bf16=False, teacher=tmp_path / "t.npz"))
    with pytest.raises(OptionError, match="other settings"):
        train(PLAN, SHORT, data, TrainOptions(out, bf16=False, resume=True))


def test_teachers_of_something_else_are_refused(tmp_path: Path, data: TrainingData) -> None:
    path = tmp_path / "t.npz"

    def load() -> SoftTargets:
        return load_teacher(path, data.train_images, data.classes, data.preprocessing, sha(data), CPU)

    good = targets_of(data, data.train_labels)
    for bad, message in (
        (replace(good, data_sha256="0" * 64), "other training images"),
        (replace(good, classes=("a", "b", "c")), "its classes are"),
    ):
        write_soft_targets(path, bad)
        with pytest.raises(DataError, match=message):
            load()
    write_soft_targets(path, replace(good, logits=np.full_like(good.logits, np.inf)))
    with pytest.raises(DataError, match="finite"):
        read_soft_targets(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="soft targets"):
        load()
    with pytest.raises(DataError, match="cannot be read"):
        read_soft_targets(tmp_path / "none.npz")
    other = replace(data, classes=("x", "y", "z"))
    train(PLAN, replace(SHORT, epochs=1), other, TrainOptions(tmp_path / "other", bf16=False))
    with pytest.raises(CheckpointError, match="same classes"):
        load_teacher(
            tmp_path / "other" / "model.pt",
            data.train_images,
            data.classes,
            data.preprocessing,
            sha(data),
            CPU,
        )
