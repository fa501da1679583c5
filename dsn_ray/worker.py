"""What every Ray Train worker runs: its part of each batch, validation, checkpoints."""

import faulthandler
import json
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dsn_ray.config import OBJECTIVE, SEEN, Config
from dsn_ray.data.batch import AUGMENTED_VIEWS, Batch
from dsn_ray.data.pictures import (
    PictureTable,
    plain_batches,
    reading_order,
    rows_of_classes,
    split_labels,
)
from dsn_ray.data.stream import Decoders, PairStream
from dsn_ray.learner import LOSSES, Learner, losses_by_name
from dsn_ray.model import DsnNetwork, Teacher, build_network
from dsn_ray.model.norm import average_running_statistics, synchronise_batch_norm
from dsn_ray.retrieval import evaluate_features
from dsn_ray.retrieval.metrics import ALONE, Ranks
from dsn_ray.runtime import quiet_data

_STDERR = 2
_SEEN_PICTURES = 14_400  # of each domain, as many as the released code draws


def training_loop(job: dict[str, Any]) -> None:
    """What every worker runs; one that hangs is ended, so that Train replaces it."""
    watch = Watch(job["patience"])
    try:
        _train(job, watch)
    finally:
        watch.end()


class Watch:
    """Ends this process when it has not shown itself alive for some time.

    The watching is done below Python, so that it works whatever the process hangs in; where it
    hung is printed.
    """

    def __init__(self, patience: float) -> None:
        """Starts to watch.

        Args:
            patience: seconds.
        """
        self._patience = patience
        self.alive()

    def alive(self) -> None:
        """Starts the time anew."""
        faulthandler.dump_traceback_later(self._patience, exit=True, file=_STDERR)

    def end(self) -> None:
        """Stops watching."""
        faulthandler.cancel_dump_traceback_later()


def _train(job: dict[str, Any], watch: Watch) -> None:
    quiet_data()
    torch.set_num_threads(job["threads"])
    config, data = Config.model_validate(job["config"]), job["data"]
    contents = ray.get(data.contents)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    ranks = Ranks(rank, world, _parts_of_all) if world > 1 else ALONE

    classes, held_out_labels = split_labels(data.seen_classes, config.data, job["validate"])
    pictures = {"sketch": contents.sketches, "photo": contents.photos}
    tables = {domain: one.table() for domain, one in pictures.items()}
    sketches, photos = tables["sketch"], tables["photo"]
    augmented = AUGMENTED_VIEWS if config.loss.lambda1 else 0
    decoders = None
    if job["decoders"]:
        augment = None if config.speed.augment_on_device else config.augment
        views = (augment, augmented, config.train.seed)
        decoders = Decoders(job["decoders"], pictures, tables, *views)
    queries = sketches if contents.heldout is None else contents.heldout.table()
    stream = PairStream(
        sketches,
        photos,
        classes,
        sketches_per_batch=config.data.sketches_per_batch,
        photos_per_batch=config.data.photos_per_batch,
        epoch_ends=config.data.epoch,
        per_class=config.data.per_class,
        augment=config.augment,
        augmented=augmented,
        seed=config.train.seed,
        rank=rank,
        world=world,
        decoders=decoders,
        on_device=config.speed.augment_on_device,
        pinned=torch.cuda.is_available(),
        name=f"{context.get_experiment_name()}-worker{rank}",
    )

    torch.manual_seed(config.train.seed)
    network = build_network(config.network, len(classes), ray.get(contents.weights))
    device = ray.train.torch.get_device()
    joint_statistics = config.network.bn_statistics == "joint"
    if world > 1 and joint_statistics:
        synchronise_batch_norm(network, device)
    parallel = ray.train.torch.prepare_model(
        network, parallel_strategy_kwargs={"forward_sync_buffers": False} if world > 1 else None
    )
    learner = Learner(
        network,
        config,
        torch.from_numpy(contents.mask[classes]),
        stream.steps * config.train.epochs,
        parallel,
        Teacher.from_config(config.network, ray.get(contents.weights))
        if config.data.teacher_sees == "first_view"
        else None,
    )
    resumed = ray.train.get_checkpoint()
    if resumed:
        with resumed.as_directory() as folder:
            learner.load(Path(folder) / "state.pt")
            last = json.loads((Path(folder) / "about.json").read_text(encoding="utf-8"))
        ray.train.report(last["metrics"])  # nobody may have heard of it before the interruption
    about = {
        "data": data.name,
        "root": data.root,
        "config": job["config"],
        "classes": [data.seen_classes[label] for label in classes],
    }

    for epoch in range(learner.epoch, config.train.epochs):
        learner.begin_epoch()
        metrics: dict[str, float] = _one_epoch(learner, stream.epoch(epoch), config, watch)
        learner.epoch = epoch + 1
        if world > 1 and not joint_statistics:
            average_running_statistics(network)
        metrics["epoch"] = epoch + 1
        metrics["bank_fill"] = learner.bank.fill
        if device.type == "cuda":
            metrics["gpu_memory"] = torch.cuda.max_memory_allocated(device)
        if job["validate"]:
            sides = [(t, rows_of_classes(t.labels, held_out_labels)) for t in (sketches, photos)]
            which = "real", "standard"
            metrics[OBJECTIVE] = _map_of(sides, network, ranks, which, watch)
        if config.train.keep == "best_seen":
            each = max(1, _SEEN_PICTURES // len(classes))
            sides = [(t, rows_of_classes(t.labels, classes, each)) for t in (queries, photos)]
            which = "binary", "published"
            metrics[SEEN] = _map_of(sides, network, ranks, which, watch)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                learner.save(Path(folder) / "state.pt")
                text = json.dumps({**about, "metrics": metrics})
                (Path(folder) / "about.json").write_text(text, encoding="utf-8")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)
        if not all(ranks.gather(math.isfinite(metrics["loss_total"]))):
            break  # what has diverged does not come back


def _parts_of_all(part: Any) -> list[Any]:
    """Every rank's part."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def _one_epoch(
    learner: Learner, batches: Iterable[Batch], config: Config, watch: Watch
) -> dict[str, float]:
    """Trains on an epoch's batches; returns the mean losses and what the time went into."""
    started = time.perf_counter()
    waited, steps = 0.0, 0
    sums = torch.zeros(len(LOSSES), device=learner.device)
    batches = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        sums += learner.step(batch)
        steps += 1
        watch.alive()
    losses = losses_by_name(sums / steps)
    took = time.perf_counter() - started
    pictures = steps * (config.data.sketches_per_batch + config.data.photos_per_batch)
    return {
        **{f"loss_{name}": value for name, value in losses.items()},
        "pictures_per_second": pictures / took,
        "waiting_for_data": waited / took,
        "seconds": took,
    }


def _map_of(
    sides: Sequence[tuple[PictureTable, NDArray[np.int64]]],
    network: DsnNetwork,
    ranks: Ranks,
    which: tuple[str, str],
    watch: Watch,
) -> float:
    """mAP@all of some rows of sketches and photos; each rank embeds and rates a part.

    Args:
        sides: the table of sketches and some of its rows, then those of photos.
        network: what is rated.
        ranks: the workers.
        which: codes and protocol.
        watch: is shown every batch.

    Returns:
        NaN where training has diverged and features are no numbers.
    """
    network.eval()
    device = next(network.parameters()).device
    sides = [(table, reading_order(table, rows)) for table, rows in sides]
    mine: list[NDArray[np.float32]] = []
    for flag, (table, all_rows) in enumerate(sides):
        rows = all_rows[ranks.rank :: ranks.world]
        features = [np.zeros((0, network.embedding.out_features), np.float32)]
        with torch.inference_mode():
            for pictures, chosen in plain_batches(table, rows, 64):
                watch.alive()
                is_photo = torch.full((len(chosen),), flag, device=device)
                features.append(network.embed(pictures.to(device), is_photo).cpu().numpy())
        mine.append(np.concatenate(features))
    parts = ranks.gather(mine)
    arguments: list[Any] = []
    for (table, all_rows), pieces in zip(sides, zip(*parts, strict=True), strict=True):
        whole = np.empty((len(all_rows), pieces[0].shape[1]), np.float32)
        for part, piece in enumerate(pieces):
            whole[part :: ranks.world] = piece
        if not np.isfinite(whole).all():
            return math.nan
        arguments += [whole, table.labels[all_rows]]
    rated = evaluate_features(*arguments, binary=which[0] == "binary", ranks=ranks)
    return next(
        row["value"]
        for row in rated
        if (row["codes"], row["protocol"], row["metric"]) == (*which, "mAP@all")
    )
