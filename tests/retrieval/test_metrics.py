import json
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from dsn_ray.retrieval import average_precision, evaluate_features, fit_itq, metrics, ranking
from tests.retrieval.test_ranking import FLAGS, enumerate_ties, rate

ORACLE = Path(__file__).parents[3] / "shared" / "facts" / "retrieval_oracle.json"
ROWS = [
    (codes, protocol, metric)
    for codes in ("real", "binary")
    for protocol in ("published", "standard")
    for metric in ("mAP@all", "Prec@3")
]


@pytest.fixture(scope="module")
def oracle():
    if not ORACLE.parents[1].is_dir():
        pytest.skip("../shared, which holds the worked cases, is missing")
    return json.loads(ORACLE.read_text())


# --- single rankings ---


def test_oracle_single_rankings(oracle):
    for case in oracle["single"]:
        flags = case["flags"]
        assert average_precision(flags) == pytest.approx(case["AP_all"])
        assert average_precision(flags, interpolated=True) == pytest.approx(case["VOC_AP_all"])
        plain, interpolated, precision = rate(range(len(flags)), flags, k=5)
        assert plain == pytest.approx(case["AP_all"])
        assert interpolated == pytest.approx(case["VOC_AP_all"])
        assert precision == pytest.approx(case["P@5"])


def test_oracle_ties(oracle):
    ties = oracle["ties"]
    gallery_labels, query_labels = np.array(ties["gallery_labels"]), np.array(ties["query_labels"])
    flags = query_labels[:, None] == gallery_labels
    rated = np.array([rate(d, f) for d, f in zip(ties["hamming"], flags, strict=True)])
    np.testing.assert_allclose(rated[:, 0], ties["expected_over_ties_AP"])
    # With ties broken by gallery order the interpolated AP is that of the stable sort.
    stable = ties["stable_order"]
    np.testing.assert_allclose(rated[:, 1], [case["VOC"] for case in stable])
    macro = metrics._mean_of_class_means(rated[:, 1], query_labels)
    assert macro == pytest.approx(ties["macro_VOC"])
    assert rated[:, 1].mean() == pytest.approx(ties["micro_VOC"])
    plain = np.array([average_precision(case["flags"]) for case in stable])
    np.testing.assert_allclose(plain, [case["AP"] for case in stable])
    assert plain.mean() == pytest.approx(ties["micro_AP"])
    assert metrics._mean_of_class_means(plain, query_labels) == pytest.approx(ties["macro_AP"])
    for case in stable:
        assert rate(range(6), case["flags"])[2] == pytest.approx(case["P3"])


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
@pytest.mark.parametrize("flags", [[False, True, True], [0, 1, 1]])
def test_flags_come_in_any_sequence(kind, flags):
    assert average_precision(kind(flags)) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("interpolated", [False, True])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([0, 0], "at least one relevant"),
        ([], "at least one relevant"),
        ([[1, 0]], "one row of flags"),
        ([0.3, 1], "each 0 or 1"),
    ],
)
def test_bad_flags(flags, message, interpolated):
    with pytest.raises(ValueError, match=message):
        average_precision(flags, interpolated)


@settings(deadline=None)
@given(FLAGS)
def test_average_precision_is_bounded_and_agrees_with_scikit_learn(flags):
    plain, interpolated = average_precision(flags), average_precision(flags, interpolated=True)
    assert 0 < plain <= interpolated + 1e-12 <= 1 + 1e-12
    assert plain == pytest.approx(average_precision_score(flags, -np.arange(len(flags))))


# --- ties ---


# --- whole evaluations ---


def slow_evaluation(queries, query_labels, gallery, gallery_labels, k, seed):
    """The definitions by loops: each tie group's positions one by one, in plain Python."""

    def hamming(a, b):
        return [[sum(x != y) for y in b] for x in a]

    def cosine_distance(a, b):
        return [[round(1 - x @ y / np.sqrt(x @ x) / np.sqrt(y @ y), 8) for y in b] for x in a]

    def expected(distances, flags):
        ap, hits_in_top, before, hits_before = 0.0, 0.0, 0, 0
        for value in sorted(set(distances)):
            group = [f for d, f in zip(distances, flags, strict=True) if d == value]
            n, h = len(group), sum(group)
            for j in range(1, n + 1):
                others = (j - 1) * (h - 1) / (n - 1) if n > 1 else 0
                ap += h / n * (hits_before + 1 + others) / (before + j)
                hits_in_top += h / n * (before + j <= k)
            before, hits_before = before + n, hits_before + h
        return ap / sum(flags), hits_in_top / k

    order = np.random.default_rng(seed).permutation(len(gallery))
    bits = queries.shape[1]
    real = cosine_distance(queries, gallery)
    queries, gallery = unit(queries), unit(gallery)
    release = fit_itq(queries, bits, seed=seed, variant="release")
    textbook = fit_itq(gallery, bits, seed=seed)
    distances = {
        ("real", "published"): real,
        ("real", "standard"): real,
        ("binary", "published"): hamming(
            (queries - queries.mean(0)) @ release.projection > 0,
            (gallery - gallery.mean(0)) @ release.projection > 0,
        ),
        ("binary", "standard"): hamming(
            (queries - gallery.mean(0)) @ textbook.projection > 0,
            (gallery - gallery.mean(0)) @ textbook.projection > 0,
        ),
    }
    values = {}
    for (codes, protocol), table in distances.items():
        per_class = {}
        for label, row in zip(query_labels, table, strict=True):
            flags = [int(other == label) for other in gallery_labels]
            ap, precision = expected(row, flags)
            if protocol == "published":
                ranking = sorted(range(len(row)), key=lambda i, row=row: (row[i], order[i]))
                ap = average_precision([flags[i] for i in ranking], interpolated=True)
            group = label if protocol == "published" else "all"
            per_class.setdefault(group, []).append((ap, precision))
        means = np.mean([np.mean(pairs, axis=0) for pairs in per_class.values()], axis=0)
        values[codes, protocol, "mAP@all"], values[codes, protocol, f"Prec@{k}"] = means
    return values


def unit(rows):
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def small_data(seed, dim=4, queries=13, gallery=40):
    random = np.random.default_rng(seed)
    # Small whole numbers make cosines tie, few bits make codes tie.
    query_features = random.integers(-1, 3, (queries, dim)) + np.eye(dim)[0] * 0.5
    gallery_features = random.integers(-1, 3, (gallery, dim)) + np.eye(dim)[0] * 0.5
    query_labels = random.choice([2, 5, 9], queries, p=[0.6, 0.3, 0.1])
    gallery_labels = np.r_[2, 5, 9, random.choice([2, 5, 9, 11], gallery - 3)]
    return query_features, query_labels, gallery_features, gallery_labels


def by_key(rows):
    return {(row["codes"], row["protocol"], row["metric"]): row["value"] for row in rows}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block_elements", [1, 100, 1 << 22])
def test_evaluation_equals_slow_loops(seed, block_elements, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK_ELEMENTS", block_elements)
    data = small_data(seed)
    values = by_key(evaluate_features(*data, precision_at=3, seed=seed))
    assert values == pytest.approx(slow_evaluation(*data, k=3, seed=seed))


@pytest.mark.parametrize("world", [2, 3, 20])  # 20 are more than there are queries
def test_ranks_that_share_the_queries_rate_as_one_does(world):
    parts, meeting = [None] * world, threading.Barrier(world, timeout=30)

    def rate(rank):
        def gather(part):
            parts[rank] = part
            meeting.wait()
            found = list(parts)
            meeting.wait()
            return found

        return evaluate_features(*small_data(0), ranks=metrics.Ranks(rank, world, gather))

    # Each thread limits BLAS for the process and undoes that, in any order.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(world) as pool:
        rated = list(pool.map(rate, range(world)))
    alone = by_key(evaluate_features(*small_data(0)))
    for rows in rated:
        assert by_key(rows) == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("variant", ["textbook", "release"])
@pytest.mark.parametrize("fit", ["queries", "gallery", "training"])
def test_binary_codes_may_be_made_otherwise(variant, fit):
    queries, query_labels, gallery, gallery_labels = small_data(3, dim=6)
    training = np.random.default_rng(9).standard_normal((50, 6))
    basis = {"queries": queries, "gallery": gallery, "training": training}[fit]
    fitted = fit_itq(unit(basis), 6, variant=variant)
    expected = {}
    for protocol in ("published", "standard"):
        sides = []
        for side in (unit(queries), unit(gallery)):
            own = replace(fitted, mean=side.mean(axis=0)) if protocol == "published" else fitted
            sides.append(np.where(own.encode(side), 1.0, -1.0))
        as_real = evaluate_features(sides[0], query_labels, sides[1], gallery_labels, binary=False)
        values = by_key(as_real).items()
        expected |= {("binary", *key[1:]): value for key, value in values if key[1] == protocol}
    rows = evaluate_features(
        queries,
        query_labels,
        gallery,
        gallery_labels,
        itq_variant=variant,
        itq_fit=training if fit == "training" else fit,
    )
    assert {k: v for k, v in by_key(rows).items() if k[0] == "binary"} == pytest.approx(expected)


def test_rows_are_complete_and_ready_for_json():
    rows = evaluate_features(*small_data(0), precision_at=3)
    assert [(row["codes"], row["protocol"], row["metric"]) for row in rows] == ROWS
    for row in rows:
        shuffled = (row["protocol"], row["metric"]) == ("published", "mAP@all")
        assert row["ties"] == ("shuffled" if shuffled else "expected")
        assert (row["queries"], row["gallery"], row["dim"]) == (13, 40, 4)
        assert 0 <= row["value"] <= 1
    assert json.loads(json.dumps(rows)) == rows
    assert evaluate_features(*small_data(0))[1]["metric"] == "Prec@100"


def test_separable_classes_rank_perfectly():
    labels = np.repeat([0, 1, 2], 7)
    features = np.eye(3)[labels] + 0.01 * np.random.default_rng(0).standard_normal((21, 3))
    values = by_key(evaluate_features(features, labels, features, labels, precision_at=3))
    for protocol in ("published", "standard"):
        assert values["real", protocol, "mAP@all"] == 1
        assert values["real", protocol, "Prec@3"] == 1


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_scale_and_gallery_order_do_not_matter(seed, scale):
    query_features, query_labels, gallery_features, gallery_labels = small_data(seed)
    data = query_features, query_labels, gallery_features, gallery_labels
    values = by_key(evaluate_features(*data, precision_at=3))
    scaled = by_key(
        evaluate_features(
            query_features * scale, query_labels, gallery_features / scale, gallery_labels,
            precision_at=3,
        )
    )  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(gallery_labels))
    moved = by_key(
        evaluate_features(
            query_features, query_labels, gallery_features[order], gallery_labels[order],
            precision_at=3,
        )
    )  # fmt: skip
    for key, value in values.items():
        if key[0] == "real":
            assert scaled[key] == pytest.approx(value)
            if key[1:] != ("published", "mAP@all"):
                assert moved[key] == pytest.approx(value)


def test_tensors_and_float_types():
    query_features, query_labels, gallery_features, gallery_labels = small_data(1)
    expected = evaluate_features(query_features, query_labels, gallery_features, gallery_labels)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        # Halves of small whole numbers are exact in every type.
        rows = evaluate_features(
            torch.tensor(query_features, dtype=dtype, requires_grad=True),
            torch.tensor(query_labels),
            torch.tensor(gallery_features, dtype=dtype),
            gallery_labels.astype(np.int16),
        )
        assert rows == expected


def test_zero_and_constant_features_tie_everywhere():
    labels = np.array([0, 0, 1, 1])
    for features in (np.zeros((4, 2)), np.full((4, 2), 3.0)):
        values = by_key(evaluate_features(features, labels, features, labels, precision_at=3))
        expected = enumerate_ties(np.zeros(4), labels, 3)
        for codes in ("real", "binary"):
            assert values[codes, "standard", "mAP@all"] == pytest.approx(expected[0])
            assert values[codes, "standard", "Prec@3"] == pytest.approx(0.5)


def test_queries_without_a_hit_are_left_out_with_a_warning():
    query_features, query_labels, gallery_features, gallery_labels = small_data(2)
    with_stranger = np.r_[query_labels[:-2], 77, 78]
    with pytest.warns(UserWarning, match=r"2 queries left out.* 77, 78"):
        rows = evaluate_features(query_features, with_stranger, gallery_features, gallery_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = evaluate_features(
            query_features[:-2], query_labels[:-2], gallery_features, gallery_labels
        )
    assert rows == kept
    assert rows[0]["queries"] == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_features": np.ones(4)}, "query_features must have 2 dimensions"),
        ({"gallery_features": np.ones((2, 2, 2))}, "gallery_features must have 2 dimensions"),
        ({"gallery_features": np.ones((0, 2))}, "gallery_features must hold at least one row"),
        ({"query_features": np.ones((0, 2))}, "query_features must hold at least one row"),
        ({"gallery_features": np.ones((3, 5))}, "same number of columns, got 2 and 5"),
        ({"query_features": [[1, np.nan], [1, 1]]}, "query_features must be finite"),
        ({"gallery_features": np.full((3, 2), np.inf)}, "gallery_features must be finite"),
        ({"query_labels": [0]}, "query_labels must be 2 integers"),
        ({"gallery_labels": [0, 1, 1, 1]}, "gallery_labels must be 3 integers"),
        ({"gallery_labels": [0.0, 1.0, 1.0]}, "gallery_labels must be 3 integers"),
        ({"query_labels": [7, 8]}, "must share a label"),
        ({"precision_at": 0}, "precision_at must be at least 1"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    good = {
        "query_features": np.eye(2),
        "query_labels": [0, 1],
        "gallery_features": np.eye(3)[:, :2],
        "gallery_labels": [0, 1, 1],
    }
    with pytest.raises(ValueError, match=message):
        evaluate_features(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"itq_fit": np.ones((5, 6))},
            "itq_fit must have 4 columns, as query_features have, got 6",
        ),
        ({"itq_fit": np.ones((5, 2))}, "itq_fit must have 4 columns"),
        ({"itq_fit": "photos"}, "itq_fit must be queries, gallery or features, got 'photos'"),
        ({"precision_at": float("nan")}, "precision_at must be at least 1"),
    ],
)
def test_what_binary_codes_are_fitted_on_is_checked(changes, message):
    features, labels = np.random.default_rng(0).standard_normal((6, 4)), [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=re.escape(message)):
        metrics.evaluate_features(features, labels, features, labels, **changes)
