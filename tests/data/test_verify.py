"""What is missing in a data set, and what is wrong with it."""

import shutil
from dataclasses import replace

from dsn_ray.data.catalog import Record, Source, open_source
from dsn_ray.data.verify import read_all, report
from tests.conftest import PER_CLASS
from tests.data.trees import make_listed


def source_of(*records, name="folder:x", semantics="none"):
    return Source(name, None, tuple(records), ("a",), ("b", "c"), False, semantics)


def full():
    return [
        Record(f"{domain}/{name}/1.png", name, domain, split)
        for domain in ("sketch", "photo")
        for name, split in (("a", "seen"), ("b", "unseen"), ("c", "unseen"))
    ]


def found_of(records):
    return [(str(i), "") for i, _ in enumerate(records)]


def test_a_sound_set_has_no_errors():
    records = full()
    told = report(source_of(*records), found_of(records))
    assert told.errors == []
    assert told.complete is None
    assert told.known_to_teacher is None
    assert {(c.split, c.domain): c.lines for c in told.counts} == {
        ("seen", "sketch"): 1,
        ("seen", "photo"): 1,
        ("unseen", "sketch"): 2,
        ("unseen", "photo"): 2,
    }


def test_a_photo_in_both_seen_and_unseen_is_an_error():
    records = full()
    found = found_of(records)
    found[4] = found[3]
    told = report(source_of(*records), found)
    (pair,) = told.duplicates
    assert pair.paths == ("photo/a/1.png", "photo/b/1.png")
    assert pair.splits == ("seen", "unseen")
    (error,) = told.errors
    assert "1 pictures lie in both seen and unseen classes, as photo/a/1.png" in error


def test_files_that_do_not_decode_are_not_the_same_photo():
    empty = ("e3b0c442", "it is none of PNG, JPEG")
    records = [
        *full(),
        Record("photo/a/2.png", "a", "photo", "seen"),
        Record("photo/b/2.png", "b", "photo", "unseen"),
    ]
    told = report(source_of(*records), [*found_of(full()), empty, empty])
    assert told.errors == []
    assert told.duplicates == []


def test_a_photo_that_lists_name_as_seen_and_as_unseen_is_an_error():
    records = [*full(), Record("photo/a/1.png", "a", "photo", "unseen")]
    found = [*found_of(full()), found_of(full())[3]]
    told = report(source_of(*records), found)
    assert told.duplicates[0].splits == ("seen", "unseen")
    assert told.errors == ["1 pictures lie in both seen and unseen classes, as photo/a/1.png does."]


def test_duplicates_within_a_split_are_told_but_are_no_error():
    records = full()
    found = found_of(records)
    found[5] = found[4]
    told = report(source_of(*records), found)
    assert told.duplicates[0].splits == ("unseen",)
    assert told.errors == []
    twice = [*records, records[0]]
    assert report(source_of(*twice), [*found_of(records), ("0", "")]).duplicates == []


def test_a_class_of_which_nothing_decodes_is_an_error():
    records = full()
    found = found_of(records)
    found[1] = ("1", "truncated")
    told = report(source_of(*records), found)
    assert told.errors == ["1 classes have no sketch: b."]
    assert told.undecodable == [("sketch/b/1.png", "truncated")]


def test_official_sets_are_measured_by_their_counts():
    records = [
        Record("sketch/swan/1.png", "swan", "sketch", "unseen"),
        Record("256x256/photo/swan/1.jpg", "swan", "photo", "unseen"),
        Record("EXTEND/swan/1.jpg", "swan", "photo", "unseen"),
    ]
    source = Source("sketchy", None, tuple(records), (), ("swan", "cup"), False, "sketchy")
    lost = [Record("sketch/cup/1.png", "cup", "sketch", "unseen")]
    told = report(source, found_of(records), lost)
    assert told.complete is False
    by_key = {(c.split, c.domain): c for c in told.counts}
    photos = by_key["unseen", "photo"]
    assert (photos.lines, photos.unique) == (2, 1)
    assert (photos.expected, photos.expected_unique) == (17_101, 14_602)
    sketches = by_key["unseen", "sketch"]
    assert (sketches.lines, sketches.missing, sketches.unique) == (2, 1, 1)
    assert told.missing == {"unseen": {"cup": {"sketch": 1}}}
    assert told.missing_paths == ["sketch/cup/1.png"]
    assert by_key["heldout", "sketch"].expected == 5_000
    assert len(told.absent) == 123
    assert told.known_to_teacher == ["swan"]
    whole = replace(source, official=True)
    assert report(whole, found_of(records)).complete is True
    assert report(whole, [*found_of(records)[:2], ("", "truncated")]).complete is False


def test_lines_count_as_often_as_they_are_there(tmp_path):
    tree = make_listed(tmp_path / "tu")
    lists = tree / "zeroshot" / "ImageResized_ready_filelist_zero.txt"
    lists.write_text(lists.read_text() * 2)
    (tree / "ImageResized_ready/banana/n01_0.JPEG").unlink()
    missing = []
    source = open_source("tuberlin", tree, missing=missing)
    told = report(source, found_of(source.records), missing)
    photos = next(c for c in told.counts if (c.split, c.domain) == ("unseen", "photo"))
    assert (photos.lines, photos.missing, photos.unique) == (2, 2, 0)
    assert told.missing == {"unseen": {"banana": {"photo": 2}}}
    assert told.missing_paths == ["ImageResized_ready/banana/n01_0.JPEG"]


def test_every_picture_is_read(connected, drawings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawings, copy)
    shutil.copy(copy / "photo/square/0.png", copy / "photo/zigzag/same.png")
    source = open_source("folder:toy", copy)
    told = report(source, read_all(source))
    assert [path for path, _ in told.undecodable] == ["photo/circle/broken.png"]
    assert [d.paths for d in told.duplicates] == [("photo/square/0.png", "photo/zigzag/same.png")]
    assert told.classes["seen"]["circle"] == {"sketch": PER_CLASS, "photo": PER_CLASS + 1}
    assert len(told.errors) == 1
