"""Folders of one's own, and all that can be wrong in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dsn_ray.data.catalog import RandomUnseen, Record, open_source
from dsn_ray.data.roots import DataError
from tests.data.trees import counts, make_folder, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "mine")


def test_folder_layout(folder: Path) -> None:
    write(folder / "photo" / "cat" / ".DS_Store")
    source = open_source("folder:mine", folder)
    assert source.seen_classes == ("cat", "dog")
    assert source.unseen_classes == ("red fox",)
    assert counts(source) == (2, 0, 1, 2, 1)
    assert source.semantics == "none"
    assert source.read(Record("photo/red fox/1.png", "red fox", "photo", "unseen")) == (
        b"photo red fox"
    )


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no unseen.txt": (lambda root: (root / "unseen.txt").unlink(), "unseen.txt is missing"),
    "unknown class": (lambda root: write(root / "unseen.txt", "cow"), "classes that .*: cow"),
    "nothing seen": (lambda root: write(root / "unseen.txt", "cat\ndog\nred fox"), "every class"),
    "no photos": (
        lambda root: (root / "photo" / "cat" / "1.png").unlink(),
        "photo/cat should hold pictures",
    ),
    "no photo folder": (
        lambda root: (root / "photo").rename(root / "photos"),
        "is no folder:mine folder: it lacks photo",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused(folder: Path, case: str) -> None:
    spoil, message = BAD_FOLDERS[case]
    spoil(folder)
    with pytest.raises(DataError, match=message):
        open_source("folder:mine", folder)


def test_classes_may_lack_pictures_where_that_is_to_be_found_out(folder: Path) -> None:
    (folder / "photo" / "cat" / "1.png").unlink()
    source = open_source("folder:mine", folder, missing=[])
    assert source.seen_classes == ("cat", "dog")
    assert counts(source) == (2, 0, 1, 1, 1)


@pytest.mark.parametrize("linked", ["photo", "photo/cat", "unseen.txt"])
def test_links_out_of_the_root_are_refused(folder: Path, tmp_path: Path, linked: str) -> None:
    (folder / linked).rename(tmp_path / "elsewhere")
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{linked} is a symbolic link out of {folder}"):
        open_source("folder:mine", folder)


def test_links_within_the_root_are_followed(folder: Path) -> None:
    (folder / "photo" / "cat").rename(folder / "cats")
    (folder / "photo" / "cat").symlink_to(folder / "cats")
    assert counts(open_source("folder:mine", folder)) == (2, 0, 1, 2, 1)


def test_a_link_in_a_circle_is_a_picture_that_cannot_be_read(folder: Path) -> None:
    circle = folder / "photo" / "cat" / "circle.png"
    circle.symlink_to(circle)
    source = open_source("folder:mine", folder)
    assert counts(source) == (2, 0, 1, 3, 1)
    assert source.fingerprint()
    with pytest.raises((OSError, DataError)):
        source.read(Record("photo/cat/circle.png", "cat", "photo", "seen"))


def test_a_folder_whose_name_is_no_text_is_refused(folder: Path) -> None:
    write(folder / os.fsdecode(b"photo/\xe4/1.png"))
    with pytest.raises(DataError, match=r"has a folder whose name is not UTF-8: .*; rename it\."):
        open_source("folder:mine", folder)


def test_a_file_whose_name_is_no_text_is_a_picture_that_cannot_be_read(folder: Path) -> None:
    write(folder / os.fsdecode(b"photo/cat/\xe4.png"))
    source = open_source("folder:mine", folder)
    assert source.fingerprint()
    with pytest.raises(FileNotFoundError):
        source.read(Record("photo/cat/\\xe4.png", "cat", "photo", "seen"))
    assert "photo/cat/\\xe4.png" in {record.path for record in source.records}


def test_unseen_classes_may_be_left_to_chance(folder: Path) -> None:
    (folder / "unseen.txt").unlink()
    chosen = {
        seed: open_source("folder:mine", folder, RandomUnseen(0.4, seed)).unseen_classes
        for seed in range(8)
    }
    assert all(len(classes) == 1 for classes in chosen.values())
    assert len(set(chosen.values())) > 1
    assert chosen[3] == open_source("folder:mine", folder, RandomUnseen(0.4, 3)).unseen_classes


def test_what_the_file_names_is_not_left_to_chance(folder: Path) -> None:
    with pytest.raises(DataError, match="so --unseen has nothing to choose"):
        open_source("folder:mine", folder, RandomUnseen(0.4))
    (folder / "unseen.txt").unlink()
    with pytest.raises(DataError, match="--unseen takes every class"):
        open_source("folder:mine", folder, RandomUnseen(0.99))
    with pytest.raises(DataError, match=r"or let `prepare --unseen 0\.2` choose"):
        open_source("folder:mine", folder)


def test_a_class_is_spelled_in_one_unicode_form(folder: Path) -> None:
    one, other = "B\u00e4r", "Ba\u0308r"
    for domain, name in (("sketch", one), ("photo", one)):
        write(folder / domain / name / "1.png")
    write(folder / "unseen.txt", f"red fox\n{other}\n")
    assert open_source("folder:mine", folder).unseen_classes == ("red fox", one)
    (folder / "photo" / one).rename(folder / "photo" / other)
    with pytest.raises(DataError, match=r"has two spellings of the class 'B.*Unicode form"):
        open_source("folder:mine", folder)
