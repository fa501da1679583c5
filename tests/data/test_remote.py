"""Raw pictures behind a URL; a file system that is not this machine's plays the object store."""

import json
import os
import pickle
from types import SimpleNamespace

import pytest
from pyarrow import fs

from dsn_ray.data import roots
from dsn_ray.data.catalog import open_source
from dsn_ray.data.preparing import prepare_shards
from dsn_ray.data.remote import RemoteRoot
from dsn_ray.data.roots import DataError, RootError
from dsn_ray.data.shards import MANIFEST
from dsn_ray.data.storage import Folder
from dsn_ray.data.verify import read_all
from tests.data.trees import make_folder, make_listed, write


def behind_a_url(folder):
    store = fs.SubTreeFileSystem(str(folder.parent), fs.LocalFileSystem())
    return RemoteRoot(Folder(store, folder.name, f"store://bucket/{folder.name}"))


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "mine")


def test_it_holds_what_the_folder_holds(folder):
    write(folder / "photo" / "cat" / ".DS_Store")
    write(folder / ".trash" / "cat" / "2.png")
    here, there = (
        open_source("folder:mine", folder),
        open_source("folder:mine", behind_a_url(folder)),
    )
    assert there.records == here.records
    assert (there.seen_classes, there.unseen_classes) == (here.seen_classes, here.unseen_classes)
    record = there.records[-1]
    assert there.read(record) == here.read(record)
    records = list(there.records) * 9
    read = [read() for read in there.reading(records, [1] * len(records))]
    assert read == [here.read(one) for one in records]
    assert pickle.loads(pickle.dumps(there)) == there


def test_few_large_files_are_fetched_ahead(folder, monkeypatch):
    source, begun = open_source("folder:mine", behind_a_url(folder)), []
    read = RemoteRoot.read

    def noted(self, path):
        begun.append(path)
        return read(self, path)

    monkeypatch.setattr(RemoteRoot, "read", noted)
    reading = source.reading(list(source.records) * 9, [30 * 2**20] * 9 * len(source.records))
    for number, one in zip(range(1, 5), reading, strict=False):
        assert one()
        assert len(begun) <= number + 2


def test_lists_are_read_there_too(tmp_path):
    make_listed(tmp_path / "tree")
    here, there = (
        open_source("tuberlin", root)
        for root in (tmp_path / "tree", behind_a_url(tmp_path / "tree"))
    )
    assert there.records == here.records


def test_the_fingerprint_follows_the_files(folder):
    first = open_source("folder:mine", behind_a_url(folder)).fingerprint()
    assert open_source("folder:mine", behind_a_url(folder)).fingerprint() == first
    picture = folder / "photo" / "cat" / "1.png"
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))
    assert open_source("folder:mine", behind_a_url(folder)).fingerprint() != first


def test_what_is_not_there_is_said(folder):
    with pytest.raises(DataError, match=r"there is no folder store://bucket/nowhere\."):
        open_source("folder:mine", behind_a_url(folder.parent / "nowhere"))
    (folder / "unseen.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"store://bucket/mine/unseen\.txt is not a UTF-8"):
        open_source("folder:mine", behind_a_url(folder))


def test_one_picture_or_the_whole_place(folder, monkeypatch):
    root = behind_a_url(folder)
    for path in ("../secret", "photo/../../secret", "/etc/passwd"):
        with pytest.raises(DataError, match="outside its root"):
            root.read(path)
    with pytest.raises(FileNotFoundError):
        root.read("photo/cat/none.png")
    with pytest.raises(OSError, match="Cannot open for reading"):
        root.read("photo/cat")
    with monkeypatch.context() as patch:
        patch.setattr(roots, "LARGEST_FILE", 3)
        with pytest.raises(ValueError, match="larger than"):
            root.read("photo/cat/1.png")
    folder.rename(folder.with_name("gone"))
    with pytest.raises(
        RootError, match=r"store://bucket/mine/photo/cat/1.png cannot be read: .*\.$"
    ):
        root.read("photo/cat/1.png")


def test_a_read_that_fails_for_a_moment_is_done_again(folder, monkeypatch):
    root, fetch, failed = behind_a_url(folder), RemoteRoot._fetch, []

    def fails_once(self, path):
        if not failed:
            failed.append(path)
            raise OSError("When reading: curlCode 28")
        return fetch(self, path)

    monkeypatch.setattr(RemoteRoot, "_fetch", fails_once)
    assert root.read("photo/cat/1.png") == b"photo cat"


def test_a_place_that_does_not_answer():
    def refuse(*_):
        raise OSError("When listing objects in bucket 'bucket': curlCode 7\nmore")

    broken = RemoteRoot(
        Folder(SimpleNamespace(get_file_info=refuse), "mine", "store://bucket/mine")
    )
    with pytest.raises(DataError, match=r"^store://bucket/mine cannot be listed: .*curlCode 7\.$"):
        open_source("folder:mine", broken)


def test_shards_are_made_of_it(connected, drawings, tmp_path):
    here, there = (open_source("folder:toy", r) for r in (drawings, behind_a_url(drawings)))
    made = [
        prepare_shards(source, Folder.at(tmp_path / name))
        for name, source in (("here", here), ("there", there))
    ]
    files = [
        json.loads((tmp_path / name / MANIFEST).read_text())["files"] for name in ("here", "there")
    ]
    assert files[0] == files[1]
    assert made[1].rejected == 1
    assert read_all(there) == read_all(here)


def test_when_the_place_fails_no_picture_is_rejected(connected, drawings, tmp_path):
    copy = tmp_path / "copy"
    for path in drawings.rglob("*"):
        if path.is_file():
            write(copy / path.relative_to(drawings), path.read_bytes())
    source, out = open_source("folder:toy", behind_a_url(copy)), Folder.at(tmp_path / "shards")
    assert source.fingerprint()  # it was listed before
    copy.rename(tmp_path / "gone")
    for job in (read_all, lambda one: prepare_shards(one, out)):
        with pytest.raises(DataError, match=r"^store://bucket/copy/.*\.png cannot be read: "):
            job(source)
    assert not out.holds(MANIFEST)
    (tmp_path / "gone").rename(copy)
    assert prepare_shards(source, out).rejected == 1
