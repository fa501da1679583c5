import math
import pickle
from functools import partial
from operator import attrgetter
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
    "gpu_memory": 2**30,
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
        ("dsn_gpu_memory_bytes", *tags): 2**30,
        ("dsn_loss", *tags, "total"): 2,
        ("dsn_loss", *tags, "memory"): -0.5,
    }


BEST = ("dsn_best_validation_map", "first", "x")


def ended(told, number, state, value):
    trial = SimpleNamespace(
        config={"number": number, "seed": 0}, last_result={"mAP": value}, state=state
    )
    told.on_trial_complete(0, [], trial)


def test_the_best_is_of_the_trials_that_came_to_their_last_epoch(shown):
    told = gauges.Gauges("first", partial(name_of_trial, "x"), attrgetter("state"))
    tell(told, 1, {**EPOCH, "mAP": 0.9})  # on its way
    ended(told, 2, "stopped early", 0.8)
    ended(told, 3, "diverged", math.nan)
    assert BEST not in shown
    for number, value in enumerate((0.5, 0.7, 0.6), start=4):
        ended(told, number, "finished", value)
    assert shown[BEST] == 0.7


def test_the_best_of_an_earlier_process_is_shown_from_the_start(shown):
    told = gauges.Gauges("first", partial(name_of_trial, "x"), attrgetter("state"), best=0.7)
    told.on_trial_start(0, [], SimpleNamespace(config={"number": 9, "seed": 0}))
    assert shown[BEST] == 0.7
    ended(told, 9, "finished", 0.6)
    assert shown[BEST] == 0.7


def test_a_training_is_in_one_state(shown):
    told = gauges.Gauges("first", partial(name_of_trial, "x"), attrgetter("state"))
    trials = [SimpleNamespace(config={"number": number, "seed": 0}) for number in (1, 2, 3)]
    for trial in trials:
        told.on_trial_start(0, trials, trial)
    told.on_trial_error(0, trials, trials[0])
    ended(told, 2, "stopped early", 0.1)
    states = {(key[3], key[4]) for key, value in shown.items() if value == 1}
    assert states == {
        ("trial 1, seed 0", "failed"),
        ("trial 2, seed 0", "stopped early"),
        ("trial 3, seed 0", "running"),
    }
    assert len([key for key in shown if key[3] == "trial 1, seed 0"]) == 5


def test_a_training_of_the_final_job_has_no_validation(shown):
    told = gauges.Gauges("first", partial(name_of_trial, "x"))
    trial = SimpleNamespace(config={"number": 1, "seed": 0}, last_result=None)
    told.on_trial_complete(0, [], trial)
    assert shown["dsn_training_state", "first", "x", "trial 1, seed 0", "finished"] == 1
    assert BEST not in shown


def test_tune_can_keep_them_in_a_file():
    told = gauges.Gauges("first", partial(name_of_trial, "x"))
    assert isinstance(pickle.loads(pickle.dumps(told)), gauges.Gauges)
