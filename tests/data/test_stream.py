from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsn_ray.config import AugmentConfig
from dsn_ray.data.batch import AUGMENTED_VIEWS, Batch
from dsn_ray.data.device_views import views_on_device
from dsn_ray.data.pictures import TeacherLogits, load_pictures
from dsn_ray.data.stream import PairStream, draw_epoch


@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.sampled_from([1, 2.5, 9, np.inf]),
)
def test_every_passage_takes_each_row_once(pool_size, per_batch, steps, seed, window):
    pool = np.arange(pool_size) * 3
    groups = np.random.default_rng(seed).integers(0, 5, pool_size)
    rows, passage = draw_epoch(pool, per_batch, steps, (seed,), groups, window)
    assert rows.shape == passage.shape == (steps, per_batch)
    flat = rows.ravel()
    assert set(flat) <= set(pool)
    for start in range(0, len(flat), pool_size):
        drawn = flat[start : start + pool_size]
        assert len(set(drawn)) == len(drawn)
        assert set(passage.ravel()[start : start + pool_size]) == {start // pool_size}


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.floats(1, 50),
)
def test_rows_come_in_windows_of_groups(sizes, per_batch, steps, seed, window):
    random = np.random.default_rng(seed)
    groups = random.permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    pool = np.arange(len(groups)) * 2
    rows, passage = draw_epoch(pool, per_batch, steps, (seed,), groups, window)
    most = window + max(sizes)
    for number in range(passage.max() + 1):
        drawn = rows[passage == number]
        assert len(set(drawn.tolist())) == len(drawn)
        # Between a group's first and last row, no more rows are drawn than a window has.
        found = groups[drawn // 2]
        for group in set(found.tolist()):
            places = np.flatnonzero(found == group)
            assert places[-1] - places[0] < max(most, 1)


def test_the_seed_decides_the_order():
    pool = np.arange(50)
    for window in (10, 100):
        one, other, again = (
            draw_epoch(pool, 10, 5, (0, epoch, 0), pool // 5, window)[0] for epoch in (0, 1, 0)
        )
        np.testing.assert_array_equal(one, again)
        assert (one != other).any()


@pytest.fixture(scope="module")
def tables(shards):
    ids = np.sort([row["id"] for row in shards.rows("seen", "photo").take_all()])
    logits = np.repeat(np.arange(len(ids), dtype=np.float16)[:, None], 1000, axis=1)
    teacher = TeacherLogits(ids, logits)
    return (
        load_pictures(shards, "seen", "sketch", 32).table(),
        replace(load_pictures(shards, "seen", "photo", 32), logits=ray.put(teacher)).table(),
    )


def make_stream(tables, rank=0, world=1, classes=(0, 2, 3), **changes):
    settings = {
        "sketches_per_batch": 4,
        "photos_per_batch": 8,
        "epoch_ends": "longer",
        "per_class": None,
        "augment": AugmentConfig(),
        "augmented": AUGMENTED_VIEWS,
        "seed": 0,
        **changes,
    }
    return PairStream(*tables, np.array(classes), rank=rank, world=world, **settings)


def test_batches_hold_what_they_say(tables):
    stream = make_stream(tables)
    batches = list(stream.epoch(0))
    assert len(batches) == stream.steps == 4
    for batch in batches:
        assert batch.sketch_views.shape == (4, 3, 3, 32, 32)
        assert batch.photo_views.shape == (8, 3, 3, 32, 32)
        assert batch.photo_views.dtype == torch.uint8
        assert set(batch.photo_labels.tolist()) <= {0, 1, 2}
        assert batch.teacher_logits.shape == (8, 1000)


def test_without_augmented_views_the_first_ones_are_the_same(tables):
    for one, three in zip(
        make_stream(tables, augmented=0).epoch(1), make_stream(tables).epoch(1), strict=True
    ):
        assert one.sketch_views.shape == (4, 1, 3, 32, 32)
        assert torch.equal(one.sketch_views, three.sketch_views[:, :1])
        assert torch.equal(one.photo_views, three.photo_views[:, :1])


def test_an_epoch_again_is_the_same_epoch_and_another_is_another(tables):
    first, again, other = (list(make_stream(tables).epoch(n)) for n in (1, 1, 2))
    for one, same in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], same[:5], strict=True))
    assert any(
        not torch.equal(a.photo_views, b.photo_views) for a, b in zip(first, other, strict=True)
    )


def test_two_workers_together_see_what_one_would(tables):
    whole = list(make_stream(tables).epoch(3))
    parts = zip(*(make_stream(tables, rank, 2).epoch(3) for rank in (0, 1)), strict=True)
    for alone, halves in zip(whole, parts, strict=True):
        for field in Batch._fields[:5]:
            joined = torch.cat([getattr(half, field) for half in halves])
            assert torch.equal(getattr(alone, field), joined), field


@pytest.mark.parametrize("augmented", [0, AUGMENTED_VIEWS])
def test_the_device_makes_the_views_that_a_worker_would(tables, augmented):
    there = make_stream(tables, augmented=augmented, on_device=True).epoch(2)
    for raw, made in zip(there, make_stream(tables, augmented=augmented).epoch(2), strict=True):
        for is_sketch, domain in ((True, "sketch"), (False, "photo")):
            pictures, draws = (getattr(raw, f"{domain}_{what}") for what in ("views", "draws"))
            assert pictures.shape[1] == 1
            views = views_on_device(pictures[:, 0], is_sketch, draws, AugmentConfig())
            expected = getattr(made, f"{domain}_views")
            apart = (views.int() - expected.int()).abs()
            assert apart.max() <= 1
            assert (apart > 0).float().mean() < 0.01
        assert torch.equal(raw.photo_labels, made.photo_labels)
        assert torch.equal(raw.teacher_logits, made.teacher_logits)


def test_what_chance_has_drawn_stays_on_the_host(tables, monkeypatch):
    monkeypatch.setattr("ray.train.utils._in_ray_train_worker", lambda: True)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for on_device, device in ((True, "cpu"), (False, "meta")):
        batch = next(make_stream(tables, on_device=on_device, pinned=True).epoch(0))
        assert batch.photo_views.device.type == device
        for values in batch.photo_draws or ():
            assert values.is_cpu


def test_other_classes_never_enter(tables):
    sketches, photos = tables
    stream = make_stream(tables, classes=(1, 4))
    for table, domain in ((sketches, "sketch"), (photos, "photo")):
        assert set(table.labels[stream._pools[domain]]) == {1, 4}
    assert make_stream(tables, per_class=1, epoch_ends="shorter").steps == 1
