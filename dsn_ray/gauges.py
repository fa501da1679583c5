"""What trainings do right now, on Ray's metrics port, for the dashboard's Grafana and Prometheus.

Ray shows each gauge as `ray_<name>`; every one tells the run, the data set and the training.
"""

import math
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.util.metrics import Gauge

from dsn_ray.config import OBJECTIVE
from dsn_ray.record import NameOf

_TAGS = ("run", "dataset", "training")
_OF_AN_EPOCH = {
    "epoch": ("dsn_epoch", "Epochs that have ended"),
    OBJECTIVE: ("dsn_validation_map", "mAP@all on validation classes"),
    "pictures_per_second": ("dsn_pictures_per_second", "Pictures trained on each second"),
    "waiting_for_data": ("dsn_waiting_for_data_ratio", "Part of the time spent waiting for data"),
    "bank_fill": ("dsn_bank_fill_ratio", "Part of the memory bank's places in use"),
    "gpu_memory": ("dsn_gpu_memory_bytes", "Most GPU memory that the first worker has taken"),
}
_STATES = ("running", "ended", "failed")


class Gauges(tune.Callback):
    """Sets the gauges after each epoch."""

    def __init__(self, run: str, name_of: NameOf) -> None:
        """Sets nothing yet.

        Args:
            run: name of the run.
            name_of: names a training by its proposal.
        """
        self._run, self._name_of = run, name_of
        self._best = -math.inf
        self._of_an_epoch = {
            key: Gauge(name, text, _TAGS) for key, (name, text) in _OF_AN_EPOCH.items()
        }
        self._loss = Gauge("dsn_loss", "Mean loss of the last epoch", (*_TAGS, "term"))
        self._state = Gauge("dsn_training_state", "1 for the state it is in", (*_TAGS, "state"))
        self._highest = Gauge("dsn_best_validation_map", "Of all trials so far", _TAGS[:2])

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Tells that it runs."""
        self._is(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Shows an epoch."""
        tags = self._tags(trial)
        for key, gauge in self._of_an_epoch.items():
            if key in result:
                gauge.set(float(result[key]), tags)
        for key, value in result.items():
            if key.startswith("loss_"):
                self._loss.set(float(value), {**tags, "term": key.removeprefix("loss_")})
        if result.get(OBJECTIVE, -math.inf) > self._best:
            self._best = float(result[OBJECTIVE])
            self._highest.set(self._best, {key: tags[key] for key in _TAGS[:2]})

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        """Tells that it has ended, or was stopped."""
        self._is(trial, "ended")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Tells that it failed."""
        self._is(trial, "failed")

    def _tags(self, trial: Trial) -> dict[str, str]:
        name = self._name_of(trial.config)
        return {"run": self._run, "dataset": name.dataset, "training": name.title}

    def _is(self, trial: Trial, state: str) -> None:
        for other in _STATES:
            self._state.set(float(other == state), {**self._tags(trial), "state": other})
