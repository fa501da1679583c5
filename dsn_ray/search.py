"""Who proposes a sweep's trials and who stops them: Optuna and the schedulers under Ray Tune."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from dsn_ray.space import Sampler, Space

STUDY = "study.journal"
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_FAILED, _AGAIN, _TWIN_OF, _VALUES = "failed", "again", "twin of", "values"
_REPEATS = 50  # proposals in a row that were there before, after which a space counts as exhausted


class PacedSearcher(Searcher):
    """Proposes trials for as long as the cluster has room for another one."""

    def __init__(self, room: Callable[[], int], metric: str | None = None) -> None:
        """Asks `room` for the number of trials at a time whenever Tune wants another one."""
        super().__init__(metric=metric, mode="max" if metric else None)
        self._room = room
        self._running: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration, if there is one and room for it."""
        if len(self._running) >= self._room():
            return None
        proposal = self._next()
        if proposal is None:
            return str(Searcher.FINISHED)
        self._running[trial_id] = proposal
        return proposal

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Makes room."""
        self._ended(self._running.pop(trial_id), result or {}, error)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: what was proposed and how it ended is kept by the run itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing."""

    @abstractmethod
    def _next(self) -> dict[str, Any] | None:
        """The next trial's configuration; None where there is none any more."""

    def _ended(self, proposal: dict[str, Any], result: dict[str, Any], failed: bool) -> None:
        """Learns from a trial's end."""


class ListSearcher(PacedSearcher):
    """Proposes what it was given, in order."""

    def __init__(self, proposals: list[dict[str, Any]], room: Callable[[], int]) -> None:
        """Takes the proposals."""
        super().__init__(room)
        self._left = list(proposals)

    def _next(self) -> dict[str, Any] | None:
        return self._left.pop(0) if self._left else None


class StudySearcher(PacedSearcher):
    """Optuna under Tune: an Optuna study in its own journal, told rightly how each trial ended.

    A trial that a scheduler stopped is pruned, one whose value is no number has failed. The journal
    is all that a later process needs to go on: trials that were under way are proposed again first,
    by their old numbers, and those that failed once more. A setting that has been tried is told
    its value, and not tried again.

    Proposals are `{"number": from 1 on, "seed": of the training, "settings": by dotted name}`.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        trials: int,
        metric: str,
        last_epoch: int,
        room: Callable[[], int],
        first_seed: int = 0,
    ) -> None:
        """Takes up a study, new or not.

        Args:
            study: from `open_study`.
            space: what varies.
            trials: settings to try, those of the study included.
            metric: to be maximised.
            last_epoch: a trial that ends before it was pruned.
            room: the number of trials that can run at a time.
            first_seed: of the trainings of each setting.
        """
        super().__init__(room, metric)
        self._study, self._space = study, space
        self._last_epoch = last_epoch
        self._seeds = range(first_seed, first_seed + space.budget.seeds)
        for point in space.grid()[:trials] if space.sampler.name == "grid" else space.first:
            study.enqueue_trial(point, skip_if_exists=True)
        self._pending: list[tuple[FrozenTrial | optuna.Trial, int]] = []
        for trial in study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING:
                self._pending += [(trial, seed) for seed in self._seeds_left(trial)]
            elif trial.user_attrs.get(_FAILED) and trial.number not in self._tried_again():
                study.enqueue_trial(trial.params, user_attrs={_AGAIN: trial.number})
        self._budget = trials - self._spent()

    def _spent(self) -> int:
        """Settings of the budget that were proposed; one that is tried again counts once."""
        again = self._tried_again()
        return sum(
            trial.state != TrialState.WAITING
            and _TWIN_OF not in trial.user_attrs
            and trial.number not in again
            for trial in self._study.get_trials(deepcopy=False)
        )

    def _tried_again(self) -> set[int | None]:
        """The numbers of failed trials that have been proposed once more."""
        trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs.get(_AGAIN) for trial in trials}

    def _seeds_left(self, trial: FrozenTrial | optuna.Trial) -> list[int]:
        return [seed for seed in self._seeds if str(seed) not in _values(trial)]

    def _next(self) -> dict[str, Any] | None:
        if not self._pending:
            proposed = self._propose()
            if proposed is None:
                return None
            self._pending = [(proposed, seed) for seed in self._seeds]
        trial, seed = self._pending.pop(0)
        return {"number": trial.number + 1, "seed": seed, "settings": dict(trial.params)}

    def _propose(self) -> optuna.Trial | None:
        if self._budget <= 0:
            return None
        for _ in range(_REPEATS):
            trial = self._study.ask()
            self._space.propose(trial)
            twin = next(self._ended_twins(trial), None)
            if twin is None:
                self._budget -= 1
                return trial
            trial.set_user_attr(_TWIN_OF, twin.number + 1)
            for epoch, value in twin.intermediate_values.items():
                trial.report(value, epoch)
            values = twin.values if twin.state == TrialState.COMPLETE else None
            self._study.tell(trial, values, state=twin.state)
        self._budget = 0
        return None

    def _ended_twins(self, trial: optuna.Trial) -> Iterator[FrozenTrial]:
        """Earlier trials of the same setting that came to an end, a divergence included."""
        for other in self._study.get_trials(deepcopy=False, states=_ENDED):
            if other.params == trial.params and _FAILED not in other.user_attrs:
                yield other

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells Optuna an epoch's value."""
        if len(self._seeds) == 1 and self.metric in result:
            trial = self._trial(self._running[trial_id])
            trial.report(float(result[self.metric]), result["epoch"])

    def _trial(self, proposal: dict[str, Any]) -> optuna.Trial:
        frozen = self._study.get_trials(deepcopy=False)[proposal["number"] - 1]
        return optuna.Trial(self._study, frozen._trial_id)

    def _ended(self, proposal: dict[str, Any], result: dict[str, Any], failed: bool) -> None:
        trial = self._trial(proposal)
        value = result.get(self.metric)
        if failed or value is None:
            trial.set_user_attr(_FAILED, True)
        elif len(self._seeds) == 1 and result["epoch"] < self._last_epoch and not math.isnan(value):
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        values = _values(trial) | {str(proposal["seed"]): None if failed else value}
        trial.set_user_attr(_VALUES, values)
        if self._seeds_left(trial):
            return
        mean = math.fsum(math.nan if v is None else v for v in values.values()) / len(values)
        if math.isnan(mean):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, mean)


def _values(trial: FrozenTrial | optuna.Trial) -> dict[str, float | None]:
    """The values of a setting by seed, as far as they are known."""
    return dict(trial.user_attrs.get(_VALUES, {}))


def open_journal(journal: Path) -> JournalStorage:
    """Optuna's storage in a file."""
    return JournalStorage(JournalFileBackend(str(journal)))


def open_study(journal: Path, sampler: Sampler) -> optuna.Study:
    """The study of a search, new or as it was left.

    Args:
        journal: a file of Optuna's journal storage, which Optuna's own tools open.
        sampler: who proposes.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=open_journal(journal),
        direction="maximize",
        load_if_exists=True,
    )
    study.sampler = _sampler(sampler, len(study.get_trials(deepcopy=False)))
    return study


def best_setting(study: optuna.Study) -> dict[str, Any] | None:
    """The setting of the best trial that came to its end; None where none did."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    return dict(study.best_trial.params)


def settings_tried(study: optuna.Study) -> list[dict[str, Any]]:
    """Every setting of the search but those that failed, in order."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [
        dict(trial.params)
        for trial in study.get_trials(deepcopy=False, states=states)
        if _TWIN_OF not in trial.user_attrs
    ]


def make_scheduler(space: Space, metric: str, epochs: int) -> TrialScheduler:
    """The scheduler that a space names, counting epochs rather than reports."""
    common = {"time_attr": "epoch", "metric": metric, "mode": "max"}
    grace = min(space.scheduler.grace_epochs, epochs)
    if space.scheduler.name == "asha":
        return ASHAScheduler(
            **common,
            max_t=epochs,
            grace_period=grace,
            reduction_factor=space.scheduler.reduction_factor,
        )
    if space.scheduler.name == "median":
        return MedianStoppingRule(**common, grace_period=grace)
    return FIFOScheduler()


@dataclass(frozen=True)
class _Past:
    """As much of an earlier process's trial as schedulers look at."""

    trial_id: str


_NOBODY_RUNS = SimpleNamespace(get_live_trials=tuple)


def remind(scheduler: TrialScheduler, study: optuna.Study, metric: str) -> None:
    """Tells a new scheduler what the trials of an earlier process have reported."""
    for past in study.get_trials(deepcopy=False):
        if _TWIN_OF in past.user_attrs or not past.intermediate_values:
            continue
        for epoch, value in sorted(past.intermediate_values.items()):
            if not math.isnan(value):
                tell_epoch(scheduler, past.number, epoch, value, metric)


def tell_epoch(
    scheduler: TrialScheduler, number: int, epoch: int, value: float, metric: str
) -> bool:
    """Tells a scheduler an epoch of a trial that Tune does not run.

    Args:
        scheduler: learns from it.
        number: of the trial.
        epoch: from 1 on.
        value: of the metric.
        metric: its name.

    Returns:
        Whether the scheduler would let the trial go on.
    """
    trial = _Past(f"past-{number}")
    if epoch == 1:
        scheduler.on_trial_add(_NOBODY_RUNS, trial)
    told = {"epoch": epoch, metric: value}
    return bool(scheduler.on_trial_result(_NOBODY_RUNS, trial, told) != TrialScheduler.STOP)


def _sampler(sampler: Sampler, before: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler, which does not begin its random numbers anew after `before` trials."""
    seed, startup = sampler.seed + before, sampler.startup_trials
    match sampler.name:
        case "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=False
            )
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
        case "qmc":
            # The study knows how far the sequence of this seed has got.
            return optuna.samplers.QMCSampler(seed=sampler.seed, scramble=True)
        case _:
            return optuna.samplers.RandomSampler(seed=seed)
