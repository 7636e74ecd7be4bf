"""Options of the microcontroller compiler."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from csr_deploy.errors import OptionError

Cpu = Literal["cortex-m", "aarch64"]


@dataclass(frozen=True)
class McuOptions:
    """How C is generated.

    Attributes:
        prefix: Of the generated names: `model` gives model.h, model_run, MODEL_ARENA_BYTES.
        fuse_requantize: Round a step of a recurrence once instead of three times: smaller and closer to
            float, but not the bytes of TFLite Micro. Each cpu has its own way (docs/native-kernels.md).
        scratch_share: Share of the arena that scratch memory may add to make convolutions faster; 0 for the
            smallest arena.
        flash: Most bytes of weights, tables and generated code; None for no limit.
        ram: Most bytes of the arena; None for no limit.
        cpu: What it is for: "cortex-m", or "aarch64", with weights packed for NEON that plain C reads too.
    """

    prefix: str = "model"
    fuse_requantize: bool = False
    scratch_share: float = 0.11
    flash: int | None = None
    ram: int | None = None
    cpu: Cpu = "cortex-m"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: If one makes no sense.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.prefix):
            raise OptionError(
                f"the prefix '{self.prefix}' is no C identifier in lower case",
                fix="Use letters, digits and _.",
            )
        if self.cpu not in get_args(Cpu):
            raise OptionError(f"unknown cpu '{self.cpu}'", fix=f"Known: {', '.join(get_args(Cpu))}.")
        if not 0 <= self.scratch_share <= 10:
            raise OptionError(f"the scratch share is {self.scratch_share}", fix="Give a share, 0.11 say.")
        for name in ("flash", "ram"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"the {name} budget is {value} bytes", fix="Give at least 1.")
