"""Parts of the shards: how a data set is cut into Parquet files, and how one of them is written.

The pictures of each split and domain are put into a random order, so that reading them one after
another is to draw them by chance, and cut into parts.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dsn_ray.data.catalog import Domain, Record, Source, Split
from dsn_ray.data.decoding import UndecodablePicture, decode_all, opened, upright_rgb
from dsn_ray.data.roots import RootError
from dsn_ray.data.storage import Folder

SHORT_SIDE = 256
SEED = 0
_PART_BYTES = 32 * 2**20
_MOST_ROWS = 16_384  # of a part
_REENCODED_BYTES = 64 * 2**10  # about the most that a picture of 256 px takes
_LONGEST_JPEG = 65_500  # pixels
_LARGEST_GROUP = 16 * 2**20
CUT = [SEED, SHORT_SIDE, _PART_BYTES, _MOST_ROWS, _REENCODED_BYTES, _LARGEST_GROUP]
"""What decides how a data set is cut."""
NOTES = ".unfinished"
"""Folder of the notes on parts, within that of the shards."""
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


def unwritable(out: Folder, error: OSError) -> str:
    """Says why a shard folder cannot be written."""
    reason = error.strerror or str(error).splitlines()[0].rstrip(".")
    return f"{out} cannot be written: {reason}."


class PartWriter:
    """Writes one part and its note; gives back a row with the number of its pictures.

    Where nothing can be read or written the row says why: of an error, Ray would keep no more than
    a text.
    """

    def __init__(self, source: Source, out: Folder, keep: bool) -> None:
        """Reads from a data set, writes below a folder; `keep` stores files as they are."""
        self._source, self._out, self._keep = source, out, keep

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes the part of a row that `Part.row` made."""
        part = Part(row["split"], row["domain"], row["number"], [int(i) for i in row["ids"]])
        try:
            self._write(part, row["paths"], row["class_names"], row["sizes"])
        except OSError as error:
            return {"pictures": 0, "failed": unwritable(self._out, error)}
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
        (self._out / NOTES).write(part.note, json.dumps(note).encode())

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
