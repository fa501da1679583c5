"""How a data set is cut into parts, and how one of them is written."""

import io
import resource
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dsn_ray.data import parts
from dsn_ray.data.catalog import Record, Source, open_source
from dsn_ray.data.decoding import UndecodablePicture, open_rgb
from dsn_ray.data.parts import PartWriter, checked, parts_of
from dsn_ray.data.storage import Folder
from tests.data.conftest import cut_up, sizes_of


def test_parts_are_a_random_order_of_every_picture():
    records = [
        Record(f"{domain}/{i}", "a", domain, split)
        for domain in ("sketch", "photo")
        for split in ("seen", "unseen")
        for i in range(5000)
    ]
    source = Source("x", None, tuple(records), ("a",), ("a",), False, "none")
    sizes = [20_000] * len(records)
    made = parts_of(source, sizes)
    assert sorted(i for part in made for i in part.ids) == list(range(len(records)))
    assert len({part.file for part in made}) == len({part.note for part in made}) == len(made)
    for part in made:
        assert {(records[i].split, records[i].domain) for i in part.ids} == {
            (part.split, part.domain)
        }
    first = np.array(made[0].ids)
    assert 0.4 < (np.diff(first) > 0).mean() < 0.6
    assert made == parts_of(source, sizes)


@pytest.mark.parametrize(
    ("sizes", "keep", "count"),
    [
        ([2_300] * 60_000, False, 4),  # small ones: a part has at most so many rows
        ([20_000] * 10_000, False, 6),  # 191 MiB
        ([5_000_000] * 2_000, False, 4),  # will be encoded anew, and smaller
        ([5_000_000] * 100, True, 15),
        ([0] * 5, False, 1),  # not known
    ],
)
def test_parts_are_cut_by_what_they_will_take(sizes, keep, count):
    records = [Record(str(i), "a", "photo", "seen") for i in range(len(sizes))]
    source = Source("x", None, tuple(records), ("a",), ("a",), False, "none")
    made = parts_of(source, sizes, keep)
    rows = [len(part.ids) for part in made]
    assert len(rows) == count
    assert max(rows) - min(rows) <= 1


def damaged(raw):
    """A picture cut short in many places, and with many bytes changed."""
    random = np.random.default_rng(0)
    yield from (
        raw[:end] for end in (*range(len(raw) - 20, len(raw)), *random.integers(len(raw), size=20))
    )
    for place, value in random.integers(0, 256, (60, 2)):
        at = int(place * len(raw) // 256)
        yield raw[:at] + bytes([value]) + raw[at + 1 :]


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        (
            "JPEG",
            "L",
            {"exif": b"Exif\0\0II*\0\b\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
        ),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": bytes(range(256))}),
        ("PNG", "I;16", {}),
        ("PNG", "1", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGB", {}),
    ],
)
def test_a_check_is_as_strict_as_decoding(kind, mode, options):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    refused = 0
    for raw in (out.getvalue(), *damaged(out.getvalue())):
        try:
            open_rgb(raw)
        except UndecodablePicture:
            refused += 1
            with pytest.raises(UndecodablePicture):
                checked(raw, "photo")
        else:
            assert checked(raw, "photo") is raw
    assert 10 < refused < 100


def test_large_pictures_become_smaller_unless_kept():
    pixels = np.random.default_rng(0).integers(0, 255, (600, 300, 3), np.uint8)
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, "PNG")
    for domain, kind in (("photo", "JPEG"), ("sketch", "PNG")):
        small = Image.open(io.BytesIO(checked(raw.getvalue(), domain)))
        assert (small.size, small.format) == ((256, 512), kind)
        assert checked(raw.getvalue(), domain, keep=True) == raw.getvalue()
    long = io.BytesIO()
    Image.new("1", (300, 100_000)).save(long, "PNG")
    assert checked(long.getvalue(), "sketch")
    with pytest.raises(UndecodablePicture, match="300 x 100000 pixels are too long for JPEG"):
        checked(long.getvalue(), "photo")


def test_row_groups_have_8_to_16_mib_where_there_is_as_much(drawings, tmp_path, monkeypatch):
    for total in (1, 15, 17, 31, 33, 90):
        rows = [{"encoded": b"x" * 2**14}] * (total * 64)
        groups = parts._groups(rows)
        assert [row for group in groups for row in group] == rows
        for group in groups:
            assert min(8, total) <= len(group) / 64 <= 16
    assert parts._groups([]) == []

    # As they lie in a file: a hundred times smaller pictures, a hundred times smaller groups.
    monkeypatch.setattr(parts, "_LARGEST_GROUP", 3000)
    source = open_source("folder:toy", drawings)
    (part,) = [p for p in cut_up(source) if (p.split, p.domain) == ("seen", "photo")]
    writer = PartWriter(source, Folder.at(tmp_path), False)
    assert not writer(part.row(source, sizes_of(source)))["failed"]
    table = pq.read_table(tmp_path / part.file, partitioning=None).to_pylist()
    sizes = Counter()
    for row in table:
        sizes[row["group"]] += len(row["encoded"])
    file = pq.ParquetFile(tmp_path / part.file)
    assert file.num_row_groups == len(sizes) > 1
    largest = max(len(row["encoded"]) for row in table)
    assert all(1500 - largest <= size <= 3000 + largest for size in sizes.values())


def test_a_root_that_vanishes_stops_the_job(drawings, tmp_path):
    copy, out = tmp_path / "copy", Folder.at(tmp_path / "shards")
    shutil.copytree(drawings, copy)
    source = open_source("folder:toy", copy)
    part = cut_up(source)[0]
    copy.rename(tmp_path / "gone")
    told = PartWriter(source, out, False)(part.row(source, sizes_of(source)))
    assert "cannot be read: No such file" in told["failed"]
    assert not out.exists() or not list((tmp_path / "shards").rglob("*.*"))


def test_a_disk_that_fills_within_a_part_is_said_and_leaves_no_file(drawings, tmp_path):
    source, out = open_source("folder:toy", drawings), Folder.at(tmp_path / "shards")
    part = cut_up(source)[0]
    row, writer = part.row(source, sizes_of(source)), PartWriter(source, out, False)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
        told = writer(row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert told["failed"].startswith(f"{out} cannot be written: ")
    assert told["failed"].endswith("File too large.")
    assert not [path for path in (tmp_path / "shards").rglob("*") if path.is_file()]
    assert not writer(row)["failed"]
    assert out.sizes()[part.file] > 2000
