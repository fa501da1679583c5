"""What a sweep would run, without running it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dsn_ray.cli import counted
from dsn_ray.config import Config
from dsn_ray.data.shards import Shards, locate
from dsn_ray.space import describe

if TYPE_CHECKING:
    from dsn_ray.data.catalog import Domain, Source
    from dsn_ray.room import Shape
    from dsn_ray.sweep import Part, Sweep

_SIZES = ("loss.lambda1", "memory.k", "network.dim")  # what work or checkpoints grow with
_BYTES_PER_PARAMETER = 4 * 3  # itself and Adam's two moments, float32


@dataclass(frozen=True)
class Stage:
    """Trainings of one kind.

    Attributes:
        what: for people.
        trainings: how many.
        epochs: of each, at most.
        pictures: sketches and photos of an epoch, about.
        views: of each picture that pass through the network, at most.
        checkpoints: bytes that they keep on the storage, at most.
        each_more: of these, what each further training at a time takes, where their number is not
            known before the cluster is.
    """

    what: str
    trainings: int
    epochs: int
    pictures: int
    views: int
    checkpoints: int
    each_more: int = 0


def plan(sweep: "Sweep", shape: "Shape", part: "Part" = "all") -> list[Stage]:
    """The stages of a sweep: its search, and its final job on each data set.

    Raises:
        UserError: If a data set cannot be opened, or the sweep would be refused.
    """
    from dsn_ray.sweeping import check

    found = {name: locate(name, root) for name, root in sweep.data}
    check(sweep, found, shape.workers or 1, part)
    greatest = {
        name: max(parameter.extremes())
        for name, parameter in sweep.space.parameters.items()
        if name in _SIZES
    }
    stages = []
    if sweep.space.parameters and part != "final":
        name, config = next(sweep.configs())
        config = config.with_settings(greatest)
        size = _checkpoint_bytes(config, len(found[name].seen_classes))
        kept = _kept(config)
        # Train deletes an old one once the new one is there. Those of a setting's ended seeds wait
        # for its mean, and the best setting's are kept.
        running, ended = size * (kept + 1), kept * (3 * sweep.space.budget.seeds - 2)
        stages.append(
            Stage(
                f"search on {name} ({sweep.space.sampler.name}, {sweep.space.scheduler.name})",
                sweep.trials * sweep.space.budget.seeds,
                config.train.epochs,
                _pictures(config, found[name], config.data.validation_classes),
                _views(config),
                size * ended + running * (shape.concurrent or 1),
                0 if shape.concurrent else running,
            )
        )
    if part == "search":
        return stages
    several = sweep.space.final.settings == "all" and not sweep.space.variants
    best: list[dict[str, Any]] = [{}] * (sweep.trials if several else 1)
    for label, settings, configs in sweep.finalists(best):
        for name, config in configs.items():
            what = label or ("each setting" if several else "the best setting")
            if settings:
                what += f" ({describe(settings)})"
            config = config.with_settings(greatest)
            size = _checkpoint_bytes(config, len(found[name].seen_classes))
            stages.append(
                Stage(
                    f"final on {name}: {what}",
                    sweep.seeds,
                    config.train.epochs,
                    _pictures(config, found[name], 0),
                    _views(config),
                    size * _kept(config) * sweep.seeds,
                )
            )
    return _merged(stages)


def _merged(stages: list[Stage]) -> list[Stage]:
    """Equal stages added up: those of a grid's points."""
    merged: dict[str, Stage] = {}
    for one in stages:
        other = merged.get(one.what)
        if other:
            trainings = other.trainings + one.trainings
            size = other.checkpoints + one.checkpoints
            one = replace(one, trainings=trainings, checkpoints=size)
        merged[one.what] = one
    return list(merged.values())


def print_plan(sweep: "Sweep", shape: "Shape", part: "Part" = "all") -> None:
    """Prints the stages, what they add up to, and what is searched; starts nothing.

    Raises:
        UserError: As `plan`.
    """
    from rich.table import Table

    from dsn_ray.runtime import people_console

    stages = plan(sweep, shape, part)
    console = people_console()
    table = Table("what", "trainings", "epochs each", "pictures per epoch", "views", "checkpoints")
    for stage in stages:
        table.add_row(
            stage.what,
            str(stage.trainings),
            ("at most " if stage.what.startswith("search") else "") + str(stage.epochs),
            f"{stage.pictures:,}",
            str(stage.views),
            f"{stage.checkpoints / 2**20:,.0f} MiB",
        )
    console.print(table)
    trainings = sum(stage.trainings for stage in stages)
    epochs = sum(stage.trainings * stage.epochs for stage in stages)
    pictures = [stage.trainings * stage.epochs * stage.pictures for stage in stages]
    views = sum(n * stage.views for n, stage in zip(pictures, stages, strict=True))
    room = sum(stage.checkpoints for stage in stages) / 2**20
    more = sum(stage.each_more for stage in stages) / 2**20
    console.print(
        f"Altogether at most {trainings} trainings, {epochs} epochs and {sum(pictures):,} pictures "
        f"in {views:,} views; checkpoints take at most {room:,.0f} MiB"
        + (f", and {more:,.0f} MiB for each further trial at a time." if more else ".")
    )
    if sweep.space.parameters and part != "final":
        console.print(f"The search tries {sweep.tries}:")
        for line in _searched(sweep):
            console.print(f"  {line}", soft_wrap=True)
    console.print(f"Each training takes {_asked(shape)}.")
    console.print("Nothing was started. The backbone's weights were not looked for.")


def _searched(sweep: "Sweep") -> list[str]:
    """The trials of a search as far as they are known, and what the others are drawn from."""
    space = sweep.space
    is_grid = space.sampler.name == "grid"
    known = space.grid() if is_grid else space.first
    trials = [f"{n}: {describe(point)}" for n, point in enumerate(known[: sweep.trials], start=1)]
    drawn = [f"{name}: {parameter}" for name, parameter in space.parameters.items()]
    return trials if is_grid else trials + drawn


def _asked(shape: "Shape") -> str:
    workers = shape.workers or 2
    cpus = "an equal share of the CPUs"
    if shape.cpus_per_worker is not None:
        cpus = counted(shape.cpus_per_worker, "CPU")
    gpus = "1 GPU where there are any"
    if shape.gpus_per_worker is not None:
        gpus = counted(shape.gpus_per_worker, "GPU")
    alone = " (1 where there is one GPU)" if shape.workers is None else ""
    return f"{counted(workers, 'worker')}{alone}, each with {cpus} and {gpus}"


def _pictures(config: Config, found: "Source | Shards", held_out: int) -> int:
    sizes = (config.data.sketches_per_batch, config.data.photos_per_batch)
    share = 1 - held_out / len(found.seen_classes)
    pools = (_count(found, "sketch"), _count(found, "photo"))
    if config.data.per_class:
        most = config.data.per_class * len(found.seen_classes)
        pools = (min(pools[0], most), min(pools[1], most))
    batches = [int(pool * share) // size for pool, size in zip(pools, sizes, strict=True)]
    steps = min(batches) if config.data.epoch == "shorter" else max(batches)
    return max(1, steps) * sum(sizes)


def _views(config: Config) -> int:
    from dsn_ray.data.batch import AUGMENTED_VIEWS

    return 1 + (AUGMENTED_VIEWS if config.loss.lambda1 else 0)


def _kept(config: Config) -> int:
    """Checkpoints that a training keeps: the last, and the best where that is another."""
    return 2 if config.train.keep == "best_seen" else 1


def _count(found: "Source | Shards", domain: "Domain") -> int:
    if isinstance(found, Shards):
        return found.counts[f"seen/{domain}"]
    return sum((record.split, record.domain) == ("seen", domain) for record in found.records)


def _checkpoint_bytes(config: Config, classes: int) -> int:
    from dsn_ray.model import build_network

    without = config.network.model_copy(update={"weights": "none"})
    network = build_network(without, classes)
    dim = config.network.dim if config.memory.features == "embedding" else network.backbone.dim
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters * _BYTES_PER_PARAMETER + classes * config.memory.k * dim * 4
