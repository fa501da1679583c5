"""Galleries: exact search, and only new photos embedded."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.errors import UserError
from dsn_ray.gallery import Gallery, embed, open_gallery
from dsn_ray.retrieval import fit_itq
from tests.conftest import draw


def gallery_of(features):
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    itq = fit_itq(features, features.shape[1])
    return Gallery(
        root=None,
        paths=tuple(f"class{i % 3}/{i}.png" for i in range(len(features))),
        features=features,
        mean=itq.mean,
        projection=itq.projection,
        codes=np.packbits(itq.encode(features), axis=1),
        rejected=(),
        embedded=0,
    )


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 70), st.integers(0, 99))
def test_search_is_a_stable_sort_of_all_photos(photos, queries, top, seed):
    random = np.random.default_rng(seed)
    gallery = gallery_of(random.integers(-2, 3, (photos, 8)) + 0.01)  # with many ties
    wanted = random.standard_normal((queries, 8)).astype(np.float32)
    unit = (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).astype(np.float32)

    rows, scores = gallery.search(wanted, top, "binary")
    bits = (gallery.features - gallery.mean) @ gallery.projection > 0
    for query, found, values in zip(unit, rows, scores, strict=True):
        distance = (((query - gallery.mean) @ gallery.projection > 0) != bits).sum(axis=1)
        expected = np.argsort(distance, kind="stable")[:top]
        assert found.tolist() == expected.tolist()
        assert values.tolist() == distance[expected].tolist()

    rows, scores = gallery.search(wanted, top)
    assert rows.shape == scores.shape == (queries, min(top, photos))
    for query, found, values in zip(unit, rows, scores, strict=True):
        cosine = gallery.features @ query
        np.testing.assert_allclose(values, np.sort(cosine)[::-1][:top], atol=1e-6)
        np.testing.assert_allclose(cosine[found], values, atol=1e-6)
        assert len(set(found.tolist())) == len(found)


@pytest.fixture
def photos(tmp_path):
    for shape in ("circle", "square"):
        for number in range(3):
            draw(tmp_path / "all", "photo", shape, number)
    root = tmp_path / "all" / "photo"
    (root / "circle" / "broken.png").write_text("this is no picture")
    (root / "circle" / ".hidden.png").write_text("hidden")
    (root / "notes.txt").write_text("no picture either")
    return root


def test_only_new_photos_are_embedded(checkpoint, photos, tmp_path):
    opened, cache = open_checkpoint(checkpoint), tmp_path / "cache"
    first = open_gallery(opened, photos, cache)
    assert first.paths == tuple(f"{s}/{n}.png" for s in ("circle", "square") for n in range(3))
    assert first.embedded == 6
    assert [path for path, _ in first.rejected] == ["circle/broken.png"]
    assert first.class_of(0) == "circle"
    np.testing.assert_allclose(np.linalg.norm(first.features, axis=1), 1, atol=1e-5)

    again = open_gallery(opened, photos, cache)
    assert again.embedded == 0
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(again.codes, first.codes)

    (photos / "circle" / "0.png").rename(photos / "square" / "moved.png")
    (photos / "square" / "2.png").unlink()
    Image.new("RGB", (40, 40), "red").save(photos / "square" / "new.png")
    changed = open_gallery(opened, photos, cache)
    assert changed.embedded == 1
    assert "circle/0.png" not in changed.paths
    moved = changed.paths.index("square/moved.png")
    np.testing.assert_array_equal(changed.features[moved], first.features[0])


def test_what_lies_outside_the_gallery_is_not_read(checkpoint, photos, tmp_path):
    draw(tmp_path / "secret", "photo", "circle", 0)
    (photos / "link.png").symlink_to(tmp_path / "secret" / "photo" / "circle" / "0.png")
    (photos / "linked").symlink_to(tmp_path / "secret")
    gallery = open_gallery(open_checkpoint(checkpoint), photos, tmp_path / "cache")
    assert len(gallery.paths) == 6
    assert ("link.png", "it lies outside the gallery") in gallery.rejected


def test_features_are_those_of_the_network(checkpoint):
    network = open_checkpoint(checkpoint).network()
    picture = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    with torch.inference_mode():
        expected = network.embed(torch.from_numpy(picture[None]), torch.zeros(1))[0]
    found = embed(network, [picture], photos=False)[0]
    np.testing.assert_allclose(found, expected / expected.norm(), atol=1e-5)
    assert np.abs(found - embed(network, [255 - picture], photos=False)[0]).max() > 1e-3


def test_bad_galleries_are_named(checkpoint, tmp_path):
    opened = open_checkpoint(checkpoint)
    with pytest.raises(UserError, match="there is no such folder"):
        open_gallery(opened, tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no picture in this folder"):
        open_gallery(opened, tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "text.png").write_text("x")
    with pytest.raises(UserError, match="none of its 1 files is a picture"):
        open_gallery(opened, tmp_path / "empty", tmp_path)


def test_a_broken_cache_is_made_anew(checkpoint, photos, tmp_path):
    opened, cache = open_checkpoint(checkpoint), tmp_path / "cache"
    first = open_gallery(opened, photos, cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:300])
    assert open_gallery(opened, photos, cache).paths == first.paths
