"""Finished shard folders: finding, opening and reading them."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from dsn_ray.data.catalog import open_source
from dsn_ray.data.preparing import prepare_shards
from dsn_ray.data.roots import DataError
from dsn_ray.data.shards import FORMAT, locate, open_shards, read_manifest, where_it_lies
from dsn_ray.data.storage import Folder
from dsn_ray.data.teaching import _CPUS
from tests.conftest import SHAPES, UNSEEN


def test_rows_are_those_of_the_split(connected, drawings, tmp_path):
    made = prepare_shards(open_source("folder:toy", drawings), Folder.at(tmp_path / "shards"))
    seen = made.rows("seen", "sketch").take_all()
    assert {made.seen_classes[row["label"]] for row in seen} == set(SHAPES) - set(UNSEEN)
    assert len({row["id"] for row in seen}) == len(seen) == made.counts["seen/sketch"]
    assert "1 picture did not decode" in str(made)


def test_rows_are_read_beside_actors_that_wait_for_them(connected, drawings, tmp_path):
    made = prepare_shards(open_source("folder:toy", drawings), Folder.at(tmp_path / "shards"))
    rows = made.rows("seen", "photo")
    actor = ray.remote(num_cpus=_CPUS)(SimpleNamespace)
    full = [actor.remote() for _ in range(2 * int(ray.cluster_resources()["CPU"]))]
    try:
        ray.get([one.__ray_ready__.remote() for one in full], timeout=60)
        read = ThreadPoolExecutor(1).submit(rows.take_all)
        assert len(read.result(timeout=45)) == made.counts["seen/photo"]
    finally:
        for one in full:
            ray.kill(one)


def test_photos_with_one_name_or_the_same_bytes_repeat(connected, drawings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawings, copy)
    shutil.copy(copy / "photo" / "zigzag" / "2.png", copy / "photo" / "zigzag" / "9.png")
    source = open_source("folder:toy", copy)
    again = next(r for r in source.records if r.path == "photo/zigzag/4.png")
    source = replace(source, records=(*source.records, again))
    made = prepare_shards(source, Folder.at(tmp_path / "shards"))
    repeated = [source.records[i].path for i in made.repeats("unseen", "photo")]
    assert repeated == ["photo/zigzag/9.png", "photo/zigzag/4.png"]
    assert made.repeats("unseen", "sketch").tolist() == []


def test_a_node_without_cpus_cannot_read_its_disk(connected, tmp_path, monkeypatch):
    (node,) = ray.nodes()
    assert where_it_lies(Folder.at(tmp_path)) == {
        "label_selector": {"ray.io/node-id": node["NodeID"]}
    }
    monkeypatch.setattr(ray, "nodes", lambda: [{**node, "Resources": {"memory": 1.0}}])
    with pytest.raises(DataError, match="which gives Ray no CPUs"):
        where_it_lies(Folder.at(tmp_path))
    monkeypatch.setattr(Folder, "is_local", False)
    assert where_it_lies(Folder.at(tmp_path)) == {}


def test_a_shard_folder_is_found_by_its_manifest(connected, drawings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = open_shards(locate("folder:toy", str(drawings)))
    assert made.folder.path.startswith(str(tmp_path / "dsn_ray"))
    assert locate("folder:toy", made.folder.place) == made
    assert open_shards(made) is made
    with pytest.raises(DataError, match="these shards hold folder:toy"):
        locate("sketchy", made.folder.place)


def test_shards_that_are_not_whole_are_not_opened(shards, tmp_path):
    folder, copy = Path(shards.folder.path), tmp_path / "copy"
    shutil.copytree(folder, copy)
    name = "split=seen/domain=sketch/part-00000.parquet"
    assert read_manifest(Folder.at(copy)) == replace(shards, folder=Folder.at(copy))
    (copy / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"copy is not whole: {name} has \d+ bytes, and should"):
        read_manifest(Folder.at(copy))
    (copy / name).unlink()
    with pytest.raises(DataError, match=rf"copy is not whole: {name} is missing, and should"):
        locate("folder:toy", str(copy))
    shutil.copy(folder / name, copy / name)
    other = copy / "split=seen/domain=sketch/part-77777.parquet"
    shutil.copy(folder / name, other)
    with pytest.raises(DataError, match="does not know: split=seen/domain=sketch/part-77777"):
        read_manifest(Folder.at(copy))


def test_raw_pictures_behind_a_url_are_refused():
    with pytest.raises(DataError, match="this is no prepared shard folder"):
        locate("sketchy", "mock://nothing/here")


@pytest.mark.parametrize("text", ["", "{}", f'{{"format": {FORMAT}, "name": 3}}', "[]", "\xff"])
def test_a_broken_manifest_is_said(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="not a prepared shard folder"):
        read_manifest(Folder.at(tmp_path))


def test_another_format_is_said(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="prepared in another format"):
        read_manifest(Folder.at(tmp_path))
