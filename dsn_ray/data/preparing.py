"""Raw pictures to shards: every picture read, checked and stored once, by a Ray Data job.

Each part of the shards is one Parquet file, written whole by one task, which then notes what it
did. An interrupted job goes on with the parts that have no note; two jobs at once write the same
files twice. The manifest comes last and says that all are there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray.data

from dsn_ray.data.catalog import DOMAINS, Source
from dsn_ray.data.parts import CUT, NOTES, SEED, Part, PartWriter, parts_of, unwritable
from dsn_ray.data.roots import DataError
from dsn_ray.data.shards import FORMAT, MANIFEST, REJECTED, Shards, read_manifest, where_it_lies
from dsn_ray.data.storage import Folder

_READERS = 8  # of notes and parts at a time, behind a URL
Progress = Callable[[int, int], None]


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
    asked = {"format": FORMAT, "fingerprint": fingerprint, "kept": keep, "cut": CUT}
    try:
        if out.holds(MANIFEST):
            return _finished(out, fingerprint, keep)
        _claim(out, asked)
        notes = _write_parts(source, sizes, out, keep, progress or (lambda done, total: None))
        return _finish(source, out, asked, notes)
    except (OSError, DataError) as error:
        if _is_finished(out):  # another job was here first, and took the notes away
            (out / NOTES).remove()
            return _finished(out, fingerprint, keep)
        if isinstance(error, DataError):
            raise
        raise DataError(unwritable(out, error)) from None


def check_place(out: Folder) -> None:
    """Checks that shards may be made in a folder.

    Raises:
        DataError: If it holds other files, or cannot be read.
    """
    try:
        foreign = out.is_used() and not (out / NOTES).exists() and not out.holds(MANIFEST)
    except OSError as error:
        raise DataError(unwritable(out, error)) from None
    if foreign:
        raise DataError(f"{out} holds other files; choose a new folder.")


def _is_finished(out: Folder) -> bool:
    try:
        return out.holds(MANIFEST)
    except OSError:
        return False


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
    check_place(out)
    notes, name = out / NOTES, "job"
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
        writer = PartWriter(replace(source, records=()), out, keep)
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
    notes, sizes = out / NOTES, out.sizes()
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
    (out / NOTES).remove()
    if out.is_local:
        for left in Path(out.path).glob("split=*/domain=*/.part-*"):  # by a task that was killed
            left.unlink(missing_ok=True)
    return read_manifest(out)


def _discard(out: Folder) -> None:
    """Takes away what was written, and no file of anybody else."""
    for split in ("seen", "heldout", "unseen"):
        (out / f"split={split}").remove()
    (out / NOTES).remove()
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
