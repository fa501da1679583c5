"""Exact search, compared with a stable sort of everything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.retrieval import fit_itq, index
from dsn_ray.retrieval.index import Index, at_length_one, fit_codes


def of(features):
    return Index(at_length_one(np.asarray(features, np.float32)))


@pytest.fixture(params=["one block", "many blocks"], scope="module")
def blocks(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many blocks":
            patch.setattr(index, "_BLOCK_ELEMENTS", 16)
            patch.setattr(index, "_BLOCK_CODES", 7)
            patch.setattr(index, "_MOST_QUERIES", 3)
            patch.setattr(index, "_SAMPLE", 4)
        yield


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 70), st.integers(0, 99))
def test_search_is_a_stable_sort_of_all_features(blocks, photos, queries, top, seed):
    random = np.random.default_rng(seed)
    there = of(random.integers(-2, 3, (photos, 8)) + 0.01)  # with many ties
    wanted = random.standard_normal((queries, 8)).astype(np.float32)
    unit = at_length_one(wanted)

    rows, scores = there.search(wanted, top, "binary")
    for code, found, values in zip(there.binary.encode(unit), rows, scores, strict=True):
        distance = np.array([(code ^ theirs).item().bit_count() for theirs in there.binary.packed])
        expected = np.argsort(distance, kind="stable")[:top]
        assert found.tolist() == expected.tolist()
        assert values.tolist() == distance[expected].tolist()

    rows, scores = there.search(wanted, top)
    for query, found, values in zip(unit, rows, scores, strict=True):
        cosine = (there.features.astype(float) * query).sum(axis=1)
        expected = np.argsort(-cosine, kind="stable")[:top]
        assert found.tolist() == expected.tolist()
        assert values.tolist() == cosine[expected].tolist()


@pytest.mark.parametrize("codes", ["real", "binary"])
def test_ties_that_straddle_blocks_stay_in_order(blocks, codes):
    random = np.random.default_rng(0)
    near, far = np.eye(8)[:2]
    order = random.permutation(100)
    there = of(np.where(order[:, None] < 40, near, far))
    queries = np.tile(near, (7, 1)).astype(np.float32)
    rows, scores = there.search(queries, 50, codes)
    expected = [*np.flatnonzero(order < 40), *np.flatnonzero(order >= 40)[:10]]
    assert rows.tolist() == [expected] * 7
    assert (np.diff(scores[:, [0, 39]]) == 0).all()


def test_cosines_that_float32_cannot_tell_apart_are_in_order(blocks):
    random = np.random.default_rng(0)
    there = of(1 + 1e-6 * random.standard_normal((300, 64)))
    queries = random.standard_normal((20, 64)).astype(np.float32)
    rows, _ = there.search(queries, 5)
    for query, found in zip(at_length_one(queries), rows, strict=True):
        cosine = (there.features.astype(float) * query).sum(axis=1)
        assert found.tolist() == np.argsort(-cosine, kind="stable")[:5].tolist()


def test_nearest_photos_in_the_last_block_are_found(blocks):
    angles = np.linspace(3, 0.1, 100)
    there = of(np.stack([np.cos(angles), np.sin(angles)], 1))  # each nearer than those before
    query = np.array([[1, 0]], np.float32)
    rows, _ = there.search(query, 5)
    assert rows.tolist() == [[99, 98, 97, 96, 95]]


@pytest.mark.parametrize("size", [37, 101, 1003])
@pytest.mark.parametrize("dim", [64, 512])
def test_photos_that_are_there_thrice_stay_in_order_and_queries_are_alone(size, dim, monkeypatch):
    monkeypatch.setattr(index, "_BLOCK_ELEMENTS", 1_000)
    random = np.random.default_rng(size)
    there = of(np.tile(random.standard_normal((size, dim)), (3, 1)))
    queries = random.standard_normal((20, dim)).astype(np.float32)
    rows, _ = there.search(queries, 30)
    assert (np.diff(rows.reshape(20, 10, 3)) == size).all()
    alone = [there.search(query[None], 30)[0][0] for query in queries]
    np.testing.assert_array_equal(rows, alone)


def test_codes_of_many_are_fitted_on_some_and_cover_all(monkeypatch):
    features = at_length_one(np.random.default_rng(0).standard_normal((500, 16), np.float32))
    whole = fit_codes(features)
    np.testing.assert_array_equal(whole.encode(features), whole.packed)
    bits = fit_itq(features, 16).encode(features)
    for code, of_one in zip(whole.packed, bits, strict=True):
        assert code.item().bit_count() == of_one.sum()
    monkeypatch.setattr(index, "_MOST_FITTED", 300)
    some, again = fit_codes(features), fit_codes(features)
    np.testing.assert_array_equal(some.encode(features), some.packed)
    np.testing.assert_array_equal(some.packed, again.packed)
    assert np.abs(some.projection - whole.projection).max() > 0


def test_cosines_need_no_binary_codes():
    def never(features):
        raise AssertionError

    there = Index(np.eye(3, dtype=np.float32), never)
    assert there.search(np.eye(3, dtype=np.float32)[1:2], 1)[0].tolist() == [[1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_come_to_length_one_and_zeros_stay(dtype):
    rows = np.array([[3, 4], [0, 0], [0, -2]], dtype)
    unit = at_length_one(rows)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [0, -1]], rtol=1e-6)
    assert rows[0].tolist() == [3, 4]


@pytest.mark.parametrize("codes", ["real", "binary"])
def test_a_query_that_is_no_number_is_refused(codes):
    features = at_length_one(np.random.default_rng(0).standard_normal((9, 4), np.float32))
    with pytest.raises(ValueError, match="queries must be finite"):
        Index(features).search(np.full((1, 4), np.nan, np.float32), 3, codes)
