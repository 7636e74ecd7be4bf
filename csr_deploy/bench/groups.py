"""Groups: the cells that are compared with each other, and a plan as all of them.

A cell is one subject with one runtime, number of threads, batch and device. A group is the cells of one
target that differ in the network only. They are measured in turns, and the group is what is run, resumed and
repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from csr_deploy.bench.plan import BenchPlan, BenchSubject

LOCAL = "local"
_ID_DIGITS = 16


@dataclass(frozen=True)
class Group:
    """What is measured in turns on one device.

    Attributes:
        id: 16 hex digits of SHA-256 over the device, the options, the baseline and every subject's label and
            content: the same group in another run has the same one.
        device: "local", "ssh://user@host:port", "pi-emulated:pi4", "qemu:cortex-m4", "serial:…".
        plan: Subjects, baseline and options.
    """

    id: str
    device: str
    plan: BenchPlan

    @property
    def cells(self) -> int:
        """Number of cells: one a subject."""
        return len(self.plan.subjects)

    @property
    def title(self) -> str:
        """In words, for messages: what tells it from other groups."""
        options = self.plan.options
        targets = sorted({s.target for s in self.plan.subjects})
        parts = [" + ".join(targets), f"{options.threads} thread{'s' if options.threads > 1 else ''}"]
        if options.runtime is not None:
            parts.insert(1, options.runtime)
        if options.batch is not None:
            parts.append(f"batch {options.batch}")
        return f"{', '.join(parts)} on {self.device}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for the record of a run."""
        return {
            "id": self.id,
            "device": self.device,
            "baseline": self.plan.baseline,
            "subjects": [_plain_subject(s) for s in self.plan.subjects],
            "options": asdict(self.plan.options),
        }


def make_group(device: str, plan: BenchPlan) -> Group:
    """Gives a plan on a device its identity.

    Args:
        device: Its name.
        plan: With the content hashes of its subjects, as `make_plan` makes it.
    """
    identity = {
        "device": device,
        "options": asdict(plan.options),
        "baseline": plan.baseline,
        "subjects": [[s.label, s.content] for s in plan.subjects],
    }
    text = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return Group(hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS], device, plan)


def _plain_subject(subject: BenchSubject) -> Mapping[str, str]:
    return {
        "label": subject.label,
        "path": str(subject.path),
        "kind": subject.kind,
        "network": subject.network,
        "target": subject.target,
        "content": subject.content,
    }
