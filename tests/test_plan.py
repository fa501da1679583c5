from pathlib import Path

import pytest

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


def test_a_grid_is_searched_and_then_trained_in_full(drawings):
    found = stages("figure3.yaml", "--data", f"folder:toy={drawings}")
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


@pytest.mark.parametrize("space", sorted(path.name for path in SPACES.glob("*.yaml")))
def test_every_space_can_be_planned(drawings, space):
    assert stages(space, "--data", f"folder:toy={drawings}", "--smoke-test")
