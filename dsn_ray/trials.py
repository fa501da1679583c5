"""Runs trials with Ray Tune, and clears away what they leave behind."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ray import tune
from ray.tune import Callback, ResultGrid
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dsn_ray.data.storage import Folder
from dsn_ray.trainer import ReleaseWorkers


def run_trials(
    trial: Callable[..., None],
    searcher: Searcher,
    scheduler: TrialScheduler,
    callbacks: Sequence[Callback],
    storage: str,
    name: str,
    *,
    reuse: bool,
) -> ResultGrid:
    """Runs what a searcher proposes, to the end.

    Tune's own state is never read again: whoever resumes a run knows from its own records what is
    left to do, and a training that was interrupted goes on by itself. A trial that raises is not
    tried again here: Ray Train has done so by then, where that may help.

    Args:
        trial: takes a proposal; it waits for the workers that do the work, and takes no CPU.
        searcher: proposes, and decides how many trials run at a time.
        scheduler: may stop trials.
        callbacks: are told of results.
        storage: folder or URL of the run.
        name: of Tune's folder below it.
        reuse: have a trial's process go on with the next one.
    """
    # Results are in the run's own records, not where it looks for them.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    return tune.Tuner(
        tune.with_resources(trial, {"node:__internal_head__": 0.001}),
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[*callbacks, ReleaseWorkers()],
            verbose=0,
        ),
    ).fit()


class Retention(Callback):
    """Deletes the checkpoints of trials that nobody reads again, those of earlier processes too.

    So a search takes the room of the trials at a time, of the best one, and of those that failed
    and may go on, however many it runs.
    """

    def __init__(self, storage: str, wanted: Callable[[], Iterable[int]]) -> None:
        """Deletes nothing yet.

        Args:
            storage: folder or URL with one folder per training.
            wanted: tells the numbers of the trials whose checkpoints are.
        """
        self._storage, self._wanted = storage, wanted

    def setup(self, *_: Any, **info: Any) -> None:
        """Deletes what an earlier process left, when the search begins."""
        self._sweep()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Deletes what the trial's end has made useless."""
        self._sweep()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Deletes what trials wrote while they were being stopped."""
        self._sweep()

    def _sweep(self) -> None:
        folder = Folder.at(self._storage)
        wanted = tuple(f"trial{number}-" for number in self._wanted())
        names: list[str] = []
        with suppress(OSError):  # it is away; the next time comes
            names = folder.folders()
        for name in names:
            if not name.startswith(wanted):
                with suppress(OSError):  # somebody writes there still
                    (folder / name).remove()


def folder_of(proposal: dict[str, Any]) -> str:
    """The name of the folder of a search's trial."""
    return f"trial{proposal['number']}-seed{proposal['seed']}"
