"""Embeds the unseen pictures of a data set and rates the search among them, as a Ray Data job."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from dsn_ray.checkpoint import Checkpoint
from dsn_ray.config import Config
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import ray
    import torch
    from numpy.typing import NDArray

    from dsn_ray.data.pictures import Pictures, PictureTable
    from dsn_ray.data.shards import Shards
    from dsn_ray.model.weights import ImagenetWeights
    from dsn_ray.room import Resources

Row = dict[str, Any]
_BATCH = 64


@dataclass(frozen=True)
class Itq:
    """How binary codes are made, where it is not as each protocol says.

    Attributes:
        variant: of `dsn_ray.retrieval.fit_itq`.
        fit: what it is fitted on.
    """

    variant: Literal["textbook", "release"] | None = None
    fit: Literal["queries", "gallery", "training"] | None = None


PROTOCOLS_OWN = Itq()


@dataclass(frozen=True)
class Embedded:
    """Features of pictures, in the order of their ids.

    Attributes:
        pictures: all of them, and perhaps more.
        values: float32 `[n, d]`.
        labels: `[n]`.
        ids: `[n]`.
    """

    pictures: "Pictures"
    values: "NDArray[np.float32]"
    labels: "NDArray[np.int64]"
    ids: "NDArray[np.int64]"

    def where(self, kept: "NDArray[np.bool_]") -> "Embedded":
        """Some of them, by a flag `[n]` each."""
        return Embedded(self.pictures, self.values[kept], self.labels[kept], self.ids[kept])


Look = Callable[[Embedded, Embedded], object]


@dataclass(frozen=True)
class UnseenPictures:
    """Queries and gallery of a data set.

    Attributes:
        sketches: the queries.
        photos: the gallery, as the data set's lists have it.
        repeated: ids of the gallery's photos that are there a second time.
        classes: name of each label.
    """

    sketches: "Pictures"
    photos: "Pictures"
    repeated: "NDArray[np.int64]"
    classes: tuple[str, ...]


def load_unseen(shards: "Shards", px: int) -> UnseenPictures:
    """Puts the unseen classes' sketches and photos into the object store."""
    from dsn_ray.data.pictures import load_pictures

    return UnseenPictures(
        load_pictures(shards, "unseen", "sketch", px),
        load_pictures(shards, "unseen", "photo", px),
        shards.repeats("unseen", "photo"),
        shards.unseen_classes,
    )


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    unseen: UnseenPictures,
    resources: "Resources",
    itq: Itq = PROTOCOLS_OWN,
    training: "Pictures | None" = None,
    look: Look | None = None,
) -> list[Row]:
    """Rates the checkpoint's embedding, as `dsn_ray.retrieval.evaluate_features` does.

    Args:
        checkpoint: the network.
        unseen: queries and gallery.
        resources: what embeds them.
        itq: how binary codes are made.
        training: the photos that ITQ is fitted on, where `itq` says so.
        look: is shown queries and gallery, each photo once.

    Returns:
        Rows of the gallery as it is listed, and where it repeats photos also rows of each photo
        once, which have `deduplicated: True`.
    """
    import ray

    network = {
        "config": checkpoint.config,
        "num_classes": len(checkpoint.classes),
        "state": ray.put(checkpoint.network_state()),
        "weights": None,
    }
    return _rate(unseen, resources, network, itq, training, look)


def evaluate_untrained(
    config: Config,
    unseen: UnseenPictures,
    weights: "ray.ObjectRef[ImagenetWeights | None]",
    resources: "Resources",
) -> list[Row]:
    """Rates the trunk's real-valued features before any training."""
    return _rate(
        unseen,
        resources,
        {"config": config, "num_classes": 1, "state": None, "weights": weights},
    )


def _rate(
    unseen: UnseenPictures,
    resources: "Resources",
    network: dict[str, Any],
    itq: Itq = PROTOCOLS_OWN,
    training: "Pictures | None" = None,
    look: Look | None = None,
) -> list[Row]:
    from dsn_ray.retrieval import evaluate_features

    pictures = [unseen.sketches, unseen.photos, *([training] if training else [])]
    queries, gallery, *rest = _features(pictures, resources, network)
    basis = rest[0].values if rest else itq.fit

    def rows(kept: "NDArray[np.bool_]") -> list[Row]:
        return evaluate_features(
            *(queries.values, queries.labels, gallery.values[kept], gallery.labels[kept]),
            binary=network["state"] is not None,
            itq_variant=itq.variant,
            itq_fit=basis,
        )

    once = ~np.isin(gallery.ids, unseen.repeated)
    try:
        listed = rows(np.ones_like(once))
        if look:
            look(queries, gallery.where(once))
        if once.all():
            return listed
        return listed + [{**row, "deduplicated": True} for row in rows(once)]
    except ValueError as error:
        raise UserError(f"The unseen pictures cannot be rated: {error}.") from None


def _features(
    sides: "Sequence[Pictures]", resources: "Resources", network: dict[str, Any]
) -> list[Embedded]:
    """Embeds all pictures with one Ray Data job; batches never depend on the cluster's size."""
    import ray.data

    starts = [
        {"side": side, "start": start}
        for side, pictures in enumerate(sides)
        for start in range(0, pictures.count, _BATCH)
    ]
    blocks = min(len(starts), 4 * resources.workers)
    embedded = ray.data.from_items(starts, override_num_blocks=blocks).map_batches(
        _Embedder,
        fn_constructor_kwargs={
            "sides": sides,
            "threads": resources.threads,
            "device": resources.device,
            **network,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=resources.workers),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
    )
    chunks = sorted(embedded.take_all(), key=lambda chunk: int(chunk["start"]))
    return [
        _joined(pictures, [chunk for chunk in chunks if chunk["side"] == side])
        for side, pictures in enumerate(sides)
    ]


def _joined(pictures: "Pictures", chunks: list[dict[str, Any]]) -> Embedded:
    def column(name: str, kind: type) -> "NDArray[Any]":
        return np.concatenate([np.frombuffer(chunk[name], kind) for chunk in chunks])

    ids = column("ids", np.int64)
    order = np.argsort(ids, kind="stable")
    values = column("features", np.float32).reshape(len(ids), -1)
    return Embedded(pictures, values[order], column("labels", np.int64)[order], ids[order])


class _Side(NamedTuple):
    """Pictures in the order in which they are read."""

    table: "PictureTable"
    rows: "NDArray[np.int64]"
    is_photo: int


class _Embedder:
    """Holds a network and the pictures; maps where a chunk starts to its features."""

    def __init__(
        self,
        sides: "Sequence[Pictures]",
        threads: int,
        device: str,
        config: Config,
        num_classes: int,
        state: "ray.ObjectRef[dict[str, torch.Tensor]] | None",
        weights: "ray.ObjectRef[ImagenetWeights | None] | None",
    ) -> None:
        import ray
        import torch

        from dsn_ray.checkpoint import network_of
        from dsn_ray.data.pictures import reading_order
        from dsn_ray.model import build_network

        torch.set_num_threads(threads)
        torch.manual_seed(config.train.seed)
        self.sides = []
        for pictures in sides:
            table = pictures.table()
            rows = reading_order(table, np.arange(len(table.ids)))
            self.sides.append(_Side(table, rows, int(pictures.domain == "photo")))
        self.trained = state is not None
        self.device = device
        if state is None:
            network = build_network(
                config.network, num_classes, ray.get(weights) if weights else None
            )
        else:
            network = network_of(config, num_classes, ray.get(state))
        self.network = network.to(self.device).eval()

    def __call__(self, chunk: "dict[str, NDArray[Any]]") -> dict[str, list[Any]]:
        import torch

        from dsn_ray.data.pictures import plain_batches

        number, start = int(chunk["side"][0]), int(chunk["start"][0])
        side = self.sides[number]
        rows = side.rows[start : start + _BATCH]
        ((pictures, _),) = plain_batches(side.table, rows, _BATCH)
        is_photo = torch.full((len(rows),), side.is_photo, device=self.device)
        embed = self.network.embed if self.trained else self.network.trunk
        with torch.inference_mode():
            features = embed(pictures.to(self.device), is_photo).float().cpu().numpy()
        return {
            "side": [number],
            "start": [start],
            "features": [features.tobytes()],
            "labels": [side.table.labels[rows].astype(np.int64).tobytes()],
            "ids": [side.table.ids[rows].astype(np.int64).tobytes()],
        }
