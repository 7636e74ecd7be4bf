"""What every device is to the harness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from csr_deploy.errors import BenchError, OptionError

if TYPE_CHECKING:
    from typing_extensions import Self

    from csr_deploy.bench.groups import Group
    from csr_deploy.bench.measure import Progress

Stage = Literal["connect", "setup", "lock", "transfer", "verify", "measure"]

_LEAST_ALIVE_SECONDS = 1


class DeviceError(BenchError):
    """A group that could not run on its device.

    Attributes:
        stage: Where it ended: "connect" (the device cannot be reached), "setup" (it is not prepared), "lock"
            (somebody else measures on it), "transfer", "verify" (what arrived is not what was sent, or a
            golden output differs) or "measure".
        may_repeat: Whether the same again may work, as after a reboot.
    """

    def __init__(
        self,
        what: str,
        *,
        stage: Stage,
        where: str | None = None,
        fix: str | None = None,
        may_repeat: bool = False,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.stage = stage
        self.may_repeat = may_repeat


class BenchDevice(Protocol):
    """A place that measures groups, used as a context manager.

    Entering connects, checks that the device is prepared and takes its lock; leaving gives everything back.

    Attributes:
        name: As in `Group.device`.
    """

    name: str

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, group: Group, on_progress: Progress) -> dict[str, Any]:
        """Measures a group.

        Args:
            group: What and how.
            on_progress: Told what is going on.

        Returns:
            `BenchResult.to_json()` as plain values.

        Raises:
            CsrError: If the group as a whole could not run; a `DeviceError` says at which stage.
        """


@dataclass(frozen=True)
class DeviceOptions:
    """How devices are reached. A device ignores what does not concern it.

    Attributes:
        ssh_config: Configuration that OpenSSH reads instead of the user's; None for the user's own.
        wait_s: Seconds to wait for a device that somebody else measures on; 0 for an error at once.
        reconnect_s: Seconds to try to reach a device again whose connection broke.
        alive_s: Seconds between two signs of life that OpenSSH asks for; the connection counts as broken
            when three are missing.
        adopt: Whether a measurement of the same group that an earlier run left on the device, still running
            or finished within a day and never fetched, is taken instead of measuring again.
        cache: Where emulated boards are kept; see `csr_deploy.bench.emulated_pi.cache_folder`.
        count_runs: Inferences that an emulated board takes the median of.
    """

    ssh_config: Path | None = None
    wait_s: float = 0.0
    reconnect_s: float = 300.0
    alive_s: int = 5
    adopt: bool = True
    cache: Path | None = None
    count_runs: int = 5

    def __post_init__(self) -> None:
        for name in ("wait_s", "reconnect_s"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"{name} is {getattr(self, name):g}", fix="Give 0 or more seconds.")
        if self.alive_s < _LEAST_ALIVE_SECONDS or self.count_runs < 1:
            raise OptionError("alive_s and count_runs have to be 1 or more", fix="Give larger ones.")
        if self.ssh_config is not None and not self.ssh_config.is_file():
            raise OptionError("is not a file", where=str(self.ssh_config), fix="Name an ssh_config(5) file.")
