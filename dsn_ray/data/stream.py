"""Pictures from Ray's object store to batches of paired sketch and photo views.

Ray Data reads and decodes the pictures of a data set once; all trainings share the result. A
worker draws an epoch's order from (seed, epoch) alone, every step of it a row of a small Ray
Dataset whose collate stage makes the views in parallel with training. The order is that of the
whole batch, of which each worker takes its part, so that the sequence of batches does not depend
on the number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from dsn_ray.config import AugmentConfig
from dsn_ray.data.shards import Shards
from dsn_ray.data.views import decode, three_views

if TYPE_CHECKING:
    import pyarrow as pa

    from dsn_ray.data.catalog import Domain, Split

_SHARE_OF_STORE = 0.3
_PREFETCHED_STEPS = 2


class TeacherLogits(NamedTuple):
    """What the frozen teacher says of a split's pictures of one domain."""

    ids: NDArray[np.int64]
    """`[n]` place in the catalogue, ascending"""
    logits: NDArray[np.float16]
    """`[n, 1000]`"""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split and domain in the object store.

    Attributes:
        blocks: references to tables with `id`, `label` and `picture`, and `teacher` for pictures
            that the teacher has judged.
        domain: sketch or photo.
        px: side of a picture.
        decoded: whether `picture` holds pixels, uint8 [3, px, px]; else encoded bytes.
        count: number of pictures.
    """

    blocks: list["ray.ObjectRef[pa.Table]"]
    domain: "Domain"
    px: int
    decoded: bool
    count: int


def load_pictures(
    shards: Shards,
    split: "Split",
    domain: "Domain",
    px: int,
    teacher: "TeacherLogits | None" = None,
) -> Pictures:
    """Reads pictures into the object store, decoded where a third of any node's can hold them.

    A worker maps all of them, so that each node comes to hold a copy.

    Args:
        shards: the data set.
        split: which of its classes.
        domain: sketches or photos.
        px: side that training or evaluation wants.
        teacher: logits of the pictures, added as the column `teacher`.
    """
    count = shards.counts[f"{split}/{domain}"]
    store = min(
        node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]
    )
    decoded = count * 3 * px * px < _SHARE_OF_STORE * store
    rows = shards.rows(split, domain).select_columns(["id", "label", "encoded"])
    rows = rows.rename_columns({"encoded": "picture"})
    if decoded:
        rows = rows.map_batches(
            _decoded, fn_kwargs={"px": px}, batch_size=64, batch_format="pyarrow"
        )
    if teacher is not None:
        rows = rows.map_batches(
            _with_teacher,
            fn_kwargs={"teacher": ray.put(teacher)},
            batch_size=1024,
            batch_format="pyarrow",
        )
    return Pictures(rows.materialize().to_arrow_refs(), domain, px, decoded, count)


def _decoded(rows: "pa.Table", px: int) -> "pa.Table":
    import pyarrow as pa

    pixels = [decode(encoded.as_py(), px).tobytes() for encoded in rows["picture"]]
    place = rows.column_names.index("picture")
    return rows.set_column(place, "picture", pa.array(pixels, pa.binary()))


def _with_teacher(rows: "pa.Table", teacher: "ray.ObjectRef[TeacherLogits]") -> "pa.Table":
    import pyarrow as pa

    known = ray.get(teacher)
    chosen = known.logits[np.searchsorted(known.ids, rows["id"].to_numpy())]
    return rows.append_column("teacher", pa.array([row.tobytes() for row in chosen], pa.binary()))


class PictureTable:
    """A worker's view of `Pictures`, by row number in the order of `id`.

    Attributes:
        ids: `[n]` place in the catalogue, ascending.
        labels: `[n]` label in the split's class list.
    """

    def __init__(self, pictures: Pictures) -> None:
        """Maps the shared blocks into this process, without a copy."""
        import pyarrow as pa

        table = pa.concat_tables(ray.get(pictures.blocks))
        unordered = table["id"].to_numpy()
        self._places = np.argsort(unordered, kind="stable")
        self._columns = {name: table[name] for name in table.column_names}
        self._pictures = pictures
        self.ids = unordered[self._places]
        self.labels = table["label"].to_numpy()[self._places]

    @property
    def is_judged(self) -> bool:
        """Whether the teacher's logits are there."""
        return "teacher" in self._columns

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """One picture, uint8 `[3, px, px]`."""
        px = self._pictures.px
        cell = self._columns["picture"][int(self._places[row])].as_buffer()
        if self._pictures.decoded:
            return np.frombuffer(cell, np.uint8).reshape(3, px, px)
        return decode(cell.to_pybytes(), px)

    def teacher(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Teacher logits of some rows, float32 `[len(rows), 1000]`."""
        cells = (self._columns["teacher"][int(place)].as_buffer() for place in self._places[rows])
        return torch.from_numpy(np.stack([np.frombuffer(c, np.float16) for c in cells])).float()


class Batch(NamedTuple):
    """One worker's part of a training batch."""

    sketch_views: torch.Tensor
    """uint8 `[S, 3 views, 3, px, px]`"""
    sketch_labels: torch.Tensor
    """`[S]` over the training classes"""
    photo_views: torch.Tensor
    """uint8 `[P, 3 views, 3, px, px]`"""
    photo_labels: torch.Tensor
    """`[P]` over the training classes"""
    teacher_logits: torch.Tensor | None
    """float32 `[P, 1000]`, or `[S + P, 1000]` where sketches learn from the teacher too; None where
    the teacher is asked in training"""


def draw_epoch(
    pool: NDArray[np.int64], per_batch: int, steps: int, seed: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Chooses the rows of each step: one random order after another, each of the whole pool.

    Args:
        pool: the rows to draw from.
        per_batch: rows per step.
        steps: number of steps.
        seed: the same seed gives the same epoch.

    Returns:
        `[steps, per_batch]` rows, and which passage through the pool each belongs to.
    """
    passages = -(-steps * per_batch // len(pool))
    orders = [np.random.default_rng((*seed, p)).permutation(pool) for p in range(passages)]
    rows = np.concatenate(orders)[: steps * per_batch].reshape(steps, per_batch)
    passage = np.arange(steps * per_batch).reshape(steps, per_batch) // len(pool)
    return rows, passage


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


class PairStream:
    """Batches of sketches and photos, drawn independently and uniformly from some classes."""

    def __init__(
        self,
        sketches: PictureTable,
        photos: PictureTable,
        classes: NDArray[np.int64],
        *,
        sketches_per_batch: int,
        photos_per_batch: int,
        epoch_ends: Literal["shorter", "longer"],
        per_class: int | None,
        augment: AugmentConfig,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Plans for one of `world` workers.

        Args:
            sketches: of all seen classes.
            photos: of all seen classes.
            classes: `[C]` the labels to train on; a batch's labels are places in this list.
            sketches_per_batch: over all workers; a multiple of `world`.
            photos_per_batch: over all workers; a multiple of `world`.
            epoch_ends: with the shorter domain, or with the longer while the shorter repeats.
            per_class: rows of each class and domain to draw from; None for all.
            augment: the random views.
            seed: decides order and augmentation.
            rank: this worker.
            world: the number of workers.
        """
        self._tables = {"sketch": sketches, "photo": photos}
        self._per_batch = {"sketch": sketches_per_batch, "photo": photos_per_batch}
        self._pools = {
            domain: rows_of_classes(table.labels, classes, per_class)
            for domain, table in self._tables.items()
        }
        self._training_label = np.full(int(classes.max()) + 1, -1)
        self._training_label[classes] = np.arange(len(classes))
        full_batches = [len(self._pools[d]) // self._per_batch[d] for d in self._tables]
        self.steps = max(1, min(full_batches) if epoch_ends == "shorter" else max(full_batches))
        self._augment, self._seed, self._rank, self._world = augment, seed, rank, world

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch; the same number gives the same batches again."""
        rows, passages = {}, {}
        for code, domain in enumerate(self._tables):
            each = self._per_batch[domain] // self._world
            part = slice(self._rank * each, (self._rank + 1) * each)
            drawn = draw_epoch(
                self._pools[domain],
                self._per_batch[domain],
                self.steps,
                (self._seed, number, code),
            )
            rows[domain], passages[domain] = drawn[0][:, part], drawn[1][:, part]

        def collate(step: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
            s = int(step["step"][0])
            made = {}
            for domain in self._tables:
                views, labels = self._views(domain, rows[domain][s], passages[domain][s], number)
                made[f"{domain}_views"], made[f"{domain}_labels"] = views, labels
            judged = [t.teacher(rows[d][s]) for d, t in self._tables.items() if t.is_judged]
            if judged:
                made["teacher_logits"] = torch.cat(judged)
            return made

        # from_items starts no task, which would wait for ever where the workers hold every CPU.
        steps = ray.data.from_items([{"step": s} for s in range(self.steps)], override_num_blocks=1)
        steps.context.execution_options.preserve_order = True
        for batch in steps.iter_torch_batches(
            batch_size=1, collate_fn=collate, prefetch_batches=_PREFETCHED_STEPS
        ):
            yield Batch(**{"teacher_logits": None, **batch})

    def _views(
        self, domain: str, rows: NDArray[np.int64], passages: NDArray[np.int64], epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        table = self._tables[domain]
        views = [
            three_views(
                table.pixels(row),
                domain == "sketch",
                np.random.default_rng((self._seed, epoch, int(passage), int(table.ids[row]))),
                self._augment,
            )
            for row, passage in zip(rows, passages, strict=True)
        ]
        labels = self._training_label[table.labels[rows]]
        return torch.from_numpy(np.stack(views)), torch.from_numpy(labels)


def plain_batches(
    table: PictureTable, rows: NDArray[np.int64], size: int
) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
    """Unaugmented pictures for evaluation: uint8 `[n, 3, px, px]` and their rows, in order."""
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        yield torch.from_numpy(np.stack([table.pixels(row) for row in chosen])), chosen
