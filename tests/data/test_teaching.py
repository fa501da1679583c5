"""The teacher's logits are computed once, are those of the stored pictures, and are never stale."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from dsn_ray.config import Config
from dsn_ray.data import teaching
from dsn_ray.data.views import decode
from dsn_ray.model import Teacher, imagenet_weights

CONFIG = Config().with_settings({"network.backbone": "efficientnet_lite0", "data.teacher_px": 32})


def teacher_logits(shards, config):
    weights = imagenet_weights(config.network.backbone, config.network.weights)
    digest = weights.digest if weights else None
    return teaching.teacher_logits(shards, config, "photo", ray.put(weights), digest)


@pytest.fixture(scope="module")
def ready(shards):
    """Shards, and their logits as computed."""
    return shards, teacher_logits(shards, CONFIG)


@pytest.fixture
def file():
    """The name under which they are kept."""
    return f"teacher-photo-{imagenet_weights('efficientnet_lite0').digest[:16]}-32.parquet"


def test_they_are_the_teachers_word_on_each_stored_picture(ready):
    shards, found = ready
    rows = sorted(shards.rows("seen", "photo").take_all(), key=lambda row: row["id"])
    assert found.ids.tolist() == [row["id"] for row in rows]
    pictures = np.stack([decode(row["encoded"], 32) for row in rows])
    expected = Teacher.from_config(CONFIG.network).logits(torch.from_numpy(pictures))
    np.testing.assert_allclose(found.logits, expected.numpy(), atol=1e-2, rtol=1e-2)
    assert found.logits.astype(float).std(axis=0).min() > 0.1


def test_what_is_kept_is_read_and_not_computed_again(ready, monkeypatch):
    shards, found = ready
    monkeypatch.setattr(teaching, "_compute", lambda *_: pytest.fail("computed again"))
    again = teacher_logits(shards, CONFIG)
    np.testing.assert_array_equal(again.logits, found.logits)


def test_they_do_not_depend_on_how_many_are_judged_together(ready):
    shards, found = ready
    judge = teaching._Judge(CONFIG, ray.put(imagenet_weights("efficientnet_lite0")), "cpu")
    rows = pa.Table.from_pylist(shards.rows("seen", "photo").take_all())
    for part in (rows.slice(0, 1), rows.slice(0, 5), rows.slice(3, 20)):
        judged = judge(part)
        places = np.searchsorted(found.ids, judged["id"].to_numpy())
        logits = np.frombuffer(b"".join(judged["logits"].to_pylist()), np.float16)
        np.testing.assert_array_equal(logits.reshape(len(part), -1), found.logits[places])


def other_pictures(table):
    metadata = {**table.schema.metadata, b"fingerprint": b"of other pictures"}
    return table.replace_schema_metadata(metadata)


def another_way(table):
    return table.replace_schema_metadata({**table.schema.metadata, b"way": b"0"})


@pytest.mark.parametrize(
    "spoil", [other_pictures, another_way, lambda t: t.slice(1), lambda _: None]
)
def test_what_is_stale_or_damaged_is_made_anew(ready, file, spoil):
    shards, found = ready
    whole = shards.folder.read(file)
    spoilt = spoil(pq.read_table(pa.BufferReader(whole)))
    with shards.folder.writing(file) as stream:
        if spoilt is None:
            stream.write(whole[: len(whole) // 2])
        else:
            wrong = np.zeros((len(spoilt), 1000), np.float16)
            cells = pa.array([row.tobytes() for row in wrong], pa.binary())
            pq.write_table(spoilt.set_column(1, "logits", cells), stream)
    again = teacher_logits(shards, CONFIG)
    np.testing.assert_allclose(again.logits, found.logits, atol=1e-2)
    np.testing.assert_array_equal(again.ids, found.ids)


def test_other_weights_sizes_and_pictures_have_logits_of_their_own(ready, file):
    shards, found = ready
    larger = teacher_logits(shards, CONFIG.with_settings({"data.teacher_px": 48}))
    assert not np.allclose(larger.logits, found.logits, atol=1e-2)
    random = teacher_logits(shards, CONFIG.with_settings({"network.weights": "none"}))
    assert not np.allclose(random.logits, found.logits, atol=1e-2)
    renamed = dataclasses.replace(shards, fingerprint="of other pictures")
    assert teaching._kept(renamed, "photo", file) is None
