"""What a search found: its Pareto front as records, JSON, a plot and checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from csr_deploy.atomic import atomic_directory, atomic_write
from csr_deploy.checkpoint import save_checkpoint
from csr_deploy.errors import CheckpointError, ExportError
from csr_deploy.search.claims import FAILURE, NETWORK, RETRY_OF
from csr_deploy.search.objectives import Objective
from csr_deploy.search.plot import draw_front
from csr_deploy.search.proxy import searched_checkpoint
from csr_deploy.search.storage import shown
from csr_deploy.search.worker import (
    AHEAD,
    ARCHITECTURE,
    COSTS,
    CURVE,
    DETAILS,
    FOLDER,
    HOST,
    PARAMETERS,
    SECONDS,
    SEED,
    Study,
)

SCHEMA_VERSION = 1
_FRONT = "pareto"


@dataclass(frozen=True)
class Found:
    """One network that was tried.

    Attributes:
        network: Its name.
        trial: Number of its trial in the study.
        outcome: "trained", "stopped" (hopeless) or "failed".
        values: Objective → value; accuracy is that of the last epoch, also of a stopped one. Empty where it
            failed before it was measured.
        details: What else the measurements said.
        compression: Percent of the backbone's parameters it does without.
        epochs: Epochs it was trained.
        seconds: Of its training; None where it was stopped.
        seed: Of its training.
        retry_of: Number of the lost trial it repeats; None for none.
        ahead: For a stopped one: the network that was ahead.
        failure: For a failed one: why.
        host: The machine it was trained on.
        folder: Where its training is, there.
        architecture: Plain values of `csr_deploy.models.Architecture`.
        checkpoint: Of a network on the front: relative to the search's folder; None where its training is on
            another machine.
        command: Of a network on the front: how `csr-train` trains it fully.
    """

    network: str
    trial: int
    outcome: str
    values: Mapping[str, float]
    details: Mapping[str, Any]
    compression: float | None
    epochs: int
    seconds: float | None
    seed: int | None
    retry_of: int | None
    ahead: str | None
    failure: str | None
    host: str | None
    folder: str | None
    architecture: Mapping[str, Any] | None
    checkpoint: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Front:
    """The result of a search.

    Attributes:
        backbone: Key of the backbone.
        objectives: In their order.
        front: Networks that no other one beats, most accurate first.
        others: All other ones, in the order of their trials.
    """

    backbone: str
    objectives: tuple[Objective, ...]
    front: tuple[Found, ...]
    others: tuple[Found, ...]


def dominates(a: Mapping[str, float], b: Mapping[str, float], objectives: Sequence[Objective]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    signs = {o.text: 1.0 if o.maximised else -1.0 for o in objectives}
    differences = [sign * (a[name] - b[name]) for name, sign in signs.items()]
    return min(differences) >= 0 and max(differences) > 0


def collect(study: Study) -> Front:
    """Reads what was found so far.

    Raises:
        StorageError: If the storage fails.
    """
    found = [describe(study, trial) for trial in study.finished()]
    trained = [f for f in found if f.outcome == "trained"]
    front = [f for f in trained if not any(dominates(o.values, f.values, study.objectives) for o in trained)]
    first = study.objectives[0].text
    front.sort(key=lambda f: (-f.values[first], f.network))
    others = [f for f in found if f not in front]
    return Front(study.settings.backbone, study.objectives, tuple(front), tuple(others))


def describe(study: Study, trial: FrozenTrial) -> Found:
    """A finished trial in plain words."""
    return _found(trial, study.objectives, study.space.backbone_counts.parameters)


def _found(trial: FrozenTrial, objectives: Sequence[Objective], backbone: int) -> Found:
    marks = trial.user_attrs
    outcome = {TrialState.COMPLETE: "trained", TrialState.PRUNED: "stopped"}.get(trial.state, "failed")
    values: dict[str, float] = {}
    curve = marks.get(CURVE, [])
    if curve and COSTS in marks:
        values = {objectives[0].text: curve[-1], **marks[COSTS]}
    if trial.state == TrialState.COMPLETE:
        values = dict(zip((o.text for o in objectives), trial.values, strict=True))
    parameters = marks.get(PARAMETERS)
    return Found(
        network=marks[NETWORK],
        trial=trial.number,
        outcome=outcome,
        values=values,
        details=marks.get(DETAILS, {}),
        compression=None if parameters is None else 100 * (1 - parameters / backbone),
        epochs=len(curve),
        seconds=marks.get(SECONDS),
        seed=marks.get(SEED),
        retry_of=marks.get(RETRY_OF),
        ahead=marks.get(AHEAD),
        failure=marks.get(FAILURE),
        host=marks.get(HOST),
        folder=marks.get(FOLDER),
        architecture=marks.get(ARCHITECTURE),
    )


def write_front(study: Study, front: Front, out: Path) -> Front:
    """Writes `pareto.json`, `pareto.png` and `pareto/NETWORK/model.pt` of the front's networks.

    Args:
        study: The study.
        front: What was collected.
        out: The search's folder.

    Returns:
        The front with checkpoints and commands.

    Raises:
        ExportError: If a file cannot be written.
        MissingDependencyError: If matplotlib is not installed.
    """
    with _alone(out):
        return _write(study, front, out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds off another process that writes into the folder: several commands of a study end at once."""
    try:
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise ExportError(f"cannot be opened: {error.strerror or error}", where=str(out)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(study: Study, front: Front, out: Path) -> Front:
    written = []
    with atomic_directory(out / _FRONT, replace=True) as folder:
        for found in front.front:
            path = _copy(found, study, folder)
            relative = None if path is None else f"{_FRONT}/{path.relative_to(folder)}"
            written.append(_with_checkpoint(found, relative, study, out))
    done = Front(front.backbone, front.objectives, tuple(written), front.others)
    content = {
        "schema_version": SCHEMA_VERSION,
        "backbone": front.backbone,
        "study": study.settings.study,
        "storage": shown(study.settings.storage),
        "objectives": [
            {"objective": o.text, "direction": "maximise" if o.maximised else "minimise", "unit": o.unit}
            for o in front.objectives
        ],
        "settings": {**study.settings.identity(), **study.proxy.identity()},
        "front": [asdict(f) for f in done.front],
        "others": [asdict(f) for f in done.others],
    }
    with atomic_write(out / "pareto.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_front(done, out / "pareto.png")
    return done


def _copy(found: Found, study: Study, folder: Path) -> Path | None:
    """The checkpoint of a network of the front, where its training can be seen from here."""
    source = study.proxy.folder(found.network) / "model.pt"
    record = {
        "trial": found.trial,
        "values": dict(found.values),
        "details": dict(found.details),
        "backbone": study.settings.backbone,
        "objectives": [o.text for o in study.objectives],
    }
    try:
        checkpoint = searched_checkpoint(source, record)
    except CheckpointError:
        # It was trained on another machine, and `host` and `folder` say where.
        return None
    path = folder / found.network / "model.pt"
    save_checkpoint(path, checkpoint)
    return path


def _with_checkpoint(found: Found, checkpoint: str | None, study: Study, out: Path) -> Found:
    command = None
    if checkpoint is not None:
        size = study.settings.image_size
        arguments = ["csr-train", "--network", str(out / checkpoint), "--data", study.settings.data]
        arguments += ["--image-size", f"{size[0]}x{size[1]}"] if size else []
        command = shlex.join([*arguments, "--out", f"runs/{found.network}"])
    values = {**asdict(found), "checkpoint": checkpoint, "command": command}
    return Found(**values)


def is_here(found: Found) -> bool:
    """Whether a network was trained on this machine."""
    return found.host == platform.node()
