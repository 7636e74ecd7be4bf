"""One worker of a search: takes a network, measures what it costs, trains it shortly, tells the study."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from csr_deploy.errors import (
    BenchError,
    CaptureError,
    CsrError,
    ExportError,
    GraphError,
    ModelError,
    OptionError,
)
from csr_deploy.search.claims import (
    FAILURE,
    NETWORK,
    Claims,
    Heartbeat,
    LostError,
    TakenError,
    is_done,
    is_open,
    orphaned,
)
from csr_deploy.search.costs import CostMeter
from csr_deploy.search.halving import Contender, better_one
from csr_deploy.search.objectives import parse_objectives
from csr_deploy.search.proxy import Proxy, rungs
from csr_deploy.search.quiet import Quiet
from csr_deploy.search.sampler import NewNetworks, known_networks
from csr_deploy.search.settings import SearchSettings
from csr_deploy.search.space import Candidate, Space
from csr_deploy.search.storage import StorageError, open_storage, reported

CURVE, COSTS, DETAILS, ARCHITECTURE, PARAMETERS = "curve", "costs", "details", "architecture", "parameters"
HOST, FOLDER, SECONDS, SEED, AHEAD = "host", "folder", "seconds", "seed", "ahead"
_SETTINGS = "settings"
_WAIT_SECONDS = 0.5
_FIRST_FAILURES = 3
# What one network of a space can bring about, and another one not.
_OF_THE_NETWORK = (BenchError, CaptureError, ExportError, GraphError, ModelError)


class SearchError(CsrError):
    """A search that cannot go on."""


class _HopelessError(Exception):
    """A network that has no place on the front."""


class Study:
    """A study and everything its trials need, as one process sees it.

    Args:
        settings: Of the search.
        worker: Which of the processes this is; it varies what is proposed.
        create: Whether the storage and the study may be made.

    Raises:
        CsrError: If data, models, devices or the storage cannot be used, or the study was started with other
            settings.
    """

    def __init__(self, settings: SearchSettings, worker: int = 0, *, create: bool = True) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.settings = settings
        self.objectives = parse_objectives(settings.objectives)
        out = Path(settings.out).absolute()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.proxy = Proxy(settings, out)
        self.space = Space(
            settings.backbone,
            steps=settings.steps,
            per_module=settings.per_module,
            max_modules=settings.max_modules,
            cells=settings.cells,
            widths=settings.widths,
            num_classes=len(self.proxy.data.classes),
            input_shape=self.proxy.data.input_shape,
            target_compression=settings.target_compression,
        )
        self.storage: RDBStorage = open_storage(
            settings.storage, heartbeat=settings.heartbeat, grace=settings.grace, create=create
        )
        with reported(settings.storage):
            self.study = self._open(worker, create)
        self.claims = Claims(
            self.study, self.storage, settings.storage, settings.trials, float(settings.grace)
        )

    def _open(self, worker: int, create: bool) -> optuna.Study:
        s = self.settings
        directions = [
            StudyDirection.MAXIMIZE if o.maximised else StudyDirection.MINIMIZE for o in self.objectives
        ]
        if create:
            study = optuna.create_study(
                storage=self.storage, study_name=s.study, directions=directions, load_if_exists=True
            )
        else:
            try:
                study = optuna.load_study(storage=self.storage, study_name=s.study)
            except KeyError as error:
                raise StorageError(
                    f"holds no study '{s.study}'",
                    where=s.storage,
                    fix="Start it without --resume, or give its name with --study.",
                ) from error
        identity = {**s.identity(), **self.proxy.identity()}
        known = study.user_attrs.get(_SETTINGS)
        if known is None:
            if study.get_trials(deepcopy=False):
                raise StorageError(
                    f"the study '{s.study}' is not one of csr-search", where=s.storage, fix="Give --study."
                )
            study.set_user_attr(_SETTINGS, identity)
        elif changed := [
            f"{name} was {known.get(name)}, is {value}"
            for name, value in identity.items()
            if known.get(name) != value
        ]:
            raise OptionError(
                f"the study '{s.study}' was started with other settings: {', '.join(changed)}",
                where=s.out,
                fix="Use the same options, another --out, or another --study.",
            )
        # Each process and each start has its own draws.
        seed = np.random.SeedSequence((s.seed, worker, len(study.get_trials(deepcopy=False))))
        study.sampler = NewNetworks(self.space, int(seed.generate_state(1)[0]))
        return study

    def queue_backbone(self) -> None:
        """Queues the unchanged backbone as the first trial: what all others are seen against."""
        backbone = Candidate((1,) * self.space.modules)
        name = self.space.name(backbone)
        if (
            1.0 not in self.space.widths
            or not self.space.allows(backbone)
            or name in known_networks(self.claims.trials())
        ):
            return
        with reported(self.settings.storage):
            self.study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=self.space.parameters(backbone),
                    distributions=self.space.distributions(),
                    user_attrs={NETWORK: name},
                )
            )

    def finished(self) -> list[FrozenTrial]:
        """Trials that brought something to know, in the order of their numbers."""
        return [t for t in self.claims.trials() if is_done(t)]


class Worker:
    """Does trials until there are enough.

    Args:
        study: The study.
        parent: Process whose end ends the worker too; None for a worker of its own.
        on_trial: Called after each trial.
    """

    def __init__(
        self, study: Study, *, parent: int | None = None, on_trial: Callable[[], None] | None = None
    ) -> None:
        self._study, self._on_trial = study, on_trial or (lambda: None)
        self._settings, self._claims = study.settings, study.claims
        self._orphaned = orphaned(parent)
        self._me = f"{platform.node()}:{os.getpid()}"
        self._failures = 0
        data = study.proxy.data
        self._quiet = Quiet(enabled=any(o.timed for o in study.objectives))
        self._meter = CostMeter(
            study.space,
            study.objectives,
            self._settings.data,
            data.classes,
            data.preprocessing,
            data.train_images[:32],
            self._quiet,
        )

    def run(self) -> None:
        """Works until the study has its trials, or the space has no more networks.

        Raises:
            CsrError: If the search cannot go on.
            KeyboardInterrupt: If it was interrupted; the trial under way is left for the next start.
        """
        try:
            while self._next():
                self._on_trial()
        finally:
            self._meter.close()

    def _next(self) -> bool:
        """One trial, or a moment of waiting for those of others; False at the end."""
        if self._orphaned():
            raise KeyboardInterrupt
        self._claims.fail_dead()
        self._claims.requeue()
        trials = self._claims.trials()
        done = known_networks([t for t in trials if is_done(t)])
        known = known_networks(trials)
        waiting = any(t.state == TrialState.WAITING and is_open(t) for t in trials)
        if len(done) >= self._settings.trials:
            return False
        listed = self._study.space.listed
        exhausted = listed is not None and listed.keys() <= known
        if exhausted and known == done:
            return False
        if not waiting and (exhausted or len(known) >= self._settings.trials):
            # Not the end: whoever has the last ones may die.
            time.sleep(_WAIT_SECONDS)
            return True
        try:
            self._trial(self._claims.ask(self._me, self._study.space.distributions()))
        except (TakenError, LostError):
            return True
        return True

    def _trial(self, trial: Trial) -> None:
        settings, claims = self._settings, self._claims
        beat = Heartbeat(
            self._study.storage,
            claims.id_of(trial.number),
            settings.heartbeat,
            float(settings.grace),
            settings.storage,
        )
        with beat:
            try:
                candidate = self._study.space.candidate(trial.params)
                claims.claim(trial, self._study.space.name(candidate))
                values = self._work(trial, candidate, beat)
            except _HopelessError:
                claims.tell(trial, TrialState.PRUNED)
                return
            except _OF_THE_NETWORK as error:
                self._fail(trial, error)
                return
            except (LostError, TakenError):
                raise
            except BaseException:
                # Lost on purpose: whoever comes next queues it again and goes on after its last epoch.
                with contextlib.suppress(StorageError):
                    claims.tell(trial, TrialState.FAIL)
                raise
            claims.check(trial)
            claims.tell(trial, TrialState.COMPLETE, values)
            self._failures = 0

    def _fail(self, trial: Trial, error: CsrError) -> None:
        """Notes that this network cannot work; stops if none does."""
        self._claims.note(trial, FAILURE, " ".join(str(error).split()))
        self._claims.tell(trial, TrialState.FAIL)
        self._failures += 1
        good = any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in self._study.finished())
        if self._failures >= _FIRST_FAILURES and not good:
            raise SearchError(
                f"the first {self._failures} networks all failed, the last one so: {error.what}",
                where=error.where,
                fix=error.fix,
            )

    def _work(self, trial: Trial, candidate: Candidate, beat: Heartbeat) -> list[float]:
        study, settings, note = self._study, self._settings, self._claims.note
        architecture = study.space.architecture(candidate)
        folder = study.proxy.folder(architecture.name)
        note(trial, ARCHITECTURE, json.loads(json.dumps(asdict(architecture))))
        note(trial, PARAMETERS, study.space.counts(candidate).parameters)
        note(trial, HOST, platform.node())
        note(trial, FOLDER, str(folder))
        note(trial, SEED, study.proxy.seed(architecture.name))
        costs = self._meter.measure(candidate)
        note(trial, COSTS, dict(costs.values))
        note(trial, DETAILS, dict(costs.details))
        stops = rungs(settings.epochs)
        trained_a_step = False

        def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
            nonlocal trained_a_step
            trained_a_step = True
            beat.check()
            if self._orphaned():
                raise KeyboardInterrupt
            self._quiet.pause()

        def on_curve(curve: Sequence[float]) -> None:
            note(trial, CURVE, list(curve))
            self._claims.check(trial)
            if settings.prune_margin is None or len(curve) not in stops:
                return
            own = Contender(architecture.name, costs.values, curve)
            better = better_one(own, self._contenders(trial), settings.prune_margin)
            if better is not None:
                note(trial, AHEAD, better.network)
                raise _HopelessError

        try:
            with self._quiet.training():
                result = study.proxy.train(architecture, on_step=on_step, on_curve=on_curve)
        except OptionError as error:
            if not trained_a_step:
                raise
            # The loss of this one is no longer finite; others learn at this rate.
            raise ModelError(error.what, where=architecture.name, fix=error.fix) from error
        # Again, as a training that was done when its worker died calls nothing.
        note(trial, CURVE, list(result.curve))
        note(trial, SECONDS, result.seconds)
        return [result.accuracy, *(costs.values[o.text] for o in study.objectives[1:])]

    def _contenders(self, trial: Trial) -> list[Contender]:
        return [
            Contender(t.user_attrs[NETWORK], t.user_attrs[COSTS], t.user_attrs[CURVE])
            for t in self._claims.trials()
            if t.number != trial.number
            and (is_done(t) or is_open(t))
            and {COSTS, CURVE} <= t.user_attrs.keys()
        ]


def main() -> None:
    """A worker process: reads what to do from its input, says on its output what went wrong."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Started in the background it would ignore Ctrl-C, and with it what its parent sends.
        signal.signal(number, signal.default_int_handler)
    warnings.simplefilter("ignore")
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    try:
        settings = SearchSettings.from_json(task["settings"])
        Worker(Study(settings, task["worker"], create=False), parent=task["parent"]).run()
    except CsrError as error:
        what = {"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        print(json.dumps(what), flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
