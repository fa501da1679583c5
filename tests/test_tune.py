"""What a sweep is asked to do, without Ray."""

from pathlib import Path

import pytest
import yaml

from dsn_ray import sweeping, tune
from dsn_ray.config import Config
from dsn_ray.data.shards import locate
from dsn_ray.errors import UserError
from dsn_ray.runs import find_run, save_settings
from dsn_ray.space import load_space
from dsn_ray.sweep import Sweep
from dsn_ray.sweeping import check
from dsn_ray.tune import _arguments, _asked, _asked_now


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


SPACES = sorted(Path("search_spaces").glob("*.yaml"))
TWO = [("sketchy", Path("S")), ("tuberlin", "T")]


@pytest.mark.parametrize("recipe", [None, "release"])
@pytest.mark.parametrize("data", [[], TWO], ids=["embedded", "given"])
@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_sweep_from_python_is_the_one_from_the_command_line(
    tmp_path, monkeypatch, path, data, recipe
):
    started = []
    monkeypatch.setattr(sweeping, "start", lambda sweep, *_: started.append(sweep))
    file = tmp_path / "config.yaml"
    file.write_text("loss: {tau: 0.2}\ntrain: {epochs: 7}\nnetwork: {dim: 32}\n")
    config = Config().with_settings({"loss.tau": 0.2, "train.epochs": 7, "network.dim": 32})
    options = ["--space", str(path), *(f"--data={name}={root}" for name, root in data)]
    options += ["--recipe", recipe] if recipe else []
    for more, words in ({}, []), ({"config": config}, ["--config", str(file)]):
        sweeping.run_sweep(load_space(path), data or sweeping.EMBEDDED, recipe=recipe, **more)
        assert started[-1] == _asked(_arguments().parse_args([*options, *words]))
        assert Sweep.parse(yaml.safe_load(yaml.safe_dump(started[-1].tree()))) == started[-1]


def test_the_later_of_two_layers_counts(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "variants: {a: {recipe: paper}, b: {recipe: release}, c: {loss.tau: 0.3}}\n"
        "set: {train.epochs: 5, memory.k: 3}\n"
    )
    (tmp_path / "config.yaml").write_text("train: {epochs: 4}\noptimizer: {lr: 0.002}\n")
    options = ["--space", str(tmp_path / "space.yaml"), "--config", str(tmp_path / "config.yaml")]
    sweep = _asked(_arguments().parse_args([*options, "--set", "memory.k=7"]))
    for label, settings, configs in sweep.finalists([]):
        for config in configs.values():
            assert config.train.epochs == 5  # the space's, not the release's 20 or the file's
            assert config.memory.k == 7
            assert config.optimizer.lr == 0.002  # the file's, not the demonstration's
            assert config.data.px == 64
            assert config.loss.tau == settings.get("loss.tau", 0.07)
            assert config.loss.memory_gradient == (label != "b")


def test_what_a_kept_sweep_is_asked_for_goes_over_all_that_it_has():
    kept = asked("--recipe", "release", "--set", "loss.lambda3=0.2")
    options = ["--resume", "--set", "train.epochs=3", "--trials", "5", "--seeds", "4"]
    now = _asked_now(_arguments().parse_args(options), kept)
    assert [now.config_on(name).train.epochs for name in ("sketchy", "tuberlin")] == [3, 3]
    assert (now.trials, now.seeds, now.config.loss.lambda3) == (5, 4, 0.2)
    assert now.config_on("tuberlin").data.photos_per_batch == 81
    assert _asked_now(_arguments().parse_args(["--resume"]), kept) == kept
    with pytest.raises(UserError, match=r"--set memory\.k: the space varies it"):
        _asked_now(_arguments().parse_args(["--set", "memory.k=3"]), kept)
    variants = _asked(_arguments().parse_args(["--space", "search_spaces/recipes.yaml"]))
    changed = _asked_now(_arguments().parse_args(["--set", "train.epochs=3"]), variants)
    assert all(
        config.train.epochs == 3
        for _, _, configs in changed.finalists([])
        for config in configs.values()
    )
    with pytest.raises(UserError, match="--trials 3: this space compares variants"):
        _asked_now(_arguments().parse_args(["--trials", "3"]), variants)


@pytest.fixture
def kept(tmp_path, monkeypatch, drawings):
    """A run that was asked for, and has not begun."""
    monkeypatch.chdir(tmp_path)
    run = find_run("r", None)
    run.folder.mkdir(parents=True)
    space = Path(__file__).parents[1] / "search_spaces" / "lambdas_small.yaml"
    given = ["--space", str(space), "--data", f"folder:toy={drawings}"]
    given += ["--set", "data.validation_classes=2"]
    save_settings(_asked(_arguments().parse_args(given)), run)
    return run.folder / "config.yaml"


def test_what_is_refused_or_only_planned_leaves_a_run_as_it_was(kept, monkeypatch, capsys):
    before = kept.read_text()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nothing here may come as far as Ray
    for options, message in {
        ("--trials", "9"): "disagree on trials (6, now 9); leave these options out",
        ("--trials", "9", "--data", "sketchy=S"): "--space is needed",
        ("--trials", "9", "--allow-changed", "--workers", "3"): "equally among 3 workers",
        ("--set", "data.validation_classes=4", "--allow-changed"): "leaves 1 of 5 seen classes",
        ("--set", "loss.tua=1", "--allow-changed"): "loss.tua is not a setting",
        ("--final-only",): "no trial of this run has come to its end",
    }.items():
        assert tune.main(["--resume", "--name", "r", *options]) == 2
        assert message in capsys.readouterr().err
    changed = ["--trials", "9", "--seeds", "2", "--allow-changed", "--dry-run"]
    assert tune.main(["--resume", "--name", "r", *changed]) == 0
    assert "Altogether at most 11 trainings" in " ".join(capsys.readouterr().out.split())
    assert kept.read_text() == before
    assert {path.name for path in kept.parent.iterdir()} <= {"config.yaml", "drivers.txt"}


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
    assert asked("--trials", "9").tries == "9 settings"
    assert asked("--trials", "1").tries == "1 setting"


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
    with pytest.raises(UserError, match="--search-only: this space compares variants"):
        check(compared, found, workers=1, part="search")
    searched = _asked(_arguments().parse_args(["--space", "search_spaces/lambdas.yaml", *data]))
    check(searched, found, workers=1, part="final")
    with pytest.raises(UserError, match=r"data\.validation_classes=10 leaves 0 of 5"):
        check(searched, found, workers=1)


def test_every_value_that_a_search_may_draw_is_checked(tmp_path, drawings):
    (tmp_path / "space.yaml").write_text(
        "parameters: {data.sketches_per_batch: {choices: [8, 9]}}\nsampler: {name: grid}\n"
        "set: {data.validation_classes: 2}\n"
    )
    given = ["--space", str(tmp_path / "space.yaml"), "--data", f"folder:toy={drawings}"]
    sweep = _asked(_arguments().parse_args(given))
    found = {name: locate(name, root) for name, root in sweep.data}
    check(sweep, found, workers=1)
    with pytest.raises(UserError, match=r"data\.sketches_per_batch=9 cannot be shared equally"):
        check(sweep, found, workers=2)


def test_seeds_are_three_but_one_on_the_embedded_data():
    embedded = _asked(_arguments().parse_args(["--space", "search_spaces/lambdas.yaml"]))
    assert embedded.seeds == 1
    assert asked().seeds == 3
    assert asked("--seeds", "5").seeds == 5
    assert asked("--smoke-test").seeds == 1
