"""The semantic mask: the shipped rows, and the rule that builds them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from dsn_ray import mask
from dsn_ray.data.catalog import EMBEDDED, open_source
from dsn_ray.data.official import PUBLISHED
from dsn_ray.data.roots import DataError
from dsn_ray.data.semantics import (
    FILES,
    build_mask,
    imagenet_wnids,
    look_up,
    mask_rows,
    openmoji_synsets,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
WORDNET = Path("/usr/share/wordnet")
VALUES = np.array([0, 1 / 4, 1 / 3, 1], np.float32)

# entity <- animal <- {dog <- {puppy, hound <- beagle}, cat <- kitten}, and Rex, an instance of dog
NOUNS = """\
  1 This line stands for the licence.
00000001 03 n 01 entity 0 000 | that which is
00000002 03 n 01 animal 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a living thing | or so
00000003 05 n 02 dog 0 domestic_dog 0 001 @ 00000002 n 0000 | barks
00000004 05 n 01 puppy 0 002 @ 00000003 n 0000 + 00000009 v 0101 | young
00000005 05 n 01 hound 0 001 @ 00000003 n 0000 | hunts
00000006 05 n 01 beagle 0 001 @ 00000005 n 0000 | hunts hares
00000007 05 n 0a cat 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 001 @ 00000002 n 0000 | purrs
00000008 05 n 01 kitten 0 001 @ 00000007 n 0000 | young
00000009 18 n 01 Rex 0 001 @i 00000003 n 0000 | a good one
00000010 03 n 01 nothing 0 000 | alone
"""


def test_imagenet_has_a_thousand_different_classes() -> None:
    assert len(set(imagenet_wnids())) == len(imagenet_wnids()) == 1000


@pytest.mark.parametrize(("key", "count"), [("sketchy", 125), ("tuberlin", 220), ("openmoji", 47)])
def test_shipped_masks(key: str, count: int) -> None:
    with np.load(FILES / f"semantic_mask_{key}.npz") as stored:
        names = stored["classes"].tolist()
    rows = mask_rows(key, names)
    assert rows.shape == (count, 1000)
    assert rows.dtype == np.float32
    assert set(np.unique(rows)) == set(VALUES)
    assert np.array_equal(mask_rows(key, names[::-1]), rows[::-1])


@pytest.mark.parametrize("name", ["sketchy", "sketchy:zeroshot2", "tuberlin"])
def test_every_seen_class_of_a_published_set_has_a_row(name: str) -> None:
    published = PUBLISHED[name]
    seen = list(published.seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mask_rows(published.semantics, seen).any(axis=1).mean() > 0.5


def test_rows_go_by_name() -> None:
    banana, pig = mask_rows("sketchy", ["banana", "pig"])
    assert banana[imagenet_wnids().index("n07753592")] == 1
    assert pig[imagenet_wnids().index("n02395406")] == 1
    assert mask_rows("tuberlin", ["alarm clock"]).any()


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the published masks of ../shared/facts are not on this machine"
)
@pytest.mark.parametrize(
    ("key", "file", "names"),
    [
        ("sketchy", "semantic_mask_sketchy_zeroshot1.npz", "sketchy_zeroshot1_seen.txt"),
        ("tuberlin", "semantic_mask_tuberlin.npz", "tuberlin_seen.txt"),
    ],
)
def test_rows_equal_the_published_masks(key: str, file: str, names: str) -> None:
    with np.load(SHARED / "facts" / file) as published:
        expected = published["mask"]
    classes = (SHARED / "facts" / "splits" / names).read_text().splitlines()
    assert np.array_equal(mask_rows(key, classes), expected)


def test_every_class_of_the_emoji_has_a_row() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in EMBEDDED:
            source = open_source(name)
            rows = mask_rows(source.semantics, source.seen_classes)
            assert rows.any(axis=1).mean() > 0.7
            assert not set(source.unseen_classes) - set(openmoji_synsets())


def test_unknown_classes_get_zeros_and_one_warning() -> None:
    with pytest.warns(UserWarning, match="no row for unicorn, yeti") as caught:
        rows = mask_rows("sketchy", ["unicorn", "pig", "yeti"])
    assert len(caught) == 1
    assert rows.any(axis=1).tolist() == [False, True, False]


def test_data_without_a_mask_gets_zeros_and_one_warning() -> None:
    with pytest.warns(UserWarning, match="no semantic mask") as caught:
        rows = mask_rows("none", ["pig", "yeti"])
    assert len(caught) == 1
    assert rows.shape == (2, 1000)
    assert not rows.any()


def test_the_rule_by_hand(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    columns = [f"n{number:08}" for number in (3, 4, 6, 7, 8, 9, 10)]
    synsets = {
        "dog": ["n00000003"],  # puppy, beagle and Rex are kinds of it; cat 2, kitten 3 steps away
        "beagle": ["n00000006"],  # puppy and Rex 3, cat 4, kitten 5 steps away
        "young": ["n00000004", "n00000008"],  # the larger value of puppy and kitten
        "nothing": [],
    }
    expected = [
        [1, 1, 1, 1 / 3, 1 / 4, 1, 0],
        [1, 1 / 4, 1, 0, 0, 1 / 4, 0],
        [1, 1, 1 / 4, 1, 1, 1 / 3, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert np.array_equal(build_mask(synsets, tmp_path, columns), np.array(expected, np.float32))


def test_what_wordnet_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no data\.noun"):
        build_mask({}, tmp_path, [])
    (tmp_path / "data.noun").write_text(NOUNS)
    with pytest.raises(DataError, match="no synset 'n99999999'"):
        build_mask({"cat": ["n99999999"]}, tmp_path, ["n00000007"])


def test_the_last_synset_may_overwrite(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    columns = [f"n{number:08}" for number in (3, 4, 6, 7, 8, 10)]
    rows = build_mask({"young": ["n00000004", "n00000008"]}, tmp_path, columns, "overwrite")
    # dog: puppy gives 1, kitten then 1/4; puppy itself: kitten gives 0, which overwrites nothing
    assert rows.tolist() == [[1 / 4, 1, 1 / 4, 1, 1, 0]]


INDEX = """\
  1 This line stands for the licence.
cat n 2 1 @ 2 1 00000007 00000008
domestic_dog n 1 1 @ 1 1 00000003
puppydog n 1 1 @ 1 0 00000004
"""


def test_classes_are_looked_up_by_name(tmp_path: Path) -> None:
    (tmp_path / "index.noun").write_text(INDEX)
    names = ["Cat", "cat (animal)", "domestic dog", "Domestic-Dog", "puppy-dog", "yeti"]
    with pytest.warns(UserWarning, match="WordNet does not know yeti, whose rows"):
        found = look_up(names, tmp_path)
    assert found == {
        "Cat": ("n00000007",),
        "cat (animal)": ("n00000007",),
        "domestic dog": ("n00000003",),
        "Domestic-Dog": ("n00000003",),
        "puppy-dog": ("n00000004",),
        "yeti": (),
    }


@pytest.mark.parametrize("value", [np.nan, -1, 2])
def test_a_mask_of_other_values_is_refused(tmp_path: Path, value: float) -> None:
    file = tmp_path / "mask.npz"
    np.savez(file, mask=np.full((1, 1000), value, np.float32), classes=np.array(["pig"]))
    with pytest.raises(DataError, match="is not a semantic mask"):
        mask_rows("none", ["pig"], file)


def test_a_file_that_is_no_mask_is_named(tmp_path: Path) -> None:
    (tmp_path / "mask.npz").write_text("no")
    for name, fault in (("mask.npz", "is not a semantic mask"), ("absent.npz", "no such file")):
        with pytest.raises(DataError, match=f"{name}.* {fault}"):
            mask_rows("sketchy", ["pig"], tmp_path / name)


def test_a_mask_that_cannot_be_written_is_said(tmp_path: Path, capsys) -> None:
    (tmp_path / "classes.txt").write_text("mouse\tn03793489\n")
    (tmp_path / "folder.npz").mkdir()
    for out, said in (("folder.npz", "this is a folder"), ("classes.txt/x.npz", "cannot be")):
        arguments = ["--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / out)]
        assert mask.main(arguments) == 2
        assert said in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.skipif(not WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
def test_the_command_builds_a_mask_that_training_reads(tmp_path: Path, capsys) -> None:
    (tmp_path / "classes.txt").write_text("beagle\nyeti of the north\nmouse\tn03793489\n")
    arguments = ["--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "mask.npz")]
    assert mask.main(arguments) == 0
    assert "note: WordNet does not know yeti of the north" in capsys.readouterr().err
    rows = mask_rows("none", ["mouse", "beagle", "yeti of the north"], tmp_path / "mask.npz")
    assert rows[0, imagenet_wnids().index("n03793489")] == 1  # the computer's, not the animal
    assert rows[1, imagenet_wnids().index("n02088364")] == 1
    assert not rows[2].any()


@pytest.mark.system
@pytest.mark.skipif(not WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/facts is not on this machine")
def test_overwriting_rebuilds_the_published_rows_of_sketchy_but_one() -> None:
    lines = (SHARED / "facts" / "wnid" / "sketchy_seen.tsv").read_text().splitlines()[1:]
    synsets = {line.split("\t")[0]: line.split("\t")[2].split(",") for line in lines}
    built = build_mask(synsets, WORDNET, imagenet_wnids(), "overwrite")
    differs = (built != mask_rows("sketchy", list(synsets))).sum(axis=1)
    assert {name: int(n) for name, n in zip(synsets, differs, strict=True) if n} == {
        "wading_bird": 1
    }


@pytest.mark.system
@pytest.mark.skipif(not WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/facts is not on this machine")
def test_sketchys_other_rows_follow_the_same_rule() -> None:
    lines = (SHARED / "facts" / "wnid" / "sketchy_unseen.tsv").read_text().splitlines()[1:]
    synsets = {line.split("\t")[0]: line.split("\t")[2].split(",") for line in lines}
    built = build_mask(synsets, WORDNET, imagenet_wnids(), "overwrite")
    assert np.array_equal(built, mask_rows("sketchy", list(synsets)))


@pytest.mark.system
@pytest.mark.skipif(not WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
def test_the_emoji_mask_is_what_wordnet_gives() -> None:
    synsets = openmoji_synsets()
    built = build_mask(synsets, WORDNET, imagenet_wnids())
    assert np.array_equal(built, mask_rows("openmoji", list(synsets)))


@pytest.mark.system
@pytest.mark.skipif(not WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/facts is not on this machine")
def test_the_rule_gives_the_published_rows_of_classes_with_one_synset() -> None:
    lines = (SHARED / "facts" / "wnid" / "sketchy_seen.tsv").read_text().splitlines()[1:]
    synsets = {line.split("\t")[0]: line.split("\t")[2].split(",") for line in lines}
    single = {name: wnids for name, wnids in synsets.items() if len(wnids) == 1}
    assert len(single) == 52
    built = build_mask(single, WORDNET, imagenet_wnids())
    assert np.array_equal(built, mask_rows("sketchy", list(single)))
