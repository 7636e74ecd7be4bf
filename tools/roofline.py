"""How far each network is from the limit of its processor: the tables of docs/roofline.md.

    python tools/roofline.py --bench out/bench-lowering [--networks resnet56-t4 …] [--runtimes litert ort]
        [--numbers int8 float32] [--boards pi4 pi5] [--out FILE]

For the backbones and the CSR networks, step by step and lowered for the board: multiply-accumulates, bytes
that must move, operations, the instructions that the multiply-accumulates alone would take with the
processor's best instruction, what was counted (by tools/bench_lowering.py, in the folder --bench; nothing is
counted here), and where it goes by the cost model. The counted figure over the limit says how far there is
to go; no kernel reaches 1, as it also loads, stores and requantises.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lowering_bench.kept import Kept
from lowering_bench.making import Maker
from lowering_bench.measuring import Counting
from lowering_bench.subjects import (
    BACKBONES,
    BOARDS,
    FORMATS,
    STEPWISE,
    Format,
    Model,
    Variant,
    plan_variants,
)

from csr_deploy.artifact import read_artifact
from csr_deploy.atomic import atomic_write
from csr_deploy.errors import CsrError
from csr_deploy.export import Network, find_exporter
from csr_deploy.quantize import QuantizeOptions
from csr_deploy.quantize.joining import JOIN_IMAGES, ScaleLimit
from csr_deploy.targets import find_target
from csr_deploy.unroll.cost import CostModel
from csr_deploy.unroll.costs import find_costs
from csr_deploy.unroll.graph import Graph
from csr_deploy.unroll.lowering import JoinRule, lower

PEAK: Mapping[tuple[str, str], tuple[float, str]] = {
    # SMULL and SMLAL take 8 products of int8 each, SADALP adds pairs of their sums into 32 bits.
    ("pi4", "int8"): (16 / 3, "SMULL, SMLAL, SADALP"),
    ("pi5", "int8"): (16.0, "SDOT"),
    ("pi4", "float32"): (4.0, "FMLA"),
    ("pi5", "float32"): (4.0, "FMLA"),
}
"""(board, numbers) → multiply-accumulates an instruction at best, and which instructions."""
_BIAS_BYTES = 4
_NOTHING = "–"
_KINDS = {
    "multiply-accumulates": "tiles",
    "convolutions beyond them": "convolutions",
    "affines and depth-wise convolutions": "affines, depth-wise",
    "slices, concatenations, pads": "copies",
}
"""Kind of work of a cost model → column; all others make up the last column."""


@dataclass(frozen=True)
class Work:
    """What a graph has to do.

    Attributes:
        macs: Multiply-accumulates, zeros of wide filters included.
        moved: Bytes, each activation written and read once, each stored weight read once.
        weights: Bytes of them that are weights.
        operations: Of the graph.
        shares: Kind of work → share of the instructions by the cost model; empty without one.
    """

    macs: int
    moved: int
    weights: int
    operations: int
    shares: Mapping[str, float]


def work_of(graph: Graph, item_bytes: int, costs: CostModel | None) -> Work:
    """Counts what a lowered graph has to do.

    Args:
        graph: Legalised for its format.
        item_bytes: Of an activation and of a weight.
        costs: Of the runtime on the processor.
    """
    activations = sum(math.prod(shape) for shape in graph.shapes.values())
    # Weights are one to a kernel; what stands beside them, biases and affines, is 32 bits wide.
    weights = sum(
        value.size * (item_bytes if value.ndim > 1 else _BIAS_BYTES) for value in graph.constants.values()
    )
    moved = 2 * activations * item_bytes + weights
    shares = costs.shares(graph) if costs else {}
    return Work(graph.macs(), moved, weights, len(graph.nodes), shares)


@dataclass(frozen=True)
class Row:
    """One variant on one board.

    Attributes:
        variant: Which.
        board: Where.
        macs: Multiply-accumulates of the network itself.
        work: Of its graph.
        counted: Instructions; None where they were not counted.
    """

    variant: Variant
    board: str
    macs: int
    work: Work
    counted: int | None

    @property
    def limit(self) -> float:
        """Instructions that the network's multiply-accumulates take at best."""
        return self.macs / PEAK[self.board, self.variant.format.numbers][0]

    def cells(self) -> list[str]:
        """For the table."""
        counted = self.counted
        shares = self.work.shares
        kinds = [shares.get(kind, 0.0) for kind in _KINDS]
        split = [*kinds, max(0.0, 1 - sum(kinds))] if shares else []
        return [
            self.variant.network,
            self.variant.shown_way,
            BOARDS[self.board],
            _millions(self.macs),
            f"{self.work.moved / 1e3:,.0f}",
            f"{self.macs / self.work.moved:.0f}",
            str(self.work.operations),
            _millions(self.limit),
            _NOTHING if counted is None else _millions(counted),
            _NOTHING if counted is None else f"{counted / self.limit:.1f}",
            *([f"{100 * s:.0f} %" for s in split] or [_NOTHING] * (len(_KINDS) + 1)),
        ]


TITLES = [
    "network", "made", "board", "MACs", "kB moved", "MACs a byte", "operations", "limit", "counted",
    "÷ limit", *_KINDS.values(), "rest",
]  # fmt: skip


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f} M"


def rows(
    variants: Sequence[Variant], boards: Sequence[str], maker: Maker, kept: Kept, say: Any
) -> Iterator[Row]:
    """Rows of all variants of one format that this project makes."""
    plain: dict[str, int] = {}
    for variant in variants:
        network = Network.from_checkpoint(maker.checkpoint(variant.network))
        model = maker.found(variant)
        for board in (b for b in variant.boards if b in boards):
            say(f"{variant.name} on a {BOARDS[board]}")
            work = _work(variant, board, network, None if model is None else _join_rule(model, maker))
            if variant.way == STEPWISE:
                plain[variant.network] = work.macs
            counted = None if model is None else (kept.get(Counting(model, board, 1).key) or {})
            instructions = counted.get("instructions") if counted else None
            yield Row(variant, board, plain[variant.network], work, instructions)


def _join_rule(model: Model, maker: Maker) -> JoinRule | None:
    """What a model's lowering was limited by."""
    choice = read_artifact(model.path).options.get("lowering_choice", {})
    if "joined_up_to_scales" not in choice:
        return None
    network, data = maker.material(model.variant.network)
    assert data.calibration is not None
    images = torch.from_numpy(network.preprocessing.normalize(data.calibration.images))[:JOIN_IMAGES]
    scheme = find_exporter(find_target(model.variant.format.target)).scheme
    limit = choice["joined_up_to_scales"]
    return ScaleLimit(images, network.preprocessing, QuantizeOptions(), scheme, limit)


def _work(variant: Variant, board: str, network: Network, may_join: JoinRule | None) -> Work:
    target = find_target(variant.format.target)
    exporter = find_exporter(target)
    costs = find_costs(exporter.costs, target.weight_bits, board)
    lowering = "auto" if variant.optimized_for else "stepwise"
    lowered = lower(
        network.model, network.input_shape(1), lowering, exporter.legalise, costs, may_join=may_join
    )
    return work_of(lowered.graph, 1 if target.quantized else 4, costs)


def markdown(form: Format, found: Sequence[Row]) -> str:
    """The table of one format."""
    lines = [f"### {form.label}", "", f"| {' | '.join(TITLES)} |", "|" + "---|" * len(TITLES)]
    lines += [f"| {' | '.join(row.cells())} |" for row in found]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status.
    """
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--bench", type=Path, required=True, metavar="DIR", help="--out of bench_lowering.py")
    parser.add_argument("--networks", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    runtimes = list(dict.fromkeys(f.runtime for f in FORMATS))
    parser.add_argument("--runtimes", nargs="+", choices=runtimes, default=runtimes)
    parser.add_argument("--numbers", nargs="+", choices=["int8", "float32"], default=["int8"])
    parser.add_argument("--boards", nargs="+", choices=BOARDS, default=list(BOARDS))
    parser.add_argument("--data", help="as of bench_lowering.py")
    parser.add_argument(
        "--keep-models", action="store_true", help="as of bench_lowering.py: counts of whatever is there"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes the tables there too")
    options: Any = parser.parse_args(arguments)

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    tables = []
    try:
        kept = Kept(options.bench / "measured.json")
        shipped = Path(__file__).parents[1] / "demos" / "models"
        maker = Maker(
            options.bench, kept, sys.executable, shipped, data=options.data, anyhow=options.keep_models
        )
        for form in FORMATS:
            if form.runtime in options.runtimes and form.numbers in options.numbers:
                variants = plan_variants(options.networks, [form], options.boards, stock=False)
                tables.append(markdown(form, list(rows(variants, options.boards, maker, kept, say))))
    except CsrError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    text = "\n".join(tables)
    sys.stdout.write(text)
    if options.out:
        with atomic_write(options.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
