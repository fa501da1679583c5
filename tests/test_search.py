import optuna
import pytest
from optuna.trial import TrialState

from dsn_ray.search import SweepSearch, make_scheduler
from dsn_ray.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)


def space(**changes):
    return Space.model_validate(
        {
            "parameters": {"loss.lambda1": {"distribution": "uniform", "low": 0, "high": 1}},
            "first": [{"loss.lambda1": 0.1}],
            "budget": {"trials": 4},
            **changes,
        }
    )


def states(search):
    return [trial.state for trial in search._ot_study.trials]


def test_each_ending_is_told_rightly():
    search = SweepSearch(space(), "mAP", last_epoch=3)
    endings = [(3, 0.9), (1, 0.3), (3, float("nan")), None]
    for number, ending in enumerate(endings):
        search.suggest(str(number))
        result = None
        if ending:
            result = {"epoch": ending[0], "mAP": ending[1], "training_iteration": ending[0]}
        search.on_trial_complete(str(number), result, error=ending is None)
    expected = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    assert states(search) == expected
    assert search._ot_study.best_value == 0.9


def test_the_first_setting_comes_first_and_the_seed_decides_the_rest():
    def proposals(seed):
        search = SweepSearch(space(sampler={"name": "tpe", "seed": seed}), "mAP", last_epoch=1)
        values = []
        for number in range(4):
            values.append(search.suggest(str(number))["loss.lambda1"])
            result = {"epoch": 1, "mAP": values[-1], "training_iteration": 1}
            search.on_trial_complete(str(number), result)
        return values

    assert proposals(0)[0] == 0.1
    assert proposals(0) == proposals(0)
    assert proposals(0) != proposals(1)


@pytest.mark.parametrize("name", ["asha", "none"])
def test_schedulers_by_name(name):
    scheduler = make_scheduler(space(scheduler={"name": name}), "mAP", epochs=1)
    assert (
        type(scheduler).__name__
        == {"asha": "AsyncHyperBandScheduler", "none": "FIFOScheduler"}[name]
    )
