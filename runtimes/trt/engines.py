"""Engines beside their model: found by identity, loaded by hash, replaced when stale."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csr_deploy.artifact import Artifact, EngineRecord, FileRecord, read_artifact, write_manifest
from csr_deploy.atomic import atomic_write
from csr_deploy.errors import ArtifactError, OptionError
from csr_deploy.runtimes.trt.build import BuildOptions, Progress, build_plan, resolve_capabilities
from csr_deploy.runtimes.trt.device import DeviceInfo, local_device
from csr_deploy.runtimes.trt.library import RTX, TensorRT, load_tensorrt
from csr_deploy.targets import TARGETS, Target

RUNTIME = "trt"
SUFFIX = ".engine"
_HASH_DIGITS = 8
_AGAIN = "Build it again: csr-export with the artifact and --build."


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine was built from, with and for. An engine of another identity is not loaded.

    Attributes:
        model_sha256: Of the model file.
        library: Flavour and version, e.g. "tensorrt 10.3.0".
        compute_capabilities: For example ("8.6",).
        gpu: Name of the GPU; None for an engine built ahead of time, which serves every GPU of its compute
            capabilities.
        jetpack: Release of Jetson Linux, e.g. "R36.4.3"; None elsewhere.
        options: Build options that change the engine.
    """

    model_sha256: str
    library: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    jetpack: str | None
    options: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        values = dataclasses.asdict(self)
        return {**values, "compute_capabilities": list(self.compute_capabilities)}


def identify(
    artifact: Artifact,
    library: TensorRT,
    options: BuildOptions | None = None,
    compute_capabilities: Sequence[str] = (),
    device: DeviceInfo | None = None,
) -> EngineIdentity:
    """The identity of the engine that `build_engine_for` would build.

    Args:
        artifact: The model.
        library: What to build with.
        options: How.
        compute_capabilities: What for; none for the GPU of this machine.
        device: That GPU, where it is known already.

    Raises:
        OptionError: If the library cannot build for such a GPU.
        RuntimeUnavailableError: If there is no GPU where one is needed.
    """
    device = device or local_device()
    capabilities = resolve_capabilities(library, compute_capabilities, device)
    # Engines of TensorRT for RTX are compiled for the very GPU only when they are loaded.
    on = None if library.is_rtx else device
    return EngineIdentity(
        artifact.sha256,
        library.name,
        capabilities,
        on.gpu if on else None,
        on.jetpack if on else None,
        with_profile(artifact, options).identity(),
    )


def with_profile(artifact: Artifact, options: BuildOptions | None) -> BuildOptions:
    """The options, with the batch profile that the artifact was exported for where they have none."""
    options = options or BuildOptions()
    profile = artifact.options.get("batch_profile")
    if options.batch_profile is not None or profile is None:
        return options
    least, usual, most = profile
    return dataclasses.replace(options, batch_profile=(least, usual, most))


def choose_library(compute_capabilities: Sequence[str], device: DeviceInfo | None) -> TensorRT:
    """The library that can build for these GPUs: TensorRT for that of this machine, else TensorRT for RTX.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    own = {device.compute_capability} if device else set()
    elsewhere = bool(compute_capabilities) and set(compute_capabilities) != own
    return load_tensorrt(RTX if elsewhere else None)


def find_engine(
    artifact: Artifact, identity: EngineIdentity, *, any_options: bool = False
) -> EngineRecord | None:
    """The engine of that identity, or None.

    An engine that was built ahead of time for several compute capabilities serves each of them.

    Args:
        artifact: Where to look.
        identity: What is wanted.
        any_options: Take also an engine that was built with other options, as somebody chose them.
    """
    wanted = identity.to_json()
    capabilities = set(wanted.pop("compute_capabilities"))
    for record in artifact.engines:
        has = dict(record.identity)
        covered = set(has.pop("compute_capabilities", ()))
        if any_options:
            has["options"] = wanted["options"]
        fits = capabilities <= covered if has.get("gpu") is None else capabilities == covered
        if fits and capabilities and has == wanted:
            return record
    return None


def read_engine(artifact: Artifact, record: EngineRecord) -> bytes:
    """An engine's bytes, to be loaded.

    Raises:
        ArtifactError: If the file is missing or is not the one that was built: it is executable code.
    """
    path = artifact.path / record.file.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            fix=_AGAIN,
        ) from error
    if len(content) != record.file.size or hashlib.sha256(content).hexdigest() != record.file.sha256:
        raise ArtifactError(
            "was changed after it was built (its SHA-256 differs): an engine is executable code, so this one "
            "is not loaded",
            where=str(path),
            fix=_AGAIN,
        )
    return content


def build_engine_for(
    artifact: Artifact,
    library: TensorRT,
    identity: EngineIdentity,
    options: BuildOptions | None = None,
    on_progress: Progress | None = None,
) -> Artifact:
    """Builds an engine and puts it into the artifact, in place of stale ones.

    If it fails or is interrupted, the artifact stays as it was.

    Args:
        artifact: The model, of a TensorRT target.
        library: What to build with.
        identity: As `identify` gives it.
        options: How.
        on_progress: Told of the builder's steps, from another thread.

    Returns:
        The artifact as read back.

    Raises:
        OptionError: If the artifact is of another target.
        ExportError: If the engine cannot be built or written.
        RuntimeUnavailableError: If the machine cannot build it.
    """
    check_buildable(artifact)
    built = build_plan(
        artifact.model_file.read_bytes(),
        library,
        with_profile(artifact, options),
        identity.compute_capabilities,
        on_progress,
    )
    digest = hashlib.sha256(built.plan).hexdigest()
    name = engine_name(artifact, identity)
    record = EngineRecord(
        FileRecord(name, len(built.plan), digest), identity.to_json(), built.report.to_json()
    )
    # Read again: another process may have added an engine meanwhile.
    current = read_artifact(artifact.path)
    kept = tuple(e for e in current.engines if e.file.name != name and not _is_stale(e, identity))
    if any(e.file.name == name for e in current.engines):
        # The manifest never lists a file with another one's hash, however this ends.
        write_manifest(dataclasses.replace(current, engines=kept))
    with atomic_write(artifact.path / name) as temporary:
        temporary.write_bytes(built.plan)
    write_manifest(dataclasses.replace(current, engines=(*kept, record)))
    for engine in current.engines:
        if engine not in kept and engine.file.name != name:
            (artifact.path / engine.file.name).unlink(missing_ok=True)
    return read_artifact(artifact.path)


def has_engine(target: Target) -> bool:
    """Whether artifacts of a target are for TensorRT."""
    return target.runtime == RUNTIME


def check_buildable(artifact: Artifact) -> None:
    """Checks that an artifact is of a TensorRT target.

    Raises:
        OptionError: If not.
    """
    target = TARGETS.get(artifact.target)
    if target is None or not has_engine(target):
        names = [t.name for t in TARGETS.values() if has_engine(t)]
        raise OptionError(
            f"an artifact of the target '{artifact.target}' has no engine to build",
            where=str(artifact.path),
            fix=f"Export with {', '.join(names)}.",
        )


def engine_name(artifact: Artifact, identity: EngineIdentity) -> str:
    """Its file's name: network, target, GPU, compute capabilities, library, start of the model's hash."""
    sm = "-".join(f"sm{c.replace('.', '')}" for c in identity.compute_capabilities)
    where = f"{_slug(identity.gpu)}-{sm}" if identity.gpu else sm
    parts = (artifact.name, artifact.target, where, _slug(identity.library))
    return "-".join((*parts, identity.model_sha256[:_HASH_DIGITS])) + SUFFIX


def _is_stale(record: EngineRecord, identity: EngineIdentity) -> bool:
    """Whether the new engine takes this one's place: other model, or same GPUs and flavour."""
    old, new = record.identity, identity.to_json()
    if old.get("model_sha256") != new["model_sha256"]:
        return True
    flavours = {str(values.get("library", "")).split(" ")[0] for values in (old, new)}
    same = all(old.get(key) == new[key] for key in ("gpu", "compute_capabilities"))
    return same and len(flavours) == 1


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
