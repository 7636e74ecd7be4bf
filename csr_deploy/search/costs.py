"""Measures what a network costs on a device, before it is trained: none of these costs depends on weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from csr_deploy.artifact import Artifact
from csr_deploy.bench.measure import run_plan
from csr_deploy.bench.plan import QUICK, BenchOptions, make_plan
from csr_deploy.bench.results import BenchResult, Measurement
from csr_deploy.data import Preprocessing
from csr_deploy.errors import BenchError, OptionError
from csr_deploy.export import ExportOptions, Network, export, load_export_data
from csr_deploy.search.objectives import ACCURACY, Objective
from csr_deploy.search.quiet import Quiet
from csr_deploy.search.space import Candidate, Space
from csr_deploy.targets import find_target

# Ranges of untrained weights decide no cost, so that few images do.
_CALIBRATION_IMAGES = 32
_PARITY_IMAGES = 16
_PI_RUNS = 3


@dataclass(frozen=True)
class Costs:
    """What a network costs.

    Attributes:
        values: Text of the objective → value, accuracy left out.
        details: What else the measurements said; plain values.
    """

    values: Mapping[str, float]
    details: Mapping[str, Any]


class CostMeter:
    """Exports and measures candidates; keeps the backbone that latencies are compared with.

    Args:
        space: The networks.
        objectives: What is wanted.
        data: Image set for calibration.
        labels: Class names.
        preprocessing: From a picture to the input.
        images: Some training images [N, H, W, C] uint8, for the statistics of BatchNorms.
        quiet: Keeps others quiet while times are taken.

    Raises:
        MissingDependencyError: If an export is not possible here.
        RuntimeUnavailableError: If a device is not.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        data: str,
        labels: tuple[str, ...],
        preprocessing: Preprocessing,
        images: NDArray[np.uint8],
        quiet: Quiet,
    ) -> None:
        self._space, self._data, self._quiet = space, data, quiet
        self._objectives = [o for o in objectives if o.kind != ACCURACY]
        self._labels, self._preprocessing, self._images = labels, preprocessing, images
        self._export_data: dict[bool, Any] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._baselines: dict[str, Artifact] = {}

    def close(self) -> None:
        """Removes what was exported."""
        if self._folder is not None:
            self._folder.cleanup()

    def measure(self, candidate: Candidate) -> Costs:
        """All costs of a network.

        Raises:
            CsrError: If it cannot be built, exported or measured.
        """
        counts = self._space.counts(candidate)
        values: dict[str, float] = {}
        details: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(prefix="csr-search-") as folder:
            artifacts: dict[tuple[str, str], Artifact] = {}
            results: dict[tuple[str, str], BenchResult] = {}
            for objective in self._objectives:
                if objective.kind in ("parameters", "macs"):
                    values[objective.text] = float(getattr(counts, objective.kind))
                    continue
                place = (objective.target, objective.device)
                if place not in artifacts:
                    where = Path(folder) / str(len(artifacts))
                    artifacts[place] = self._export(candidate, objective, where)
                value, more = self._value(objective, artifacts[place], results)
                values[objective.text] = value
                details.update(more)
        return Costs(values, details)

    def _export(self, candidate: Candidate, objective: Objective, folder: Path) -> Artifact:
        target = find_target(objective.target)
        architecture = self._space.architecture(candidate)
        torch.manual_seed(0)
        network = Network(
            architecture.name,
            _untrained(architecture.build(), self._preprocessing.normalize(self._images)),
            self._labels,
            self._preprocessing,
        )
        options = ExportOptions(
            optimize_for=objective.device if objective.device.startswith("pi") else None,
            calibration_images=_CALIBRATION_IMAGES,
            parity_images=_PARITY_IMAGES,
            # Classes of an untrained network are decided by noise; csr-export checks the trained one.
            agreement=0.0,
        )
        if target.quantized not in self._export_data:
            self._export_data[target.quantized] = load_export_data(
                network, self._data, options, quantized=target.quantized
            )
        return export(network, target, self._export_data[target.quantized], folder, options)

    def _value(
        self, objective: Objective, artifact: Artifact, results: dict[tuple[str, str], BenchResult]
    ) -> tuple[float, dict[str, Any]]:
        if objective.device.startswith("pi"):
            return self._pi_instructions(objective, artifact), {}
        if objective.kind == "size" or (objective.target == "mcu" and not objective.device):
            constants = artifact.model.get("constant_bytes")
            if objective.kind == "ram":
                return float(artifact.model["arena_bytes"]), {}
            return float(artifact.files[0].size if constants is None else constants), {}
        place = (objective.target, objective.device)
        if place not in results:
            results[place] = self._bench(objective, artifact)
        result = results[place]
        measured = result.measurements[-1]
        if objective.kind == "latency":
            if measured.latency is None or not result.comparisons:
                raise BenchError("no latency was taken", where=artifact.name)
            milliseconds = measured.latency.median_ns / 1e6
            return result.comparisons[0].ratio, {f"{objective.text} ms": milliseconds}
        return _reading(objective, measured, artifact.name), {}

    def _pi_instructions(self, objective: Objective, artifact: Artifact) -> float:
        from csr_deploy.bench.emulated_pi import count_subjects

        row = count_subjects([artifact.path], [objective.device], runs=_PI_RUNS)[0]
        if row.count.error:
            raise BenchError(row.count.error, where=f"{artifact.name} on {objective.device}")
        return float(row.count.instructions)

    def _bench(self, objective: Objective, artifact: Artifact) -> BenchResult:
        options = replace(QUICK, telemetry="none")
        if objective.device:
            return run_plan(
                make_plan([artifact.path], replace(options, device=objective.device, latency=False)), _quietly
            )
        paths = [self._baseline(objective).path, artifact.path]
        if artifact.name == self._space.backbone:
            # The same network on both sides: its ratio says how steady the machine is.
            paths = [artifact.path, artifact.path]
        with self._quiet.measuring():
            return run_plan(make_plan(paths, _timed(options)), _quietly)

    def _baseline(self, objective: Objective) -> Artifact:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="csr-search-")
        if objective.target not in self._baselines:
            backbone = Candidate((1,) * self._space.modules)
            path = Path(self._folder.name) / objective.target
            self._baselines[objective.target] = self._export(backbone, objective, path)
        return self._baselines[objective.target]


def _quietly(stage: str, subject: str, done: int, total: int) -> None:
    """Progress of a benchmark, which a worker does not show."""


def _timed(options: BenchOptions) -> BenchOptions:
    return replace(options, limit=None, images=60, seconds=0.6, windows=6)


def _reading(objective: Objective, measured: Measurement, name: str) -> float:
    device = measured.microcontroller
    value: int | None = None
    if device is not None:
        value = {
            "instructions": device.instructions,
            "flash": device.flash_bytes,
            "ram": device.ram_bytes,
        }[objective.kind]
    elif measured.memory is not None:
        value = measured.memory.private_bytes
    if value is None:
        raise OptionError(f"does not tell '{objective.kind}'", where=f"{name} on {objective.device}")
    return float(value)


def _untrained(model: nn.Module, images: NDArray[np.float32]) -> nn.Module:
    """Gives a fresh network gains and statistics as a trained one has.

    With gains of zero, as residual blocks start with, whole branches would have no range to quantise.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms:
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.momentum = None
        model.train()
        model(torch.from_numpy(images))
    return model.eval()
