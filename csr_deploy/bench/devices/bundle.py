"""What a device needs for a group: the artifacts' files and the test images, each by its hash."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr_deploy.artifact import MANIFEST, Artifact, read_artifact
from csr_deploy.bench.devices.base import DeviceError
from csr_deploy.bench.devices.blobs import file_sha256
from csr_deploy.bench.plan import find_subject
from csr_deploy.data import BUILTIN, Preprocessing, open_dataset, sample
from csr_deploy.data.drawn import write_drawn

if TYPE_CHECKING:
    from csr_deploy.bench.groups import Group
    from csr_deploy.bench.plan import BenchOptions, BenchSubject

_KEY_DIGITS = 32


@dataclass(frozen=True)
class Bundle:
    """What is sent, and what is asked for.

    Attributes:
        files: SHA-256 → the file here.
        labels: SHA-256 → its name for people.
        trees: Folder on the device → name of a file in it → SHA-256.
        key: Of the measurement: the same group with the same files and options has the same one.
        job: See `csr_deploy.bench.devices.jobs`.
        data: Name of the image set as the user gave it; None without.
    """

    files: Mapping[str, Path]
    labels: Mapping[str, str]
    trees: Mapping[str, Mapping[str, str]]
    key: str
    job: Mapping[str, Any]
    data: str | None

    def restore(self, result: dict[str, Any]) -> dict[str, Any]:
        """Puts the user's name of the image set into a result that has the device's."""
        if self.data is not None:
            result["options"]["data"] = self.data
            for measurement in result["measurements"]:
                if measurement["accuracy"] is not None:
                    measurement["accuracy"]["source"] = self.data
        return result


class Bundler:
    """Makes bundles; what several groups share is made once.

    Args:
        folder: For files that are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawn: dict[tuple[Any, ...], Path] = {}

    def bundle(self, group: Group) -> Bundle:
        """The bundle of a group.

        Raises:
            ArtifactError: If an artifact is damaged.
            DataError: If the image set cannot be read.
            DeviceError: If nothing of the plan can run on a device.
        """
        plan = group.plan
        files: dict[str, Path] = {}
        labels: dict[str, str] = {}
        trees: dict[str, Mapping[str, str]] = {}
        subjects = []
        sizes: list[Preprocessing] = []
        for subject in plan.subjects:
            artifact = _read(subject)
            names = _names(subject, artifact)
            if artifact is not None:
                sizes.append(artifact.preprocessing)
            for name, (sha256, path) in names.items():
                files[sha256] = path
                labels.setdefault(sha256, f"{subject.label}/{name}")
            tree = {name: sha256 for name, (sha256, _) in names.items()}
            place = f"trees/{_key(tree)}"
            trees[place] = tree
            file = None if artifact is not None else subject.path.name
            # The path is this machine's; the device puts its own in its place.
            plain = {**asdict(subject), "path": file}
            subjects.append({"subject": plain, "tree": place, "files": tree})
        if not sizes:
            raise DeviceError(
                "it measures artifacts, and none was given",
                stage="verify",
                fix="Export the checkpoints first: csr-export. Torch is on no device.",
            )
        images = self._images(plan.options, sizes)
        if images is not None:
            sha256 = file_sha256(images)
            files[sha256], labels[sha256] = images, f"images of {plan.options.data}"
        job = {
            "subjects": subjects,
            "baseline": plan.baseline,
            "options": asdict(plan.options),
            "data": None if images is None else sha256,
        }
        return Bundle(files, labels, trees, _key([group.id, job]), job, plan.options.data)

    def _images(self, options: BenchOptions, sizes: list[Preprocessing]) -> Path | None:
        """The drawn test images; None where none are wanted, or the device has the set itself."""
        if options.data is None or (options.data in BUILTIN and not Path(options.data).exists()):
            return None
        shapes = {(p.height, p.width, p.channels): p for p in sizes}
        key = (options.data, options.limit, options.seed, *shapes)
        if key not in self._drawn:
            dataset = open_dataset(options.data, "test")
            count = len(dataset) if options.limit is None else options.limit
            sets = [(p, sample(dataset, p, count, options.seed)) for p in shapes.values()]
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".zip", delete=False) as file:
                path = Path(file.name)
            write_drawn(path, sets, dataset.classes)
            self._drawn[key] = path
        return self._drawn[key]


def _read(subject: BenchSubject) -> Artifact | None:
    """The artifact of a subject; None for a checkpoint.

    Raises:
        DeviceError: If it is another one than when the plan was made.
    """
    if find_subject(subject.path).content != subject.content:
        raise DeviceError(
            "was changed since the plan was made",
            stage="verify",
            where=str(subject.path),
            fix="Start anew, without --resume: what is measured has to be what was planned.",
        )
    return read_artifact(subject.path) if subject.kind == "artifact" else None


def _names(subject: BenchSubject, artifact: Artifact | None) -> dict[str, tuple[str, Path]]:
    """Files of a subject: name → (SHA-256, path)."""
    if artifact is None:
        return {subject.path.name: (file_sha256(subject.path), subject.path)}
    records = [
        *artifact.files,
        *(e.file for e in artifact.engines if (artifact.path / e.file.name).is_file()),
    ]
    names = {record.name: (record.sha256, artifact.path / record.name) for record in records}
    manifest = artifact.path / MANIFEST
    return {**names, MANIFEST: (file_sha256(manifest), manifest)}


def _key(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]
