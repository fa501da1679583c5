"""Ratings of rankings: against enumeration, and every fast way against the general one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.retrieval import average_precision, ranking
from dsn_ray.retrieval.metrics import unit_rows

FLAGS = st.lists(st.booleans(), min_size=1, max_size=30).filter(any)


def rate(distances, flags, tie_order=None, k=3):
    """Ratings (expected AP, VOC AP, expected Prec@k) of one query."""
    distances = np.array([distances], dtype=np.int64)
    order = np.arange(distances.shape[1]) if tie_order is None else np.asarray(tie_order)
    return ranking.rate_rankings(distances, np.flatnonzero(flags), order, k)[:, 0]


def tie_orders(distances):
    """Every ranking that the distances allow."""
    groups = [np.flatnonzero(distances == value) for value in np.unique(distances)]
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [item for order in orders for item in order]


def enumerate_ties(distances, flags, k):
    """Plain AP, VOC AP and Prec@k, each averaged over every ranking the distances allow."""
    rankings = [np.asarray(flags)[order] for order in tie_orders(np.asarray(distances))]
    return np.mean(
        [
            (average_precision(r), average_precision(r, interpolated=True), r[:k].sum() / k)
            for r in rankings
        ],
        axis=0,
    )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
        lambda items: any(hit for _, hit in items)
    ),
    st.integers(1, 8),
)
def test_expected_values_equal_enumeration(items, k):
    distances, flags = zip(*items, strict=True)
    expected = enumerate_ties(distances, flags, k)
    plain, _, precision = rate(distances, flags, k=k)
    assert plain == pytest.approx(expected[0])
    assert precision == pytest.approx(expected[2])


def test_every_tie_order_reaches_the_interpolated_ap():
    distances, flags = [0, 1, 1, 1, 1, 2], [0, 1, 0, 0, 1, 1]
    orders = itertools.permutations(range(6))
    shuffled = np.mean([rate(distances, flags, order)[1] for order in orders])
    assert shuffled == pytest.approx(enumerate_ties(distances, flags, 3)[1])


@settings(deadline=None)
@given(FLAGS, st.randoms(use_true_random=False))
def test_expected_values_ignore_the_gallery_order(flags, random):
    items = [(random.randint(0, 4), flag) for flag in flags]
    rated = rate(*zip(*items, strict=True))
    random.shuffle(items)
    np.testing.assert_allclose(rate(*zip(*items, strict=True))[[0, 2]], rated[[0, 2]])


def test_large_values_keep_their_precision():
    # Farthest possible steps and many items: ranks must neither overflow nor lose digits.
    size = 20_000
    flags = np.arange(size) % 25 == 0
    distances = np.linspace(0, 2**31, size).astype(np.int64)
    plain, interpolated, precision = rate(distances, flags, k=100)
    assert plain == pytest.approx(average_precision(flags), rel=1e-11)
    assert interpolated == pytest.approx(average_precision(flags, interpolated=True), rel=1e-11)
    assert precision == 0.04


def generally(distances, labels, gallery_labels, seed=0):
    """`rate_rankings` for each query."""
    order = np.random.default_rng(seed).permutation(len(gallery_labels))
    rows = [
        rate(row, gallery_labels == label, order)
        for row, label in zip(distances, labels, strict=True)
    ]
    return np.transpose(rows)


def labelled(random, count):
    return np.concatenate([np.arange(3), random.integers(0, 3, count - 3)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("repeated", [0, 15])
def test_cosines_are_rated_as_in_general(seed, repeated):
    """With photos that are there twice, under one label or under two, and without."""
    random = np.random.default_rng(seed)
    queries, gallery = (unit_rows(random.standard_normal((n, 4))) for n in (9, 60))
    gallery[:repeated] = gallery[-repeated or 60 :][:repeated]
    labels, gallery_labels = labelled(random, 9), labelled(random, 60)
    steps = np.rint((1 - queries @ gallery.T) * 2**29).astype(np.int64)
    rated = ranking.rate_cosines(queries, labels, gallery, gallery_labels, 3, 0)
    np.testing.assert_allclose(rated, generally(steps, labels, gallery_labels), rtol=1e-12)


@pytest.mark.parametrize("bits", [1, 5, 64, 65, 255, 256, 300])
def test_codes_are_rated_as_in_general(bits):
    random = np.random.default_rng(bits)
    queries, gallery = (random.random((n, bits)) < 0.5 for n in (9, 60))
    labels, gallery_labels = labelled(random, 9), labelled(random, 60)
    distances = (queries[:, None] != gallery).sum(axis=2)
    rated = ranking.rate_codes(queries, labels, gallery, gallery_labels, 3, 7)
    expected = generally(distances, labels, gallery_labels, seed=7)
    np.testing.assert_allclose(rated, expected, rtol=1e-12)
    sides = queries, labels, gallery, gallery_labels
    plain, interpolated, precision = ranking.rate_codes(*sides, 3, 7, interpolated=False)
    np.testing.assert_array_equal([plain, precision], rated[[0, 2]])
    assert np.isnan(interpolated).all()


def test_opposite_and_equal_directions_have_keys():
    queries = np.array([[1.0, 0.0]])
    gallery = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    rated = ranking.rate_cosines(queries, np.array([1]), gallery, np.array([1, 0, 1]), 3, 0)
    assert rated[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
