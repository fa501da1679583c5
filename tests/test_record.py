import json
import pickle
from functools import partial
from types import SimpleNamespace

import pytest

from dsn_ray.record import (
    EpochLog,
    Name,
    name_of_final,
    name_of_trial,
    read_lines,
    session,
)

RESULT = {"epoch": 2, "loss_total": 1.5, "mAP": 0.5, "seconds": 3.0, "pid": 7, "date": "x"}


def trial(**config):
    return SimpleNamespace(config=config)


def test_an_epoch_is_one_line_of_what_people_read(tmp_path):
    log = EpochLog(tmp_path / "epochs.jsonl", partial(name_of_trial, "x"))
    log = pickle.loads(pickle.dumps(log))
    log.on_trial_result(0, [], trial(number=3, seed=1), RESULT)
    log.on_trial_result(0, [], trial(number=3, seed=1), {"epoch": 2, "rows": []})
    (line,) = read_lines(tmp_path / "epochs.jsonl")
    assert line == {
        "training": "trial 3, seed 1",
        "dataset": "x",
        "epoch": 2,
        "loss_total": 1.5,
        "mAP": 0.5,
        "seconds": 3.0,
    }


def test_final_trainings_have_their_titles(tmp_path):
    names = [Name("x, seed 0", "x"), Name("y, seed 1", "y")]
    log = EpochLog(tmp_path / "epochs.jsonl", partial(name_of_final, names))
    log.on_trial_result(0, [], trial(number=1), RESULT)
    (line,) = read_lines(tmp_path / "epochs.jsonl")
    assert (line["training"], line["dataset"]) == ("y, seed 1", "y")


def test_a_line_cut_short_by_a_kill_is_left_out_and_a_broken_one_is_not(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert read_lines(file) == []
    file.write_text('{"a": 1}\n{"a": ')
    assert read_lines(file) == [{"a": 1}]
    file.write_text('{"a": \n{"a": 1}\n')
    with pytest.raises(ValueError, match="Expecting value"):
        read_lines(file)


def test_a_line_cut_short_makes_place_for_the_next(tmp_path):
    file = tmp_path / "epochs.jsonl"
    log = EpochLog(file, partial(name_of_trial, "x"))
    log.on_trial_result(0, [], trial(number=1, seed=0), RESULT)
    whole = file.read_text()
    file.write_text(whole + whole[:20])
    log.on_trial_result(0, [], trial(number=2, seed=0), RESULT)
    assert [line["training"] for line in read_lines(file)] == ["trial 1, seed 0", "trial 2, seed 0"]


def test_a_session_is_written_down_however_it_ends(tmp_path):
    with pytest.raises(KeyboardInterrupt), session(tmp_path, "2 CPUs"):
        raise KeyboardInterrupt
    with session(tmp_path, "4 CPUs"):
        pass
    lines = (tmp_path / "sessions.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert [first["cluster"], second["cluster"]] == ["2 CPUs", "4 CPUs"]
    assert first["packages"]["ray"]
    assert first["seconds"] >= 0
