"""Raw pictures to shards, with everything that can be wrong in a folder of pictures."""

import hashlib
import io
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dsn_ray.data import preparing
from dsn_ray.data.catalog import Record, Source, open_source
from dsn_ray.data.decoding import UndecodablePicture, open_rgb
from dsn_ray.data.preparing import checked, parts_of, prepare_shards
from dsn_ray.data.roots import DataError
from dsn_ray.data.shards import MANIFEST, read_manifest
from dsn_ray.data.storage import Folder
from tests.conftest import PER_CLASS, SHAPES, UNSEEN

SEEN = len(SHAPES) - len(UNSEEN)


def test_every_picture_is_stored_once(connected, drawings, tmp_path):
    source = open_source("folder:toy", drawings)
    out = Folder.at(tmp_path / "shards")
    told = []
    made = prepare_shards(source, out, progress=lambda *done: told.append(done))
    assert made == read_manifest(out)
    assert made.counts == {
        "seen/photo": SEEN * PER_CLASS,
        "seen/sketch": SEEN * PER_CLASS,
        "unseen/photo": len(UNSEEN) * PER_CLASS,
        "unseen/sketch": len(UNSEEN) * PER_CLASS,
    }
    assert told[0] == (0, len(source.records))
    assert told[-1] == (len(source.records), len(source.records))
    assert not list(tmp_path.glob("shards/.*"))

    stored = {}
    for path in (tmp_path / "shards").glob("split=*/domain=*/*.parquet"):
        split = path.parts[-3].removeprefix("split=")
        for row in pq.read_table(path, partitioning=None).to_pylist():
            record = source.records[row["id"]]
            raw = (drawings / row["path"]).read_bytes()
            assert record == Record(row["path"], row["class_name"], record.domain, split)
            assert source.classes_of(split)[row["label"]] == row["class_name"]
            assert row["sha256"] == hashlib.sha256(raw).hexdigest()
            assert row["encoded"] == raw
            stored[row["id"]] = row
    rejected = {r.path for i, r in enumerate(source.records) if i not in stored}
    assert rejected == {"photo/circle/broken.png"}
    (line,) = out.read("rejected.jsonl").splitlines()
    assert json.loads(line)["path"] == "photo/circle/broken.png"
    assert json.loads(line)["reason"]

    manifest = json.loads(out.read(MANIFEST))
    assert manifest["classes"]["seen/photo"]["circle"] == PER_CLASS
    for name, about in manifest["files"].items():
        contents = (tmp_path / "shards" / name).read_bytes()
        assert (len(contents), hashlib.sha256(contents).hexdigest()) == (
            about["bytes"],
            about["sha256"],
        )


def sizes_of(source):
    return [size for size, _ in source.states()]


def cut_up(source):
    return parts_of(source, sizes_of(source))


def test_what_is_done_is_not_done_again(connected, drawings, tmp_path, monkeypatch):
    source, out = open_source("folder:toy", drawings), Folder.at(tmp_path / "shards")
    made = prepare_shards(source, out)
    whole = {p: p.read_bytes() for p in (tmp_path / "shards").rglob("*") if p.is_file()}
    monkeypatch.setattr(preparing, "_PartWriter", None)
    assert prepare_shards(source, out) == made
    monkeypatch.undo()

    # An interrupted job has parts and their notes, but no manifest.
    out.remove()
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_finish", lambda *_: None)
        prepare_shards(source, out)
    parts = cut_up(source)
    notes = out / ".unfinished"
    assert notes.names() == sorted(["job", *(part.note for part in parts)])
    # A part without its note, a note without its part, and a part that is not whole.
    unnoted, gone, cut, *kept = parts
    files = {part.file: tmp_path / "shards" / part.file for part in parts}
    (tmp_path / "shards" / ".unfinished" / unnoted.note).unlink()
    files[gone.file].unlink()
    files[cut.file].write_bytes(files[cut.file].read_bytes()[:-1])
    times = {part.file: files[part.file].stat().st_mtime_ns for part in (unnoted, *kept)}
    assert prepare_shards(source, out) == made
    assert all(files[part.file].stat().st_mtime_ns == times[part.file] for part in kept)
    assert files[unnoted.file].stat().st_mtime_ns != times[unnoted.file]
    assert {p: p.read_bytes() for p in (tmp_path / "shards").rglob("*") if p.is_file()} == whole


SLOWLY = """
import sys, time, ray
from pathlib import Path
from dsn_ray.data import preparing
from dsn_ray.data.catalog import open_source
from dsn_ray.data.storage import Folder

class Slow(preparing._PartWriter):
    def __call__(self, row):
        time.sleep(0.1)
        return super().__call__(row)

preparing._MOST_ROWS, preparing._PartWriter = 3, Slow
ray.init(address=sys.argv[1], log_to_driver=False)
preparing.prepare_shards(open_source("folder:toy", Path(sys.argv[2])), Folder.at(sys.argv[3]))
"""


def test_a_killed_job_is_gone_on_with(ray_address, connected, drawings, tmp_path, monkeypatch):
    out = Folder.at(tmp_path / "shards")
    given = (ray_address, str(drawings), out.path)
    job = subprocess.Popen([sys.executable, "-c", SLOWLY, *given], stderr=subprocess.DEVNULL)
    try:
        while len((out / ".unfinished").names()) < 4:
            assert job.poll() is None
            time.sleep(0.02)
    finally:
        job.kill()
        job.wait()
    assert not out.holds(MANIFEST)
    monkeypatch.setattr(preparing, "_MOST_ROWS", 3)
    source = open_source("folder:toy", drawings)
    noted = set((out / ".unfinished").names())
    done = [tmp_path / "shards" / part.file for part in cut_up(source) if part.note in noted]
    assert 3 <= len(done) < 33
    times = [file.stat().st_mtime_ns for file in done[:3]]
    made = prepare_shards(source, out)
    assert [file.stat().st_mtime_ns for file in done[:3]] == times
    assert sum(made.counts.values()) == len(source.records) - 1
    assert len(list((tmp_path / "shards").rglob("*.parquet"))) == 33
    assert not list((tmp_path / "shards").rglob(".*"))


def test_two_at_once_do_not_spoil_each_other(connected, drawings, tmp_path):
    source, out = open_source("folder:toy", drawings), Folder.at(tmp_path / "shards")
    made, errors = [], []

    def prepare():
        try:
            made.append(prepare_shards(source, out))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert made[0] == made[1] == read_manifest(out)
    assert sum(made[0].counts.values()) == len(source.records) - 1


def test_of_two_kinds_at_once_one_is_refused(drawings, tmp_path):
    for number in range(20):
        out = Folder.at(tmp_path / str(number))
        with ThreadPoolExecutor(2) as pool:
            claims = [pool.submit(preparing._claim, out, {"kept": kept}) for kept in (False, True)]
        refused = [claim for claim in claims if claim.exception()]
        assert len(refused) == 1
        assert isinstance(refused[0].exception(), DataError)


def test_other_pictures_and_other_files_are_left_alone(connected, drawings, tmp_path):
    copy, out = tmp_path / "copy", Folder.at(tmp_path / "shards")
    shutil.copytree(drawings, copy)
    source = open_source("folder:toy", copy)
    prepare_shards(source, out)
    before = out.read(MANIFEST)
    with pytest.raises(DataError, match="was prepared without --keep"):
        prepare_shards(source, out, keep=True)
    Image.new("RGB", (300, 600), "red").save(copy / "photo" / "circle" / "new.png")
    changed = open_source("folder:toy", copy)
    with pytest.raises(DataError, match="already holds shards of other pictures"):
        prepare_shards(changed, out)
    assert out.read(MANIFEST) == before
    with pytest.raises(DataError, match="holds other files"):
        prepare_shards(changed, Folder.at(copy))
    begun = Folder.at(tmp_path / "begun")
    (begun / ".unfinished").write("job", b'{"fingerprint": "other"}')
    with pytest.raises(DataError, match="holds a part of the shards of other pictures"):
        prepare_shards(changed, begun)


def test_a_url_takes_shards_too(connected, drawings, tmp_path):
    out = Folder.at(f"file://{tmp_path}/shards")
    made = prepare_shards(open_source("folder:toy", drawings), out)
    assert made.rows("unseen", "photo").count() == len(UNSEEN) * PER_CLASS


def test_nothing_is_left_where_a_domain_is_empty(connected, drawings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawings, copy)
    for path in copy.glob("photo/*/*.png"):
        if path.parent.name in UNSEEN:
            path.write_bytes(b"")
    source, out = open_source("folder:toy", copy), Folder.at(tmp_path / "shards")
    with pytest.raises(DataError, match="has no unseen photo that decodes"):
        prepare_shards(source, out)
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}
    (out / ".unfinished").write("nothing", b"")
    out.write("mine.txt", b"")  # put there while the job was begun
    with pytest.raises(DataError, match="has no unseen photo that decodes"):
        prepare_shards(source, out)
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {"mine.txt"}


def test_a_photo_in_both_seen_and_unseen_is_said(connected, drawings, tmp_path):
    copy, out = tmp_path / "copy", Folder.at(tmp_path / "shards")
    shutil.copytree(drawings, copy)
    shutil.copy(copy / "photo/square/0.png", copy / "photo/zigzag/same.png")
    left = tmp_path / "shards" / "split=seen" / "domain=photo" / ".part-00000.parquet.ab12cd34"
    (out / ".unfinished").write("nothing", b"")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a task that was killed")
    made = prepare_shards(open_source("folder:toy", copy), out)
    assert "1 pictures lie in both seen and unseen classes, as photo/zigzag/same.png" in str(made)
    assert not left.exists()


def test_an_unwritable_place_is_named(connected, drawings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        prepare_shards(open_source("folder:toy", drawings), Folder.at(tmp_path / "file" / "shards"))


def test_a_root_that_vanishes_stops_the_job(drawings, tmp_path):
    copy, out = tmp_path / "copy", Folder.at(tmp_path / "shards")
    shutil.copytree(drawings, copy)
    source = open_source("folder:toy", copy)
    part = cut_up(source)[0]
    copy.rename(tmp_path / "gone")
    told = preparing._PartWriter(source, out, False)(part.row(source, sizes_of(source)))
    assert "cannot be read: No such file" in told["failed"]
    assert not out.exists() or not list((tmp_path / "shards").rglob("*.*"))


def test_a_full_disk_is_said_and_leaves_no_file(connected, drawings, tmp_path, monkeypatch):
    source, out = open_source("folder:toy", drawings), Folder.at(tmp_path / "shards")
    monkeypatch.setattr(preparing, "_PartWriter", FullDisk)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        prepare_shards(source, out)
    assert not list((tmp_path / "shards").rglob("*.parquet"))
    monkeypatch.undo()
    assert sum(prepare_shards(source, out).counts.values()) == len(source.records) - 1


def test_a_disk_that_fills_within_a_part_is_said_and_leaves_no_file(drawings, tmp_path):
    source, out = open_source("folder:toy", drawings), Folder.at(tmp_path / "shards")
    part = cut_up(source)[0]
    row, writer = part.row(source, sizes_of(source)), preparing._PartWriter(source, out, False)
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


class FullDisk(preparing._PartWriter):
    def _pictures(self, part, records, sizes, rejected):
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
        yield {}


def bad_pictures():
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        photo, "JPEG"
    )
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    return {
        "truncated.jpg": photo.getvalue()[:900],
        "empty.png": b"",
        "text.png": b"this is no picture",
        "bomb.png": bomb.getvalue(),
    }


def odd_pictures(folder):
    """Writes pictures of odd kinds; what the upper left of each is, once decoded."""
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.new("CMYK", (64, 64), (0, 200, 0, 0)).save(folder / "cmyk.jpg")
    Image.fromarray(grey[::-1]).save(folder / "sixteen.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (600, 300), (0, 0, 255, 0)).save(folder / "clear.png")
    turned = Image.new("RGB", (400, 800), "blue")
    turned.paste("red", (0, 0, 400, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # its upper side is on the right
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    return {
        "cmyk.jpg": (255, 55, 255),
        "sixteen.png": (239, 239, 239),
        "animated.gif": (255, 0, 0),
        "clear.png": (255, 255, 255),
        "turned.jpg": (0, 0, 254),
    }


def test_a_bad_picture_costs_one_row_and_an_odd_one_none(connected, drawings, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawings, copy)
    folder = copy / "photo" / "Straße mit Bäumen"
    shutil.copytree(copy / "photo" / "square", folder)
    shutil.copytree(copy / "sketch" / "square", copy / "sketch" / folder.name)
    for name, contents in bad_pictures().items():
        (folder / name).write_bytes(contents)
    secret = tmp_path / "secret.png"
    shutil.copy(folder / "0.png", secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "circle.png").symlink_to(folder / "circle.png")
    odd = odd_pictures(folder)
    made = prepare_shards(open_source("folder:toy", copy), Folder.at(tmp_path / "shards"))
    lines = (tmp_path / "shards" / "rejected.jsonl").read_text().splitlines()
    rejected = {json.loads(line)["path"]: json.loads(line)["reason"] for line in lines}
    expected = {
        f"photo/{folder.name}/{name}" for name in (*bad_pictures(), "link.png", "circle.png")
    }
    assert set(rejected) == {*expected, "photo/circle/broken.png"}
    assert "lies outside its root" in rejected[f"photo/{folder.name}/link.png"]
    rows = made.rows("seen", "photo").take_all()
    stored = {row["path"]: row["encoded"] for row in rows if row["class_name"] == folder.name}
    for name, colour in odd.items():
        picture = open_rgb(stored[f"photo/{folder.name}/{name}"])
        assert np.abs(np.subtract(picture.getpixel((3, 3)), colour)).max() <= 4, name
    assert open_rgb(stored[f"photo/{folder.name}/turned.jpg"]).size == (512, 256)
    assert open_rgb(stored[f"photo/{folder.name}/clear.png"]).size == (512, 256)


def test_parts_are_a_random_order_of_every_picture():
    records = [
        Record(f"{domain}/{i}", "a", domain, split)
        for domain in ("sketch", "photo")
        for split in ("seen", "unseen")
        for i in range(5000)
    ]
    source = Source("x", None, tuple(records), ("a",), ("a",), False, "none")
    sizes = [20_000] * len(records)
    parts = parts_of(source, sizes)
    assert sorted(i for part in parts for i in part.ids) == list(range(len(records)))
    assert len({part.file for part in parts}) == len({part.note for part in parts}) == len(parts)
    for part in parts:
        assert {(records[i].split, records[i].domain) for i in part.ids} == {
            (part.split, part.domain)
        }
    first = np.array(parts[0].ids)
    assert 0.4 < (np.diff(first) > 0).mean() < 0.6
    assert parts == parts_of(source, sizes)


@pytest.mark.parametrize(
    ("sizes", "keep", "parts"),
    [
        ([2_300] * 60_000, False, 4),  # small ones: a part has at most so many rows
        ([20_000] * 10_000, False, 6),  # 191 MiB
        ([5_000_000] * 2_000, False, 4),  # will be encoded anew, and smaller
        ([5_000_000] * 100, True, 15),
        ([0] * 5, False, 1),  # not known
    ],
)
def test_parts_are_cut_by_what_they_will_take(sizes, keep, parts):
    records = [Record(str(i), "a", "photo", "seen") for i in range(len(sizes))]
    source = Source("x", None, tuple(records), ("a",), ("a",), False, "none")
    made = parts_of(source, sizes, keep)
    rows = [len(part.ids) for part in made]
    assert len(rows) == parts
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
        groups = preparing._groups(rows)
        assert [row for group in groups for row in group] == rows
        for group in groups:
            assert min(8, total) <= len(group) / 64 <= 16
    assert preparing._groups([]) == []

    # As they lie in a file: a hundred times smaller pictures, a hundred times smaller groups.
    monkeypatch.setattr(preparing, "_LARGEST_GROUP", 3000)
    source = open_source("folder:toy", drawings)
    (part,) = [p for p in cut_up(source) if (p.split, p.domain) == ("seen", "photo")]
    writer = preparing._PartWriter(source, Folder.at(tmp_path), False)
    assert not writer(part.row(source, sizes_of(source)))["failed"]
    table = pq.read_table(tmp_path / part.file, partitioning=None).to_pylist()
    sizes = Counter()
    for row in table:
        sizes[row["group"]] += len(row["encoded"])
    file = pq.ParquetFile(tmp_path / part.file)
    assert file.num_row_groups == len(sizes) > 1
    largest = max(len(row["encoded"]) for row in table)
    assert all(1500 - largest <= size <= 3000 + largest for size in sizes.values())
