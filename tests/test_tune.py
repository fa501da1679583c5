"""What a sweep is asked to do, without Ray."""

from pathlib import Path

import yaml

from dsn_ray import tune
from dsn_ray.config import Config
from dsn_ray.space import load_space
from dsn_ray.tune import Sweep, _arguments, _asked


def asked(*options):
    data = ["--data", "sketchy=S", "--data", "tuberlin=T"]
    return _asked(
        _arguments().parse_args(["--space", "search_spaces/lambdas.yaml", *data, *options])
    )


def test_the_release_trains_each_data_set_in_its_own_way():
    sweep = asked("--recipe", "release")
    sketchy, tuberlin = (sweep.config_on(name) for name in ("sketchy", "tuberlin"))
    assert (sketchy.data.photos_per_batch, sketchy.train.keep) == (64, "best_seen")
    assert (tuberlin.data.photos_per_batch, tuberlin.train.keep) == (81, "last")
    assert not sketchy.loss.memory_gradient
    assert not tuberlin.loss.memory_gradient


def test_what_is_set_holds_for_every_data_set():
    sweep = asked("--recipe", "release", "--set", "train.epochs=3")
    assert [sweep.config_on(name).train.epochs for name in ("sketchy", "tuberlin")] == [3, 3]


def test_the_paper_trains_every_data_set_alike():
    assert asked().others == {}


def test_a_sweep_from_python_is_the_one_from_the_command_line(monkeypatch):
    started = []
    monkeypatch.setattr(tune, "_start", lambda sweep, *_: started.append(sweep))
    space = load_space(Path("search_spaces/lambdas.yaml"))
    tune.run_sweep(space)
    tune.run_sweep(space, [("sketchy", "S"), ("tuberlin", "T")])
    embedded, real = started
    assert embedded == _asked(_arguments().parse_args(["--space", "search_spaces/lambdas.yaml"]))
    assert (embedded.trials, real.trials) == (8, space.budget.trials)
    assert real.config == Config().with_settings(space.set)


def test_a_sweep_is_read_back_from_what_it_writes():
    sweep = asked("--recipe", "release", "--seeds", "3")
    assert Sweep.parse(yaml.safe_load(yaml.safe_dump(sweep.tree()))) == sweep
