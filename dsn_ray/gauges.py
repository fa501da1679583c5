"""What trainings do right now, on Ray's metrics port, for the dashboard's Grafana and Prometheus.

Ray shows each gauge as `ray_<name>`; every one tells the run, the data set and the training.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

from ray import tune
from ray.tune.experiment import Trial
from ray.util.metrics import Gauge

from dsn_ray.config import OBJECTIVE
from dsn_ray.progress import State
from dsn_ray.record import Name, NameOf

_TAGS = ("run", "dataset", "training")
_OF_AN_EPOCH = {
    "epoch": ("dsn_epoch", "Epochs that have ended"),
    OBJECTIVE: ("dsn_validation_map", "mAP@all on validation classes"),
    "pictures_per_second": ("dsn_pictures_per_second", "Pictures trained on each second"),
    "waiting_for_data": ("dsn_waiting_for_data_ratio", "Part of the time spent waiting for data"),
    "bank_fill": ("dsn_bank_fill_ratio", "Part of the memory bank's places in use"),
    "gpu_memory": ("dsn_gpu_memory_bytes", "Most GPU memory that the first worker has taken"),
}
_STATES: tuple[State, ...] = get_args(State)


class RunGauges:
    """The gauges of one run."""

    def __init__(self, run: str) -> None:
        """Sets nothing yet.

        Args:
            run: its name.
        """
        self._run = run
        self._of_an_epoch = {
            key: Gauge(name, text, _TAGS) for key, (name, text) in _OF_AN_EPOCH.items()
        }
        self._loss = Gauge("dsn_loss", "Mean loss of the last epoch", (*_TAGS, "term"))
        self._state = Gauge("dsn_training_state", "1 for the state it is in", (*_TAGS, "state"))
        self._best = Gauge(
            "dsn_best_validation_map", "Of all trials that came to their last epoch", _TAGS[:2]
        )

    def epoch(self, name: Name, result: Mapping[str, Any]) -> None:
        """Shows an epoch of a training."""
        tags = self._tags(name)
        for key, gauge in self._of_an_epoch.items():
            if key in result:
                gauge.set(float(result[key]), tags)
        for key, value in result.items():
            if key.startswith("loss_"):
                self._loss.set(float(value), {**tags, "term": key.removeprefix("loss_")})

    def state(self, name: Name, state: State) -> None:
        """Shows the state that a training is in."""
        for other in _STATES:
            self._state.set(float(other == state), {**self._tags(name), "state": other})

    def best(self, dataset: str, value: float) -> None:
        """Shows the best value so far."""
        self._best.set(value, {"run": self._run, "dataset": dataset})

    def _tags(self, name: Name) -> dict[str, str]:
        return {"run": self._run, "dataset": name.dataset, "training": name.title}


class Gauges(tune.Callback):
    """Sets the gauges of trials as they run."""

    def __init__(
        self,
        run: str,
        name_of: NameOf,
        how_it_ended: Callable[[Trial], State] | None = None,
        best: float | None = None,
    ) -> None:
        """Sets nothing yet.

        Args:
            run: name of the run.
            name_of: names a training by its proposal.
            how_it_ended: of a trial; by default it has finished.
            best: value of an earlier process's best trial; None where there is none.
        """
        self._shown, self._name_of, self._how_it_ended = RunGauges(run), name_of, how_it_ended
        self._best = best

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Tells that it runs."""
        self._is(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Shows an epoch."""
        self._shown.epoch(self._name_of(trial.config), result)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        """Tells how it has ended; the last epoch is the one that counts."""
        state = self._how_it_ended(trial) if self._how_it_ended else "finished"
        value = (trial.last_result or {}).get(OBJECTIVE)
        if state == "finished" and value is not None:
            self._best = value if self._best is None else max(self._best, value)
        self._is(trial, state)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Tells that it failed."""
        self._is(trial, "failed")

    def _is(self, trial: Trial, state: State) -> None:
        name = self._name_of(trial.config)
        self._shown.state(name, state)
        if self._best is not None:
            self._shown.best(name.dataset, self._best)
