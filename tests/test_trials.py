import tempfile

from ray.tune.schedulers import FIFOScheduler

from dsn_ray.errors import UserError
from dsn_ray.runtime import ray_cluster
from dsn_ray.search import ListSearcher
from dsn_ray.trials import Retention, folder_of, run_trials
from tests.test_runtime import left_behind


def test_only_what_is_wanted_is_kept_and_what_a_killed_driver_left_goes_too(tmp_path):
    for number, seed in ((1, 0), (1, 1), (2, 0), (12, 0), (3, 0)):
        (tmp_path / folder_of({"number": number, "seed": seed}) / "checkpoint").mkdir(parents=True)
    kept = [1, 3]
    retention = Retention(str(tmp_path), lambda: kept)

    def left():
        return sorted(path.name for path in tmp_path.iterdir())

    retention.setup()
    assert left() == ["trial1-seed0", "trial1-seed1", "trial3-seed0"]
    kept.remove(1)
    retention.on_trial_complete(1, [], None)
    assert left() == ["trial3-seed0"]
    (tmp_path / "trial1-seed0").mkdir()  # it was still being written
    retention.on_experiment_end([])
    assert left() == ["trial3-seed0"]


def test_before_the_first_trial_there_is_nothing_to_delete(tmp_path):
    Retention(f"file://{tmp_path}/none", list).setup()


def test_a_trial_that_raises_is_tried_once(tmp_path, monkeypatch):
    # Not the tests' shared cluster: a process that once had a cluster of its own, as this one may,
    # wants Ray's token of everybody, and that cluster has none.
    left_behind(None, monkeypatch)

    def trial(proposal):
        tempfile.mkdtemp(prefix="tried-", dir=tmp_path)
        raise UserError("this never works")

    searcher = ListSearcher([{"number": 0}], lambda: 1)
    with ray_cluster():
        ended = run_trials(
            trial, searcher, FIFOScheduler(), [], str(tmp_path / "run"), "tune", reuse=False
        )
    assert len(ended.errors) == 1
    assert len(list(tmp_path.glob("tried-*"))) == 1
