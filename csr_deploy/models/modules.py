"""What Table 2 of the paper counts as a "CSR-Conv module", whatever the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from csr_deploy.errors import ModelError


@runtime_checkable
class CountsModules(Protocol):
    """A backbone whose convolutions can be named by a number of modules."""

    def csr_layers(self, modules: int) -> list[str]:
        """Names of the convolutions in the last `modules` modules.

        Raises:
            ModelError: If the backbone has fewer.
        """


def last_modules(names: Sequence[str], modules: int) -> Sequence[str]:
    """The last `modules` of a backbone's modules.

    Raises:
        ModelError: If there are not that many, or none is asked for.
    """
    if not 1 <= modules <= len(names):
        raise ModelError(
            f"{modules} CSR-Conv modules asked for, of {len(names)} in the backbone",
            fix=f"Give a number from 1 to {len(names)}.",
        )
    return names[len(names) - modules :]
