"""Optuna and the scheduler under Ray Tune."""

import math
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from dsn_ray.space import Sampler, Space


class SweepSearch(OptunaSearch):
    """Optuna under Tune, told rightly how each trial ended.

    Tune's own class reports a trial that a scheduler stopped as complete, with its early value, and
    leaves one whose value is not a number running for ever. Here they are pruned and failed.
    """

    def __init__(self, space: Space, metric: str, last_epoch: int) -> None:
        """Prepares a study.

        Args:
            space: what varies, and who proposes.
            metric: to be maximised.
            last_epoch: a trial that ends before it was pruned.
        """
        super().__init__(
            {name: parameter.to_optuna() for name, parameter in space.parameters.items()},
            metric=metric,
            mode="max",
            points_to_evaluate=space.first,
            sampler=_sampler(space.sampler),
        )
        self._last_epoch = last_epoch

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna how a trial ended."""
        value = (result or {}).get(str(self.metric))
        if value is None or math.isnan(value):
            super().on_trial_complete(trial_id, None, error=True)
        elif not error and result and result["epoch"] < self._last_epoch:
            self._ot_study.tell(self._ot_trials[trial_id], state=TrialState.PRUNED)
            self._completed_trials.add(trial_id)
        else:
            super().on_trial_complete(trial_id, result, error)


def make_scheduler(space: Space, metric: str, epochs: int) -> TrialScheduler:
    """The scheduler that a space names, counting epochs rather than reports."""
    if space.scheduler.name == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric=metric,
        mode="max",
        max_t=epochs,
        grace_period=min(space.scheduler.grace_epochs, epochs),
        reduction_factor=space.scheduler.reduction_factor,
    )


def _sampler(sampler: Sampler) -> optuna.samplers.BaseSampler:
    if sampler.name == "random":
        return optuna.samplers.RandomSampler(seed=sampler.seed)
    return optuna.samplers.TPESampler(
        seed=sampler.seed, n_startup_trials=sampler.startup_trials, multivariate=False
    )
