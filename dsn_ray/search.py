"""Who proposes a sweep's trials: Optuna under Ray Tune."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from dsn_ray.space import Space
from dsn_ray.study import TWIN_OF, best_setting

_ENDINGS = "endings"
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
    is all that a later process needs to go on, wherever the first one was killed: trials that are
    running there, for they were interrupted or a training of theirs failed, are proposed again
    first, by their old numbers and only with the seeds that are missing. A setting that has been
    tried, or is under way, is told its value, and not trained again.

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
        self._under_way: dict[int, _UnderWay] = {}
        self._twins: list[tuple[int, optuna.Trial]] = []
        self._pending: list[tuple[int, int]] = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            epoch = max(trial.intermediate_values, default=0)
            self._take_up(optuna.Trial(study, trial._trial_id), epoch)
        self._budget = trials - self._spent()

    def _spent(self) -> int:
        """Settings of the budget that were proposed."""
        return sum(
            trial.state != TrialState.WAITING and TWIN_OF not in trial.user_attrs
            for trial in self._study.get_trials(deepcopy=False)
        )

    def _next(self) -> dict[str, Any] | None:
        if not self._pending and not self._propose():
            return None
        number, seed = self._pending.pop(0)
        settings = dict(self._under_way[number].trial.params)
        return {"number": number + 1, "seed": seed, "settings": settings}

    def _propose(self) -> bool:
        """Whether there was another setting to try; its trainings are pending then."""
        for _ in range(_REPEATS if self._budget > 0 else 0):
            if self._take_up(self._study.ask()):
                self._budget -= 1
                return True
        self._budget = 0
        return False

    def _take_up(self, trial: optuna.Trial, epoch: int = 0) -> bool:
        """Draws what a trial's setting lacks, and has the trial go on from wherever it is.

        Args:
            trial: is running, as Optuna sees it.
            epoch: the last one that Optuna knows of.

        Returns:
            Whether the setting is its own, and not that of an earlier trial.
        """
        self._space.propose(trial)
        twin = next(self._earlier_twins(trial), None)
        if twin is not None:
            trial.set_user_attr(TWIN_OF, twin.number + 1)
            self._twins.append((twin.number, trial))
            self._tell_twins()
            return False
        under_way = self._under_way[trial.number] = _UnderWay(trial, epoch)
        self._pending += [(trial.number, seed) for seed in self._seeds_left(trial)]
        self._tell_if_over(under_way)
        return True

    def _earlier_twins(self, trial: optuna.Trial) -> Iterator[FrozenTrial]:
        """Earlier trials of the same setting, which have ended, a divergence included, or will."""
        for other in self._study.get_trials(deepcopy=False)[: trial.number]:
            if other.params == trial.params and TWIN_OF not in other.user_attrs:
                yield other

    def _seeds_left(self, trial: optuna.Trial) -> list[int]:
        return [seed for seed in self._seeds if str(seed) not in _endings(trial)]

    def wanted(self) -> set[int]:
        """The numbers of the trials that train, that have failed and may go on, and of the best."""
        study = self._study
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        best = [study.best_trial] if best_setting(study) is not None else []
        training = {proposal["number"] for proposal in self._running.values()}
        return training | {trial.number + 1 for trial in [*running, *best]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells Optuna an epoch's value."""
        if self.metric in result:
            under_way = self._under_way.get(self._running[trial_id]["number"] - 1)
            self._report(under_way, result["epoch"], float(result[self.metric]))

    def _report(self, under_way: "_UnderWay | None", epoch: int, value: float) -> None:
        """Tells Optuna an epoch's value, where one training is all of the trial."""
        if under_way and len(self._seeds) == 1 and epoch > under_way.epoch:
            under_way.trial.report(value, epoch)
            under_way.epoch = epoch

    def _ended(self, proposal: dict[str, Any], result: dict[str, Any], failed: bool) -> None:
        under_way = self._under_way.get(proposal["number"] - 1)
        if failed or self.metric not in result or under_way is None:
            return
        ending = result["epoch"], float(result[self.metric])
        endings = _endings(under_way.trial) | {str(proposal["seed"]): ending}
        under_way.trial.set_user_attr(_ENDINGS, endings)
        self._tell_if_over(under_way)

    def _tell_if_over(self, under_way: "_UnderWay") -> None:
        """Tells Optuna how a trial ended, once its trainings have; one without a value ends it."""
        trial = under_way.trial
        endings = _endings(trial).values()
        mean = math.fsum(value for _, value in endings) / max(1, len(endings))
        if self._seeds_left(trial) and not math.isnan(mean):
            return
        for epoch, value in endings:
            self._report(under_way, epoch, value)
        if math.isnan(mean):
            self._study.tell(trial, state=TrialState.FAIL)
        elif len(self._seeds) == 1 and under_way.epoch < self._last_epoch:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, mean)
        del self._under_way[trial.number]
        self._pending = [one for one in self._pending if one[0] != trial.number]
        self._tell_twins()

    def _tell_twins(self) -> None:
        """Tells Optuna the ending of trials whose setting is that of a trial which has ended."""
        trials = self._study.get_trials(deepcopy=False)
        for number, trial in self._twins:
            twin = trials[number]
            if twin.state.is_finished():
                for epoch, value in twin.intermediate_values.items():
                    trial.report(value, epoch)
                values = twin.values if twin.state == TrialState.COMPLETE else None
                self._study.tell(trial, values, state=twin.state)
        self._twins = [one for one in self._twins if not trials[one[0]].state.is_finished()]


@dataclass
class _UnderWay:
    """A trial that has not come to its end.

    Attributes:
        trial: of Optuna.
        epoch: the last one that Optuna knows of.
    """

    trial: optuna.Trial
    epoch: int


def _endings(trial: optuna.Trial) -> dict[str, tuple[int, float]]:
    """The last epoch and its value by seed, of a setting's trainings that have ended."""
    return dict(trial.user_attrs.get(_ENDINGS, {}))
