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
from PIL import Image, ImageDraw

from dsn_ray import gallery as module
from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.data.catalog import open_source
from dsn_ray.data.pictures import StoredPictures
from dsn_ray.data.preparing import _PartWriter, parts_of
from dsn_ray.data.roots import LocalRoot
from dsn_ray.data.storage import Folder
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


def write_large_drawings(root):
    """Pictures as large as TU-Berlin's, and as the page's canvas, and a photo that is no square."""
    for split in ("circle", "square"):
        for domain, sizes in {"sketch": [(512, 512), (1111, 1111)], "photo": [(700, 500)]}.items():
            for number, size in enumerate(sizes):
                picture = Image.new("RGB", size, "white")
                pen = ImageDraw.Draw(picture)
                for line in np.random.default_rng(number).integers(0, 500, (30, 4)):
                    pen.line(line.tolist(), "black" if domain == "sketch" else "purple", 5)
                file = root / domain / split / f"{number}.{'png' if domain == 'sketch' else 'jpg'}"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture.save(file)
    (root / "unseen.txt").write_text("square\n")


def prepared(root, out, px):
    """Pairs of a file and what training sees of it, out of shards."""
    source = open_source("folder:large", LocalRoot(root))
    for part in parts_of(source):
        folder = Folder.at(out)
        _PartWriter(source, folder, False)(part.row(source))
        place = folder / f"split={part.split}" / f"domain={part.domain}"
        table = StoredPictures(place, part.domain, px, len(part.ids), 1, None).table()
        for row, number in enumerate(table.ids):
            record = source.records[number]
            yield root / record.path, record.domain, table.pixels(row)


@pytest.mark.parametrize("px", [32, 112, 224])
def test_pictures_are_seen_as_training_sees_those_of_shards(tmp_path, px):
    write_large_drawings(tmp_path / "raw")
    pairs = list(prepared(tmp_path / "raw", tmp_path / "shards", px))
    assert len(pairs) == 6
    for file, domain, pixels in pairs:
        np.testing.assert_array_equal(as_trained(file.read_bytes(), domain, px), pixels)


def test_features_are_those_of_what_training_sees(open_gallery, network, tmp_path):
    write_large_drawings(tmp_path / "raw")
    gallery = open_gallery(tmp_path / "raw" / "photo", tmp_path / "cache")
    seen = {file: pixels for file, _, pixels in prepared(tmp_path / "raw", tmp_path / "out", 32)}
    expected = embed(network, [seen[gallery.root / path] for path in gallery.paths], photos=True)
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
