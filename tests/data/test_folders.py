"""Folders of one's own, and all that can be wrong in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dsn_ray.data.catalog import DataError, RandomUnseen, Record, open_source
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
    for seed in range(8):
        source = open_source("folder:mine", folder, RandomUnseen(0.4, seed))
        assert source.unseen_classes == ("red fox",)
