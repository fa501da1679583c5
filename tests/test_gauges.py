import math
import pickle
from functools import partial
from types import SimpleNamespace

import pytest

from dsn_ray import gauges
from dsn_ray.record import name_of_trial

EPOCH = {
    "epoch": 1,
    "mAP": 0.5,
    "loss_total": 2.0,
    "loss_memory": -0.5,
    "pictures_per_second": 30.0,
    "waiting_for_data": 0.25,
    "bank_fill": 0.75,
}


@pytest.fixture
def shown(monkeypatch):
    """What each gauge was last set to, by its name and tags."""
    values = {}

    class Fake:
        def __init__(self, name, description, tag_keys):
            self.name, self.tag_keys = name, tag_keys

        def set(self, value, tags):
            assert set(tags) == set(self.tag_keys)
            values[self.name, *tags.values()] = value

    monkeypatch.setattr(gauges, "Gauge", Fake)
    return values


def tell(told, number, result):
    told.on_trial_result(0, [], SimpleNamespace(config={"number": number, "seed": 0}), result)


def test_an_epoch_is_shown_with_its_run_data_set_and_training(shown):
    tell(gauges.Gauges("first", partial(name_of_trial, "sketchy")), 3, EPOCH)
    tags = ("first", "sketchy", "trial 3, seed 0")
    assert shown == {
        ("dsn_epoch", *tags): 1,
        ("dsn_validation_map", *tags): 0.5,
        ("dsn_pictures_per_second", *tags): 30,
        ("dsn_waiting_for_data_ratio", *tags): 0.25,
        ("dsn_bank_fill_ratio", *tags): 0.75,
        ("dsn_loss", *tags, "total"): 2,
        ("dsn_loss", *tags, "memory"): -0.5,
        ("dsn_best_validation_map", *tags[:2]): 0.5,
    }


def test_the_best_is_of_all_trials_and_a_diverged_one_is_not_it(shown):
    told = gauges.Gauges("first", partial(name_of_trial, "x"))
    for number, value in enumerate((0.5, 0.7, math.nan, 0.6)):
        tell(told, number, {**EPOCH, "mAP": value})
    assert shown["dsn_best_validation_map", "first", "x"] == 0.7


def test_a_training_is_in_one_state(shown):
    told = gauges.Gauges("first", partial(name_of_trial, "x"))
    trials = [SimpleNamespace(config={"number": number, "seed": 0}) for number in (1, 2)]
    for trial in trials:
        told.on_trial_start(0, trials, trial)
    told.on_trial_error(0, trials, trials[0])
    states = {key[3:]: value for key, value in shown.items()}
    assert states == {
        ("trial 1, seed 0", "running"): 0,
        ("trial 1, seed 0", "ended"): 0,
        ("trial 1, seed 0", "failed"): 1,
        ("trial 2, seed 0", "running"): 1,
        ("trial 2, seed 0", "ended"): 0,
        ("trial 2, seed 0", "failed"): 0,
    }


def test_tune_can_keep_them_in_a_file():
    told = gauges.Gauges("first", partial(name_of_trial, "x"))
    assert isinstance(pickle.loads(pickle.dumps(told)), gauges.Gauges)
