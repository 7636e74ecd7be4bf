"""Which layers and T may the paper's Table 2 mean? Tries readings of each row and prints the nearest.

    python tools/table2_readings.py [PRESET ...]

A reading is a number of modules, counted from the last or from the first, T for each kind of convolution in a
module (1 leaves it plain), and whether BatchNorm counts. Everything is arithmetic on shapes.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.models import PRESETS, architecture, count_parameters
from csr_deploy.models.modules import CountsModules, layer_kind
from csr_deploy.models.paper import TABLE_2, PaperRow

SHOWN = 5


@dataclass(frozen=True, order=True)
class Reading:
    """One way to read a row; `miss` is its distance from the printed compression rate, in points."""

    miss: float
    compression: float
    millions: float
    modules: int
    end: str
    steps: tuple[tuple[str, int], ...]
    batch_norm: bool


def saved(conv: nn.Conv2d, steps: int) -> int:
    """Parameters that a CSR-Conv of Eq. 2 saves."""
    if steps == 1 or steps > min(conv.in_channels, conv.out_channels):
        return 0
    d, big_d = math.ceil(conv.in_channels / steps), math.ceil(conv.out_channels / steps)
    area = math.prod(conv.kernel_size)
    return (conv.in_channels * conv.out_channels - big_d * (d + big_d)) * area


def readings(row: PaperRow) -> Iterator[Reading]:
    """All that are tried for a row."""
    with torch.device("meta"):
        model = architecture(PRESETS[row.preset].backbone).build()
    assert isinstance(model, CountsModules)
    layers: list[list[str]] = []
    while True:
        try:
            known = {name for module in layers for name in module}
            layers.insert(0, [n for n in model.csr_layers(len(layers) + 1) if n not in known])
        except ModelError:
            break
    kinds = sorted({layer_kind(model, name) for module in layers for name in module})
    # VGG's convolutions are numbered: they are all of one kind.
    kinds = ["conv"] if len(kinds) > 5 else kinds
    choices = sorted({1, row.num_steps - 1, row.num_steps, row.num_steps + 1})
    totals = {bn: count_parameters(model, batch_norm=bn) for bn in (True, False)}
    for steps in itertools.product(choices, repeat=len(kinds)):
        if row.num_steps not in steps:
            continue
        of = dict(zip(kinds, steps, strict=True))
        gains = [
            sum(saved(model.get_submodule(n), of.get(layer_kind(model, n), steps[0])) for n in module)  # type: ignore[arg-type]
            for module in layers
        ]
        for end, order in (("last", gains[::-1]), ("first", gains)):
            for modules, gain in enumerate(itertools.accumulate(order), start=1):
                for bn, total in totals.items():
                    rate = 100 * gain / total
                    yield Reading(
                        abs(rate - row.compression), rate, (total - gain) / 1e6, modules, end,
                        tuple(of.items()), bn,
                    )  # fmt: skip


def main() -> None:
    """Prints the nearest readings of each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", help="Rows to read; all of them otherwise.")
    wanted = parser.parse_args().presets
    for row in TABLE_2:
        if wanted and row.preset not in wanted:
            continue
        print(
            f"{row.preset}: {row.millions} M, {row.compression} %, {row.modules} modules, T = {row.num_steps}"
        )
        found = sorted(readings(row))
        as_printed = [r for r in found if r.modules == row.modules]
        for title, some in (("nearest", found), ("with as many modules", as_printed)):
            print(f"  {title}:")
            for r in some[:SHOWN]:
                steps = ", ".join(f"{kind} {t}" for kind, t in r.steps)
                print(
                    f"    {r.compression:5.1f} %  {r.millions:6.3f} M  the {r.end} {r.modules} modules, "
                    f"T: {steps}{'' if r.batch_norm else ', without BatchNorm'}"
                )


if __name__ == "__main__":
    main()
