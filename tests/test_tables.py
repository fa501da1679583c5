import io

import pytest
from rich.console import Console

from dsn_ray.tables import final_lines, final_notes, final_table, within_noise


def rows(dataset, value, gallery=500, seed=0, **more):
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
            **more,
        }
        for codes in ("real", "binary")
        for protocol in ("published", "standard")
        for metric in ("mAP@all", "Prec@100")
    ]


def printed(rows, data, official=False, random_weights=False, missing=0):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(final_table(rows, [], {data: official}, random_weights, missing))
    return console.export_text()


def test_the_papers_numbers_stand_beside_the_published_protocol_only():
    results = rows("sketchy", 0.25)
    text = printed(results, "sketchy")
    (published,) = [x for x in text.splitlines() if "real" in x and "published" in x]
    (standard,) = [x for x in text.splitlines() if "real" in x and "standard" in x]
    assert "0.250 / 0.250" in published
    assert "0.484 / 0.610 (other data)" in published
    assert "0.484" not in standard
    assert "compare only with the complete official data sets" in text.replace("\n", " ")
    assert "(other data)" not in printed(results, "sketchy", official=True)


def test_a_gallery_that_repeats_photos_has_both_numbers():
    once = [{**row, "deduplicated": True} for row in rows("sketchy", 0.125)]
    text = printed(rows("sketchy", 0.25) + once, "sketchy")
    lines = [line for line in text.splitlines() if "real" in line]
    assert len(lines) == 4
    (published, published_once) = [line for line in lines if "published" in line]
    assert "0.250 / 0.250" in published
    assert "each photo once" in published_once
    assert "0.125 / 0.125" in published_once
    assert "0.484" not in published_once
    assert "each photo once" not in printed(rows("sketchy", 0.25), "sketchy")


def test_seeds_become_mean_and_spread():
    results = rows("x", 0.2) + rows("x", 0.4, seed=1)
    assert "0.300 ± 0.141" in printed(results, "x")


def test_a_gallery_too_small_and_random_weights_are_marked():
    results = rows("x", 0.2, gallery=60)
    text = " ".join(printed(results, "x", random_weights=True).split())
    assert "x: 60 photos are too few for Prec@100" in text
    assert "random weights" in text


def variants():
    several = []
    for variant, values in {"baseline": (0.20, 0.21, 0.22), "both": (0.30, 0.31, 0.32)}.items():
        for seed, value in enumerate(values):
            several += rows("x", value, seed=seed, variant=variant)
    return several


def test_variants_stand_below_each_other_with_their_difference():
    text = printed(variants(), "x")
    lines = [line for line in text.splitlines() if "binary" in line and "published" in line]
    assert len(lines) == 2
    assert "0.210 ± 0.010" in lines[0]
    assert "baseline" in lines[0]
    assert "+0.100 / +0.100" in lines[1]
    assert "mean ± standard deviation over 3 seeds" in " ".join(text.split())


def test_a_table_whose_data_sets_have_other_numbers_of_seeds_says_so():
    more = variants() + rows("y", 0.4, variant="baseline")
    assert "over seeds: 3 of x, 1 of y;" in noted(more)
    more += rows("y", 0.4, variant="both") + rows("y", 0.5, seed=1, variant="both")
    assert "over seeds: 3 of x, 1-2 of y;" in noted(more)
    assert "standard deviation" not in noted(rows("x", 0.4) + rows("y", 0.4))


def noted(results):
    return "; ".join(final_notes(results, {"x": False, "y": False})) + ";"


@pytest.mark.parametrize(
    ("variant", "dim", "codes", "expected"),
    [
        ("baseline", 64, "binary", "0.361"),
        ("baseline", 64, "real", "-"),
        ("baseline", 512, "binary", "-"),
        ("both", 64, "binary", "0.436"),
        ("512-d", 512, "real", "0.583 / 0.704"),
        ("paper", 64, "real", "0.484 / 0.610"),
        ("release", 64, "real", "-"),
        ("lambda1=10 lambda2=10", 64, "binary", "-"),
    ],
)
def test_a_variant_stands_beside_its_own_number_of_the_paper(variant, dim, codes, expected):
    results = [{**row, "dim": dim} for row in rows("sketchy", 0.2, variant=variant)]
    lines = final_lines(results, [], {"sketchy": True}, False)
    papers = {line.protocol: line.paper for line in lines if line.codes == codes}
    assert papers == {"published": expected, "standard": "-"}


def test_a_difference_within_noise_is_marked_and_one_of_single_seeds_is_open():
    near = [
        {
            **row,
            "value": row["value"] - (0.095, 0.110, 0.080)[row["seed"]] * (row["variant"] == "both"),
        }
        for row in variants()
    ]
    assert "+0.005 ~" in printed(near, "x")
    alone = [row for row in variants() if row["seed"] == 0]
    assert "+0.100 ?" in printed(alone, "x")


@pytest.mark.parametrize(
    ("some", "others", "expected"),
    [
        # Welch's t by hand: means 2 and 6, variances 1 and 1, n = 3: t = 4.90 at 4 degrees of
        # freedom, where 2.776 is the 5 % point.
        ([1, 2, 3], [5, 6, 7], False),
        # The difference 2 gives t = 2.449, below it.
        ([1, 2, 3], [3, 4, 5], True),
        ([1], [2, 3], None),
        ([1, 1], [1, 1], True),
        ([1, 1], [2, 2], False),
    ],
)
def test_noise_between_other_seeds_is_what_welchs_test_says(some, others, expected):
    assert within_noise(dict(enumerate(some)), dict(enumerate(others, 10))) is expected


@pytest.mark.parametrize(
    ("some", "others", "expected"),
    [
        # Differences 2, 2.5 and 3: mean 2.5, standard error 0.5 / sqrt(3), t = 8.66 at 2 degrees
        # of freedom, where 4.303 is the 5 % point. Unpaired they are far from it.
        ([1, 5, 9], [3, 7.5, 12], False),
        # Differences 1, 3 and 5: mean 3, standard error 2 / sqrt(3), t = 2.60.
        ([1, 2, 3], [2, 5, 8], True),
        ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], False),
        ([0.1, 0.2], [0.1, 0.2], True),
    ],
)
def test_noise_between_the_same_seeds_is_that_of_their_differences(some, others, expected):
    first = dict(enumerate(some))
    second = dict(reversed(list(enumerate(others))))
    assert within_noise(first, second) is expected


def test_what_diverged_is_named():
    lost = [{"dataset": "x", "variant": "both", "seed": 3}, {"dataset": "y", "seed": 0}]
    notes = final_notes(variants(), {"x": False}, lost)
    assert "x, both, seed 3 and y, seed 0 diverged, and count in no mean" in notes


def test_a_table_with_gaps_says_so():
    assert "(PARTIAL: 2 trainings missing)" in printed(variants(), "x", missing=2)
