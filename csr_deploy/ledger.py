"""The weight-tying ledger: what a model file stores against what the network has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True)
class Expected:
    """Kernels of the network: name → number of values, and how often each is applied.

    Attributes:
        elements: Unique kernels by name.
        uses: How many operations of the lowered graph read each.
    """

    elements: Mapping[str, int] = field(default_factory=dict)
    uses: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_ledger(ledger: Ledger, expected: Expected, where: str) -> None:
    """Compares what is stored with what the network has.

    Raises:
        LedgerError: If the file stores more kernel values than the network has, naming the kernels that
            appear under another count of uses.
    """
    stored, needed = ledger.elements("weight"), sum(expected.elements.values())
    if stored <= needed:
        return
    uses = {s.name: s.uses for s in ledger.stored if s.kind == "weight"}
    untied = sorted(n for n, count in expected.uses.items() if count > 1 and uses.get(n, 0) < count)
    raise LedgerError(
        f"the file stores {stored:,} weights for a network of {needed:,}: tied weights were duplicated"
        + (f" ({', '.join(untied[:5])}{', …' if len(untied) > 5 else ''})" if untied else ""),
        where=where,
        fix="This is a defect of the exporter or of a lowering pass: please report it.",
    )
