"""Published data sets: their lists, copies without lists, and all that can be wrong in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dsn_ray.data import catalog, official
from dsn_ray.data.catalog import Record, open_source, parse_data_argument, published_names
from dsn_ray.data.roots import DataError
from dsn_ray.errors import UserError
from tests.data.trees import counts, make_listed, write

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real pictures of ../shared/data are not on this machine"
)
REAL = {
    "sketchy": (SHARED / "Sketchy", (100, 25), (2303, 197, 625, 2500, 625)),
    "tuberlin": (SHARED / "TUBerlin-standin", (87, 15), (1563, 280, 319, 3100, 515)),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_listed(tmp_path / "tu")


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
    lost = shutil.ignore_patterns("ImageResized_ready_filelist_train.txt")
    shutil.copytree(real, root, ignore=lost, copy_function=shutil.copyfile)
    listed, derived = open_source("tuberlin", real), open_source("tuberlin", root)
    assert set(derived.records) == set(listed.records)
    assert len(derived.records) == len(listed.records)
    assert "filelist_train.txt is not there, so every photo of the seen classes" in derived.note
    assert not listed.note


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
    known = official.PUBLISHED["tuberlin"]
    assert not open_source("tuberlin", tree).official
    sizes = {("sketch", "seen"): 4, ("sketch", "heldout"): 2, ("sketch", "unseen"): 3}
    sizes |= {("photo", "seen"): 2, ("photo", "unseen"): 1}
    listings = [
        listing.model_copy(update={"lines": sizes[listing.domain, listing.split]})
        for listing in known.listings
    ]
    changed = {"listings": tuple(listings), "seen": ("a", "b"), "unseen": ("c",)}
    small = known.model_copy(update=changed)
    monkeypatch.setitem(official.PUBLISHED, "tuberlin", small)
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
        r"train.txt names 12 pictures not in .*pig/x0.png, .*pig/x9.png and 2 more\. .*--partial",
    ),
    "empty list": (
        lambda root: write(root / "zeroshot" / TRAIN, "\n"),
        "train.txt is missing or empty",
    ),
    "binary list": (
        lambda root: (root / "zeroshot" / TRAIN).write_bytes(b"\xff\xfe\x00"),
        "train.txt is not a UTF-8 text file",
    ),
    "long name": (append(TRAIN, f"png_ready/{'p' * 300}/pig/0.png 1\n"), "File name too long"),
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


def test_what_is_missing_may_be_left_out(tree: Path) -> None:
    (tree / "png_ready" / "pig" / "0 a.png").unlink()
    missing: list[Record] = []
    source = open_source("tuberlin", tree, missing=missing)
    assert missing == [Record("png_ready/pig/0 a.png", "pig", "sketch", "seen")]
    assert counts(source) == (3, 2, 3, 2, 1)


def test_a_list_that_is_a_link_out_of_the_root_is_not_read(tree: Path, tmp_path: Path) -> None:
    file = tree / "zeroshot" / TRAIN
    file.rename(tmp_path / "list.txt")
    file.symlink_to(tmp_path / "list.txt")
    with pytest.raises(DataError, match=f"{TRAIN} is a symbolic link out of"):
        open_source("tuberlin", tree)


def test_published_splits_have_their_sizes() -> None:
    sizes = {
        name: (len(known.seen), len(known.unseen)) for name, known in official.PUBLISHED.items()
    }
    assert sizes == {
        "sketchy": (100, 25),
        "sketchy:zeroshot2": (104, 21),
        "tuberlin": (220, 30),
        "quickdraw": (80, 30),
    }
    for known in official.PUBLISHED.values():
        assert len(set(known.class_names)) == len(known.class_names)


README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_example_adds_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = README.read_text().partition("```yaml\n")[2].partition("```")[0]
    write(tmp_path / "sets" / "mine.yaml", example)
    monkeypatch.setattr(catalog, "SETS", tmp_path / "sets")
    for name in published_names():
        added = official.read_sets(tmp_path / "sets")[name]
        monkeypatch.setitem(official.PUBLISHED, name, added)
        for of in added.class_names:
            write(tmp_path / "DIR" / added.layouts[0].sketches / of / "1.png")
            write(tmp_path / "DIR" / added.layouts[0].photos[0] / of / "1.jpg")
        assert parse_data_argument(f"{name}=DIR")[0] == name
        source = open_source(name, tmp_path / "DIR")
        assert (source.seen_classes, source.unseen_classes) == (added.seen, added.unseen)
        count = len(added.seen), 0, len(added.unseen), len(added.seen), len(added.unseen)
        assert counts(source) == count


def test_names_are_those_of_the_descriptions() -> None:
    assert published_names() == tuple(official.PUBLISHED)


def test_a_description_that_is_no_yaml_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"a": "mine: [", "b": "- 1", "c": "good: {}"}.items():
        write(tmp_path / f"{name}.yaml", text)
    monkeypatch.setattr(catalog, "SETS", tmp_path)
    assert published_names() == ("good",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "mine.yaml should give the fields of a data set below its name"),
        ("mine:\n  seeen: [a]", "mine.yaml, line 2: seeen is not a known key; allowed are layouts"),
        ("mine:\n  layouts: []", "mine.yaml, line 2: layouts: "),
    ],
)
def test_a_wrong_description_is_said(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "mine.yaml", text)
    with pytest.raises(UserError, match=message):
        official.read_sets(tmp_path)


@pytest.mark.parametrize(
    ("name", "sketches", "photos"),
    [
        ("sketchy", "256x256/sketch/tx_000000000000_ready", "256x256/photo/tx_000000000000_ready"),
        ("sketchy:zeroshot2", "sketch/tx_000000000000", "photo/tx_000000000000"),
        ("tuberlin", "png_ready", "ImageResized_ready"),
        ("quickdraw", "QuickDraw_sketches_final", "QuickDraw_images_final"),
    ],
)
def test_a_copy_without_lists_follows_the_class_split(
    tmp_path: Path, name: str, sketches: str, photos: str
) -> None:
    known = official.PUBLISHED[name]
    classes = {"seen": known.seen[:2], "unseen": known.unseen[:2]}
    for of in (*classes["seen"], *classes["unseen"], "no class of it"):
        write(tmp_path / sketches / of / "1.png")
        write(tmp_path / photos / of / "1.jpg")
    write(tmp_path / sketches / classes["seen"][0] / "2.png")
    (tmp_path / photos / classes["seen"][1] / "1.jpg").unlink()  # left without photos
    source = open_source(name, tmp_path)
    assert source.seen_classes == (classes["seen"][0],)
    assert source.unseen_classes == classes["unseen"]
    assert counts(source) == (2, 0, 2, 1, 2)
    assert not source.official


def test_further_photos_need_not_be_there_for_every_class(tmp_path: Path) -> None:
    for of in ("pig", "cup"):
        write(tmp_path / "256x256/sketch/tx_000000000000_ready" / of / "1.png")
        write(tmp_path / "256x256/photo/tx_000000000000_ready" / of / "1.jpg")
    write(tmp_path / "EXTEND_image_sketchy_ready" / "pig" / "2.jpg")
    source = open_source("sketchy", tmp_path)
    assert counts(source) == (1, 0, 1, 2, 1)


def test_a_copy_with_pictures_of_no_unseen_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "png_ready" / "pig" / "1.png")
    write(tmp_path / "ImageResized_ready" / "pig" / "1.jpg")
    with pytest.raises(DataError, match="none of the unseen classes of tuberlin"):
        open_source("tuberlin", tmp_path)
