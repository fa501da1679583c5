import json
from pathlib import Path

from dsn_ray.config import Config
from dsn_ray.results import Candidate, FinalResults, candidates_of


def candidate(dataset="x", seed=0, variant="", settings=None, root=None, **fixed):
    of_both = {**(settings or {}), **fixed, "train.seed": seed}
    return Candidate(variant, settings or {}, dataset, root, Config().with_settings(of_both))


def found(tmp_path, *done):
    results = FinalResults(tmp_path / "final.json")
    results.keep_only(done)
    for one in done:
        results.add(one, [{"value": 0.5}], Path("kept"))
    return results


def test_what_is_saved_is_found_again_and_written_whole(tmp_path):
    done = candidate(seed=3, settings={"loss.tau": 0.1})
    results = found(tmp_path, done)
    results.setting = {"loss.tau": 0.1}
    results.save()
    again = FinalResults(tmp_path / "final.json")
    (row,) = again.rows
    about = {"dataset": "x", "seed": 3, "parameters": {"loss.tau": 0.1}, "training": done.folder}
    assert row == {"value": 0.5, "checkpoint": "kept", **about}
    assert again.setting == {"loss.tau": 0.1}
    assert again.has(done)
    assert not again.has(candidate(seed=0, settings={"loss.tau": 0.1}))
    assert not again.has(candidate(seed=3, settings={"loss.tau": 0.2}))
    assert not (tmp_path / "final.json").exists()
    again.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["final.json"]
    kept = json.loads((tmp_path / "final.json").read_text())
    assert set(kept) == {"setting", "rows", "diverged", "untrained", "official"}
    later = FinalResults(tmp_path / "final.json")
    assert later.has(done)
    later.reopen()
    assert [path.name for path in tmp_path.iterdir()] == ["final.unfinished.json"]
    assert FinalResults(tmp_path / "final.json").has(done)


def test_rows_are_of_a_training_and_not_of_another_that_is_called_the_same(tmp_path):
    one = candidate(variant="a", settings={"loss.tau": 0.1})
    results = found(tmp_path, one)
    assert results.has(candidate(variant="a", settings={"loss.tau": 0.1}))
    for other in ({"root": "elsewhere"}, {"train.epochs": 20}, {"variant": "b"}):
        assert not results.has(candidate(**{"variant": "a", "settings": one.settings, **other}))


def test_numbers_before_training_are_of_the_same_trunk_and_pictures(tmp_path):
    results = found(tmp_path, candidate())
    results.untrained = [{"dataset": "x", "trunk": candidate().trunk}]
    results.keep_only([candidate(**{"train.epochs": 20})])
    assert results.untrained
    for other in ({"root": "elsewhere"}, {"data.px": 96}, {"network.weights": "none"}):
        again = FinalResults(tmp_path / "final.json")
        again.untrained = list(results.untrained)
        again.keep_only([candidate(**other)])
        assert not again.untrained


def two_variants():
    return [
        candidate(variant=name, settings={"loss.tau": tau})
        for name, tau in (("a", 0.1), ("b", 0.2))
    ]


def test_rows_stand_in_the_order_of_the_candidates_whichever_ended_first(tmp_path):
    results = FinalResults(tmp_path / "final.json")
    results.keep_only(two_variants())
    for one in reversed(two_variants()):
        results.add(one, [{"value": 0.5}], Path("kept"))
    assert [row["variant"] for row in results.rows] == ["a", "b"]
    assert FinalResults(tmp_path / "final.json").rows == results.rows


def test_rows_of_another_setting_go(tmp_path):
    results = found(tmp_path, *two_variants())
    results.keep_only(two_variants()[1:])
    assert [row["variant"] for row in results.rows] == ["b"]


def test_what_diverged_is_known_and_not_run_again(tmp_path):
    first, second = two_variants()
    results = found(tmp_path, first)
    results.keep_only([first, second])
    results.add_diverged(second, "Its loss is no number.")
    again = FinalResults(tmp_path / "final.json")
    assert again.has(second)
    assert [(one["variant"], one["reason"]) for one in again.diverged] == [
        ("b", "Its loss is no number.")
    ]
    again.keep_only([first])
    assert not again.diverged


def test_the_trainings_of_one_seed_come_before_those_of_the_next():
    settings = [
        ("a", {"loss.tau": 0.1}, {"x": Config(), "y": Config()}),
        ("b", {"loss.tau": 0.2}, {"x": Config(), "y": Config()}),
    ]
    expected = [(d, s, v) for d in "xy" for s in (0, 1) for v in "ab"]
    for given in (settings, [*settings, settings[0]]):
        found = candidates_of(given, {"x": None, "y": None}, 2)
        order = [(one.dataset, one.config.train.seed, one.variant) for one in found]
        assert order == expected


def test_equal_trainings_share_a_folder_and_others_do_not():
    one = candidate("folder:x", settings={"loss.tau": 0.1})
    assert one.folder == candidate("folder:x", settings={"loss.tau": 0.1}, variant="n").folder
    assert one.folder != candidate("folder:x", settings={"loss.tau": 0.2}).folder
    assert ":" not in one.folder
    assert one.folder.endswith("-seed0")
