"""Pictures to batches of paired sketch and photo views.

A worker draws an epoch's order from (seed, epoch) alone, every step of it a row of a small Ray
Dataset. Beside a GPU its collate stage makes the views in parallel with training: in the worker's
own threads, or in processes, which do not wait for each other as Python's threads do. Without one
they are made between the steps, which want all CPUs themselves. The order is that of the whole
batch, of which each worker takes its part, so that the sequence of batches does not depend on the
number of workers.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray

from dsn_ray.config import AugmentConfig
from dsn_ray.data.batch import Batch, Draws
from dsn_ray.data.pictures import Pictures, PictureTable, reading_order, rows_of_classes
from dsn_ray.data.views import draw_views, random_views

_PREFETCHED_STEPS = 2
_EXPECTED_STEPS = 16  # ahead of a step, pictures that lie in the shards begin to be read


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


class Drawn(NamedTuple):
    """One worker's rows of one domain in a step."""

    rows: NDArray[np.int64]
    """`[n]`"""
    passages: NDArray[np.int64]
    """`[n]` passage through the pool that each belongs to"""


class ViewMaker:
    """Makes the views of a step's pictures; what chance they take depends on nothing else."""

    def __init__(
        self,
        tables: Mapping[str, PictureTable | Pictures],
        augment: AugmentConfig | None,
        augmented: int,
        seed: int,
    ) -> None:
        """Opens the tables of both domains, where they are not open already.

        Args:
            tables: by domain.
            augment: the random views; None gives the pictures as they are instead.
            augmented: views of each picture beside the first.
            seed: of the training.
        """
        self._tables: dict[str, PictureTable] = {
            domain: table.table() if isinstance(table, Pictures) else table
            for domain, table in tables.items()
        }
        self._augment, self._augmented, self._seed = augment, augmented, seed

    def views(
        self, step: Mapping[str, Drawn], epoch: int, soon: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, NDArray[np.uint8]]:
        """The views of each domain's pictures, uint8 `[n, V views, 3, px, px]`.

        Args:
            step: the pictures.
            epoch: its number.
            soon: rows of each domain that a later step will want.
        """
        for wanted in ({domain: drawn.rows for domain, drawn in step.items()}, soon):
            for domain, rows in wanted.items():
                self._tables[domain].expect(rows)
        return {domain: self._views(domain, drawn, epoch) for domain, drawn in step.items()}

    def _views(self, domain: str, drawn: Drawn, epoch: int) -> NDArray[np.uint8]:
        table = self._tables[domain]
        pictures = map(table.pixels, drawn.rows)
        if self._augment is None:
            return np.stack(list(pictures))[:, None]
        chances = chances_of(table, drawn, self._seed, epoch)
        return np.stack(
            [
                random_views(picture, domain == "sketch", chance, self._augment, self._augmented)
                for picture, chance in zip(pictures, chances, strict=True)
            ]
        )


def chances_of(
    table: PictureTable, drawn: Drawn, seed: int, epoch: int
) -> Iterator[np.random.Generator]:
    """What decides the views of each picture of a step."""
    for row, passage in zip(*drawn, strict=True):
        yield np.random.default_rng((seed, epoch, int(passage), int(table.ids[row])))


class Decoders:
    """Processes on this node that make views for one worker.

    Each has a share of the pictures, those that lie together in the shards, and reads no others.
    """

    def __init__(
        self,
        count: int,
        pictures: Mapping[str, Pictures],
        tables: Mapping[str, PictureTable],
        augment: AugmentConfig | None,
        augmented: int,
        seed: int,
    ) -> None:
        """Starts `count` processes, which end with the worker.

        Args:
            count: number of processes.
            pictures: what they open, by domain.
            tables: the same, open.
            augment: as of `ViewMaker`.
            augmented: as of `ViewMaker`.
            seed: as of `ViewMaker`.
        """
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        # They take none of the cluster's CPUs: the worker whose they are has them already.
        start = ray.remote(ViewMaker).options(num_cpus=0, label_selector=here).remote
        self._makers = [start(pictures, augment, augmented, seed) for _ in range(count)]
        self._owners = {}
        for domain, table in tables.items():
            rows = reading_order(table, np.arange(len(table.ids)))
            self._owners[domain] = np.empty_like(rows)
            self._owners[domain][rows] = np.arange(len(rows)) * count // len(rows)

    def __len__(self) -> int:
        """The number of processes."""
        return len(self._makers)

    def views(
        self, step: Mapping[str, Drawn], epoch: int, soon: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, NDArray[np.uint8]]:
        """The views of a step, as `ViewMaker.views` makes them."""
        owners = {domain: self._owners[domain][drawn.rows] for domain, drawn in step.items()}
        asked = {}
        for number, maker in enumerate(self._makers):
            part = {
                domain: Drawn(*(values[mine] for values in drawn))
                for domain, drawn in step.items()
                if (mine := owners[domain] == number).any()
            }
            later = {d: rows[self._owners[d][rows] == number] for d, rows in soon.items()}
            if part or any(map(len, later.values())):
                asked[number] = maker.views.remote(part, epoch, later)
        made: dict[str, NDArray[np.uint8]] = {}
        for number, answer in asked.items():
            for domain, views in ray.get(answer).items():
                shape = (len(step[domain].rows), *views.shape[1:])
                made.setdefault(domain, np.empty(shape, np.uint8))[owners[domain] == number] = views
        return made


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
        augmented: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        decoders: Decoders | None = None,
        on_device: bool = False,
        pinned: bool = False,
        name: str = "pairs",
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
            augmented: views of each picture beside the first.
            seed: decides order and augmentation.
            rank: this worker.
            world: the number of workers.
            decoders: make the views, from the same pictures; None for this process's threads.
            on_device: batches bring pictures, and what chance has drawn for their views; decoders
                have no `augment` then.
            pinned: batches lie in memory that a GPU copies from by itself, made while it trains.
            name: of its Datasets in Ray's dashboard.
        """
        self._name = name
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
        self._seed, self._rank, self._world = seed, rank, world
        self._augment, self._augmented, self._on_device = augment, augmented, on_device
        self._pinned = pinned
        self._maker = decoders or ViewMaker(
            self._tables, None if on_device else augment, augmented, seed
        )
        self._ahead = _PREFETCHED_STEPS + len(decoders or ())
        # Where the CPUs that would make views train as well, a thread that takes one from torch's
        # has all of these wait: it costs three times what it does.
        self._beside = pinned or decoders is not None

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch; the same number gives the same batches again."""
        drawn: dict[str, list[Drawn]] = {}
        for code, domain in enumerate(self._tables):
            each = self._per_batch[domain] // self._world
            part = slice(self._rank * each, (self._rank + 1) * each)
            rows, passages = draw_epoch(
                self._pools[domain],
                self._per_batch[domain],
                self.steps,
                (self._seed, number, code),
                self._groups[domain],
                self._windows[domain],
            )
            drawn[domain] = list(map(Drawn, rows[:, part], passages[:, part]))

        def made(s: int) -> dict[str, torch.Tensor]:
            step = {domain: steps[s] for domain, steps in drawn.items()}
            later = min(s + _EXPECTED_STEPS, self.steps - 1)
            soon = {domain: steps[later].rows for domain, steps in drawn.items()}
            return self._made(number, step, soon)

        def collate(chosen: dict[str, NDArray[Any]]) -> Any:
            s = int(chosen["step"][0])
            return made(s) if self._beside else s

        # from_items starts no task, which would wait for ever where the workers hold every CPU.
        steps = ray.data.from_items([{"step": s} for s in range(self.steps)], override_num_blocks=1)
        steps.set_name(f"{self._name}-epoch{number + 1}")
        steps.context.execution_options.preserve_order = True
        for collated in steps.iter_torch_batches(
            batch_size=1,
            collate_fn=collate,
            prefetch_batches=self._ahead,
            # Ray would move all of a batch to the GPU, and `views_on_device` wait for the draws.
            device="cpu" if self._on_device else "auto",
        ):
            batch = collated if self._beside else made(collated)
            draws = {
                f"{domain}_draws": Draws(*(batch.pop(f"{domain}_{name}") for name in Draws._fields))
                for domain in self._tables
                if self._on_device
            }
            yield Batch(**{"teacher_logits": None, **batch, **draws})

    def _made(
        self, epoch: int, step: dict[str, Drawn], soon: dict[str, NDArray[np.int64]]
    ) -> dict[str, torch.Tensor]:
        """The fields of a step's batch, those of `Draws` one by one."""
        made = {}
        for domain, views in self._maker.views(step, epoch, soon).items():
            labels = self._training_label[self._tables[domain].labels[step[domain].rows]]
            made[f"{domain}_views"] = torch.from_numpy(views)
            made[f"{domain}_labels"] = torch.from_numpy(labels)
            if self._on_device:
                draws = self._draws(domain, step[domain], epoch)
                made.update({f"{domain}_{name}": one for name, one in draws.items()})
        judged = [t.teacher(step[d].rows) for d, t in self._tables.items() if t.is_judged]
        if judged:
            made["teacher_logits"] = torch.cat(judged)
        if self._pinned:
            made = {name: values.pin_memory() for name, values in made.items()}
        return made

    def _draws(self, domain: str, drawn: Drawn, epoch: int) -> dict[str, torch.Tensor]:
        """The fields of `Draws`."""
        chances = chances_of(self._tables[domain], drawn, self._seed, epoch)
        each = [draw_views(chance, self._augment, self._augmented) for chance in chances]
        fields = zip(Draws._fields, zip(*each, strict=True), strict=True)
        return {name: torch.from_numpy(np.stack(values)) for name, values in fields}
