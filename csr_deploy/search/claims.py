"""Who trains which network: every network once, whatever number of workers, and none lost when one dies.

Nothing is used but what any storage of Optuna gives: trials with unique rising numbers, a state that one
process alone can move from waiting to running, and attributes that others see once they are set.

**Once.** A worker gets a trial (its number), says which network it is for, and looks at all others. As in
Lamport's bakery, the lower number goes first: it waits until every lower trial has said its network, and
gives way if one of them has the same. So of two workers that choose the same network at the same moment
exactly one goes on.

**Nothing lost.** A worker's sign of life is kept in the storage while it has a trial. A trial without one is
failed by whoever notices, and its network is queued again as a new trial; training then continues after the
last finished epoch, where the worker sees that folder. A failed trial whose network nobody has is what is
queued, so a worker that dies in the middle of this leaves it for the next one to do. A worker that was only
asleep finds its trial failed after its epoch, and lets go of it.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from csr_deploy.search.storage import StorageError, reported

if TYPE_CHECKING:
    from typing_extensions import Self

NETWORK, WORKER, SKIPPED, FAILURE, RETRY_OF = "network", "worker", "skipped", "failure", "retry_of"
"""Attributes of a trial: what it is for; who has it; why it does not count; why the network failed; which
lost trial it repeats."""

_CHOOSING_SECONDS = 0.05
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class TakenError(Exception):
    """Another trial has the network, or there are enough trials: not an error, an answer."""


class LostError(Exception):
    """Another worker holds this trial for lost: what was computed of it must not be told any more."""


def is_done(trial: FrozenTrial) -> bool:
    """Whether a trial brought something to know: figures, that it is hopeless, or that it cannot work."""
    if SKIPPED in trial.user_attrs:
        return False
    return trial.state in _FINISHED or (trial.state == TrialState.FAIL and FAILURE in trial.user_attrs)


def is_open(trial: FrozenTrial) -> bool:
    """Whether a trial is to be done or is being done."""
    open_ = trial.state in (TrialState.RUNNING, TrialState.WAITING)
    return open_ and SKIPPED not in trial.user_attrs and NETWORK in trial.user_attrs


class Claims:
    """The rules above for one study.

    Args:
        study: The study.
        storage: Its storage.
        url: Of the storage, for messages.
        trials: Networks to try in all.
        grace: Seconds of silence after which a trial is lost.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage, url: str, trials: int, grace: float) -> None:
        self._study, self._storage, self._url = study, storage, url
        self._trials, self._grace = trials, grace
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._first_seen: dict[int, float] = {}

    def trials(self) -> list[FrozenTrial]:
        """All trials as they are now.

        Raises:
            StorageError: If the storage fails.
        """
        with reported(self._url):
            return self._study.get_trials(deepcopy=False)

    def id_of(self, number: int) -> int:
        """The storage's own number of a trial."""
        with reported(self._url):
            return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def ask(self, me: str, distributions: Mapping[str, BaseDistribution]) -> Trial:
        """A queued trial, or a new one with parameters of the study's sampler.

        Args:
            me: Who asks.
            distributions: The space.

        Raises:
            LostError: If another worker gave the trial up at once.
            StorageError: If the storage fails.
        """
        with reported(self._url), warnings.catch_warnings():
            # That the heartbeat is for `optimize`: here it has its own thread.
            warnings.simplefilter("ignore")
            trial = self._study.ask(dict(distributions))
            self._storage.record_heartbeat(self.id_of(trial.number))
        self.note(trial, WORKER, me)
        return trial

    def note(self, trial: Trial, key: str, value: object) -> None:
        """Sets an attribute of one's own trial.

        Raises:
            LostError: If the trial is not ours any more.
            StorageError: If the storage fails.
        """
        try:
            with reported(self._url):
                trial.set_user_attr(key, value)
        except UpdateFinishedTrialError as error:
            raise LostError from error

    def claim(self, trial: Trial, network: str) -> None:
        """Makes sure that nobody else trains a network.

        Raises:
            TakenError: If somebody does or did, or there are enough trials; this trial then does not count.
            LostError: If the trial is not ours any more.
            StorageError: If the storage fails.
        """
        self.note(trial, NETWORK, network)
        while True:
            trials = self.trials()
            choosing = [
                t
                for t in trials
                if t.number < trial.number
                and t.state == TrialState.RUNNING
                and not {NETWORK, SKIPPED} & t.user_attrs.keys()
            ]
            if not choosing:
                break
            self.fail_dead()
            time.sleep(_CHOOSING_SECONDS)
        others = [t for t in trials if t.number != trial.number]
        ahead = [t for t in others if is_done(t) or (is_open(t) and t.number < trial.number)]
        reason = None
        if same := [t.number for t in ahead if t.user_attrs[NETWORK] == network]:
            reason = f"trial {same[0]} has this network"
        elif len({t.user_attrs[NETWORK] for t in ahead}) >= self._trials:
            reason = "there are enough trials"
        if reason:
            self.note(trial, SKIPPED, reason)
            self.tell(trial, TrialState.FAIL)
            raise TakenError(reason)

    def check(self, trial: Trial) -> None:
        """Makes sure that a trial is still ours.

        Raises:
            LostError: If it is not.
            StorageError: If the storage fails.
        """
        with reported(self._url):
            state = self._storage.get_trial(self.id_of(trial.number)).state
        if state != TrialState.RUNNING:
            raise LostError

    def tell(self, trial: Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Finishes a trial; one that another worker has finished stays as it is.

        Raises:
            StorageError: If the storage fails.
        """
        try:
            with reported(self._url):
                self._study.tell(
                    trial, values if state == TrialState.COMPLETE else None, state, skip_if_finished=True
                )
        except UpdateFinishedTrialError:
            # Between the look of `skip_if_finished` and the write.
            return

    def fail_dead(self) -> None:
        """Fails the trials of workers that died.

        Raises:
            StorageError: If the storage fails.
        """
        with reported(self._url), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna.storages.fail_stale_trials(self._study)
        # A worker can die before its first sign of life, which Optuna does not see. Timed by this process's
        # own clock: that of the other machine may be wrong.
        now = time.monotonic()
        for trial in self.trials():
            mute = trial.state == TrialState.RUNNING and WORKER not in trial.user_attrs
            if mute and now - self._first_seen.setdefault(trial.number, now) > self._grace:
                self.fail(trial.number)

    def fail(self, number: int) -> None:
        """Gives a trial up, whoever has it; not if it is finished.

        Raises:
            StorageError: If the storage fails.
        """
        try:
            with reported(self._url):
                self._storage.set_trial_state_values(self.id_of(number), state=TrialState.FAIL)
        except UpdateFinishedTrialError:
            return

    def requeue(self) -> list[str]:
        """Queues every network again whose trial was lost.

        Two workers can queue the same one; `claim` then lets one of them go on.

        Returns:
            Names of the networks.

        Raises:
            StorageError: If the storage fails.
        """
        trials = self.trials()
        held = {t.user_attrs[NETWORK] for t in trials if is_done(t) or is_open(t)}
        queued = []
        for trial in trials:
            marks = trial.user_attrs
            lost = trial.state == TrialState.FAIL and NETWORK in marks and SKIPPED not in marks
            if not lost or marks[NETWORK] in held:
                continue
            held.add(marks[NETWORK])
            queued.append(marks[NETWORK])
            with reported(self._url):
                self._study.add_trial(
                    create_trial(
                        state=TrialState.WAITING,
                        params=trial.params,
                        distributions=trial.distributions,
                        user_attrs={NETWORK: marks[NETWORK], RETRY_OF: marks.get(RETRY_OF, trial.number)},
                    )
                )
        return queued


class Heartbeat:
    """Keeps a trial's sign of life up to date while the block lasts.

    Args:
        storage: The study's storage.
        trial_id: The storage's own number of the trial.
        interval: Seconds between signs.
        patience: Seconds that the storage may be out of reach.
        url: Of the storage, for messages.
    """

    def __init__(
        self, storage: RDBStorage, trial_id: int, interval: float, patience: float, url: str
    ) -> None:
        self._storage, self._trial_id = storage, trial_id
        self._interval, self._patience, self._url = interval, patience, url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._failed: StorageError | None = None
        self._good = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Tells whether the storage has been out of reach for too long.

        Raises:
            StorageError: Then.
        """
        if self._failed is not None and time.monotonic() - self._good > self._patience:
            raise self._failed

    def _beat(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                with reported(self._url):
                    self._storage.record_heartbeat(self._trial_id)
                self._failed, self._good = None, time.monotonic()
            except StorageError as error:
                self._failed = error


def orphaned(parent: int | None) -> Callable[[], bool]:
    """Whether the process that started this one is gone; a worker of its own never is an orphan."""
    return lambda: parent is not None and os.getppid() != parent
