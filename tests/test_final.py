import json

from dsn_ray.config import Config
from dsn_ray.final import Candidate, FinalResults, candidates_of


def candidate(dataset="x", seed=0, variant="", settings=None):
    config = Config().with_settings({**(settings or {}), "train.seed": seed})
    return Candidate(variant, settings or {}, dataset, config)


def row(one):
    about = {"dataset": one.dataset, "seed": one.config.train.seed, "value": 0.5}
    if one.variant:
        about["variant"] = one.variant
    return {**about, "parameters": one.settings}


def test_what_is_saved_is_found_again_and_written_whole(tmp_path):
    done = candidate(seed=3, settings={"loss.tau": 0.1})
    results = FinalResults(tmp_path / "final.json")
    results.rows = [row(done)]
    results.setting = {"loss.tau": 0.1}
    results.save()
    again = FinalResults(tmp_path / "final.json")
    assert again.rows == results.rows
    assert again.setting == {"loss.tau": 0.1}
    assert again.has(done)
    assert not again.has(candidate(seed=0, settings={"loss.tau": 0.1}))
    assert not again.has(candidate(seed=3, settings={"loss.tau": 0.2}))
    assert not (tmp_path / "final.json").exists()
    again.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["final.json"]
    assert FinalResults(tmp_path / "final.json").has(done)
    kept = json.loads((tmp_path / "final.json").read_text())
    assert set(kept) == {"setting", "rows", "untrained", "official"}


def test_rows_stand_in_the_order_of_the_candidates_whichever_ended_first(tmp_path):
    both = [
        candidate(variant=name, settings={"loss.tau": tau})
        for name, tau in (("a", 0.1), ("b", 0.2))
    ]
    results = FinalResults(tmp_path / "final.json")
    results.keep_only(both)
    for one in reversed(both):
        results.add([row(one)])
    assert [found["variant"] for found in results.rows] == ["a", "b"]
    assert FinalResults(tmp_path / "final.json").rows == results.rows


def test_rows_of_another_setting_go(tmp_path):
    old, new = (candidate(settings={"loss.tau": tau}) for tau in (0.1, 0.2))
    results = FinalResults(tmp_path / "final.json")
    results.rows = [row(old), row(new)]
    results.keep_only([new])
    assert results.rows == [row(new)]


def test_the_trainings_of_one_seed_come_before_those_of_the_next():
    settings = [
        ("a", {"loss.tau": 0.1}, {"x": Config(), "y": Config()}),
        ("b", {"loss.tau": 0.2}, {"x": Config(), "y": Config()}),
    ]
    found = candidates_of(settings, 2)
    order = [(one.dataset, one.config.train.seed, one.variant) for one in found]
    assert order == [(d, s, v) for d in "xy" for s in (0, 1) for v in "ab"]


def test_equal_trainings_share_a_folder_and_others_do_not():
    one = candidate("folder:x", settings={"loss.tau": 0.1})
    assert one.folder == candidate("folder:x", settings={"loss.tau": 0.1}, variant="n").folder
    assert one.folder != candidate("folder:x", settings={"loss.tau": 0.2}).folder
    assert ":" not in one.folder
    assert one.folder.endswith("-seed0")
