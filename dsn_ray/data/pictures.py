"""A split's pictures where training and evaluation find them: in memory, or in the shards.

Pictures that fit are held in Ray's object store, decoded or as encoded bytes, which every worker of
a node maps without a copy. More than that stays in the shards, whose row groups are read when they
are wanted. Both give the same table of rows by number.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from dsn_ray.data.catalog import validation_classes
from dsn_ray.data.roots import DataError
from dsn_ray.data.shards import Shards
from dsn_ray.data.storage import Folder
from dsn_ray.data.views import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from dsn_ray.config import DataConfig
    from dsn_ray.data.catalog import Domain, Split

_SHARE_OF_STORE = 0.15  # for each split and domain; a sweep on two data sets loads six at a time
_READERS = 8  # at a time, each waiting for a disk or an object store
WINDOW_BYTES = 96 * 2**20
"""How much of the encoded pictures an epoch's order mixes at a time.

As many are kept in memory where they are read from the shards, and as many of the next.
"""


class TeacherLogits(NamedTuple):
    """What the frozen teacher says of a split's pictures of one domain."""

    ids: NDArray[np.int64]
    """`[n]` place in the catalogue, ascending"""
    logits: NDArray[np.float16]
    """`[n, 1000]`"""


class PictureTable(Protocol):
    """Rows of pictures by number, in the order of `ids`.

    Attributes:
        ids: `[n]` place in the catalogue, ascending.
        labels: `[n]` label in the split's class list.
        groups: `[n]` which rows the shards hold together.
        window: about how many rows an epoch's order mixes at a time.
        is_judged: whether the teacher's logits are there.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    window: int
    is_judged: bool

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Begins to read what these rows need, as they will be wanted soon."""

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """One picture, uint8 `[3, px, px]`."""

    def teacher(self, rows: NDArray[np.int64]) -> "torch.Tensor":
        """Teacher logits of some rows, float32 `[len(rows), 1000]`."""


def load_pictures(shards: Shards, split: "Split", domain: "Domain", px: int) -> "Pictures":
    """Reads pictures into the object store where each node's can hold them.

    They are decoded where the pixels are at most 15 % of it, else held as they are encoded where
    that is, and else left in the shards.

    Args:
        shards: the data set.
        split: which of its classes.
        domain: sketches or photos.
        px: side that training or evaluation wants.

    Raises:
        DataError: If they do not fit and lie on the disk of one of several nodes.
    """
    count, size = (of[f"{split}/{domain}"] for of in (shards.counts, shards.sizes))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    room = _SHARE_OF_STORE * min(
        node["Resources"].get("object_store_memory", 0.0) for node in nodes
    )
    decoded = count * 3 * px * px < room
    window = max(1, WINDOW_BYTES * count // max(1, size))
    if not decoded and size >= room:
        if shards.folder.is_local and len(nodes) > 1:
            raise DataError(
                f"The {split} {domain} pictures of {shards.name}, {size / 2**30:.1f} GiB, do not "
                f"fit into {room / 2**30:.1f} GiB of each node's object store, and only one node "
                "can read them from its disk; prepare them at an address that all nodes reach."
            )
        place = shards.folder / f"split={split}" / f"domain={domain}"
        return StoredPictures(place, domain, px, count, window)
    rows = shards.rows(split, domain).select_columns(["id", "label", "group", "encoded"])
    rows = rows.rename_columns({"encoded": "picture"})
    if decoded:
        rows = rows.map_batches(
            _decoded, fn_kwargs={"px": px}, batch_size=64, batch_format="pyarrow"
        )
    return HeldPictures(rows.materialize().to_arrow_refs(), domain, px, count, window, decoded)


def _decoded(rows: pa.Table, px: int) -> pa.Table:
    pixels = [decode(encoded.as_py(), px).tobytes() for encoded in rows["picture"]]
    place = rows.column_names.index("picture")
    return rows.set_column(place, "picture", pa.array(pixels, pa.binary()))


class _Judged:
    """The teacher's part of a table."""

    ids: NDArray[np.int64]

    def __init__(self, logits: "ray.ObjectRef[TeacherLogits] | None") -> None:
        self._logits = None if logits is None else ray.get(logits)
        self.is_judged = self._logits is not None

    def teacher(self, rows: NDArray[np.int64]) -> "torch.Tensor":
        import torch

        ids = self.ids[rows]
        if self._logits is not None:
            places = np.searchsorted(self._logits.ids, ids).clip(max=len(self._logits.ids) - 1)
            if np.array_equal(self._logits.ids[places], ids):
                return torch.from_numpy(self._logits.logits[places]).float()
        raise ValueError("the teacher has not judged all of these pictures")


@dataclass(frozen=True)
class HeldPictures:
    """Pictures in the object store.

    Attributes:
        domain: sketches or photos.
        px: side of a picture.
        count: number of pictures.
        window: as of their table.
        blocks: references to tables with `id`, `label`, `group` and `picture`.
        decoded: whether `picture` holds pixels, uint8 `[3, px, px]`; else encoded bytes.
        logits: of the teacher; None where it has not judged these pictures.
    """

    blocks: list["ray.ObjectRef[pa.Table]"]
    domain: "Domain"
    px: int
    count: int
    window: int
    decoded: bool
    logits: "ray.ObjectRef[TeacherLogits] | None" = None

    def table(self) -> PictureTable:
        """Opens them in this process."""
        return _HeldTable(self)


class _HeldTable(_Judged):
    """Rows that are mapped into this process without a copy."""

    def __init__(self, pictures: HeldPictures) -> None:
        super().__init__(pictures.logits)
        table = pa.concat_tables(ray.get(pictures.blocks))
        unordered = table["id"].to_numpy()
        self._places = np.argsort(unordered, kind="stable")
        self._cells = table["picture"]
        self._pictures = pictures
        self.ids = unordered[self._places]
        self.labels = table["label"].to_numpy()[self._places]
        self.groups = table["group"].to_numpy()[self._places]
        self.window = pictures.window

    def expect(self, rows: NDArray[np.int64]) -> None:
        """They are there."""

    def pixels(self, row: int) -> NDArray[np.uint8]:
        px = self._pictures.px
        cell = self._cells[int(self._places[row])].as_buffer()
        if self._pictures.decoded:
            return np.frombuffer(cell, np.uint8).reshape(3, px, px)
        return decode(cell.to_pybytes(), px)


@dataclass(frozen=True)
class StoredPictures:
    """Pictures in the shards.

    Attributes:
        folder: of the Parquet files.
        domain: sketches or photos.
        px: side of a picture.
        count: number of pictures.
        window: as of their table.
        logits: of the teacher; None where it has not judged these pictures.
    """

    folder: Folder
    domain: "Domain"
    px: int
    count: int
    window: int
    logits: "ray.ObjectRef[TeacherLogits] | None" = None

    def table(self) -> PictureTable:
        """Opens them in this process."""
        return _StoredTable(self)


class _StoredTable(_Judged):
    """Rows whose row groups are read when they are wanted; those of two windows are kept."""

    def __init__(self, pictures: StoredPictures) -> None:
        super().__init__(pictures.logits)
        self._pictures = pictures
        self._lock, self._pool = Lock(), ThreadPoolExecutor(_READERS)
        self._kept: OrderedDict[int, Future[pa.ChunkedArray]] = OrderedDict()
        names = pictures.folder.names()
        opened = list(self._pool.map(self._ids_of, names))
        self._metadata = dict(zip(names, (metadata for metadata, _ in opened), strict=True))
        self._sources = [
            (name, group)
            for name, metadata in self._metadata.items()
            for group in range(metadata.num_row_groups)
        ]
        self._sizes = [self._metadata[n].row_group(group).num_rows for n, group in self._sources]
        table = pa.concat_tables([columns for _, columns in opened])
        unordered = table["id"].to_numpy()
        self._places = np.argsort(unordered, kind="stable")
        self.ids = unordered[self._places]
        self.labels = table["label"].to_numpy()[self._places]
        self.groups = table["group"].to_numpy()[self._places]
        self.window = pictures.window
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._most_kept = 2 * (pictures.window + max(self._sizes))

    def _open(self, name: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        folder = self._pictures.folder
        path = f"{folder.path}/{name}"
        return pq.ParquetFile(path, filesystem=folder.filesystem, metadata=metadata)

    def _ids_of(self, name: str) -> tuple[pq.FileMetaData, pa.Table]:
        with self._open(name) as file:
            return file.metadata, file.read(["id", "label", "group"])

    def _read(self, group: int) -> pa.ChunkedArray:
        name, number = self._sources[group]
        with self._open(name, self._metadata[name]) as file:
            return file.read_row_group(number, ["encoded"])["encoded"]

    def _group(self, group: int) -> Future[pa.ChunkedArray]:
        """A row group that is read, or begins to be."""
        with self._lock:
            if group not in self._kept:
                self._kept[group] = self._pool.submit(self._read, group)
                while sum(self._sizes[kept] for kept in self._kept) > self._most_kept:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group]

    def _groups_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, places, side="right") - 1

    def expect(self, rows: NDArray[np.int64]) -> None:
        for group in np.unique(self._groups_of(self._places[rows])):
            self._group(int(group))

    def pixels(self, row: int) -> NDArray[np.uint8]:
        place = self._places[row]
        group = int(self._groups_of(place))
        cell = self._group(group).result()[int(place - self._starts[group])]
        return decode(cell.as_py(), self._pictures.px)


Pictures = HeldPictures | StoredPictures
"""The pictures of one split and domain; small enough to be sent to workers."""


def split_labels(
    seen_classes: Sequence[str], config: "DataConfig", validate: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The labels of the seen classes to train on, and of those held out to validate on.

    Whatever training and validation look at is chosen by these, from pictures of seen classes.

    Args:
        seen_classes: class of each label.
        config: how many are held out, and which.
        validate: whether any are.

    Raises:
        DataError: If so many cannot be held out.
    """
    held_out: tuple[str, ...] = ()
    if validate:
        chosen = config.validation_classes, config.validation_seed
        held_out = validation_classes(seen_classes, *chosen)
    is_held_out = np.isin(np.array(seen_classes), held_out)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def rows_of_classes(
    labels: NDArray[np.int64], classes: NDArray[np.int64], per_class: int | None = None
) -> NDArray[np.int64]:
    """The rows of some classes, ascending, at most `per_class` of each, spread over the class."""
    chosen = []
    for label in classes:
        rows = np.flatnonzero(labels == label)
        if per_class is not None and len(rows) > per_class:
            rows = rows[np.arange(per_class) * len(rows) // per_class]
        chosen.append(rows)
    return np.sort(np.concatenate(chosen))


def reading_order(table: PictureTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some rows in an order in which those lie together that the shards hold together."""
    return rows[np.argsort(table.groups[rows], kind="stable")]


def plain_batches(
    table: PictureTable, rows: NDArray[np.int64], size: int
) -> "Iterator[tuple[torch.Tensor, NDArray[np.int64]]]":
    """Unaugmented pictures for evaluation: uint8 `[n, 3, px, px]` and their rows, in order."""
    import torch

    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        yield torch.from_numpy(np.stack([table.pixels(row) for row in chosen])), chosen
