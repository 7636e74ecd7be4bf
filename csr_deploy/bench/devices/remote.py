"""A device behind SSH: it gets what it lacks, measures by itself, and is asked for the result."""

from __future__ import annotations

import getpass
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from csr_deploy.bench.devices.base import DeviceError, DeviceOptions
from csr_deploy.bench.devices.bundle import Bundle, Bundler
from csr_deploy.bench.devices.identity import code_sha256
from csr_deploy.bench.devices.names import DeviceName
from csr_deploy.bench.devices.session import Session
from csr_deploy.bench.devices.ssh import ConnectionLostError, Ssh

if TYPE_CHECKING:
    from typing_extensions import Self

    from csr_deploy.bench.groups import Group
    from csr_deploy.bench.measure import Progress

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_LOCK_PAUSE_S = 2.0
_OWN_PAUSE_S = 0.1
# What nobody fetched for so long may say little about the device of now.
_LONGEST_AGE_S = 24 * 3600.0
_Value = TypeVar("_Value")


def agent_command(name: DeviceName) -> list[str]:
    """The program that answers on a prepared device."""
    # -I keeps the user's own packages and the working directory out of what is measured.
    return [
        f"{name.folder}/venv/bin/python",
        "-I",
        "-m",
        "csr_deploy.bench.devices.agent",
        "serve",
        name.folder,
    ]


class SshDevice:
    """A device behind SSH.

    Args:
        name: Of kind "ssh".
        options: How to reach it.
    """

    def __init__(self, name: DeviceName, options: DeviceOptions) -> None:
        self.name = name.text
        self._parsed = name
        self._options = options
        # Of this run: a connection that breaks may come back, another run may not come in between.
        self._client = uuid.uuid4().hex
        self._who = f"{getpass.getuser()}@{platform.node()} (process {os.getpid()})"
        self._finished: str | None = None
        self._left_over: str | None = None
        self._session: Session | None = None
        self._ends: ExitStack | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._bundler = Bundler(
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="csr-bundle-")))
            )
            self._ssh = stack.enter_context(Ssh(self._parsed, self._options))
            stack.callback(self._end_session)
            self._persist("lock", self._enter_session, lambda what: None)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None and self._finished is not None:
            # Whoever asked for it has it.
            self._session.say("forget", job=self._finished)
        self._stack.close()

    def run(self, group: Group, on_progress: Progress) -> dict[str, Any]:
        def say(what: str) -> None:
            on_progress(what, self.name, 0, 1)

        bundle = self._bundler.bundle(group)
        job = bundle.key
        try:
            if not self._is_adopted(job, say):
                self._persist("measure", lambda: self._ask("forget", job=job), say)
                self._persist("transfer", lambda: self._send(bundle, on_progress), say)
                self._persist("measure", lambda: self._start(job, bundle), say)
            offset = [0]
            state = self._persist("measure", lambda: self._watch(job, offset, on_progress), say)
            if state["state"] == "done":
                result = self._persist("measure", lambda: self._ask("fetch", job=job), say)
        except DeviceError:
            raise
        except BaseException:
            # Ctrl-C: nobody waits for it any more. A host that is killed says nothing, and finds it again.
            if self._session is not None:
                self._session.say("forget", job=job)
            raise
        self._finished = job
        if state["state"] == "done":
            return bundle.restore(result)
        raise self._failed(state)

    def clean(self, force: bool) -> int:
        """See the function of that name."""
        if self._left_over is not None and not force:
            raise DeviceError(
                f"measurement {self._left_over} still runs there; its host went away",
                stage="lock",
                where=self.name,
                fix="Wait for it, fetch it with csr-bench --resume, or end it: --force.",
            )
        free: int = self._persist("measure", lambda: self._ask("clean"), lambda what: None)
        return free

    def _failed(self, state: Mapping[str, Any]) -> DeviceError:
        failure = state.get("failure")
        if failure is None:
            return DeviceError(
                f"the measurement is gone ({state['state']})",
                stage="measure",
                where=self.name,
                fix="Somebody removed its folder on the device; run it again.",
                may_repeat=True,
            )
        where = f"{self.name}: {failure['where']}" if failure["where"] else self.name
        return DeviceError(
            failure["what"],
            stage=failure["stage"],
            where=where,
            fix=failure["fix"],
            may_repeat=failure["may_repeat"],
        )

    def _is_adopted(self, job: str, say: Callable[[str], None]) -> bool:
        """Whether an earlier run left this measurement here, running or finished."""
        if self._finished is not None:
            finished, self._finished = self._finished, None
            self._persist("measure", lambda: self._ask("forget", job=finished), say)
            is_again = finished == job
        else:
            is_again = False
        if self._options.adopt and not is_again:
            state = self._persist("measure", lambda: self._ask("state", job=job), say)
            if state["state"] == "running" or state.get("age_s", _LONGEST_AGE_S) < _LONGEST_AGE_S:
                say("taking over what an earlier run started")
                return True
        self._hold(say)
        return False

    def _hold(self, say: Callable[[str], None]) -> None:
        """Holds the lock; waits for a measurement whose host went away, and for the end of an own one.

        Raises:
            DeviceError: If somebody else took it.
        """
        while not self._persist("lock", self._take_lock, say):
            if self._left_over is not None:
                say(f"waiting for measurement {self._left_over}, whose host went away")
            time.sleep(_LOCK_PAUSE_S if self._left_over is not None else _OWN_PAUSE_S)

    def _send(self, bundle: Bundle, on_progress: Progress) -> None:
        def show(name: str, done: int, total: int) -> None:
            on_progress("transfer", name, done, total)

        session = self._here()
        session.send(bundle.files, lambda sha256: bundle.labels[sha256], show)
        for name, files in bundle.trees.items():
            session.ask("tree", "transfer", name=name, files=files)

    def _start(self, job: str, bundle: Bundle) -> None:
        # After a lost connection: the request may have arrived although its answer did not.
        if self._ask("state", job=job)["state"] in ("none", "starting"):
            self._ask("start", job=job, values=bundle.job)

    def _watch(self, job: str, offset: list[int], on_progress: Progress) -> Mapping[str, Any]:
        def show(event: Mapping[str, Any]) -> None:
            offset[0] = event["offset"]
            on_progress(*event["progress"])

        state: Mapping[str, Any] = self._here().ask("watch", "measure", show, job=job, offset=offset[0])
        return state

    def _ask(self, do: str, **arguments: Any) -> Any:
        return self._here().ask(do, "measure", **arguments)

    def _here(self) -> Session:
        if self._session is None:
            raise ConnectionLostError("the connection was lost")
        return self._session

    def _enter_session(self) -> None:
        """Starts the agent, and takes the lock."""
        if self._session is None:
            with ExitStack() as stack:
                session = stack.enter_context(Session(self._ssh, agent_command(self._parsed), self.name))
                self._check(session.hello)
                self._ends = stack.pop_all()
                self._session = session
        self._take_lock()

    def _take_lock(self) -> bool:
        """Tries to take the lock; answers whether this session holds it.

        A measurement without a host may hold it instead: this run's own, or one that an earlier run left.

        Raises:
            DeviceError: If somebody else holds it for longer than may be waited.
        """
        end = time.monotonic() + self._options.wait_s
        while True:
            state = self._here().ask("lock", "lock", client=self._client, who=self._who)
            self._left_over = None
            if state["state"] == "running":
                self._left_over = None if state["mine"] else state["job"]
                return False
            if state["state"] == "held":
                return True
            if time.monotonic() >= end:
                raise DeviceError(
                    f"{state['who']} measures on it since {state['since']}",
                    stage="lock",
                    where=self.name,
                    fix="Wait for the end: --wait-for-device SECONDS. Two would disturb each other.",
                    may_repeat=True,
                )
            time.sleep(_LOCK_PAUSE_S)

    def _check(self, hello: Mapping[str, Any]) -> None:
        if hello["code"] != code_sha256():
            raise DeviceError(
                f"it has another csr-deploy ({hello['version']}, {hello['code'][:12]}) than this machine "
                f"({code_sha256()[:12]})",
                stage="setup",
                where=self.name,
                fix=f"Prepare it again: csr-device setup {self.name}",
            )

    def _end_session(self) -> None:
        ends, self._ends, self._session = self._ends, None, None
        if ends is not None:
            ends.close()

    def _persist(self, stage: str, do: Callable[[], _Value], say: Callable[[str], None]) -> _Value:
        """Does something, again after each lost connection, for as long as the options say.

        Raises:
            DeviceError: If the device does not come back, or `do` fails for another reason.
        """
        pause, end = _FIRST_PAUSE_S, None
        lost: Exception | None = None
        while True:
            try:
                if lost is not None:
                    self._end_session()
                    self._ssh.connect()
                    self._enter_session()
                    pause, end, lost = _FIRST_PAUSE_S, None, None
                return do()
            except ConnectionLostError as error:
                lost = error
            except DeviceError as error:
                # The way back in is what fails, so this is an outage that goes on.
                if lost is None or error.stage != "connect" or not error.may_repeat:
                    raise
                lost = error
            now = time.monotonic()
            end = end or now + self._options.reconnect_s
            if now + pause > end:
                raise DeviceError(
                    f"the connection was lost and did not come back within {self._options.reconnect_s:g} s; "
                    f"the last that was heard: {str(lost).splitlines()[0] if str(lost) else 'nothing'}",
                    stage="connect",
                    where=self.name,
                    fix="What was started goes on there. When the device is back, --resume fetches it.",
                    may_repeat=True,
                )
            say("the connection was lost, trying again")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def clean(name: DeviceName, options: DeviceOptions, force: bool = False) -> int:
    """Removes what benchmarks sent to a device and left there; csr-deploy itself stays.

    Args:
        name: Of kind "ssh".
        options: How to reach it.
        force: Whether to end a measurement whose host went away.

    Returns:
        Free bytes of the device's disk.

    Raises:
        DeviceError: If it cannot be reached, is not prepared, or is measured on.
    """
    with SshDevice(name, options) as device:
        return device.clean(force)


@contextmanager
def connected(name: DeviceName, options: DeviceOptions) -> Iterator[Ssh]:
    """A connection for commands that need no second try.

    Raises:
        DeviceError: If it cannot be made, or breaks.
    """
    try:
        with Ssh(name, options) as ssh:
            yield ssh
    except ConnectionLostError as error:
        raise DeviceError(
            f"the connection was lost: {error}", stage="connect", where=name.text, fix="Try again."
        ) from error
