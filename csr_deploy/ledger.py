"""The weight-tying ledger: what a model file stores against what the network has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csr_deploy.errors import LedgerError


@dataclass(frozen=True)
class Stored:
    """One unique constant of a model file.

    Attributes:
        name: Its name.
        elements: Number of values.
        size: Bytes.
        uses: Operations that read it.
        kind: "weight" (convolution and linear kernels), "gain" (per-channel gains), "bias" or "table"
            (shapes, slices, pads).
    """

    name: str
    elements: int
    size: int
    uses: int
    kind: str


@dataclass(frozen=True)
class Ledger:
    """All unique constants of a model file.

    Attributes:
        stored: One entry a unique buffer.
    """

    stored: tuple[Stored, ...]

    def elements(self, *kinds: str) -> int:
        """Values stored in constants of these kinds."""
        return sum(s.elements for s in self.stored if s.kind in kinds)

    def size(self, *kinds: str) -> int:
        """Bytes stored in constants of these kinds."""
        return sum(s.size for s in self.stored if s.kind in kinds)

    def summary(self, parameters: int) -> dict[str, Any]:
        """Plain values for the manifest; `parameters` is the checkpoint's count."""
        return {
            "checkpoint_parameters": parameters,
            "weight_elements": self.elements("weight"),
            "gain_elements": self.elements("gain"),
            "bias_elements": self.elements("bias"),
            "weight_bytes": self.size("weight", "gain"),
            "bias_bytes": self.size("bias"),
            "table_bytes": self.size("table"),
            "stored_bytes": sum(s.size for s in self.stored),
            "shared": {s.name: s.uses for s in self.stored if s.kind == "weight" and s.uses > 1},
        }


_MOST_ARRANGEMENTS = 2
"""Of the same kernels: alone and with several pixels a filter, or for two strides."""


def check_ledger(
    ledger: Ledger,
    kernels: Mapping[str, int],
    where: str,
    arranged: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Compares what is stored with what the network has.

    Args:
        ledger: Of the model file.
        kernels: Every kernel of the network, before any lowering: name → number of values.
        where: What is exported, for the message.
        arranged: Weights of the file that hold kernels in another order → those kernels. The steps of a
            recurrence share them: there are few for the same kernels, however many steps there are.

    Raises:
        LedgerError: If the file stores more kernel values than the network has, naming those it lacks.
    """
    arranged = arranged or {}
    weights = [s for s in ledger.stored if s.kind == "weight"]
    made_of = Counter(arranged[s.name] for s in weights if s.name in arranged)
    if many := [k for k, count in made_of.items() if count > _MOST_ARRANGEMENTS]:
        raise LedgerError(
            f"{', '.join(many[0])} is stored {made_of[many[0]]} times: tied weights were duplicated",
            where=where,
            fix="This is a defect of a lowering pass: please report it.",
        )
    plain = [s for s in weights if s.name not in arranged]
    stored, needed = sum(s.elements for s in plain), sum(kernels.values())
    if stored <= needed:
        return
    foreign = [s.name for s in plain if s.name not in kernels]
    raise LedgerError(
        f"the file stores {stored:,} weights for a network of {needed:,}: tied weights were duplicated"
        + (f" (not the network's own: {', '.join(foreign[:5])})" if foreign else ""),
        where=where,
        fix="This is a defect of the exporter or of a lowering pass: please report it.",
    )
