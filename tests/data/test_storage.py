"""Folders here and behind a URL, by pyarrow's own file system in memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dsn_ray.data.storage import Folder
from dsn_ray.errors import UserError


@pytest.fixture(params=["here", "there"])
def folder(request, tmp_path):
    if request.param == "here":
        return Folder.at(tmp_path / "new")
    return Folder.at("mock://bucket/new")


def test_what_is_written_is_there(folder):
    assert not folder.exists()
    assert folder.names() == []
    assert not folder.is_used()
    folder.write("one.txt", b"1")
    (folder / "below").write("two.txt", b"22")
    assert folder.exists()
    assert folder.is_used()
    assert folder.names() == ["one.txt"]
    assert folder.holds("one.txt")
    assert not folder.holds("below")
    assert (folder / "below").read("two.txt") == b"22"
    (folder / ".hidden").write("three.txt", b"333")
    assert folder.sizes() == {"one.txt": 1, "below/two.txt": 2}
    assert (folder / "below").sizes() == {"two.txt": 2}
    assert (folder / "nowhere").sizes() == {}
    folder.write("one.txt", b"other")
    assert folder.read("one.txt") == b"other"
    folder.remove()
    assert not folder.exists()
    folder.remove()


def test_a_folder_that_two_remove_at_once_is_gone(tmp_path):
    for number in range(30):
        folder = Folder.at(tmp_path / str(number))
        for name in range(30):
            folder.write(str(name), b"")
        with ThreadPoolExecutor(2) as pool:
            for removed in [pool.submit(folder.remove) for _ in range(2)]:
                removed.result()
        assert not folder.exists()


def test_a_folder_that_appears_meanwhile_is_listed(tmp_path):
    path, stop = tmp_path / "there", threading.Event()

    def come_and_go():
        while not stop.is_set():
            path.mkdir()
            path.rmdir()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(3000):
            assert not Folder.at(path).is_used()
    finally:
        stop.set()
        other.join()


def test_a_file_that_is_not_finished_leaves_nothing(folder):
    folder.write("kept", b"before")

    def write_half(name):
        with folder.writing(name) as stream:
            stream.write(b"half")
            raise ValueError("stop")

    for name in ("new", "kept"):
        with pytest.raises(ValueError, match="stop"):
            write_half(name)
    assert folder.names() == ["kept"]
    assert folder.read("kept") == b"before"


def test_what_a_killed_process_leaves_is_no_file(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write("part.parquet", b"whole")
    (tmp_path / ".part.parquet.ab12cd34").write_bytes(b"half")
    assert folder.names() == ["part.parquet"]


def test_places_are_named_as_people_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(Folder.at("a") / "b") == str(tmp_path / "a" / "b")
    assert str(Folder.at("mock://bucket/x/") / "b") == "mock://bucket/x/b"
    with pytest.raises(UserError, match="no://where cannot be reached"):
        Folder.at("no://where")
