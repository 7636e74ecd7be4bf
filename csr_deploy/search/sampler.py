"""Optuna's TPE, over networks instead of parameters: none that is known already is proposed again."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from csr_deploy.search.claims import NETWORK, is_done, is_open
from csr_deploy.search.space import Candidate, Space

_PROPOSALS = 20
_DRAWS = 200
_STARTUP_TRIALS = 8


class NewNetworks(BaseSampler):
    """Proposes networks that no trial of the study has.

    Different parameters can mean the same network (no module with T = 2 or with T = 3), and small spaces are
    soon tried out, so a sampler of parameters alone would propose the same again and again.

    Args:
        space: The networks.
        seed: Of the draws.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._random = np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._tpe = TPESampler(
                multivariate=True,
                constant_liar=True,
                n_startup_trials=_STARTUP_TRIALS,
                seed=seed % 2**32,
            )

    def reseed_rng(self) -> None:
        self._random = np.random.default_rng()
        self._tpe.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if NETWORK in trial.user_attrs:
            # Queued again: it has its parameters.
            return {}
        known = known_networks(study.get_trials(deepcopy=False))
        return self._space.parameters(self._choose(study, trial, search_space, known))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._tpe.after_trial(study, trial, state, values)

    def _choose(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
        known: set[str],
    ) -> Candidate:
        space = self._space
        # TPE models parameters with a choice only, and knows of none before the first trials are done.
        varied = {name: d for name, d in search_space.items() if not d.single()}
        fixed = space.parameters(space.nearest())
        for _ in range(_PROPOSALS):
            proposed = self._tpe.sample_relative(study, trial, varied)
            if not proposed:
                break
            candidate = space.candidate({**fixed, **proposed})
            if space.allows(candidate) and space.name(candidate) not in known:
                return candidate
        if space.listed is not None:
            left = [c for name, c in space.listed.items() if name not in known]
            # None left: somebody was faster, and the claim will say so.
            return left[self._random.integers(len(left))] if left else space.nearest()
        return self._draw(search_space, known)

    def _draw(self, search_space: dict[str, BaseDistribution], known: set[str]) -> Candidate:
        """A network of a space too large to list: any, or a few changes away from the smallest."""
        space = self._space
        for _ in range(_DRAWS):
            candidate = space.candidate({n: self._any(d) for n, d in search_space.items()})
            if space.allows(candidate) and space.name(candidate) not in known:
                return candidate
        best = space.parameters(space.nearest())
        current = best
        for _ in range(10 * _DRAWS):
            name = list(search_space)[self._random.integers(len(search_space))]
            changed = {**current, name: self._any(search_space[name])}
            candidate = space.candidate(changed)
            if space.allows(candidate):
                current = changed
                if space.name(candidate) not in known:
                    return candidate
        return space.candidate(current)

    def _any(self, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            return distribution.choices[self._random.integers(len(distribution.choices))]
        assert isinstance(distribution, optuna.distributions.IntDistribution)
        return int(self._random.integers(distribution.low, distribution.high + 1))


def known_networks(trials: list[FrozenTrial]) -> set[str]:
    """Names of the networks that were tried or are being tried."""
    return {t.user_attrs[NETWORK] for t in trials if is_done(t) or is_open(t)}
