import itertools
import math
import pickle
from functools import partial

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from dsn_ray.search import ListSearcher
from dsn_ray.space import Space
from dsn_ray.study import best_setting, open_study, settings_tried
from tests.searches import IDS, LAMBDA1, room, run, searcher, space


def states(folder):
    (summary,) = optuna.get_all_study_summaries(storage(folder))
    study = optuna.load_study(study_name=summary.study_name, storage=storage(folder))
    return [trial.state for trial in study.trials]


def storage(folder):
    journal = optuna.storages.journal
    return journal.JournalStorage(journal.JournalFileBackend(str(folder / "study.journal")))


def test_each_ending_is_told_rightly(tmp_path):
    search = searcher(tmp_path, space())
    run(search, [(3, 0.9), (1, 0.3), (3, math.nan), None])
    told = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert states(tmp_path) == [*told, TrialState.RUNNING]  # the last can go on
    study = open_study(tmp_path / "study.journal", space().sampler)
    assert study.best_value == 0.9
    assert best_setting(study) == {"loss.lambda1": 0.1}
    assert len(settings_tried(study)) == 2
    assert search.wanted() == {1, 4}
    assert study.trials[0].intermediate_values == pytest.approx({1: 0.3, 2: 0.6, 3: 0.9})
    assert study.trials[1].intermediate_values == {1: 0.3}


def test_the_first_setting_comes_first_and_the_seed_decides_the_rest(tmp_path):
    def proposals(folder, seed):
        (tmp_path / folder).mkdir()
        of = space(sampler={"name": "tpe", "seed": seed})
        found = run(searcher(tmp_path / folder, of), [(3, 0.1 * n) for n in range(5)])
        return [one["settings"]["loss.lambda1"] for one in found]

    once, again, other = proposals("a", 0), proposals("b", 0), proposals("c", 1)
    assert len(once) == 4
    assert once[0] == 0.1
    assert once == again
    assert once != other


def test_a_later_process_goes_on_where_the_first_was_killed(tmp_path):
    first = searcher(tmp_path, space())
    failed = run(first, [(3, 0.5), None])[1]
    under_way = first.suggest("x")
    later = searcher(tmp_path, space(), room=lambda: 2)
    assert later.suggest("y") == failed  # it goes on in its own folder
    assert later.suggest("z") == under_way
    assert later.suggest("z") is None  # there is room for two
    for trial_id in "yz":
        later.on_trial_complete(trial_id, {"epoch": 3, "mAP": 0.6})
    assert [one["number"] for one in run(later, [(3, 0.7)] * 5)] == [4]
    assert searcher(tmp_path, space()).suggest("q") == Searcher.FINISHED


class Killed(Exception):  # noqa: N818 - it is none
    """The driver dies here."""


class Dying(optuna.storages.journal.JournalFileBackend):
    """A journal whose driver is killed after some writes."""

    def __init__(self, path, writes):
        super().__init__(path)
        self.writes = writes

    def append_logs(self, logs):
        if not self.writes:
            raise Killed
        self.writes -= 1
        super().append_logs(logs)


@pytest.mark.parametrize("seeds", [1, 2])
def test_wherever_the_driver_is_killed_the_next_one_goes_on(tmp_path, monkeypatch, seeds):
    of = space(
        parameters={"memory.k": {"choices": [1, 5, 9]}, **LAMBDA1},
        first=[{"memory.k": k, "loss.lambda1": 0.5} for k in (1, 5, 9)],
        budget={"trials": 4, "seeds": seeds},
        scheduler={"name": "none"},
    )
    endings = {1: (3, 0.9), 5: (3, math.nan), 9: (3 if seeds > 1 else 1, 0.3)}
    trained = []

    def go_on(search):
        """Runs what is proposed; the fourth setting is drawn."""
        for trial_id in map(str, IDS):
            proposal = search.suggest(trial_id)
            if proposal == Searcher.FINISHED:
                return
            epochs, value = endings[proposal["settings"]["memory.k"]]
            for epoch in range(1, epochs + 1):
                result = {"epoch": epoch, "mAP": value * epoch / epochs}
                if epoch < epochs:
                    search.on_trial_result(trial_id, result)
            search.on_trial_complete(trial_id, result)
            trained.append((proposal["number"], proposal["seed"]))

    def outcome(study):
        trials = [trial for trial in study.get_trials() if "twin of" not in trial.user_attrs]
        return [(t.state, t.value, t.intermediate_values) for t in trials[:3]]

    (tmp_path / "whole").mkdir()
    go_on(searcher(tmp_path / "whole", of))
    whole = open_study(tmp_path / "whole" / "study.journal", of.sampler)
    states = [TrialState.COMPLETE, TrialState.FAIL]
    assert [t.state for t in whole.trials][:2] == states
    assert sorted(trained)[:seeds] == [(1, seed) for seed in range(seeds)]
    assert (2, 1) not in trained  # one without a value is enough
    monkeypatch.setattr("os.fsync", lambda _: None)
    for writes in itertools.count(2):  # the study itself takes two
        folder = tmp_path / str(writes)
        folder.mkdir()
        trained.clear()
        with monkeypatch.context() as patched:
            patched.setattr("dsn_ray.study.JournalFileBackend", partial(Dying, writes=writes))
            try:
                go_on(searcher(folder, of))
            except Killed:
                pass
            else:
                break
        go_on(searcher(folder, of))
        again = open_study(folder / "study.journal", of.sampler)
        assert outcome(again) == outcome(whole)
        assert TrialState.RUNNING not in [trial.state for trial in again.trials]
        assert all(trial.params.keys() == of.parameters.keys() for trial in again.trials)
        assert best_setting(again)["memory.k"] == 1
        assert len(trained) == len(set(trained))
    assert writes > 20


def test_more_trials_can_be_asked_for_later(tmp_path):
    run(searcher(tmp_path, space()), [(3, 0.5)] * 9)
    more = run(searcher(tmp_path, space(budget={"trials": 6})), [(3, 0.5)] * 9)
    assert [one["number"] for one in more] == [5, 6]


def test_a_setting_that_was_tried_is_not_run_again(tmp_path):
    of = space(
        parameters={"memory.k": {"choices": [1, 5]}},
        first=[],
        sampler={"name": "random"},
        budget={"trials": 9},
    )
    found = run(searcher(tmp_path, of), [(3, 0.5), (1, 0.2), *[(3, 0.5)] * 9])
    assert sorted(one["settings"]["memory.k"] for one in found) == [1, 5]
    assert len(settings_tried(open_study(tmp_path / "study.journal", of.sampler))) == 2


def test_a_setting_that_is_under_way_is_not_run_beside_itself(tmp_path):
    of = space(
        parameters={"memory.k": {"choices": [1, 5]}},
        first=[],
        sampler={"name": "random"},
        budget={"trials": 9},
    )
    search = searcher(tmp_path, of, room=lambda: 4)
    found = [search.suggest(trial_id) for trial_id in "ab"]
    assert sorted(one["settings"]["memory.k"] for one in found) == [1, 5]
    assert search.suggest("c") == Searcher.FINISHED
    search.on_trial_complete("a", {"epoch": 3, "mAP": 0.5})
    search.on_trial_complete("b", {"epoch": 1, "mAP": 0.2})
    assert set(states(tmp_path)) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(settings_tried(open_study(tmp_path / "study.journal", of.sampler))) == 2


def test_a_grid_is_run_in_its_order_and_once(tmp_path):
    of = Space.model_validate(
        {
            "parameters": {
                "loss.lambda2": {"choices": [0.0, 1.0]},
                "memory.k": {"choices": [1, 5], "when": {"loss.lambda2": 1.0}},
            },
            "sampler": {"name": "grid"},
        }
    )
    found = run(searcher(tmp_path, of), [(3, 0.5)] * 9)
    assert [one["settings"] for one in found] == of.grid()
    assert of.grid() == [
        {"loss.lambda2": 0.0},
        {"loss.lambda2": 1.0, "memory.k": 1},
        {"loss.lambda2": 1.0, "memory.k": 5},
    ]


def test_the_value_of_a_setting_is_the_mean_over_its_seeds(tmp_path):
    of = space(budget={"trials": 2, "seeds": 3}, scheduler={"name": "none"})
    found = run(searcher(tmp_path, of), [(3, 0.1), (3, 0.2), (3, 0.6), (3, 0.5), (3, 0.5)])
    assert [(one["number"], one["seed"]) for one in found] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    assert found[0]["settings"] == found[2]["settings"]
    study = open_study(tmp_path / "study.journal", of.sampler)
    assert study.trials[0].value == pytest.approx(0.3)
    assert run(searcher(tmp_path, of), [None])[0]["seed"] == 2  # a machine fails
    (left,) = run(searcher(tmp_path, of), [(3, math.nan)] * 3)  # what was left of the second
    assert (left["number"], left["seed"]) == (2, 2)
    assert states(tmp_path) == [TrialState.COMPLETE, TrialState.FAIL]


def test_the_checkpoints_of_a_setting_are_wanted_while_a_seed_trains(tmp_path):
    of = space(budget={"trials": 2, "seeds": 2}, scheduler={"name": "none"})
    search = searcher(tmp_path, of, room=lambda: 2)
    assert [search.suggest(trial_id)["seed"] for trial_id in "ab"] == [0, 1]
    search.on_trial_complete("a", {"epoch": 1, "mAP": math.nan})
    assert states(tmp_path) == [TrialState.FAIL]
    assert search.wanted() == {1}
    search.on_trial_complete("b", {"epoch": 3, "mAP": 0.5})
    assert search.wanted() == set()


def test_trials_run_while_the_cluster_has_room_even_if_it_grows(tmp_path):
    size = [1]
    search = searcher(tmp_path, space(), room=lambda: size[0])
    assert search.suggest("a")
    assert search.suggest("b") is None
    size[0] = 2
    assert search.suggest("b")
    assert search.suggest("c") is None
    size[0] = 1
    search.on_trial_complete("a", {"epoch": 3, "mAP": 0.5})
    assert search.suggest("c") is None


def test_a_list_is_proposed_in_order():
    search = ListSearcher([{"number": 0}, {"number": 1}], room)
    assert search.suggest("a") == {"number": 0}
    assert search.suggest("b") is None
    search.on_trial_complete("a")
    assert search.suggest("b") == {"number": 1}
    search.on_trial_complete("b")
    assert search.suggest("c") == Searcher.FINISHED


def test_tune_can_pickle_it_under_way(tmp_path):
    search = searcher(tmp_path, space())
    search.suggest("a")
    assert pickle.loads(pickle.dumps(search)).suggest("b") is None
