"""Runs trials with Ray Tune, and clears away what they leave behind."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ray import tune
from ray.tune import Callback, ResultGrid
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dsn_ray.config import OBJECTIVE
from dsn_ray.data.storage import Folder


def run_trials(
    trial: Callable[..., None],
    searcher: Searcher,
    scheduler: TrialScheduler,
    callbacks: Sequence[Callback],
    storage: str,
    name: str,
) -> ResultGrid:
    """Runs what a searcher proposes, to the end.

    Tune's own state is never read again: whoever resumes a run knows from its own records what is
    left to do, and a training that was interrupted goes on by itself.

    Args:
        trial: takes a proposal; it waits for the workers that do the work, and takes no CPU.
        searcher: proposes, and decides how many trials run at a time.
        scheduler: may stop trials.
        callbacks: are told of results.
        storage: folder or URL of the run.
        name: of Tune's folder below it.
    """
    return tune.Tuner(
        tune.with_resources(trial, {"node:__internal_head__": 0.001}),
        tune_config=tune.TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=-1),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    ).fit()


class Retention(Callback):
    """Keeps the checkpoint of the best trial that has ended, and deletes the others'.

    So a search takes the room of the trials at a time and one more, however many it runs.
    """

    def __init__(
        self, storage: str, last_epoch: int, best: tuple[float, str] | None = None
    ) -> None:
        """Keeps everything so far.

        Args:
            storage: folder or URL with one folder per trial.
            last_epoch: a trial that ends before it is never the best.
            best: value and folder of the best trial of an earlier process.
        """
        self._storage, self._last_epoch = storage, last_epoch
        self._best = best
        self._unwanted: set[str] = set()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Deletes what is not the best; nothing reads it again."""
        result, mine = trial.last_result or {}, folder_of(trial.config)
        value = result.get(OBJECTIVE, math.nan)
        unwanted: str | None = mine
        finished = result.get("epoch") == self._last_epoch and not math.isnan(value)
        if finished and (self._best is None or value > self._best[0]):
            unwanted = self._best[1] if self._best else None
            self._best = value, mine
        if unwanted:
            self._unwanted.add(unwanted)
            self._delete(unwanted)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Deletes what trials wrote while they were being stopped."""
        for name in self._unwanted:
            self._delete(name)

    def _delete(self, name: str) -> None:
        with suppress(OSError):  # somebody writes there still; the end of the search comes back
            Folder.at(f"{self._storage}/{name}").remove()


def folder_of(proposal: dict[str, Any]) -> str:
    """The name of the folder of a search's trial."""
    return f"trial{proposal['number']}-seed{proposal['seed']}"
