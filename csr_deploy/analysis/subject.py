"""What `csr-info` is asked about: a network's name, a checkpoint or an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from csr_deploy.artifact import MANIFEST, Artifact, read_artifact
from csr_deploy.checkpoint import load_checkpoint
from csr_deploy.errors import ArtifactError, ModelError, OptionError
from csr_deploy.models import BACKBONES, PRESETS, Architecture, architecture


@dataclass(frozen=True)
class Subject:
    """A network to count.

    Attributes:
        name: What to call it.
        plan: How it is built.
        input_shape: [C, H, W] of one image.
        model: The module.
        trained: Whether the module holds trained weights.
        stored: What an artifact says of itself, plain values.
    """

    name: str
    plan: Architecture
    input_shape: tuple[int, int, int]
    model: nn.Module
    trained: bool
    stored: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """Options that say which network a name means.

    Attributes:
        modules: For a backbone: how many modules, from the last, become CSR-Convs.
        num_steps: T of those modules.
        cell: Step cell.
        classes: Number of logits.
        image_size: Height and width.
    """

    modules: int | None = None
    num_steps: int | None = None
    cell: str | None = None
    classes: int | None = None
    image_size: tuple[int, int] | None = None


def find_subject(text: str, choice: Choice | None = None) -> Subject:
    """Finds what a name or path means; names of networks go before paths.

    Args:
        text: Preset, backbone, checkpoint or directory of an artifact.
        choice: Which network a name means; for a file only `image_size` may be set.

    Raises:
        ModelError: If there is no such network.
        CheckpointError: If the checkpoint cannot be used.
        ArtifactError: If the artifact cannot be used.
        OptionError: If an option is given that the file decides.
    """
    choice = choice or Choice()
    if text in PRESETS or text in BACKBONES or not _is_path(text):
        plan = architecture(text, choice.classes, modules=choice.modules, num_steps=choice.num_steps)
        if choice.cell is not None:
            plan = plan.with_cell(choice.cell)
        size = choice.image_size or plan.image_size
        return Subject(plan.name, plan, (plan.in_channels, *size), plan.build(), False)
    if replace(choice, image_size=None) != Choice():
        raise OptionError(
            "the number of modules, T, the cell and the classes are in the file",
            where=text,
            fix="Give these options with the name of a network.",
        )
    path = Path(text)
    return _artifact(path, choice) if path.is_dir() else _checkpoint(path, choice)


def backbone_of(subject: Subject) -> Subject | None:
    """The network that a CSR network was made from, untrained; None for one without CSR-Convs."""
    plan = subject.plan
    if not plan.csr_layers:
        return None
    # What a preset sets makes the CSR network; other options are those of the backbone.
    options = {} if plan.name in PRESETS else dict(plan.options)
    plain = Architecture(plan.backbone, plan.num_classes, plan.in_channels, options, name=plan.backbone)
    return Subject(plain.name, plain, subject.input_shape, plain.build(), False)


def _is_path(text: str) -> bool:
    path = Path(text)
    return path.exists() or len(path.parts) > 1 or path.suffix in (".pt", ".pth", ".safetensors")


def _checkpoint(path: Path, choice: Choice) -> Subject:
    checkpoint = load_checkpoint(path)
    plan, p = checkpoint.architecture, checkpoint.preprocessing
    size = choice.image_size or (p.height, p.width)
    name = path.stem if path.stem != "model" else plan.name or plan.backbone
    return Subject(name, plan, (p.channels, *size), checkpoint.build(), True)


def _artifact(path: Path, choice: Choice) -> Subject:
    if not (path / MANIFEST).exists():
        raise ArtifactError(
            f"is a folder without {MANIFEST}",
            where=str(path),
            fix="Name an artifact of csr-export, or the model.pt of a run.",
        )
    artifact = read_artifact(path)
    values = artifact.source.get("architecture")
    if not isinstance(values, Mapping):
        raise ArtifactError(
            "does not say what network it was made from",
            where=str(path),
            fix="Only artifacts that csr-export made from a checkpoint do.",
        )
    try:
        options = {
            k: tuple(v) if isinstance(v, list) else v for k, v in dict(values.get("options", {})).items()
        }
        plan = Architecture(**{**values, "options": options})
        model = plan.build()
    except (TypeError, ValueError, AttributeError, ModelError) as error:
        raise ArtifactError(f"its record of the network cannot be built: {error}", where=str(path)) from error
    p = artifact.preprocessing
    size = choice.image_size or (p.height, p.width)
    return Subject(artifact.path.name, plan, (p.channels, *size), model, False, _stored(artifact))


def _stored(artifact: Artifact) -> dict[str, Any]:
    model = artifact.model
    return {
        "target": artifact.target,
        "model_file": artifact.files[0].name,
        "model_bytes": artifact.files[0].size,
        "weight_elements": artifact.ledger.get("weight_elements"),
        "stored_bytes": artifact.ledger.get("stored_bytes"),
        "constant_bytes": model.get("constant_bytes"),
        "arena_bytes": model.get("arena_bytes"),
        "exported_macs": model.get("macs"),
    }
