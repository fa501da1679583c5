from types import SimpleNamespace

from dsn_ray.trials import Retention, folder_of


def end(retention, folder, number, epoch, value):
    trial = SimpleNamespace(
        config={"number": number, "seed": 0}, last_result={"epoch": epoch, "mAP": value}
    )
    path = folder / folder_of(trial.config)
    path.mkdir(parents=True)
    (path / "checkpoint").write_text("x")
    retention.on_trial_complete(1, [], trial)
    return sorted(path.name for path in folder.iterdir())


def test_the_best_that_came_to_its_end_is_kept(tmp_path):
    retention = Retention(str(tmp_path), last_epoch=3)
    assert end(retention, tmp_path, 1, 1, 0.9) == []  # stopped early
    assert end(retention, tmp_path, 2, 3, float("nan")) == []
    assert end(retention, tmp_path, 3, 3, 0.5) == ["trial3-seed0"]
    assert end(retention, tmp_path, 4, 3, 0.4) == ["trial3-seed0"]
    assert end(retention, tmp_path, 5, 3, 0.6) == ["trial5-seed0"]


def test_what_a_stopped_trial_writes_afterwards_goes_at_the_end(tmp_path):
    retention = Retention(str(tmp_path), last_epoch=3)
    end(retention, tmp_path, 1, 1, 0.9)
    (tmp_path / "trial1-seed0").mkdir()
    retention.on_experiment_end([])
    assert not list(tmp_path.iterdir())


def test_the_best_of_an_earlier_process_goes_when_a_better_one_comes(tmp_path):
    (tmp_path / "trial1-seed0").mkdir()
    retention = Retention(str(tmp_path), 3, best=(0.5, "trial1-seed0"))
    assert end(retention, tmp_path, 2, 3, 0.4) == ["trial1-seed0"]
    assert end(retention, tmp_path, 3, 3, 0.6) == ["trial3-seed0"]
