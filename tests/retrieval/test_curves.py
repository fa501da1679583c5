import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.retrieval.curves import RECALLS, class_similarity, precision_recall


def slow_precision_recall(queries, query_labels, gallery, gallery_labels):
    curves = []
    for query, label in zip(queries, query_labels, strict=True):
        cosine = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        hits = gallery_labels == label
        if not hits.any():
            continue
        order = sorted(range(len(gallery)), key=lambda i: (-round(cosine[i], 9), hits[i]))
        points = []
        for rank in range(1, len(order) + 1):
            found = sum(hits[i] for i in order[:rank])
            points.append((found / hits.sum(), found / rank))
        curves.append([max(p for r, p in points if r >= recall - 1e-9) for recall in RECALLS])
    return np.mean(curves, axis=0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_precision_at_each_recall_is_that_of_slow_loops(seed):
    random = np.random.default_rng(seed)
    queries, gallery = random.normal(size=(6, 3)), random.normal(size=(15, 3))
    query_labels, gallery_labels = random.integers(4, size=6), random.integers(3, size=15)
    query_labels[0] = gallery_labels[0]
    found = precision_recall(queries, query_labels, gallery, gallery_labels)
    expected = slow_precision_recall(queries, query_labels, gallery, gallery_labels)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (np.diff(found) <= 1e-12).all()


def test_among_equally_near_photos_the_wrong_ones_come_first():
    one = np.ones((1, 2))
    found = precision_recall(one, np.array([0]), np.ones((4, 2)), np.array([0, 1, 1, 1]))
    np.testing.assert_allclose(found, 0.25)


def test_without_a_hit_there_is_nothing():
    one = np.ones((1, 2))
    assert not precision_recall(one, np.array([0]), one, np.array([1])).any()


def test_classes_are_as_alike_as_their_means():
    sketches = np.array([[2.0, 0], [0, 3], [0, 1]])
    photos = np.array([[1.0, 1], [0, 5]])
    found = class_similarity(sketches, np.array([0, 1, 1]), photos, np.array([0, 1]), 3)
    root = pytest.approx(np.sqrt(0.5))
    assert found[0].tolist()[:2] == [root, 0]
    assert found[1].tolist()[:2] == [root, 1]
    assert np.isnan(found[2]).all()
    assert np.isnan(found[:, 2]).all()
