from pathlib import Path

import pytest
import yaml

from dsn_ray import tune
from dsn_ray.plan import plan
from dsn_ray.room import Shape
from dsn_ray.tune import _arguments, _asked

SPACES = Path(__file__).parents[1] / "search_spaces"


def stages(space, *options):
    return plan(
        _asked(_arguments().parse_args(["--space", str(SPACES / space), *options])), Shape()
    )


def test_a_comparison_trains_every_variant_with_every_seed(drawings):
    data = ["--data", f"folder:toy={drawings}"]
    small = ["--set", "network.backbone=efficientnet_lite0"]
    found = stages("ablation.yaml", *data, *small, "--set", "data.sketches_per_batch=5")
    assert [stage.trainings for stage in found] == [3] * 4
    assert all(stage.epochs == 10 for stage in found)
    # 30 sketches make 6 batches of 5, 30 photos none of 64, so that one short step is left.
    assert all(stage.pictures == 5 + 64 for stage in found)
    assert "baseline" in found[0].what
    assert [stage.views for stage in found] == [1, 3, 1, 3]  # where lambda1 is 0, the first only


def test_a_grid_is_searched_and_then_trained_in_full(drawings):
    data = ["--data", f"folder:toy={drawings}", "--set", "data.validation_classes=2"]
    found = stages("figure3.yaml", *data)
    assert [stage.trainings for stage in found] == [16, 16]
    assert found[0].what.startswith("search on folder:toy (grid, none)")


def test_an_epoch_counts_the_pictures_that_pass(drawings):
    options = ["--set", "data.sketches_per_batch=4", "--set", "data.photos_per_batch=8"]
    options += ["--set", "data.validation_classes=2", "--set", "train.epochs=3"]
    search, final = stages("lambdas.yaml", "--data", f"folder:toy={drawings}", *options)
    assert search.pictures == (18 // 8) * 12  # three of five classes
    assert final.pictures == (30 // 8) * 12
    assert (final.trainings, search.trainings) == (3, 24)
    # Of the search the best one's checkpoint, and two of the one that trains, for a moment.
    assert search.checkpoints == final.checkpoints  # of three seeds


def test_a_dry_run_starts_and_leaves_nothing(drawings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = ["--space", str(SPACES / "ablation.yaml"), "--data", f"folder:toy={drawings}"]
    assert tune.main([*space, "--dry-run", "--seeds", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Altogether at most 8 trainings, 80 epochs" in said
    assert "Nothing was started." in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_is_of_the_part_that_is_asked_for(drawings, capsys):
    space = ["--space", str(SPACES / "lambdas.yaml"), "--data", f"folder:toy={drawings}"]
    space += ["--set", "data.validation_classes=2", "--dry-run"]
    assert tune.main([*space, "--search-only"]) == 0
    assert "Altogether at most 24 trainings" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_refuses_what_the_run_refuses(drawings, capsys):
    space = ["--space", str(SPACES / "lambdas.yaml"), "--data", f"folder:toy={drawings}"]
    assert tune.main([*space, "--dry-run"]) == 2
    assert "data.validation_classes=10 leaves 0 of 5" in capsys.readouterr().err
    two = ["--set", "data.validation_classes=2"]
    assert tune.main([*space, *two, "--dry-run", "--workers", "3"]) == 2
    assert "cannot be shared equally among 3 workers" in capsys.readouterr().err
    assert tune.main([*space, *two, "--dry-run", "--name", "../away"]) == 2
    assert "--name ../away: this must be a plain name" in capsys.readouterr().err
    assert tune.main([*space, *two, "--dry-run", "--set", "data.semantics=/nowhere.npz"]) == 2
    assert "data.semantics=/nowhere.npz: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("lambdas.yaml", ["The search tries 3 settings: 1: lambda1=0.1 lambda2=1 tau=0.07 k=10 ",
                          " loss.tau: loguniform from 0.02 to 0.5 memory.k: int from 1 to 30 "]),
        ("figure3.yaml", ["the first 3 of the grid's 16 points: 1: lambda1=0.01 lambda2=0.01 ",
                          "3: lambda1=0.01 lambda2=1 Each training"]),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_is_searched(drawings, capsys, space, expected):
    options = ["--space", str(SPACES / space), "--data", f"folder:toy={drawings}", "--trials", "3"]
    assert tune.main([*options, "--set", "data.validation_classes=2", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in expected:
        assert text in said


def test_the_room_of_checkpoints_is_that_of_the_trials_at_a_time_and_the_best(drawings):
    data = [
        "--data",
        f"folder:toy={drawings}",
        "--smoke-test",
        "--set",
        "data.validation_classes=2",
    ]
    search, final = stages("lambdas_small.yaml", *data)
    assert (search.checkpoints, search.each_more) == (3 * final.checkpoints, 2 * final.checkpoints)
    parsed = _arguments().parse_args(["--space", str(SPACES / "lambdas_small.yaml"), *data])
    two, _ = plan(_asked(parsed), Shape(concurrent=2))
    assert (two.checkpoints, two.each_more) == (5 * final.checkpoints, 0)
    network = 3.4e6 + 1280 * 64  # parameters of the trunk and of the embedding, about
    assert final.checkpoints == pytest.approx(12 * network + 5 * 30 * 1280 * 4, rel=0.1)


@pytest.mark.parametrize("space", sorted(path.name for path in SPACES.glob("*.yaml")))
def test_a_smoke_test_of_every_space_is_a_small_one_of_the_same_kind(drawings, space):
    tree = yaml.safe_load((SPACES / space).read_text())
    data = ["--data", f"folder:toy={drawings}", "--set", "data.validation_classes=2"]
    found = stages(space, *data, "--smoke-test")
    searched = [stage.trainings for stage in found if stage.what.startswith("search")]
    final = [stage.trainings for stage in found if stage.what.startswith("final")]
    if "variants" in tree:
        assert (searched, final) == ([], [1] * len(tree["variants"]))
    else:
        assert (searched, final) == ([2], [2 if space == "figure3.yaml" else 1])
    assert {stage.epochs for stage in found} == {1}
