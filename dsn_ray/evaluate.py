"""mAP@all and Prec@100 of a checkpoint on unseen classes, or of features made elsewhere.

Examples:
    python -m dsn_ray.evaluate --checkpoint runs/NAME/final/openmoji-nature-seed0/CHECKPOINT
    python -m dsn_ray.evaluate --features features.npz --json rows.json
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np

from dsn_ray import cli
from dsn_ray.checkpoint import Checkpoint, open_checkpoint
from dsn_ray.config import Config
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import ray
    import torch
    from numpy.typing import NDArray
    from rich.console import Console

    from dsn_ray.data.pictures import Pictures
    from dsn_ray.data.shards import Shards
    from dsn_ray.model.weights import ImagenetWeights
    from dsn_ray.runtime import Resources, Shape

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
class UnseenPictures:
    """Queries and gallery of a data set.

    Attributes:
        sketches: the queries.
        photos: the gallery, as the data set's lists have it.
        repeated: ids of the gallery's photos that are there a second time.
    """

    sketches: "Pictures"
    photos: "Pictures"
    repeated: "NDArray[np.int64]"


def load_unseen(shards: "Shards", px: int) -> UnseenPictures:
    """Puts the unseen classes' sketches and photos into the object store."""
    from dsn_ray.data.pictures import load_pictures

    return UnseenPictures(
        load_pictures(shards, "unseen", "sketch", px),
        load_pictures(shards, "unseen", "photo", px),
        shards.repeats("unseen", "photo"),
    )


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    unseen: UnseenPictures,
    resources: "Resources",
    itq: Itq = PROTOCOLS_OWN,
    training: "Pictures | None" = None,
) -> list[Row]:
    """Rates the checkpoint's embedding, as `dsn_ray.retrieval.evaluate_features` does.

    Args:
        checkpoint: the network.
        unseen: queries and gallery.
        resources: what embeds them.
        itq: how binary codes are made.
        training: the photos that ITQ is fitted on, where `itq` says so.

    Returns:
        Rows of the gallery as it is listed, and where it repeats photos also rows of each photo
        once, which have `deduplicated: True`.
    """
    import ray

    state = ray.put(checkpoint.network_state())
    return _rate(
        unseen,
        resources,
        {
            "config": checkpoint.config,
            "num_classes": len(checkpoint.classes),
            "state": state,
            "weights": None,
        },
        itq,
        training,
    )


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
) -> list[Row]:
    from dsn_ray.retrieval import evaluate_features

    queries = _features(unseen.sketches, resources, network)
    gallery = _features(unseen.photos, resources, network)
    basis = _features(training, resources, network).values if training else itq.fit

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
        if once.all():
            return listed
        return listed + [{**row, "deduplicated": True} for row in rows(once)]
    except ValueError as error:
        raise UserError(f"The unseen pictures cannot be rated: {error}.") from None


class _Features(NamedTuple):
    """Of `n` pictures, in the order of their ids."""

    values: "NDArray[np.float32]"
    labels: "NDArray[np.int64]"
    ids: "NDArray[np.int64]"


def _features(pictures: "Pictures", resources: "Resources", network: dict[str, Any]) -> _Features:
    """Embeds all pictures with a Ray Data job; batches never depend on the cluster's size."""
    import ray.data

    starts = [{"start": start} for start in range(0, pictures.count, _BATCH)]
    blocks = min(len(starts), 4 * resources.workers)
    embedded = ray.data.from_items(starts, override_num_blocks=blocks).map_batches(
        _Embedder,
        fn_constructor_kwargs={
            "pictures": pictures,
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

    def column(name: str, kind: type) -> "NDArray[Any]":
        return np.concatenate([np.frombuffer(chunk[name], kind) for chunk in chunks])

    ids = column("ids", np.int64)
    order = np.argsort(ids, kind="stable")
    values = column("features", np.float32).reshape(len(ids), -1)
    return _Features(values[order], column("labels", np.int64)[order], ids[order])


class _Embedder:
    """Holds a network and the pictures; maps where a chunk starts to its features."""

    def __init__(
        self,
        pictures: "Pictures",
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
        self.table = pictures.table()
        self.rows = reading_order(self.table, np.arange(len(self.table.ids)))
        self.is_photo = int(pictures.domain == "photo")
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

        start = int(chunk["start"][0])
        rows = self.rows[start : start + _BATCH]
        ((pictures, _),) = plain_batches(self.table, rows, _BATCH)
        is_photo = torch.full((len(rows),), self.is_photo, device=self.device)
        embed = self.network.embed if self.trained else self.network.trunk
        with torch.inference_mode():
            features = embed(pictures.to(self.device), is_photo).float().cpu().numpy()
        return {
            "start": [start],
            "features": [features.tobytes()],
            "labels": [self.table.labels[rows].astype(np.int64).tobytes()],
            "ids": [self.table.ids[rows].astype(np.int64).tobytes()],
        }


def run_evaluation(
    checkpoint: Path | str,
    data: "tuple[str, str | None] | None" = None,
    *,
    itq: Itq = PROTOCOLS_OWN,
    dedupe: bool = False,
    **shape: Any,
) -> list[Row]:
    """Rates a checkpoint on the unseen classes of a data set.

    Args:
        checkpoint: its folder.
        data: name and folder of the data set; None for the one it was trained on.
        itq: how binary codes are made.
        dedupe: count each photo of the gallery once, however often the lists name it.
        shape: fields of `dsn_ray.runtime.Shape`.

    Returns:
        One row per codes, protocol and metric.

    Raises:
        UserError: If the checkpoint or the data set cannot be used.
    """
    from dsn_ray.runtime import Shape

    with cli.quiet_log("evaluate") as console:
        opened = open_checkpoint(Path(checkpoint))
        return _evaluate(opened, data, itq, dedupe, Shape(**shape), console)


def _evaluate(
    opened: Checkpoint,
    data: "tuple[str, str | None] | None",
    itq: Itq,
    dedupe: bool,
    shape: "Shape",
    console: "Console",
) -> list[Row]:
    from dsn_ray.data.pictures import load_pictures
    from dsn_ray.data.shards import locate, open_shards
    from dsn_ray.runtime import allot, ray_cluster

    found = locate(*(data or (opened.data, opened.root)))
    if opened.config.network.weights == "none":
        console.print(cli.RANDOM_WEIGHTS)
    if trained_on := sorted(set(opened.classes) & set(found.unseen_classes)):
        console.print(
            f"{len(trained_on)} of the {len(found.unseen_classes)} unseen classes are classes that "
            f"this checkpoint was trained on, so this is not zero-shot: {', '.join(trained_on)}.",
            soft_wrap=True,
        )
    with ray_cluster():
        resources = allot(shape, console)
        shards, px = open_shards(found), opened.config.data.px
        console.print(str(shards), soft_wrap=True)
        training = load_pictures(shards, "seen", "photo", px) if itq.fit == "training" else None
        rows = evaluate_checkpoint(opened, load_unseen(shards, px), resources, itq, training)
    once = [row for row in rows if row.get("deduplicated")]
    return once if dedupe and once else [row for row in rows if row not in once]


def rate_features_file(path: Path, itq: Itq = PROTOCOLS_OWN) -> list[Row]:
    """Rates features from an `.npz` file.

    Args:
        path: holds `query_features [Q, D]`, `query_labels [Q]`, `gallery_features [G, D]` and
            `gallery_labels [G]`; for binary codes fitted on them also `training_features [N, D]`.
        itq: how binary codes are made.

    Raises:
        UserError: If the file cannot be read, or an array is missing or does not fit.
    """
    from dsn_ray.retrieval import evaluate_features

    names = ["query_features", "query_labels", "gallery_features", "gallery_labels"]
    if itq.fit == "training":
        names.append("training_features")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in names]
        basis = arrays.pop() if itq.fit == "training" else itq.fit
        return evaluate_features(*arrays, itq_variant=itq.variant, itq_fit=basis)
    except KeyError as error:
        missing = str(error.args[0]).split(" ")[0]
        raise UserError(
            f"--features {path}: {missing} is missing; the file must hold {', '.join(names)}."
        ) from None
    except (TypeError, EOFError, BadZipFile):
        raise UserError(f"--features {path}: not an .npz file.") from None
    except OSError as error:
        raise UserError(f"--features {path}: {error.strerror or 'not an .npz file'}.") from None
    except ValueError as error:
        raise UserError(f"--features {path}: {str(error).rstrip('.')}.") from None


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.evaluate")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="C", help="folder of a checkpoint")
    what.add_argument("--features", type=Path, metavar="F.npz", help="features to rate")
    cli.add_data_argument(parser)
    parser.add_argument(
        "--itq", choices=("textbook", "release"), help="(release in published, else textbook)"
    )
    parser.add_argument(
        "--itq-fit",
        choices=("queries", "gallery", "training"),
        help="what binary codes are fitted on (queries in published, else gallery)",
    )
    parser.add_argument(
        "--dedupe", action="store_true", help="count a photo that lists name twice once"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here")
    cli.add_shape_arguments(parser)
    return parser


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    cli.check_file(parsed.json, "--json")
    itq = Itq(parsed.itq, parsed.itq_fit)
    if parsed.features:
        if parsed.dedupe:
            raise UserError("--dedupe needs --checkpoint: features do not say what repeats.")
        rows = rate_features_file(parsed.features, itq)
    else:
        data = cli.parse_data(parsed.data)
        if len(data) > 1:
            raise UserError("--data: evaluate takes one data set at a time.")
        opened, shape = open_checkpoint(parsed.checkpoint), cli.shape_of(parsed)
        with cli.quiet_log("evaluate") as console:
            rows = _evaluate(opened, data[0] if data else None, itq, parsed.dedupe, shape, console)
    if parsed.json:
        parsed.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    _print(rows)


def _print(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("codes", "protocol", "metric", "value", "queries", "gallery", "ties")
    meaningless = False
    for row in rows:
        small = row["metric"].startswith("Prec@") and row["gallery"] <= int(row["metric"][5:])
        meaningless |= small
        table.add_row(
            *(row["codes"], row["protocol"], row["metric"]),
            f"{row['value']:.4f}{'*' * small}",
            *(str(row["queries"]), str(row["gallery"]), row["ties"]),
        )
    Console().print(table)
    if meaningless:
        Console().print("* The gallery has no more than K items, so this number means nothing.")


if __name__ == "__main__":
    sys.exit(main())
