import math

import pytest

from dsn_ray.search import StudySearcher
from dsn_ray.study import open_study, take_up_study
from tests.searches import LAMBDA1, room, run, searcher, space


def test_trials_that_were_asked_for_otherwise_do_not_count(tmp_path):
    def of(choices):
        return space(parameters={"memory.k": {"choices": choices}}, first=[])

    def go_on(asked, choices, values):
        sampler = of(choices).sampler
        study, aside = take_up_study(tmp_path, sampler, asked, f"file://{tmp_path}/trials")
        return run(StudySearcher(study, of(choices), 4, "mAP", 3, room), values), aside

    before, now = {"epochs": 3, "choices": [1]}, {"epochs": 3, "choices": [1, 5]}
    assert go_on(before, [1], [None]) == go_on(before, [1], [None])  # it failed, and may go on
    (tmp_path / "trials" / "trial1-seed0").mkdir(parents=True)
    (tmp_path / "trials.jsonl").write_text("{}")
    found, aside = go_on(now, [1, 5], [(3, 0.5)] * 4)
    assert sorted(one["settings"]["memory.k"] for one in found) == [1, 5]
    assert aside == tmp_path / "search-1"
    assert sorted(path.name for path in aside.iterdir()) == ["study.journal", "trials.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search-1", "study.journal"]
    assert go_on(now, [1, 5], []) == ([], None)
    assert go_on(before, [1], [(3, 0.5)])[1] == tmp_path / "search-2"


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "qmc", "random"])
def test_samplers_by_name(tmp_path, name):
    two = {**LAMBDA1, "loss.lambda2": {"distribution": "loguniform", "low": 0.1, "high": 10}}
    of = space(parameters=two, first=[], sampler={"name": name, "startup_trials": 2})
    values = [(3, 0.1), (1, 0.2), (3, math.nan), (3, 0.3)]
    found = run(searcher(tmp_path, of), values)
    assert len({one["settings"]["loss.lambda1"] for one in found}) == 4
    kind = type(open_study(tmp_path / "other.journal", of.sampler).sampler).__name__
    assert kind.lower().startswith(name)
