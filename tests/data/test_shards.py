import json
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

from dsn_ray.data import shards as shards_module
from dsn_ray.data.catalog import DataError, open_source
from dsn_ray.data.shards import locate, open_shards, prepare_shards, read_manifest
from tests.conftest import PER_CLASS, SHAPES, UNSEEN

SEEN = len(SHAPES) - len(UNSEEN)


@pytest.fixture
def connected(ray_address):
    import ray

    ray.init(address=ray_address, log_to_driver=False)
    yield
    ray.shutdown()


def test_prepared_once_checked_and_whole(connected, drawings, tmp_path, monkeypatch):
    source = open_source("folder:toy", drawings)
    out = tmp_path / "shards"
    made = prepare_shards(source, out)
    assert made == read_manifest(out)
    assert made.counts == {
        "seen/photo": SEEN * PER_CLASS,
        "seen/sketch": SEEN * PER_CLASS,
        "unseen/photo": len(UNSEEN) * PER_CLASS,
        "unseen/sketch": len(UNSEEN) * PER_CLASS,
    }
    assert made.rejected == 1
    (rejected,) = map(json.loads, (out / "rejected.jsonl").read_text().splitlines())
    assert rejected["path"] == "photo/circle/broken.png"
    assert rejected["reason"]

    for path in out.glob("split=unseen/domain=*/*.parquet"):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            assert made.unseen_classes[row["label"]] == row["class_name"]
            assert (drawings / row["path"]).read_bytes() == row["encoded"]
    seen = made.rows("seen", "sketch").take_all()
    assert {made.seen_classes[row["label"]] for row in seen} == set(SHAPES) - set(UNSEEN)
    assert len({row["id"] for row in seen}) == len(seen)

    monkeypatch.setattr(shards_module, "_Reader", None)
    assert prepare_shards(source, out) == made
    assert not list(tmp_path.glob(".*unfinished*"))


def test_shards_of_other_pictures_are_left_alone(connected, drawings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawings, copy)
    out = tmp_path / "shards"
    prepare_shards(open_source("folder:toy", copy), out)
    before = (out / "manifest.json").read_bytes()
    Image.new("RGB", (300, 600), "red").save(copy / "photo" / "circle" / "new.png")
    changed = open_source("folder:toy", copy)
    with pytest.raises(DataError, match="already holds shards of other pictures"):
        prepare_shards(changed, out)
    assert (out / "manifest.json").read_bytes() == before

    again = prepare_shards(changed, tmp_path / "others")
    rows = again.rows("seen", "photo").take_all()
    (new,) = [row for row in rows if row["path"].endswith("new.png")]
    assert len(new["encoded"]) < 20_000


def test_nothing_is_left_where_a_domain_is_empty(connected, drawings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawings, copy)
    for path in copy.glob("photo/*/*.png"):
        if path.parent.name in UNSEEN:
            path.write_bytes(b"")
    with pytest.raises(DataError, match="has no unseen photo that decodes"):
        prepare_shards(open_source("folder:toy", copy), tmp_path / "shards")
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_an_unwritable_place_is_named(connected, drawings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        prepare_shards(open_source("folder:toy", drawings), tmp_path / "file" / "shards")


def test_a_shard_folder_is_found_by_its_manifest(connected, drawings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = open_shards(locate("folder:toy", drawings))
    assert made.directory.parent == tmp_path / "dsn_ray"
    assert locate("folder:toy", made.directory) == made
    assert open_shards(made) is made
    with pytest.raises(DataError, match="these shards hold folder:toy"):
        locate("sketchy", made.directory)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "name": 3}', "[]"])
def test_a_broken_manifest_is_said(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="not a prepared shard folder"):
        read_manifest(tmp_path)


def test_another_format_is_said(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="prepared in another format"):
        read_manifest(tmp_path)
