import io
import json

from rich.console import Console

from dsn_ray.data.shards import Shards
from dsn_ray.data.storage import Folder
from dsn_ray.final import FinalResults, final_table


def shards(name, official=False):
    return Shards(Folder.at("x"), name, ("a",), ("b",), official, "none", "f", False, {}, {}, 0, "")


def rows(dataset, value, gallery=500, seed=0):
    return [
        {
            "codes": codes,
            "protocol": protocol,
            "metric": metric,
            "value": value,
            "queries": 10,
            "gallery": gallery,
            "dim": 64,
            "ties": "expected",
            "dataset": dataset,
            "seed": seed,
        }
        for codes in ("real", "binary")
        for protocol in ("published", "standard")
        for metric in ("mAP@all", "Prec@100")
    ]


def printed(results, *data, random_weights=False):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(final_table(results, data, random_weights))
    return console.export_text()


def results_with(tmp_path, *row_lists):
    results = FinalResults(tmp_path / "final.json")
    for some in row_lists:
        results.rows += some
    return results


def test_the_papers_numbers_stand_beside_the_published_protocol_only(tmp_path):
    results = results_with(tmp_path, rows("sketchy", 0.25))
    text = printed(results, shards("sketchy"))
    (published,) = [x for x in text.splitlines() if "real" in x and "published" in x]
    (standard,) = [x for x in text.splitlines() if "real" in x and "standard" in x]
    assert "0.250 / 0.250" in published
    assert "0.484 / 0.610 (other data)" in published
    assert "0.484" not in standard
    assert "compare only with the complete official data sets" in text.replace("\n", " ")
    assert "(other data)" not in printed(results, shards("sketchy", official=True))


def test_a_gallery_that_repeats_photos_has_both_numbers(tmp_path):
    once = [{**row, "deduplicated": True} for row in rows("sketchy", 0.125)]
    text = printed(results_with(tmp_path, rows("sketchy", 0.25), once), shards("sketchy"))
    lines = [line for line in text.splitlines() if "real" in line]
    assert len(lines) == 4
    (published, published_once) = [line for line in lines if "published" in line]
    assert "0.250 / 0.250" in published
    assert "each photo once" in published_once
    assert "0.125 / 0.125" in published_once
    assert "0.484" not in published_once
    assert "each photo once" not in printed(
        results_with(tmp_path, rows("sketchy", 0.25)), shards("sketchy")
    )


def test_seeds_become_mean_and_spread(tmp_path):
    results = results_with(tmp_path, rows("x", 0.2), rows("x", 0.4, seed=1))
    assert "0.300 ± 0.141" in printed(results, shards("x"))


def test_a_gallery_too_small_and_random_weights_are_marked(tmp_path):
    results = results_with(tmp_path, rows("x", 0.2, gallery=60))
    text = " ".join(printed(results, shards("x"), random_weights=True).split())
    assert "x: 60 photos are too few for Prec@100" in text
    assert "random weights" in text


def test_what_is_saved_is_found_again_and_written_whole(tmp_path):
    results = results_with(tmp_path, rows("x", 0.2, seed=3))
    results.setting = {"loss.tau": 0.1}
    results.save()
    again = FinalResults(tmp_path / "final.json")
    assert again.rows == results.rows
    assert again.setting == {"loss.tau": 0.1}
    assert again.has("x", 3)
    assert not again.has("x", 0)
    assert not (tmp_path / "final.json").exists()
    again.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["final.json"]
    assert FinalResults(tmp_path / "final.json").has("x", 3)
    assert set(json.loads((tmp_path / "final.json").read_text())) == {
        "setting",
        "rows",
        "untrained",
    }
