"""This machine, and microcontrollers that are emulated here or wired to it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from csr_deploy.bench.devices.names import DeviceName
from csr_deploy.bench.measure import run_plan

if TYPE_CHECKING:
    from typing_extensions import Self

    from csr_deploy.bench.groups import Group
    from csr_deploy.bench.measure import Progress


class LocalDevice:
    """A device whose plans this machine runs.

    Args:
        name: Of kind "local" or "mcu".
    """

    def __init__(self, name: DeviceName) -> None:
        self.name = name.text
        self._board = name.text if name.kind == "mcu" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to give back."""

    def run(self, group: Group, on_progress: Progress) -> dict[str, Any]:
        plan = group.plan
        if self._board is not None:
            plan = replace(plan, options=replace(plan.options, device=self._board))
        values: dict[str, Any] = json.loads(json.dumps(run_plan(plan, on_progress).to_json()))
        return values
