"""Model files of all variants: exports of this project, and what stock converters make of a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from networks import make_checkpoint
from peers import stock_peer

import csr_deploy
from csr_deploy.artifact import read_artifact
from csr_deploy.atomic import atomic_directory, atomic_write
from csr_deploy.bench.emulated_pi.subjects import board_model
from csr_deploy.data import ImageSet, open_dataset, sample
from csr_deploy.errors import CsrError, ExportError
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.targets import find_target
from lowering_bench.kept import Kept
from lowering_bench.stock import wrap
from lowering_bench.subjects import STOCK, Format, Model, Variant

_IMAGES = 200
_PACKAGED = "fashion-mnist"
_PACKAGE = Path(csr_deploy.__file__).parent
# What every export depends on besides its checkpoint and options.
_SOURCES = ("export.py", "unroll/**/*.py", "unroll/costs/*.json", "quantize/*.py", "exporters/base.py")


class Maker:
    """Makes models, and finds those that were made from the same things before.

    Args:
        out: Folder of checkpoints and models.
        kept: Told how long the work took.
        stock_python: Interpreter with the stock converters.
        shipped: Folder of trained checkpoints, which are preferred; the others have random weights.
        data: Images that the trained networks were trained on; the others, and all without it, have packaged
            ones.
        anyhow: Whether a model that is there is good, whatever it was made from.
    """

    def __init__(
        self,
        out: Path,
        kept: Kept,
        stock_python: str,
        shipped: Path,
        *,
        data: str | None = None,
        anyhow: bool = False,
    ) -> None:
        self._out, self._kept, self._python, self._shipped = out, kept, stock_python, shipped
        self._data, self._anyhow = data, anyhow
        self._sources: dict[str, str] = {}
        self._networks: dict[str, tuple[Network, ExportData]] = {}

    def checkpoint(self, network: str) -> Path:
        """The shipped one, or one with random weights."""
        if self._is_trained(network):
            return self._shipped / f"{network}.pt"
        return make_checkpoint(network, self._out / "networks")

    def _is_trained(self, network: str) -> bool:
        return (self._shipped / f"{network}.pt").exists()

    def found(self, variant: Variant) -> Model | None:
        """The model, if it has been made from what there is now."""
        folder = self._folder(variant)
        try:
            made = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
            good = self._anyhow or made == self._made_from(variant)
            return _model(variant, folder) if good else None
        except (OSError, ValueError, CsrError):
            return None

    def make(self, variant: Variant) -> Model:
        """Makes a model, over an older one.

        Raises:
            CsrError: If it cannot be made.
        """
        folder = self._folder(variant)
        folder.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        if variant.way == STOCK:
            self._convert(variant, folder)
        else:
            self._export(variant, folder)
        self._kept.took(variant.work(work(variant)), time.perf_counter() - start)
        with atomic_write(folder.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(self._made_from(variant), indent=1) + "\n", encoding="utf-8")
        return _model(variant, folder)

    def _folder(self, variant: Variant) -> Path:
        return self._out / "models" / variant.folder

    def _made_from(self, variant: Variant) -> dict[str, Any]:
        checkpoint = hashlib.sha256(self.checkpoint(variant.network).read_bytes()).hexdigest()
        if variant.way == STOCK:
            sources = _digest([Path(stock_peer.__file__), stock_peer.CONSTRAINTS])
            images = [_IMAGES, Path(self._source(variant.network)).name]
            return {"checkpoint": checkpoint, "sources": sources, "images": images}
        return {
            "checkpoint": checkpoint,
            "images": Path(self._source(variant.network)).name,
            "sources": self._digest(variant.format),
            "options": json.loads(json.dumps(asdict(self._options(variant)))),
        }

    def _digest(self, form: Format) -> str:
        if form.target not in self._sources:
            patterns = (*_SOURCES, *form.sources)
            files = sorted(p for pattern in patterns for p in _PACKAGE.glob(pattern) if p.is_file())
            self._sources[form.target] = _digest(files)
        return self._sources[form.target]

    def _export(self, variant: Variant, folder: Path) -> None:
        network, data = self.material(variant.network)
        target = find_target(variant.format.target)
        export(network, target, data, folder, self._options(variant), force=True)

    def _options(self, variant: Variant) -> ExportOptions:
        # Networks that are not trained agree with nothing; what is measured does not depend on it.
        board = variant.optimized_for
        options = ExportOptions(lowering="auto" if board else "stepwise", agreement=0.0)
        if not self._is_trained(variant.network):
            options = replace(options, join_error=math.inf)
        return replace(options, optimize_for=board) if board else options

    def _source(self, network: str) -> str:
        return self._data if self._data and self._is_trained(network) else _PACKAGED

    def material(self, name: str) -> tuple[Network, ExportData]:
        """A network, and the pictures that it is exported with."""
        path = self.checkpoint(name)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        if content not in self._networks:
            network = Network.from_checkpoint(path)
            self._networks[content] = network, _pictures(network, self._source(name))
        return self._networks[content]

    def _convert(self, variant: Variant, folder: Path) -> None:
        """Converts, and makes an artifact of the file, so that it is measured like all others."""
        network, data = self.material(variant.network)
        assert data.calibration is not None and variant.format.stock is not None
        images = self._out / "stock" / f"{variant.network}.npy"
        images.parent.mkdir(parents=True, exist_ok=True)
        np.save(images, data.calibration.images, allow_pickle=False)
        checkpoint, formats = self.checkpoint(variant.network), [variant.format.stock]
        rows = stock_peer.convert(checkpoint, images, images.parent, self._python, formats)
        row = next(r for r in rows if r.format == variant.format.stock)
        if row.error:
            raise ExportError(f"the stock converter failed: {row.error}", where=str(checkpoint))
        with atomic_directory(folder, replace=True) as temporary:
            wrap(Path(row.path), find_target(variant.format.target), network, data.parity.images, temporary)


def work(variant: Variant) -> str:
    """What making a variant is, for the plan."""
    return "convert" if variant.way == STOCK else "export"


def _pictures(network: Network, source: str = _PACKAGED) -> ExportData:
    """Pictures of a data set, at the network's size."""
    calibration = sample(open_dataset(source, "train"), network.preprocessing, _IMAGES, 0)
    parity: ImageSet = sample(open_dataset(source, "test"), network.preprocessing, _IMAGES, 0)
    return ExportData(calibration, parity, None)


def _model(variant: Variant, folder: Path) -> Model:
    artifact = read_artifact(folder)
    macs, parameters = int(artifact.model["macs"]), int(artifact.model["parameters"])
    return Model.read(variant, folder, board_model(artifact)[0], macs, parameters)


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
