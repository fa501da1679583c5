"""Pictures held in memory and pictures read from the shards are the same pictures."""

from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import ray
import torch

from dsn_ray.config import AugmentConfig, DataConfig
from dsn_ray.data import parts
from dsn_ray.data import pictures as pictures_module
from dsn_ray.data.batch import AUGMENTED_VIEWS
from dsn_ray.data.catalog import open_source, validation_classes
from dsn_ray.data.pictures import (
    HeldPictures,
    StoredPictures,
    TeacherLogits,
    load_pictures,
    plain_batches,
    reading_order,
    rows_of_classes,
    split_labels,
)
from dsn_ray.data.preview import _first_of_classes
from dsn_ray.data.storage import Folder
from dsn_ray.data.stream import Decoders, PairStream
from tests.conftest import UNSEEN

PX = 32


def logits_of(shards, domain):
    """Logits that are the picture's id everywhere."""
    ids = np.sort([row["id"] for row in shards.rows("seen", domain).take_all()])
    return TeacherLogits(ids, np.repeat(ids.astype(np.float16)[:, None], 1000, axis=1))


@pytest.fixture(params=["decoded", "encoded", "stored"])
def share(request, monkeypatch):
    """How much of the object store pictures may take, so that each way of holding them is met."""
    size = {"decoded": 1.0, "encoded": 2e-4, "stored": 0.0}[request.param]
    monkeypatch.setattr(pictures_module, "_SHARE_OF_STORE", size)
    return request.param


def test_every_way_gives_the_same_pictures(shards, drawings, share):
    source = open_source("folder:toy", drawings)
    teacher = logits_of(shards, "photo")
    loaded = replace(load_pictures(shards, "seen", "photo", PX), logits=ray.put(teacher))
    assert isinstance(loaded, StoredPictures if share == "stored" else HeldPictures)
    assert share == "stored" or loaded.decoded == (share == "decoded")
    table = loaded.table()
    assert table.ids.tolist() == teacher.ids.tolist()
    assert table.window > len(table.ids)
    assert table.is_judged
    rows = np.arange(len(table.ids))[::-1]
    assert table.teacher(rows)[:, 3].tolist() == table.ids[rows].tolist()
    for row in rows:
        record = source.records[table.ids[row]]
        assert shards.seen_classes[table.labels[row]] == record.class_name
        expected = pictures_module.decode((drawings / record.path).read_bytes(), PX)
        np.testing.assert_array_equal(table.pixels(row), expected)
    ((batch, chosen),) = plain_batches(table, np.arange(3), 8)
    assert batch.shape == (3, 3, PX, PX)
    assert chosen.tolist() == [0, 1, 2]


def test_a_few_row_groups_are_kept(shards, tmp_path, drawings, monkeypatch):
    monkeypatch.setattr(parts, "_LARGEST_GROUP", 1)
    source = open_source("folder:toy", drawings)
    sizes = [size for size, _ in source.states()]
    writer = parts.PartWriter(source, Folder.at(tmp_path), False)
    for part in parts.parts_of(source, sizes):
        if (part.split, part.domain) == ("seen", "sketch"):
            writer(part.row(source, sizes))
    folder = Folder.at(tmp_path) / "split=seen" / "domain=sketch"
    table = StoredPictures(folder, "sketch", PX, 30, 2).table()
    assert sorted(table.groups.tolist()) == list(range(30))
    assert not table.is_judged
    whole = load_pictures(shards, "seen", "sketch", PX).table()
    place = {number: row for row, number in enumerate(whole.ids)}
    for row in np.random.default_rng(0).integers(0, 30, 60):
        np.testing.assert_array_equal(table.pixels(row), whole.pixels(place[table.ids[row]]))
        assert len(table._kept) <= 6


def test_what_is_expected_is_read_at_the_same_time(shards, monkeypatch):
    table = StoredPictures(
        shards.folder / "split=seen" / "domain=photo", "photo", PX, 30, 30, None
    ).table()
    reading, together, read = [], Barrier(5, timeout=30), type(table)._read

    def waits_for_the_others(self, group):
        reading.append(group)
        together.wait()
        return read(self, group)

    monkeypatch.setattr(type(table), "_read", waits_for_the_others)
    table.expect(np.arange(len(table.ids)))
    for row in range(len(table.ids)):
        assert table.pixels(row).any()
    assert sorted(reading) == list(range(5))


def test_labels_are_trained_on_or_validated_on():
    names = [f"class {number}" for number in range(9)]
    for seed in range(5):
        config = DataConfig(validation_classes=3, validation_seed=seed)
        trained, validated = split_labels(names, config, validate=True)
        assert sorted([*trained, *validated]) == list(range(9))
        assert [names[label] for label in validated] == list(validation_classes(names, 3, seed))
    trained, validated = split_labels(names, config, validate=False)
    assert trained.tolist() == list(range(9))
    assert rows_of_classes(np.arange(9), trained).tolist() == list(range(9))
    assert validated.dtype == trained.dtype
    assert len(validated) == 0


def test_rows_of_classes_are_spread_over_each_class():
    labels = np.array([0] * 7 + [1] * 3 + [2] * 4)
    both = np.array([0, 2])
    assert rows_of_classes(labels, both).tolist() == [*range(7), *range(10, 14)]
    assert rows_of_classes(labels, both, 3).tolist() == [0, 2, 4, 10, 11, 12]
    assert rows_of_classes(labels, both, 99).tolist() == rows_of_classes(labels, both).tolist()


def test_no_unseen_class_reaches_a_training_or_a_validation_batch(shards, share):
    """The sketches and photos of training are those of the seen classes, and of no other."""
    config = DataConfig(validation_classes=2)
    trained, validated = split_labels(shards.seen_classes, config, validate=True)
    held_out = [shards.seen_classes[label] for label in validated]
    assert not set(held_out) & set(UNSEEN)
    unseen_rows = {
        (row["path"], row["id"])
        for domain in ("sketch", "photo")
        for row in shards.rows("unseen", domain).take_all()
    }
    unseen_ids = {number for _, number in unseen_rows}
    tables = [load_pictures(shards, "seen", d, PX).table() for d in ("sketch", "photo")]
    seen_pixels = {
        table.pixels(row).tobytes(): shards.seen_classes[table.labels[row]]
        for table in tables
        for row in range(len(table.ids))
    }
    for table in tables:
        assert not unseen_ids & set(table.ids.tolist())
        rows = rows_of_classes(table.labels, validated)
        assert {shards.seen_classes[label] for label in table.labels[rows]} == set(held_out)
    stream = PairStream(
        *tables,
        trained,
        sketches_per_batch=2,
        photos_per_batch=4,
        epoch_ends="longer",
        per_class=None,
        augment=AugmentConfig(shared=0.0),
        augmented=AUGMENTED_VIEWS,
        seed=0,
    )
    names = [name for name in shards.seen_classes if name not in held_out]
    for batch in stream.epoch(0):
        for views, found in (
            (batch.sketch_views, batch.sketch_labels),
            (batch.photo_views, batch.photo_labels),
        ):
            for picture, label in zip(views[:, 0], found, strict=True):
                shown = seen_pixels[picture.numpy().tobytes()]
                assert shown == names[label]
                assert shown not in {*held_out, *UNSEEN}


def both(shards):
    return {domain: load_pictures(shards, "seen", domain, PX) for domain in ("sketch", "photo")}


def epoch_of(pictures, rank=0, world=1, processes=0):
    tables = {domain: one.table() for domain, one in pictures.items()}
    decoders = (
        Decoders(processes, pictures, tables, AugmentConfig(), AUGMENTED_VIEWS, 0)
        if processes
        else None
    )
    stream = PairStream(
        *tables.values(),
        np.array([0, 2, 3]),
        sketches_per_batch=8,
        photos_per_batch=8,
        epoch_ends="longer",
        per_class=5,
        augment=AugmentConfig(),
        augmented=AUGMENTED_VIEWS,
        seed=0,
        rank=rank,
        world=world,
        decoders=decoders,
    )
    return list(stream.epoch(1))


@pytest.mark.parametrize("window", [96 * 2**20, 2000])
def test_an_epoch_is_the_same_for_every_way_and_any_number_of_workers(shards, monkeypatch, window):
    monkeypatch.setattr(pictures_module, "WINDOW_BYTES", window)
    monkeypatch.setattr(pictures_module, "_SHARE_OF_STORE", 1.0)
    alone = epoch_of(both(shards))
    monkeypatch.setattr(pictures_module, "_SHARE_OF_STORE", 0.0)
    stored = both(shards)
    for world in (2, 8):
        ranks = zip(*(epoch_of(stored, rank, world) for rank in range(world)), strict=True)
        for whole, shares in zip(alone, ranks, strict=True):
            for name in ("photo_views", "photo_labels", "sketch_views", "sketch_labels"):
                together = torch.cat([getattr(part, name) for part in shares])
                assert torch.equal(getattr(whole, name), together)
    for whole, helped in zip(alone, epoch_of(stored, processes=2), strict=True):
        for field, one in whole._asdict().items():
            other = getattr(helped, field)
            assert one is other or torch.equal(one, other), field


def test_a_preview_shows_the_first_of_each_class(shards):
    rows = [row for row in shards.rows("seen", "sketch").take_all() if row["label"] in (0, 3)]
    shown = _first_of_classes(shards, True, {0, 3})
    for label in (0, 3):
        of_class = sorted((row["id"], row["encoded"]) for row in rows if row["label"] == label)
        assert shown[label] == of_class[:3]


def test_rows_that_lie_together_are_read_together(shards):
    table = load_pictures(shards, "seen", "photo", PX).table()
    rows = np.arange(1, len(table.ids))
    order = reading_order(table, rows)
    assert sorted(order) == rows.tolist()
    assert (np.diff(table.groups[order]) >= 0).all()
    assert len(set(table.groups)) == 5
