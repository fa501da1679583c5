"""Pictures to batches of paired sketch and photo views.

A worker draws an epoch's order from (seed, epoch) alone, every step of it a row of a small Ray
Dataset whose collate stage makes the views in parallel with training. The order is that of the
whole batch, of which each worker takes its part, so that the sequence of batches does not depend
on the number of workers.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray

from dsn_ray.config import AugmentConfig
from dsn_ray.data.pictures import PictureTable, rows_of_classes
from dsn_ray.data.views import three_views

_PREFETCHED_STEPS = 2


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
    pool: NDArray[np.int64],
    per_batch: int,
    steps: int,
    seed: tuple[int, ...],
    groups: NDArray[np.int64],
    window: float = math.inf,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Chooses the rows of each step: one random order after another, each of the whole pool.

    Args:
        pool: the rows to draw from.
        per_batch: rows per step.
        steps: number of steps.
        seed: the same seed gives the same epoch.
        groups: which of them the shards hold together, `[len(pool)]`.
        window: a pool larger than this is mixed in two steps, as it could be read from the shards:
            groups are put into a random order and cut into windows of about so many rows, and the
            rows of each window are put into one.

    Returns:
        `[steps, per_batch]` rows, and which passage through the pool each belongs to.
    """
    passages = -(-steps * per_batch // len(pool))
    orders = [
        _order(pool, np.random.default_rng((*seed, passage)), groups, window)
        for passage in range(passages)
    ]
    rows = np.concatenate(orders)[: steps * per_batch].reshape(steps, per_batch)
    passage = np.arange(steps * per_batch).reshape(steps, per_batch) // len(pool)
    return rows, passage


def _order(
    pool: NDArray[np.int64],
    random: np.random.Generator,
    groups: NDArray[np.int64],
    window: float,
) -> NDArray[np.int64]:
    if len(pool) <= window:
        return random.permutation(pool)
    numbers, group_of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = random.permutation(len(numbers))
    rows_before = np.cumsum(sizes[order]) - sizes[order]
    window_of_group = np.empty(len(numbers))
    window_of_group[order] = rows_before // window
    mixed = random.permutation(len(pool))
    return pool[mixed[np.argsort(window_of_group[group_of_row[mixed]], kind="stable")]]


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
        self._groups = {d: t.groups[self._pools[d]] for d, t in self._tables.items()}
        self._windows = {
            d: t.window * len(self._pools[d]) / len(t.ids) for d, t in self._tables.items()
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
                self._groups[domain],
                self._windows[domain],
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
