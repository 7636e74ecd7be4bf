"""From a checkpoint to a verified artifact: capture, unroll, quantise, write, and prove parity."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csr_deploy import __version__
from csr_deploy.artifact import (
    GOLDEN,
    Artifact,
    Golden,
    check_place,
    record_file,
    write_golden,
    write_manifest,
)
from csr_deploy.atomic import atomic_directory
from csr_deploy.checkpoint import file_sha256, load_checkpoint
from csr_deploy.data import ImageDataset, ImageSet, Preprocessing, class_map, open_dataset, sample
from csr_deploy.data.dataset import ArrayDataset, Split
from csr_deploy.drift import DRIFT_IMAGES, measure_drift
from csr_deploy.errors import (
    DataError,
    ExportError,
    MissingDependencyError,
    MissingPartError,
    ModelError,
    OptionError,
)
from csr_deploy.exporters.base import Exporter, WriteRequest
from csr_deploy.ledger import check_ledger
from csr_deploy.models import count_parameters
from csr_deploy.parity import check_parity, compare
from csr_deploy.quantize import QuantizedGraph, QuantizeOptions
from csr_deploy.quantize.joining import GOOD_ERROR, lower_and_quantize
from csr_deploy.runtimes import open_runtime
from csr_deploy.targets import Target
from csr_deploy.unroll.costs import DEFAULT_COSTS, find_costs
from csr_deploy.unroll.graph import Graph
from csr_deploy.unroll.lowering import AUTO, WEIGHT_BUDGET, JoinRule, Lowered, lower

LEAST_PARITY_IMAGES = 200
_GOLDEN_IMAGES = 16
_BATCH = 100
_FALLBACK_DATA = "fashion-mnist"

Stage = Callable[[str], None]
"""Called with the name of each stage as it begins."""


@dataclass(frozen=True)
class Network:
    """What is exported.

    Attributes:
        name: For file names and tables.
        model: In evaluation mode.
        labels: Class names.
        preprocessing: From a picture to the input.
        source: Where it comes from, plain values for the manifest.

    Raises:
        ModelError: If the preprocessing fits no picture.
    """

    name: str
    model: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        p = self.preprocessing
        if p.channels not in (1, 3) or len(p.std) != p.channels:
            raise ModelError(
                f"its preprocessing has {p.channels} means and {len(p.std)} standard deviations",
                where=self.name,
                fix="Give one of each for gray pictures, or three for colour.",
            )

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> Network:
        """Reads a checkpoint; the network is called like its file, or like its architecture for `model.pt`.

        Raises:
            CheckpointError: See `load_checkpoint`.
        """
        checkpoint = load_checkpoint(path)
        training = {k: v for k, v in checkpoint.training.items() if k != "curve"}
        source = {
            "checkpoint_sha256": file_sha256(Path(path)),
            "architecture": checkpoint.record()["architecture"],
            "training": training,
            "metrics": dict(checkpoint.metrics),
        }
        architecture = checkpoint.architecture
        stem = Path(path).stem
        # csr-train writes every network as model.pt: then the architecture says more than the file.
        name = stem if stem != "model" else architecture.name or architecture.backbone
        return cls(name, checkpoint.build(), checkpoint.labels, checkpoint.preprocessing, source)

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """[N, C, H, W]."""
        p = self.preprocessing
        return (batch, p.channels, p.height, p.width)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Float32 logits of the checkpoint for pictures [N, H, W, C] uint8."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                x = torch.from_numpy(self.preprocessing.normalize(images[start : start + _BATCH]))
                parts.append(self.model(x).float().numpy())
        return np.concatenate(parts)


@dataclass(frozen=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        lowering: Unrolling strategy, or "auto" for the one of least cost.
        weight_budget: Weights and tables that "auto" may store, in parts of the step-wise graph's.
        join_error: Relative RMS error of int8 logits beyond which "auto" joins fewer steps; inf for never.
        optimize_for: Processor whose cost "auto" counts and whose kernels the types of numbers suit, a name
            or file of `csr_deploy.unroll.costs`; None for the default costs and types that are slow nowhere.
        batch: Batch size of the static graph, and of the parity gate.
        batch_profile: (least, usual, most) images a batch of a model whose batch size is free; None for a
            static one. The usual one is `batch`.
        calibration_images: Number of calibration images, from the training split.
        parity_images: Number of images of the parity gate, never used for calibration.
        seed: Fixes both draws.
        agreement: Smallest top-1 agreement with float, or None for the target's default.
        quantization: Ranges and bias correction.
        target_options: Options of targets that have some of their own: target → a frozen dataclass.
    """

    lowering: str = AUTO
    optimize_for: str | None = None
    weight_budget: float = WEIGHT_BUDGET
    join_error: float = GOOD_ERROR
    batch: int = 1
    calibration_images: int = 200
    parity_images: int = 256
    seed: int = 0
    agreement: float | None = None
    quantization: QuantizeOptions = field(default_factory=QuantizeOptions)
    batch_profile: tuple[int, int, int] | None = None
    target_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_profile is not None:
            least, usual, most = self.batch_profile
            if not 1 <= least <= usual <= most or usual != self.batch:
                raise OptionError(
                    f"the batch profile {least}:{usual}:{most} makes no sense for batches of {self.batch}",
                    fix="Give the least, the usual and the greatest number of images, as in 1:8:32.",
                )
        if self.seed < 0:
            raise OptionError(f"the seed is {self.seed}", fix="Give 0 or more.")
        if self.batch < 1:
            raise OptionError(f"the batch size is {self.batch}", fix="Give at least 1.")
        if self.calibration_images < 1 or self.parity_images < 1:
            raise OptionError("calibration and parity need at least one image each")
        if not self.weight_budget >= 1:
            raise OptionError(
                f"the weight budget is {self.weight_budget:g}",
                fix="Give 1 for no more than the step-wise graph stores, or more for speed.",
            )
        if not self.join_error >= 0:
            raise OptionError(
                f"the join error is {self.join_error:g}", fix="Give 0 or more, inf for no limit."
            )
        if self.agreement is not None and not 0 <= self.agreement <= 1:
            raise OptionError(f"the agreement threshold is {self.agreement}", fix="Give a share from 0 to 1.")


@dataclass(frozen=True)
class ExportData:
    """Images of an export.

    Attributes:
        calibration: From the training split; None for targets that need none.
        parity: Not used for calibration.
        labels: The network's class of each parity image, [N]; None where that is not known.
        golden: Pictures [N, H, W, C] uint8 that the artifact carries as golden vectors, and their classes,
            [N], -1 where that is not known; None for some of the parity images.
    """

    calibration: ImageSet | None
    parity: ImageSet
    labels: NDArray[np.int64] | None
    golden: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None

    @property
    def damaged(self) -> tuple[str, ...]:
        """Images that were left out because they cannot be decoded, one message each."""
        return (self.calibration.damaged if self.calibration else ()) + self.parity.damaged


def load_export_data(
    network: Network,
    source: str | None,
    options: ExportOptions,
    *,
    quantized: bool,
    golden: str | None = None,
) -> ExportData:
    """Draws calibration, parity and golden images.

    Args:
        network: Gives size, channels and classes.
        source: Folder, zip file or name of a packaged set; None where nothing is quantised.
        options: Counts and seed.
        quantized: Whether calibration images are needed.
        golden: Folder, zip file or name of the set whose pictures the artifact carries as golden vectors,
            where those of `source` must not be passed on; None for some of the parity images.

    Raises:
        OptionError: If an int8 target has no calibration data.
        DataError: If the data does not fit the network, or has too few images.
    """
    carried = None if golden is None else _golden_set(network, golden, options.seed)
    if source is None:
        if quantized:
            raise OptionError(
                "an int8 target needs calibration data, and none was given",
                fix="Give --calibration with the training data of the network (a folder or zip file).",
            )
        # Any real pictures show whether float arithmetic is the same.
        parity = sample(
            open_dataset(_FALLBACK_DATA, "test"), network.preprocessing, options.parity_images, options.seed
        )
        return ExportData(None, parity, None, carried)
    train = open_dataset(source, "train")
    _check_fits(network, train)
    calibration = None
    if quantized:
        calibration = sample(train, network.preprocessing, options.calibration_images, options.seed)
    drawn_from, parity = _parity_set(network, source, train, options)
    least = min(options.parity_images, LEAST_PARITY_IMAGES)
    if len(parity) < least:
        raise DataError(
            f"has only {len(parity)} images beyond the calibration set; parity needs {least}",
            where=source,
            fix=f"Give more images, or lower the bar with --parity-images {len(parity)}.",
        )
    return ExportData(calibration, parity, _network_labels(network, drawn_from, parity), carried)


def _golden_set(network: Network, source: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Up to 16 pictures of a set, from all its parts, and the network's classes of them."""
    known = {name: index for index, name in enumerate(network.labels)}
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for split in get_args(Split):
        try:
            dataset = open_dataset(source, split)
        except MissingPartError:
            if images or split != get_args(Split)[-1]:
                continue
            raise
        drawn = sample(dataset, network.preprocessing, min(_GOLDEN_IMAGES - len(labels), len(dataset)), seed)
        images.append(drawn.images)
        labels += [known.get(dataset.classes[i], -1) if dataset.classes else -1 for i in drawn.labels]
        if len(labels) == _GOLDEN_IMAGES:
            break
    return np.concatenate(images), np.asarray(labels, np.int64)


def _parity_set(
    network: Network, source: str, train: ImageDataset, options: ExportOptions
) -> tuple[ImageDataset, ImageSet]:
    """The images of the parity gate and the set they were drawn from."""
    count, seed = options.parity_images, options.seed
    try:
        test = open_dataset(source, "test")
    except MissingPartError:
        # Images of the training part that were not drawn for calibration.
        skip = options.calibration_images
        return train, sample(train, network.preprocessing, count, seed, disjoint_from=skip)
    _check_fits(network, test)
    return test, sample(test, network.preprocessing, count, seed)


def _network_labels(network: Network, dataset: ImageDataset, images: ImageSet) -> NDArray[np.int64] | None:
    if not dataset.classes or set(dataset.classes) != set(network.labels):
        return None
    labels: NDArray[np.int64] = class_map(dataset, network.labels)[images.labels]
    return labels


def _check_fits(network: Network, dataset: ImageDataset) -> None:
    p = network.preprocessing
    wanted = (p.height, p.width, p.channels)
    if isinstance(dataset, ArrayDataset) and dataset.images.shape[1:] != wanted:
        raise DataError(
            f"its images are {list(dataset.images.shape[1:])}, the network takes {list(wanted)} (H, W, C)",
            where=dataset.name,
            fix="Calibrate with the data that the network was trained on.",
        )
    named = dataset.classes and not all(c.isdigit() for c in dataset.classes)
    if named and set(dataset.classes) != set(network.labels):
        odd = sorted(set(dataset.classes) ^ set(network.labels))
        raise DataError(
            f"its classes are not the network's ({', '.join(odd[:4])}{', …' if len(odd) > 4 else ''})",
            where=dataset.name,
            fix="Calibrate with the data that the network was trained on, or with a folder without classes.",
        )


def find_exporter(target: Target) -> Exporter:
    """Imports a target's exporter.

    Raises:
        MissingDependencyError: If a package it needs is not installed, or does not load.
    """
    purpose = f"The target '{target.name}'"
    if missing := target.missing():
        raise MissingDependencyError(", ".join(missing), target.extra, purpose)
    module, _, attribute = target.exporter.partition(":")
    try:
        exporter: Exporter = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package and package not in target.packages:
            raise
        named = target.packages.get(package) or ", ".join(target.packages.values())
        raise MissingDependencyError(named, target.extra, purpose, cause=error) from error
    return exporter


def export(
    network: Network,
    target: Target,
    data: ExportData,
    out: Path,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    on_stage: Stage | None = None,
) -> Artifact:
    """Exports a network to one target.

    Args:
        network: What to export.
        target: Where to.
        data: Calibration and parity images.
        out: The artifact's directory, written whole or not at all.
        options: How.
        force: Replace an existing directory.
        on_stage: Told of the stages "unroll", "quantise", "write", "verify".

    Returns:
        The artifact as read back.

    Raises:
        ExportError: If the target cannot express the network, or `out` exists or cannot be written.
        ModelError: If the network's outputs are not one finite logit a class.
        ParityError: If the exported model does not compute what the checkpoint computes.
        LedgerError: If tied weights were duplicated.
    """
    options = options or ExportOptions()
    exporter = find_exporter(target)
    if target.quantized and data.calibration is None:
        raise OptionError(f"the target '{target.name}' needs calibration data", fix="Give --calibration.")
    say = on_stage or (lambda stage: None)
    check_place(out, replace=force)
    with atomic_directory(out, replace=force) as folder:
        say("unroll")
        lowered = _lower(network, target, exporter, options, options.batch)
        _check_output(network, lowered.graph, options.batch)
        reference = network.logits(data.parity.images)
        if not np.isfinite(reference).all():
            raise ModelError(
                "on the parity images the network itself gives logits that are infinite or not a number",
                where=network.name,
                fix="Look for values that grow from layer to layer: nothing that is exported can be better.",
            )
        quantized, may_join = None, None
        if target.quantized and data.calibration is not None:
            say("quantise")
            normalized = torch.from_numpy(network.preprocessing.normalize(data.calibration.images))
            lowered, quantized, may_join = lower_and_quantize(
                lowered,
                partial(_lower, network, target, exporter, options, options.batch),
                list(torch.split(normalized, _BATCH)),
                network.preprocessing,
                options.quantization,
                exporter.scheme,
                options.join_error,
            )
        if options.batch_profile is not None:
            twice = _lower(network, target, exporter, options, 2 * options.batch, may_join)
            _check_free_batch(lowered.graph, twice.graph, target, exporter)
        graph = lowered.graph if quantized is None else quantized.graph
        say("write")
        path = folder / (exporter.file or f"{network.name}{exporter.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        written = exporter.write(
            WriteRequest(
                graph,
                quantized,
                target.weight_bits,
                path,
                network.name,
                free_batch=options.batch_profile is not None,
                labels=network.labels,
                options=options.target_options.get(target.name),
                signed_activations=_signed(target, exporter, options),
            )
        )
        check_ledger(written.ledger, _kernels(network.model), network.name, graph.arranged)
        parameters = count_parameters(network.model)
        artifact = Artifact(
            path=folder,
            name=network.name,
            target=target.name,
            files=(record_file(path, folder),),
            input=written.input,
            output=written.output,
            preprocessing=network.preprocessing,
            labels=network.labels,
            options=_option_values(options, lowered, data, target),
            model={**_figures(graph, parameters), **_mixed(quantized), **written.figures},
            source=network.source,
            tools=_versions(exporter),
            ledger=written.ledger.summary(parameters),
        )
        companions = exporter.companions(artifact)
        files = (*artifact.files, *(record_file(p, folder) for p in companions))
        artifact = replace(artifact, files=files)
        say("verify")
        artifact = _verify(network, target, data, options, artifact, reference)
        few = torch.from_numpy(network.preprocessing.normalize(data.parity.images[:DRIFT_IMAGES]))
        drift = measure_drift(network.model, graph, quantized, few, target.weight_bits)
        if drift.layers:
            artifact = replace(artifact, parity={**artifact.parity, "drift": drift.to_json()})
        write_manifest(artifact)
    return replace(artifact, path=out)


def _check_free_batch(graph: Graph, twice: Graph, target: Target, exporter: Exporter) -> None:
    """Demands that the batch is the first axis of every value, and nothing else.

    Args:
        graph: The graph for some batch size.
        twice: The graph for twice that.
        target: For messages.
        exporter: Of the target.

    Raises:
        OptionError: If the format has no free batch size.
        ExportError: If a value depends on the batch in another way, naming it.
    """
    if not exporter.free_batch:
        raise OptionError(
            f"the target '{target.name}' has a fixed batch size",
            fix="Give --batch instead of --batch-profile.",
        )
    for name, (first, *rest) in graph.shapes.items():
        if twice.shapes.get(name) != (2 * first, *rest):
            raise ExportError(
                f"its size does not grow with the batch: {[first, *rest]} becomes "
                f"{list(twice.shapes.get(name, ()))} with twice the images",
                where=name,
                fix="Give --batch instead of --batch-profile.",
            )


def _check_output(network: Network, graph: Graph, batch: int) -> None:
    """Demands one logit a class of every image.

    Raises:
        ModelError: If the network gives something else.
    """
    shape, wanted = graph.shape(graph.output), (batch, len(network.labels))
    if shape != wanted:
        raise ModelError(
            f"the network gives {list(shape)} where {list(wanted)} is wanted: one logit for each of its "
            f"{len(network.labels)} labels",
            where=network.name,
            fix="Give as many labels as there are classes, and [N, classes] as the output.",
        )


def _verify(
    network: Network,
    target: Target,
    data: ExportData,
    options: ExportOptions,
    artifact: Artifact,
    reference: NDArray[np.float32],
) -> Artifact:
    """Runs the parity gate and adds its report and the golden vectors.

    Args:
        network: What was exported.
        target: Where to.
        data: Parity and golden images.
        options: With the threshold.
        artifact: All files written.
        reference: Float logits of the parity images.
    """
    images = data.parity.images
    with open_runtime(target.verifier, artifact) as runtime:
        raw = runtime.logits(images)
        ran = f"{runtime.name} {runtime.version}"
    tolerance = target.tolerance
    if options.agreement is not None:
        tolerance = replace(tolerance, top1_agreement=options.agreement)
    report = compare(
        reference,
        artifact.output.decode(raw),
        tolerance,
        runtime=ran,
        images_sha256=data.parity.sha256,
        labels=data.labels,
    )
    check_parity(report, f"{artifact.name} as {target.name}")
    if data.golden is None:
        # From all over the set, whose images may lie class by class.
        few = np.linspace(0, len(images) - 1, min(_GOLDEN_IMAGES, len(images))).astype(np.int64)
        labels = np.full(len(images), -1, np.int64) if data.labels is None else data.labels
        golden = Golden(images[few], labels[few], reference[few], raw[few])
    else:
        pictures, labels = data.golden
        with open_runtime(target.verifier, artifact) as runtime:
            golden = Golden(pictures, labels, network.logits(pictures), runtime.logits(pictures))
    write_golden(artifact.path / GOLDEN, golden)
    return replace(
        artifact,
        files=(*artifact.files, record_file(artifact.path / GOLDEN)),
        parity=asdict(report),
    )


def _kernels(model: nn.Module) -> dict[str, int]:
    """Kernels of the network, each shared one once: the count that no lowering can change."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.numel() for name, tensor in tensors if tensor.ndim > 1}


def _figures(graph: Graph, parameters: int) -> dict[str, Any]:
    return {
        "parameters": parameters,
        "macs": graph.macs(),
        "operations": dict(sorted(Counter(n.op for n in graph.nodes).items())),
    }


def _mixed(quantized: QuantizedGraph | None) -> dict[str, Any]:
    """Which layers of an integer model compute with real numbers."""
    return {"float_layers": list(quantized.float_layers)} if quantized and quantized.float_layers else {}


def _lower(
    network: Network,
    target: Target,
    exporter: Exporter,
    options: ExportOptions,
    batch: int,
    may_join: JoinRule | None = None,
) -> Lowered:
    """The network as a graph that the target can express."""
    lowering, costs = options.lowering, None
    if lowering == AUTO:
        costs = find_costs(exporter.costs, target.weight_bits, options.optimize_for or DEFAULT_COSTS)
        lowering = AUTO if costs else exporter.lowering
    shape = network.input_shape(batch)
    return lower(network.model, shape, lowering, exporter.legalise, costs, options.weight_budget, may_join)


def _signed(target: Target, exporter: Exporter, options: ExportOptions) -> bool:
    """Whether the kernels on the processor would rather read int8 activations than uint8."""
    if options.optimize_for is None:
        # ONNX Runtime's kernels for x86-64 take six times as long with int8, those for arm64 a tenth less.
        return False
    costs = find_costs(exporter.costs, target.weight_bits, options.optimize_for)
    return costs is not None and costs.signed_activations


def _option_values(
    options: ExportOptions, lowered: Lowered, data: ExportData, target: Target
) -> dict[str, Any]:
    values: dict[str, Any] = {"lowering": lowered.lowering, "batch": options.batch, "seed": options.seed}
    if lowered.figures:
        values["lowering_choice"] = lowered.figures
    if options.batch_profile is not None:
        values["batch_profile"] = list(options.batch_profile)
    if target.name in options.target_options:
        values[target.name] = asdict(options.target_options[target.name])
    if target.quantized and data.calibration is not None:
        values["quantization"] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options.quantization).items()
        }
        values["calibration"] = {"images": len(data.calibration), "sha256": data.calibration.sha256}
    return values


def _versions(exporter: Exporter) -> dict[str, str]:
    versions = {
        "csr-deploy": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for name in ("numpy", *exporter.distributions):
        versions[name] = importlib.metadata.version(name)
    return versions


def artifact_directory(out: Path, network: Network, target: Target) -> Path:
    """`<out>/<network>-<target>`."""
    return out / f"{network.name}-{target.name}"
