"""What CSR networks cost against their backbones on stock runtimes: the table of the design document.

    python tools/bench_lowering.py --out out/bench-lowering [--networks resnet56-t4 …]
        [--runtimes litert ort] [--numbers int8 float32] [--boards pi4 pi5] [--threads 1 2]
        [--lowerings auto stepwise] [--stock-python PYTHON] [--no-time] [--no-count]

Every network and its backbone are exported by every lowering. Instructions of one inference are counted on
the emulated Raspberry Pi 4 and 5 (exact, no measure of time); wall time and memory are taken on this machine
by csr-bench, all models of one network and runtime in turns, with 95 % intervals of the ratio. Weights of
networks that are not trained are random: costs depend on shapes. With --stock-python, the interpreter of an
environment with the stock converters (tools/peers/stock_peer.py says which), what they make of the same
checkpoints stands in the same table. Measurements are kept in --out and not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from networks import make_checkpoint
from peers import stock_peer
from rich.console import Console
from rich.table import Table

from csr_deploy.artifact import read_artifact
from csr_deploy.atomic import atomic_write
from csr_deploy.bench.emulated_pi import Job, count
from csr_deploy.bench.measure import run_plan
from csr_deploy.bench.metrics import median_of_windows, ratio_interval
from csr_deploy.bench.plan import BenchOptions, make_plan
from csr_deploy.data import ImageSet, open_dataset, sample
from csr_deploy.errors import CsrError
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.targets import find_target

BACKBONES = {
    "resnet56-t4": "resnet56-projections",
    "resnet56-csr2": "resnet56",
    "vgg16-csr4": "vgg16",
    "mobilenetv2-csr2": "mobilenetv2",
}
TARGETS = {
    ("litert", "int8"): "tflite-int8",
    ("litert", "float32"): "tflite-fp32",
    ("ort", "int8"): "onnx-int8",
    ("ort", "float32"): "onnx",
}
STOCK_FORMATS = {
    ("litert", "int8"): "tflite-int8",
    ("litert", "float32"): "tflite",
    ("ort", "int8"): "onnx-int8",
    ("ort", "float32"): "onnx",
}
HERE = "x86"
# Design section 2, and issue 5 for resnet56-csr2, which is stated as the MAC ratio and an allowance.
GOALS: dict[tuple[str, str, str, str], float] = {
    ("resnet56-t4", "litert", "int8", "pi4"): 0.70,
    ("resnet56-t4", "litert", "int8", "pi5"): 0.90,
    ("resnet56-t4", "ort", "int8", "pi4"): 0.80,
    ("resnet56-t4", "ort", "int8", "pi5"): 1.0,
    ("resnet56-t4", "litert", "float32", "pi5"): 0.68,
    ("resnet56-t4", "ort", "float32", "pi5"): 0.75,
    ("resnet56-t4", "litert", "int8", HERE): 1.3,
    ("resnet56-t4", "ort", "int8", HERE): 1.2,
    ("resnet56-t4", "litert", "float32", HERE): 0.80,
    ("resnet56-t4", "ort", "float32", HERE): 0.9,
    ("vgg16-csr4", "litert", "int8", "pi4"): 0.62,
    ("vgg16-csr4", "litert", "int8", "pi5"): 0.63,
    ("vgg16-csr4", "ort", "int8", "pi4"): 0.64,
    ("vgg16-csr4", "ort", "int8", "pi5"): 0.68,
    ("vgg16-csr4", "litert", "int8", HERE): 0.62,
    ("vgg16-csr4", "ort", "int8", HERE): 0.8,
    ("vgg16-csr4", "litert", "float32", HERE): 0.48,
    ("vgg16-csr4", "ort", "float32", HERE): 0.52,
}
ALLOWANCES = {
    ("resnet56-csr2", "litert", "int8", "pi4"): 0.08,
    ("resnet56-csr2", "litert", "int8", "pi5"): 0.25,
}


@dataclass(frozen=True)
class Subject:
    """One model file: a network made for a runtime in one way.

    Attributes:
        network: Name of the network.
        runtime: "litert" or "ort".
        numbers: "int8" or "float32".
        way: "stepwise", "auto for pi5" and the like, or "stock".
        file: The model.
        artifact: Its artifact; None for the stock converters'.
        macs: Multiply-accumulates of the plain network.
        parameters: Of the checkpoint.
    """

    network: str
    runtime: str
    numbers: str
    way: str
    file: Path
    artifact: Path | None
    macs: int
    parameters: int

    @property
    def key(self) -> str:
        """Identity of its measurements: changes with the file."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]
        return f"{self.runtime}:{self.file.name}:{digest}"


class Bench:
    """Exports and measures, and keeps what it has measured."""

    def __init__(self, args: Any, console: Console) -> None:
        self.args, self.console = args, console
        self.out: Path = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self._file = self.out / "measured.json"
        self.kept: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def keep(self, key: str, value: Any) -> None:
        """Adds a measurement to the file."""
        self.kept[key] = value
        with atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(self.kept, indent=1) + "\n")

    def checkpoint(self, network: str) -> Path:
        """The shipped one, or one with random weights."""
        shipped = Path("demos/models") / f"{network}.pt"
        return shipped if shipped.exists() else make_checkpoint(network, self.out / "networks")

    def subjects(self, network: str) -> list[Subject]:
        """All models of a network."""
        made: list[Subject] = []
        checkpoint = self.checkpoint(network)
        source = Network.from_checkpoint(checkpoint)
        data = _pictures(source)
        is_csr = network in BACKBONES
        for runtime, numbers in self._pairs():
            ways = (
                [f"auto for {b}" for b in self.args.optimize_for]
                if is_csr and "auto" in self.args.lowerings
                else []
            )
            ways += [w for w in self.args.lowerings if w != "auto"] if is_csr else []
            for way in ways or ["stepwise"]:
                lowering, _, processor = way.partition(" for ")
                folder = self.out / way.replace(" ", "-") / f"{network}-{TARGETS[runtime, numbers]}"
                options = ExportOptions(lowering=lowering, agreement=0.0)
                options = replace(options, optimize_for=processor) if processor else options
                if not folder.exists():
                    self.console.print(f"exporting {folder}")
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        export(source, find_target(TARGETS[runtime, numbers]), data, folder, options)
                    except CsrError as error:
                        self.console.print(f"[red]{folder}: {error}")
                        continue
                artifact = read_artifact(folder)
                file = folder / artifact.files[0].name
                macs, parameters = artifact.model["macs"], artifact.model["parameters"]
                made.append(Subject(network, runtime, numbers, way, file, folder, macs, parameters))
        return made + (self._stock(network, checkpoint, data, made) if self.args.stock_python else [])

    def _pairs(self) -> Iterator[tuple[str, str]]:
        return ((r, n) for r in self.args.runtimes for n in self.args.numbers)

    def _stock(
        self, network: str, checkpoint: Path, data: ExportData, ours: Sequence[Subject]
    ) -> list[Subject]:
        """What the stock converters make of the plain module."""
        assert data.calibration is not None
        images = self.out / f"calibration-{network}.npy"
        np.save(images, data.calibration.images)
        formats = [STOCK_FORMATS[pair] for pair in self._pairs()]
        rows = stock_peer.convert(checkpoint, images, self.out / "stock", self.args.stock_python, formats)
        made = []
        for pair, row in zip(self._pairs(), rows, strict=True):
            if row.error:
                self.console.print(f"stock {network} {row.format}: {row.error}")
                continue
            like = next(s for s in ours if (s.runtime, s.numbers) == pair)
            made.append(replace(like, way="stock", file=Path(row.path), artifact=None))
        return made

    def count(self, subjects: Sequence[Subject]) -> None:
        """Instructions on the emulated boards."""
        for board in self.args.boards:
            for threads in self.args.threads:
                jobs = {}
                for s in subjects:
                    name = f"{board}:{threads}:{s.key}"
                    if name not in self.kept:
                        jobs[name] = Job(name, s.file, s.runtime, threads)  # type: ignore[arg-type]
                for done in count(list(jobs.values()), board) if jobs else []:
                    value = {
                        "instructions": done.instructions,
                        "busiest_thread": done.busiest_thread,
                        "private_bytes": done.private_bytes,
                        "mapped_bytes": done.mapped_bytes,
                        "error": done.error,
                    }
                    self.keep(done.name, value)

    def time(self, groups: Sequence[Sequence[Subject]]) -> None:
        """Wall time and memory here: all models of a group in turns, the first as the baseline."""
        for group in groups:
            ours = [s for s in group if s.artifact]
            for threads in self.args.threads:
                name = f"{HERE}:{threads}:" + ",".join(s.key for s in ours)
                if name in self.kept or len(ours) < 2:
                    continue
                self.console.print(
                    f"timing {', '.join(f'{s.network} {s.way}' for s in ours)}, {threads} threads"
                )
                options = BenchOptions(
                    runtime=ours[0].runtime,
                    threads=threads,
                    images=500,
                    seconds=self.args.seconds,
                    windows=10,
                )
                plan = make_plan([s.artifact for s in ours if s.artifact], options)
                result = run_plan(plan, lambda *_: None).demand_complete()
                under = result.measurements[0].latency
                assert under is not None
                rows = {}
                for subject, measured in zip(ours, result.measurements, strict=True):
                    assert measured.latency is not None and measured.memory is not None
                    over = measured.latency
                    low, high = ratio_interval(over.windows_ns, under.windows_ns, confidence=0.95, seed=0)
                    rows[subject.key] = {
                        "ns": median_of_windows(over.windows_ns),
                        "ratio": median_of_windows(over.windows_ns) / median_of_windows(under.windows_ns),
                        "low": low,
                        "high": high,
                        "memory": asdict(measured.memory),
                    }
                self.keep(name, rows)

    def timed(self, group: Sequence[Subject], threads: int) -> Mapping[str, Any]:
        """What `time` kept for a group."""
        ours = [s for s in group if s.artifact]
        found: Mapping[str, Any] = self.kept.get(f"{HERE}:{threads}:" + ",".join(s.key for s in ours), {})
        return found


def _pictures(network: Network) -> ExportData:
    """Packaged pictures at the network's size: what is measured here does not depend on them."""
    calibration = sample(open_dataset("fashion-mnist", "train"), network.preprocessing, 200, 0)
    parity: ImageSet = sample(open_dataset("fashion-mnist", "test"), network.preprocessing, 200, 0)
    return ExportData(calibration, parity, None)


def _goal(subject: Subject, place: str, macs_ratio: float) -> float | None:
    key = (subject.network, subject.runtime, subject.numbers, place)
    if key in ALLOWANCES:
        return round(macs_ratio + ALLOWANCES[key], 2)
    return GOALS.get(key)


def rows(bench: Bench, group: Sequence[Subject], args: Any) -> Iterator[list[str]]:
    """Table rows of one network, runtime and number format; the backbone comes first."""
    for threads in args.threads:
        for subject in group:
            cells = [subject.network, f"{subject.runtime} {subject.numbers}", str(threads), subject.way]
            # Wide filters multiply zeros too: what the network itself needs is what the plain graph does.
            plain = next((s for s in group if s.network == subject.network and s.way == "stepwise"), subject)
            ratio = plain.macs / group[0].macs
            cells.append(f"{ratio:.2f}")
            for board in args.boards:
                mine, other = (bench.kept.get(f"{board}:{threads}:{s.key}") for s in (subject, group[0]))
                cells.append(_counted(mine, other, _goal(subject, board, ratio) if threads == 1 else None))
            cells.append(_private(bench, subject, group[0], args.boards, threads))
            timed = bench.timed(group, threads).get(subject.key)
            goal = _goal(subject, HERE, ratio) if threads == 1 else None
            cells.append(_timed(timed, goal if subject.network in BACKBONES else None))
            size = subject.file.stat().st_size
            cells.append(f"{size / subject.parameters:.2f}")
            yield cells


def _counted(mine: Any, other: Any, goal: float | None) -> str:
    if mine is None:
        return "–"
    if mine["error"]:
        return "failed"
    text = f"{mine['instructions'] / 1e6:.2f} M"
    if other and not other["error"] and other is not mine:
        text += f"  {mine['instructions'] / other['instructions']:.2f}"
    return text + (f" (≤ {goal:g})" if goal is not None else "")


def _private(bench: Bench, mine: Subject, other: Subject, boards: Sequence[str], threads: int) -> str:
    found = [bench.kept.get(f"{b}:{threads}:{s.key}") for b in boards[-1:] for s in (mine, other)]
    if not found or not all(f and f["private_bytes"] for f in found):
        return "–"
    own, base = (f["private_bytes"] for f in found)
    return f"{own / 1e6:.2f} MB  {own / base:.2f}"


def _timed(row: Any, goal: float | None) -> str:
    if row is None:
        return "–"
    text = f"{row['ns'] / 1e6:.3f} ms  {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return text + (f" (≤ {goal:g})" if goal is not None else "")


def main() -> int:
    """Exports, measures, prints."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--runtimes", nargs="+", choices=["litert", "ort"], default=["litert", "ort"])
    parser.add_argument("--numbers", nargs="+", choices=["int8", "float32"], default=["int8", "float32"])
    parser.add_argument("--boards", nargs="+", choices=["pi4", "pi5"], default=["pi4", "pi5"])
    parser.add_argument("--optimize-for", nargs="+", default=["pi4", "pi5"])
    parser.add_argument("--lowerings", nargs="+", default=["stepwise", "auto"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=5.0, help="timed, of each model")
    parser.add_argument("--stock-python", help="interpreter with the stock converters")
    parser.add_argument("--no-count", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    args = parser.parse_args()
    console = Console(width=200)
    bench = Bench(args, console)
    made: dict[str, list[Subject]] = {}
    for name in args.networks:
        for network in (BACKBONES[name], name):
            if network not in made:
                made[network] = bench.subjects(network)
    groups = []
    for name in args.networks:
        for pair in [(r, n) for r in args.runtimes for n in args.numbers]:
            both = made[BACKBONES[name]] + made[name]
            groups.append([s for s in both if (s.runtime, s.numbers) == pair])
    if not args.no_count:
        bench.count([s for subjects in made.values() for s in subjects])
    if not args.no_time:
        bench.time(groups)
    table = Table(title="Against the backbone made step by step by this project; in brackets the goal")
    for column in (
        "network",
        "runtime",
        "threads",
        "way",
        "MACs",
        *args.boards,
        "private",
        HERE,
        "bytes/param",
    ):
        table.add_column(column, no_wrap=True)
    for group in groups:
        for cells in rows(bench, group, args):
            table.add_row(*cells)
        table.add_section()
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
