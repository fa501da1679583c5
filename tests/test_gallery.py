"""Galleries: photos seen as training sees them, and only new ones embedded."""

import errno
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dsn_ray import gallery as module
from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.data.views import decode
from dsn_ray.errors import DataWarning, UserError
from dsn_ray.gallery import as_trained, embed
from tests.conftest import draw


@pytest.fixture(scope="module")
def network(checkpoint):
    return open_checkpoint(checkpoint).network()


@pytest.fixture
def open_gallery(checkpoint, network):
    """`open_gallery` with the tests' checkpoint."""

    def opened(root, cache, progress=None):
        return module.open_gallery(open_checkpoint(checkpoint), network, root, cache, progress)

    return opened


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


@pytest.mark.parametrize("px", [32, 112, 224])
def test_pictures_are_seen_as_training_sees_those_of_shards(prepared, px):
    assert len(prepared) == 6
    for (file, domain), stored in prepared.items():
        seen = as_trained(file.read_bytes(), domain, px)
        np.testing.assert_array_equal(seen, decode(stored, px))


def test_features_are_those_of_what_training_sees(open_gallery, network, prepared, tmp_path):
    root = next(file.parents[1] for file, domain in prepared if domain == "photo")
    gallery = open_gallery(root, tmp_path / "cache")
    seen = [decode(prepared[root / path, "photo"], 32) for path in gallery.paths]
    expected = embed(network, seen, photos=True)
    np.testing.assert_allclose(gallery.index.features, expected, atol=1e-5)


def test_only_new_photos_are_embedded(open_gallery, photos, tmp_path):
    cache = tmp_path / "cache"
    first = open_gallery(photos, cache)
    assert first.paths == tuple(f"{s}/{n}.png" for s in ("circle", "square") for n in range(3))
    assert first.embedded == 6
    assert [path for path, _ in first.rejected] == ["circle/broken.png"]
    assert first.class_of(0) == "circle"
    np.testing.assert_allclose(np.linalg.norm(first.index.features, axis=1), 1, atol=1e-5)

    again = open_gallery(photos, cache)
    assert again.embedded == 0
    assert again.rejected == first.rejected
    np.testing.assert_array_equal(again.index.features, first.index.features)

    (photos / "circle" / "0.png").rename(photos / "square" / "moved.png")
    (photos / "square" / "2.png").unlink()
    Image.new("RGB", (40, 40), "red").save(photos / "square" / "new.png")
    shutil.copy(photos / "square" / "new.png", photos / "circle" / "copy.png")
    changed = open_gallery(photos, cache)
    assert changed.embedded == 1
    assert "circle/0.png" not in changed.paths
    moved = changed.paths.index("square/moved.png")
    np.testing.assert_array_equal(changed.index.features[moved], first.index.features[0])

    photos.rename(tmp_path / "elsewhere")
    assert open_gallery(tmp_path / "elsewhere", cache).embedded == 0


def test_binary_codes_are_kept_until_a_photo_changes(open_gallery, photos, tmp_path):
    cache = tmp_path / "cache"
    with patch.object(module, "fit_codes", wraps=module.fit_codes) as fitted:
        first = open_gallery(photos, cache)
        assert fitted.call_count == 0
        codes = first.index.binary
        again = open_gallery(photos, cache).index.binary
        assert fitted.call_count == 1
        for name in ("mean", "projection", "packed"):
            np.testing.assert_array_equal(getattr(again, name), getattr(codes, name))
        (photos / "square" / "2.png").unlink()
        assert len(open_gallery(photos, cache).index.binary.packed) == 5
        assert fitted.call_count == 2
        (kept,) = cache.glob("codes-*.parquet")
        assert len(pq.read_table(kept)) == 5
        kept.write_bytes(kept.read_bytes()[:100])
        assert len(open_gallery(photos, cache).index.binary.packed) == 5


def test_what_is_done_before_an_interruption_is_kept(open_gallery, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 3)

    def interrupt(done, total):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_gallery(photos, tmp_path / "cache", interrupt)
    gallery = open_gallery(photos, tmp_path / "cache")
    assert (len(gallery.paths), gallery.embedded) == (6, 1)


def test_features_are_kept_while_others_are_still_embedded(
    open_gallery, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_BATCH", 3)
    monkeypatch.setattr(module, "_KEPT_EVERY", 0)
    sizes = []

    def look(done, total):
        sizes.append([len(pq.read_table(file)) for file in (tmp_path / "cache").glob("*")])

    open_gallery(photos, tmp_path / "cache", look)
    assert sizes == [[], [3], [6]]


def test_a_file_that_cannot_be_read_is_tried_again(open_gallery, photos, tmp_path):
    usual = Path.read_bytes

    def faulty(self):
        if self.match("circle/0.png"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return usual(self)

    with patch.object(Path, "read_bytes", faulty), patch.object(module, "LARGEST_FILE", 2**10):
        (photos / "huge.png").write_bytes(bytes(2**11))
        first = open_gallery(photos, tmp_path / "cache")
    reasons = dict(first.rejected)
    assert "Input/output error" in reasons["circle/0.png"]
    assert "larger than" in reasons["huge.png"]
    again = open_gallery(photos, tmp_path / "cache")
    assert "circle/0.png" in again.paths
    assert again.embedded == 1


def test_names_that_are_no_text_are_left_out(open_gallery, photos, tmp_path):
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "circle/0.png").read_bytes())
    gallery = open_gallery(photos, tmp_path / "cache")
    assert len(gallery.paths) == 6
    assert (r"caf\xe9.png", "its name is no text") in gallery.rejected


def test_without_a_place_for_features_the_search_goes_on(open_gallery, photos, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(DataWarning, match=r"cannot be written .*: what was computed is not kept"):
        gallery = open_gallery(photos, tmp_path / "cache")
    assert len(gallery.paths) == 6
    with pytest.warns(DataWarning):
        assert len(gallery.index.binary.packed) == 6


def test_what_lies_outside_the_gallery_is_not_read(open_gallery, photos, tmp_path):
    draw(tmp_path / "secret", "photo", "circle", 0)
    (photos / "link.png").symlink_to(tmp_path / "secret" / "photo" / "circle" / "0.png")
    (photos / "linked").symlink_to(tmp_path / "secret")
    gallery = open_gallery(photos, tmp_path / "cache")
    assert len(gallery.paths) == 6
    assert ("link.png", "it lies outside the gallery") in gallery.rejected


def test_features_are_those_of_the_network(network):
    picture = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    with torch.inference_mode():
        expected = network.embed(torch.from_numpy(picture[None]), torch.zeros(1))[0]
    found = embed(network, [picture], photos=False)[0]
    np.testing.assert_allclose(found, expected / expected.norm(), atol=1e-5)
    assert np.abs(found - embed(network, [255 - picture], photos=False)[0]).max() > 1e-3


def test_bad_galleries_are_named(open_gallery, tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        open_gallery(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no picture in this folder"):
        open_gallery(tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "text.png").write_text("x")
    with pytest.raises(UserError, match="none of its 1 files is a picture"):
        open_gallery(tmp_path / "empty", tmp_path)


def test_a_broken_cache_is_made_anew(open_gallery, photos, tmp_path):
    cache = tmp_path / "cache"
    first = open_gallery(photos, cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:300])
    assert open_gallery(photos, cache).paths == first.paths
