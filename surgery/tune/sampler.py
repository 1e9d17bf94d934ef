"""Which numbers a trial tries: multi-objective TPE whose draws hang on the seed and the trial's number.

So a search that was stopped and goes on tries what it would have tried, and processes that share a journal do
not all draw the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

# Trials drawn at random before there is anything to go by.
STARTUP = 8


class ByTrial(BaseSampler):
    """A TPE sampler of its own for every trial."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._number, self._sampler = -1, _tpe(seed)

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if trial.number != self._number:
            # Far apart, so that seed 0 and seed 1 do not try nearly the same trials.
            self._number, self._sampler = trial.number, _tpe(100_003 * self._seed + trial.number)
        return self._sampler

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._of(trial).after_trial(study, trial, state, values)


def _tpe(seed: int) -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, n_startup_trials=STARTUP)
