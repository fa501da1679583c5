"""Who stops a sweep's trials early: Tune's schedulers, for trials that know their own numbers."""

import math
from dataclasses import dataclass
from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from dsn_ray.space import Space
from dsn_ray.study import TWIN_OF


def make_scheduler(space: Space, metric: str, epochs: int) -> "NumberedScheduler":
    """The scheduler that a space names, counting epochs rather than reports."""
    common = {"time_attr": "epoch", "metric": metric, "mode": "max"}
    grace = min(space.scheduler.grace_epochs, epochs)
    if space.scheduler.name == "asha":
        return NumberedScheduler(
            ASHAScheduler(
                **common,
                max_t=epochs,
                grace_period=grace,
                reduction_factor=space.scheduler.reduction_factor,
            ),
            epochs,
        )
    if space.scheduler.name == "median":
        return NumberedScheduler(MedianStoppingRule(**common, grace_period=grace), epochs)
    return NumberedScheduler(FIFOScheduler(), epochs)


class NumberedScheduler(FIFOScheduler):
    """A scheduler that knows a trial by its own number, whichever process runs it.

    So one that goes on in a later process is judged as if nothing had happened, and once for each
    epoch, though a training that was interrupted tells its last one again. After its last epoch
    it ends by itself.
    """

    def __init__(self, rule: TrialScheduler, epochs: int) -> None:
        """Lets another scheduler judge trials of so many epochs."""
        super().__init__()
        self._rule = rule
        self._epochs = epochs
        self._judged: dict[_Known, int] = {}

    def remind(self, study: optuna.Study, metric: str) -> None:
        """Tells it what trials have reported to an earlier process, without judging them again."""
        for past in study.get_trials(deepcopy=False):
            if TWIN_OF in past.user_attrs:
                continue
            known = _Known(past.number + 1)
            for epoch, value in sorted(past.intermediate_values.items()):
                if not math.isnan(value):
                    self._rule.on_trial_add(None, known)
                    self._rule.on_trial_complete(None, known, {"epoch": epoch, metric: value})
                    self._judged[known] = epoch

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Passes it on."""
        self._rule.on_trial_add(tune_controller, _Known.of(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Passes it on."""
        known = _Known.of(trial)
        if result["epoch"] <= self._judged.get(known, 0):
            return TrialScheduler.CONTINUE
        self._judged[known] = result["epoch"]
        judgement = self._rule.on_trial_result(tune_controller, known, result)
        return TrialScheduler.CONTINUE if result["epoch"] >= self._epochs else str(judgement)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Passes it on."""
        self._rule.on_trial_complete(tune_controller, _Known.of(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Passes it on."""
        self._rule.on_trial_remove(tune_controller, _Known.of(trial))


@dataclass(frozen=True)
class _Known:
    """As much of a trial as schedulers look at."""

    trial_id: int

    @classmethod
    def of(cls, trial: Trial) -> "_Known":
        return cls(trial.config["number"])
