"""Raw pictures to shards, with everything that can be wrong in a folder of pictures."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dsn_ray.data import parts, preparing
from dsn_ray.data.catalog import Record, open_source
from dsn_ray.data.decoding import open_rgb
from dsn_ray.data.preparing import prepare_shards
from dsn_ray.data.roots import DataError
from dsn_ray.data.shards import MANIFEST, read_manifest
from dsn_ray.data.storage import Folder
from tests.conftest import PER_CLASS, SHAPES, UNSEEN
from tests.data.conftest import cut_up

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


def test_what_is_done_is_not_done_again(connected, drawings, tmp_path, monkeypatch):
    source, out = open_source("folder:toy", drawings), Folder.at(tmp_path / "shards")
    made = prepare_shards(source, out)
    whole = {p: p.read_bytes() for p in (tmp_path / "shards").rglob("*") if p.is_file()}
    monkeypatch.setattr(preparing, "PartWriter", None)
    assert prepare_shards(source, out) == made
    monkeypatch.undo()

    # An interrupted job has parts and their notes, but no manifest.
    out.remove()
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_finish", lambda *_: None)
        prepare_shards(source, out)
    every = cut_up(source)
    notes = out / ".unfinished"
    assert notes.names() == sorted(["job", *(part.note for part in every)])
    # A part without its note, a note without its part, and a part that is not whole.
    unnoted, gone, cut, *kept = every
    files = {part.file: tmp_path / "shards" / part.file for part in every}
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
from dsn_ray.data import parts, preparing
from dsn_ray.data.catalog import open_source
from dsn_ray.data.storage import Folder

class Slow(parts.PartWriter):
    def __call__(self, row):
        time.sleep(0.1)
        return super().__call__(row)

parts._MOST_ROWS, preparing.PartWriter = 3, Slow
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
    monkeypatch.setattr(parts, "_MOST_ROWS", 3)
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


def test_a_full_disk_is_said_and_leaves_no_file(connected, drawings, tmp_path, monkeypatch):
    source, out = open_source("folder:toy", drawings), Folder.at(tmp_path / "shards")
    monkeypatch.setattr(preparing, "PartWriter", FullDisk)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        prepare_shards(source, out)
    assert not list((tmp_path / "shards").rglob("*.parquet"))
    monkeypatch.undo()
    assert sum(prepare_shards(source, out).counts.values()) == len(source.records) - 1


class FullDisk(parts.PartWriter):
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
