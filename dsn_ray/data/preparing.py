"""Raw pictures to shards: every picture read, checked and stored once, by a Ray Data job.

The pictures of each split and domain are put into a random order, so that reading them one after
another is to draw them by chance, and cut into parts. A part is one Parquet file, written whole by
one task, which then notes what it did. An interrupted job goes on with the parts that have no note;
two jobs at once write the same files twice. The manifest comes last and says that all are there.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray
from PIL import Image

from dsn_ray.data.catalog import DOMAINS, Domain, Record, Source, Split
from dsn_ray.data.decoding import UndecodablePicture, decode_all, opened, upright_rgb
from dsn_ray.data.roots import DataError, RootError
from dsn_ray.data.shards import FORMAT, MANIFEST, REJECTED, Shards, read_manifest, where_it_lies
from dsn_ray.data.storage import Folder

SHORT_SIDE = 256
SEED = 0
_PART_BYTES = 32 * 2**20
_MOST_ROWS = 16_384  # of a part
_REENCODED_BYTES = 64 * 2**10  # about the most that a picture of 256 px takes
_LONGEST_JPEG = 65_500  # pixels
_LARGEST_GROUP = 16 * 2**20
_READERS = 8  # of notes and parts at a time, behind a URL
_NOTES = ".unfinished"
_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("label", pa.int64()),
        ("class_name", pa.string()),
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("group", pa.int64()),
        ("encoded", pa.binary()),
    ]
)
_COMPRESSION = {name: "none" if name == "encoded" else "zstd" for name in _SCHEMA.names}

_Item = TypeVar("_Item")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """One Parquet file of the shards.

    Attributes:
        split: of its pictures.
        domain: of its pictures.
        number: among the parts of this split and domain.
        ids: places of its pictures in the data set's records.
    """

    split: Split
    domain: Domain
    number: int
    ids: list[int]

    @property
    def file(self) -> str:
        """Its place below the shard folder."""
        return f"split={self.split}/domain={self.domain}/part-{self.number:05d}.parquet"

    @property
    def note(self) -> str:
        """The file that says that this part is written, and what became of its pictures."""
        return f"{self.split}-{self.domain}-{self.number:05d}.json"

    def row(self, source: Source, sizes: Sequence[int]) -> dict[str, Any]:
        """This part as a row of the job's Ray Dataset."""
        records = [source.records[i] for i in self.ids]
        return {
            **asdict(self),
            "paths": [record.path for record in records],
            "class_names": [record.class_name for record in records],
            "sizes": [sizes[i] for i in self.ids],
        }


def parts_of(source: Source, sizes: Sequence[int], keep: bool = False) -> list[Part]:
    """Cuts the data set into parts of about 32 MiB as they will be stored.

    Nothing but its records and the sizes of their files decides how.
    """
    stored = np.array(sizes)
    if not keep:
        stored = stored.clip(max=_REENCODED_BYTES)
    ids: dict[tuple[Split, Domain], list[int]] = {}
    for i, record in enumerate(source.records):
        ids.setdefault((record.split, record.domain), []).append(i)
    parts = []
    for (split, domain), some in sorted(ids.items()):
        order = np.random.default_rng(SEED).permutation(some)
        count = max(round(stored[some].sum() / _PART_BYTES), -(-len(some) // _MOST_ROWS))
        for number, run in enumerate(_cut(order.tolist(), stored[order], count)):
            parts.append(Part(split, domain, number, run))
    return parts


def _cut(items: list[_Item], sizes: Sequence[int] | NDArray[Any], count: int) -> list[list[_Item]]:
    """Cuts a list into so many runs, of about the same size each."""
    ends = np.cumsum(np.maximum(sizes, 1))
    run = (ends - 1) * count // ends[-1]
    starts = np.flatnonzero(np.diff(run, prepend=-1)).tolist()
    return [items[start:end] for start, end in pairwise([*starts, len(items)])]


def prepare_shards(
    source: Source, out: Folder, *, keep: bool = False, progress: Progress | None = None
) -> Shards:
    """Reads, checks and stores every picture of a data set.

    Pictures larger than 256 px on their short side are re-encoded at that size. Where the folder
    is finished already, for the same pictures, nothing is done.

    Args:
        source: the raw data set.
        out: the shard folder to make.
        keep: store the raw files as they are.
        progress: is told the number of pictures done and of all.

    Raises:
        DataError: If `out` holds shards of other pictures or cannot be written, or if no picture
            of a split decodes.
    """
    states = source.states()
    sizes = [size for size, _ in states]
    fingerprint = source.fingerprint(states)
    cut = [SEED, SHORT_SIDE, _PART_BYTES, _MOST_ROWS, _REENCODED_BYTES, _LARGEST_GROUP]
    asked = {"format": FORMAT, "fingerprint": fingerprint, "kept": keep, "cut": cut}
    try:
        if out.holds(MANIFEST):
            return _finished(out, fingerprint, keep)
        _claim(out, asked)
        notes = _write_parts(source, sizes, out, keep, progress or (lambda done, total: None))
        return _finish(source, out, asked, notes)
    except (OSError, DataError) as error:
        if _is_finished(out):  # another job was here first, and took the notes away
            (out / _NOTES).remove()
            return _finished(out, fingerprint, keep)
        if isinstance(error, DataError):
            raise
        raise DataError(_unwritable(out, error)) from None


def _is_finished(out: Folder) -> bool:
    try:
        return out.holds(MANIFEST)
    except OSError:
        return False


def _unwritable(out: Folder, error: OSError) -> str:
    reason = error.strerror or str(error).splitlines()[0].rstrip(".")
    return f"{out} cannot be written: {reason}."


def _finished(out: Folder, fingerprint: str, keep: bool) -> Shards:
    found = read_manifest(out)
    if found.fingerprint != fingerprint:
        raise DataError(f"{out} already holds shards of other pictures; choose another folder.")
    if found.kept != keep:
        made = "with" if found.kept else "without"
        raise DataError(f"{out} was prepared {made} --keep; choose another folder.")
    return found


def _claim(out: Folder, asked: dict[str, Any]) -> None:
    """Notes what is being prepared.

    Raises:
        DataError: If the folder holds other files, or the beginning of other shards.
    """
    notes, name = out / _NOTES, "job"
    if out.is_used() and not notes.exists():
        raise DataError(f"{out} holds other files; choose a new folder.")
    if not notes.holds(name):
        notes.write(name, json.dumps(asked).encode(), once=True)
    if json.loads(notes.read(name)) != asked:
        raise DataError(
            f"{out} holds a part of the shards of other pictures, or of these prepared in another "
            "way; remove it or choose another folder."
        )


def _write_parts(
    source: Source, sizes: Sequence[int], out: Folder, keep: bool, progress: Progress
) -> list[dict[str, Any]]:
    parts = parts_of(source, sizes, keep)
    written = _written(out, parts)
    missing = [part for part in parts if part.file not in written]
    done = len(source.records) - sum(len(part.ids) for part in missing)
    progress(done, len(source.records))
    if missing:
        missing.sort(key=lambda part: -len(part.ids))  # short tasks last, so that all end at once
        rows = [part.row(source, sizes) for part in missing]
        writer = _PartWriter(replace(source, records=()), out, keep)
        # Every part must be written where the others are, and pictures read where they are.
        place = {**where_it_lies(source.root), **where_it_lies(out)}
        job = ray.data.from_items(rows, override_num_blocks=len(rows)).map(writer, **place)
        for row in job.iter_rows():
            if row["failed"]:
                raise DataError(row["failed"])
            done += row["pictures"]
            progress(done, len(source.records))
    written = _written(out, parts)
    for part in parts:
        if part.file not in written:
            raise DataError(f"{out / part.file} vanished; the same command goes on.")
    return [written[part.file] for part in parts]


def _written(out: Folder, parts: list[Part]) -> dict[str, dict[str, Any]]:
    """The notes of those parts that are there and whole, by file."""
    notes, sizes = out / _NOTES, out.sizes()
    noted = {part.note for part in parts} & set(notes.names())
    with ThreadPoolExecutor(_READERS) as pool:
        found = [json.loads(contents) for contents in pool.map(notes.read, noted)]
    return {note["file"]: note for note in found if sizes.get(note["file"]) == note["bytes"]}


def _finish(
    source: Source, out: Folder, asked: dict[str, Any], notes: list[dict[str, Any]]
) -> Shards:
    """Writes the list of rejected pictures and the manifest."""
    rejected = sorted((r for note in notes for r in note["rejected"]), key=itemgetter("id"))
    good: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    by_class: dict[str, Counter[str]] = {}
    for note in notes:
        key = f"{note['split']}/{note['domain']}"
        good[key] += note["rows"]
        sizes[key] += note["bytes"]
        by_class.setdefault(key, Counter()).update(note["classes"])
    for domain in DOMAINS:
        for split in ("seen", "unseen"):
            if not good[f"{split}/{domain}"]:
                _discard(out)
                raise DataError(f"{source.name} has no {split} {domain} that decodes.")
    lines = [json.dumps({"path": r["path"], "reason": r["reason"]}) + "\n" for r in rejected]
    out.write(REJECTED, "".join(lines).encode())
    manifest = {
        **asked,
        "name": source.name,
        "seen_classes": source.seen_classes,
        "unseen_classes": source.unseen_classes,
        "official": source.official and not rejected,
        "semantics": source.semantics,
        "note": "; ".join(filter(None, (source.note, _leaks(out, notes)))),
        "counts": dict(sorted(good.items())),
        "sizes": dict(sorted(sizes.items())),
        "rejected": len(rejected),
        "classes": {key: dict(sorted(c.items())) for key, c in sorted(by_class.items())},
        "files": {
            note["file"]: {key: note[key] for key in ("rows", "bytes", "sha256")} for note in notes
        },
        "seed": SEED,
        "versions": {name: version(name) for name in ("dsn-ray", "pillow", "pyarrow", "ray")},
    }
    out.write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    (out / _NOTES).remove()
    if out.is_local:
        for left in Path(out.path).glob("split=*/domain=*/.part-*"):  # by a task that was killed
            left.unlink(missing_ok=True)
    return read_manifest(out)


def _discard(out: Folder) -> None:
    """Takes away what was written, and no file of anybody else."""
    for split in ("seen", "heldout", "unseen"):
        (out / f"split={split}").remove()
    (out / _NOTES).remove()
    if out.is_local and not out.is_used():
        out.remove()


def _leaks(out: Folder, notes: list[dict[str, Any]]) -> str:
    """Says how many pictures of unseen classes have the same bytes as others, if any do."""

    def read(note: dict[str, Any]) -> tuple[list[str], list[str]]:
        with out.filesystem.open_input_file(f"{out.path}/{note['file']}") as file:
            rows = pq.ParquetFile(file).read(["sha256", "path"])
        return rows["sha256"].to_pylist(), rows["path"].to_pylist()

    seen: set[str] = set()
    unseen: dict[str, str] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for note, (digests, paths) in zip(notes, pool.map(read, notes), strict=True):
            if note["split"] == "unseen":
                unseen |= dict(zip(digests, paths, strict=True))
            else:
                seen.update(digests)
    both = [unseen[digest] for digest in unseen.keys() & seen]
    if not both:
        return ""
    return f"{len(both)} pictures lie in both seen and unseen classes, as {min(both)} does"


class _PartWriter:
    """Writes one part and its note; gives back a row with the number of its pictures.

    Where nothing can be read or written the row says why: of an error, Ray would keep no more than
    a text.
    """

    def __init__(self, source: Source, out: Folder, keep: bool) -> None:
        self._source, self._out, self._keep = source, out, keep

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part(row["split"], row["domain"], row["number"], [int(i) for i in row["ids"]])
        try:
            self._write(part, row["paths"], row["class_names"], row["sizes"])
        except OSError as error:
            return {"pictures": 0, "failed": _unwritable(self._out, error)}
        except RootError as error:
            return {"pictures": 0, "failed": str(error)}
        return {"pictures": len(part.ids), "failed": ""}

    def _write(
        self,
        part: Part,
        paths: Iterable[str],
        class_names: Iterable[str],
        sizes: Sequence[int],
    ) -> None:
        rejected: list[dict[str, Any]] = []
        records = [
            Record(path, class_name, part.domain, part.split)
            for path, class_name in zip(paths, class_names, strict=True)
        ]
        pictures = list(self._pictures(part, records, sizes, rejected))
        made = pa.BufferOutputStream()
        with pq.ParquetWriter(
            made, _SCHEMA, compression=_COMPRESSION, use_dictionary=False
        ) as writer:
            for number, group in enumerate(_groups(pictures), start=part.number * _MOST_ROWS):
                rows = [{**picture, "group": number} for picture in group]
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA), len(rows))
        contents = made.getvalue()
        self._out.write(part.file, contents)
        note = {
            "file": part.file,
            "split": part.split,
            "domain": part.domain,
            "rows": len(pictures),
            "bytes": contents.size,
            "sha256": hashlib.sha256(contents).hexdigest(),
            "classes": Counter(picture["class_name"] for picture in pictures),
            "rejected": rejected,
        }
        (self._out / _NOTES).write(part.note, json.dumps(note).encode())

    def _pictures(
        self,
        part: Part,
        records: list[Record],
        sizes: Sequence[int],
        rejected: list[dict[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        classes = self._source.classes_of(part.split)
        reading = self._source.reading(records, sizes)
        for number, record, read in zip(part.ids, records, reading, strict=True):
            try:
                raw = read()
                encoded = checked(raw, record.domain, self._keep)
            except (ValueError, OSError) as error:
                reason = str(error) or type(error).__name__
                rejected.append({"id": number, "path": record.path, "reason": reason})
                continue
            yield {
                "id": number,
                "label": classes.index(record.class_name),
                "class_name": record.class_name,
                "path": record.path,
                "sha256": hashlib.sha256(raw).hexdigest(),
                "encoded": encoded,
            }


def _groups(pictures: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Row groups of 8 to 16 MiB, where there is as much."""
    sizes = [len(picture["encoded"]) for picture in pictures]
    return _cut(pictures, sizes, -(-sum(sizes) // _LARGEST_GROUP)) if pictures else []


def checked(raw: bytes, domain: Domain, keep: bool = False) -> bytes:
    """A picture's bytes, once it is known to decode; smaller where it is larger than need be.

    Args:
        raw: the file.
        domain: photos are re-encoded as JPEG, sketches as PNG.
        keep: never re-encode.

    Raises:
        ValueError: If it is no picture that can be used.
    """
    with opened(raw) as image:
        if keep or min(image.size) <= SHORT_SIDE:
            decode_all(image)
            return raw
        rgb = upright_rgb(image, SHORT_SIDE)
        short = min(rgb.size)
        size = round(rgb.width * SHORT_SIDE / short), round(rgb.height * SHORT_SIDE / short)
        out = io.BytesIO()
        smaller = rgb.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
        if domain == "photo" and max(size) > _LONGEST_JPEG:
            raise UndecodablePicture(f"{image.width} x {image.height} pixels are too long for JPEG")
        if domain == "photo":
            smaller.save(out, "JPEG", quality=95)
        else:
            smaller.save(out, "PNG")
        return out.getvalue()
