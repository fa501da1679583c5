import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsn_ray.data.stream import draw_epoch


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 6), st.integers(0, 1000))
def test_every_passage_takes_each_row_once(pool_size, per_batch, steps, seed):
    pool = np.arange(pool_size) * 3
    rows, passage = draw_epoch(pool, per_batch, steps, (seed,))
    assert rows.shape == passage.shape == (steps, per_batch)
    flat = rows.ravel()
    assert set(flat) <= set(pool)
    for start in range(0, len(flat), pool_size):
        drawn = flat[start : start + pool_size]
        assert len(set(drawn)) == len(drawn)
        assert set(passage.ravel()[start : start + pool_size]) == {start // pool_size}


def test_the_seed_decides_the_order():
    pool = np.arange(50)
    one, other = (draw_epoch(pool, 10, 5, (0, epoch, 0))[0] for epoch in (0, 1))
    np.testing.assert_array_equal(one, draw_epoch(pool, 10, 5, (0, 0, 0))[0])
    assert (one != other).any()
