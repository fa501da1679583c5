"""What a sweep is asked to do, without Ray."""

from pathlib import Path

import pytest
import yaml

from dsn_ray import sweeping
from dsn_ray.config import Config
from dsn_ray.data.shards import locate
from dsn_ray.errors import UserError
from dsn_ray.space import load_space
from dsn_ray.sweep import Sweep
from dsn_ray.sweeping import check
from dsn_ray.tune import _arguments, _asked


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
    monkeypatch.setattr(sweeping, "start", lambda sweep, *_: started.append(sweep))
    space = load_space(Path("search_spaces/lambdas.yaml"))
    sweeping.run_sweep(space)
    sweeping.run_sweep(space, [("sketchy", "S"), ("tuberlin", "T")])
    embedded, real = started
    assert embedded == _asked(_arguments().parse_args(["--space", "search_spaces/lambdas.yaml"]))
    assert (embedded.trials, real.trials) == (8, space.budget.trials)
    assert real.config == Config().with_settings(space.set)


def test_a_sweep_is_read_back_from_what_it_writes():
    sweep = asked("--recipe", "release", "--seeds", "3")
    assert Sweep.parse(yaml.safe_load(yaml.safe_dump(sweep.tree()))) == sweep


def test_variants_start_from_their_recipe_on_each_data_set():
    data = ["--data", "sketchy=S", "--data", "tuberlin=T"]
    space = ["--space", "search_spaces/recipes.yaml", "--set", "loss.tau=0.2"]
    sweep = _asked(_arguments().parse_args([*space, *data]))
    assert (sweep.trials, sweep.seeds) == (0, 3)
    (paper, _, on_paper), (release, settings, on_release) = sweep.finalists([])
    assert (paper, release) == ("paper", "release")
    assert settings == {"recipe": "release"}
    assert on_paper["sketchy"] == Config().with_settings({"loss.tau": 0.2})
    assert on_release["sketchy"].data.photos_per_batch == 64
    assert on_release["tuberlin"].data.photos_per_batch == 81
    assert on_release["tuberlin"].loss.tau == 0.2
    assert Sweep.parse(yaml.safe_load(yaml.safe_dump(sweep.tree()))) == sweep


def test_all_points_of_a_grid_can_be_finalists():
    grid = ["--space", "search_spaces/figure3.yaml", "--data", "sketchy=S"]
    sweep = _asked(_arguments().parse_args(grid))
    tried = sweep.space.grid()
    assert sweep.trials == len(tried) == 16
    labels = [label for label, *_ in sweep.finalists(tried)]
    assert labels[0] == "lambda1=0.01 lambda2=0.01"
    assert len(set(labels)) == 16


def test_a_grid_is_cut_only_where_that_is_asked_for_and_said():
    grid = ["--space", "search_spaces/figure3.yaml"]
    embedded = _asked(_arguments().parse_args(grid))
    assert (embedded.trials, embedded.tries) == (16, "16 points")
    cut = _asked(_arguments().parse_args([*grid, "--trials", "5"]))
    assert (cut.trials, cut.tries) == (5, "the first 5 of the grid's 16 points")
    assert asked("--trials", "9").tries == "9 trials"


def test_where_variants_are_compared_nothing_is_searched(drawings):
    variants = ["--space", "search_spaces/ablation.yaml"]
    assert _asked(_arguments().parse_args([*variants, "--smoke-test"])).trials == 0
    with pytest.raises(UserError, match="--trials 3: this space compares variants"):
        _asked(_arguments().parse_args([*variants, "--trials", "3"]))
    # Five seen classes are too few to hold ten of them out, as a search would.
    data = ["--data", f"folder:toy={drawings}", "--smoke-test"]
    compared = _asked(_arguments().parse_args([*variants, *data]))
    found = {name: locate(name, root) for name, root in compared.data}
    check(compared, found, workers=1)
    searched = _asked(_arguments().parse_args(["--space", "search_spaces/lambdas.yaml", *data]))
    check(searched, found, workers=1, final_only=True)
    with pytest.raises(UserError, match=r"data\.validation_classes=10 leaves 0 of 5"):
        check(searched, found, workers=1)


def test_seeds_are_three_but_one_on_the_embedded_data():
    embedded = _asked(_arguments().parse_args(["--space", "search_spaces/lambdas.yaml"]))
    assert embedded.seeds == 1
    assert asked().seeds == 3
    assert asked("--seeds", "5").seeds == 5
    assert asked("--smoke-test").seeds == 1
