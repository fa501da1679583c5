"""Trains: data-parallel over Ray Train workers, fed by Ray Data."""

import math
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray import cli
from dsn_ray.config import SEEN, Config
from dsn_ray.data.semantics import read_mask
from dsn_ray.errors import UserError
from dsn_ray.runs import Run, alone, resumable, resumed, run_folder, save_settings

if TYPE_CHECKING:
    import ray.train

    from dsn_ray.room import Resources, Shape
    from dsn_ray.shelf import TrainingData


# A step frees and asks for the same hundreds of megabytes again and again. By default the C library
# gives such memory back at once, and threads beside the first one have no room for it at all.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
}

DATA: tuple[str, str | None] = ("openmoji-nature", None)


def fit(
    config: Config,
    data: "TrainingData",
    resources: "Resources",
    storage: str,
    name: str,
    *,
    validate: bool,
    callbacks: Sequence[Any] = (),
    in_trial: bool = False,
) -> "ray.train.Result":
    """Trains on Ray Train workers; a run of the same name and storage goes on where it was.

    It ends early where the loss is no number any more.

    Args:
        config: the training.
        data: what to train on.
        resources: workers and what each takes.
        storage: folder or URL for checkpoints.
        name: of the run, below the storage.
        validate: hold the validation classes out and measure them after each epoch.
        callbacks: Ray Train callbacks.
        in_trial: this is a trial of Ray Tune, which is told of each epoch.

    Returns:
        Ray Train's result.

    Raises:
        UserError: If the batch cannot be shared among the workers, or too few classes are left.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    from dsn_ray.group import ProcessGroup
    from dsn_ray.trainer import TellTune, Trainer, TrialTrainer

    check_fits(config, data.seen_classes, resources.workers, validate=validate)
    trainer = (TrialTrainer if in_trial else Trainer)(
        _loop,
        train_loop_config={
            "config": config.model_dump(),
            "data": data,
            "threads": resources.threads,
            "decoders": resources.decoders,
            "validate": validate,
            "patience": resources.patience,
        },
        # NCCL refuses two workers on one GPU.
        backend_config=ProcessGroup("nccl" if resources.gpus_per_worker >= 1 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=resources.per_worker,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=SEEN if config.train.keep == "best_seen" else None,
            ),
            callbacks=[*callbacks, TellTune()] if in_trial else list(callbacks),
            worker_runtime_env={"env_vars": {} if resources.gpus_per_worker else KEEP_MEMORY},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    if in_trial:
        return trainer.fit()
    before = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit:  # which Train's own handler of Ctrl-C ends with
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _loop(job: dict[str, Any]) -> None:
    """What a worker runs; torch is imported there alone."""
    from dsn_ray.worker import training_loop

    training_loop(job)


def kept_checkpoint(result: "ray.train.Result", config: Config) -> "ray.train.Checkpoint":
    """The checkpoint of the epoch that counts, as `train.keep` says.

    Raises:
        UserError: If the training has diverged.
    """
    metrics = result.metrics or {}
    if not math.isfinite(metrics.get("loss_total", 0.0)):
        raise UserError(
            f"The training diverged in epoch {metrics['epoch']} of {config.train.epochs}: its loss "
            f"is no number any more. A lower optimizer.lr ({config.optimizer.lr:g}) may help."
        )
    if config.train.keep == "best_seen":
        chosen = result.get_best_checkpoint(SEEN, "max")
    else:
        chosen = result.checkpoint
    if chosen is None:
        raise RuntimeError("the training left no checkpoint")
    return chosen


def on_this_machine(checkpoint: "ray.train.Checkpoint", storage: str, folder: Path) -> Path:
    """A checkpoint's folder; one that is kept at a URL is copied to the folder given."""
    if "://" not in storage:
        return Path(checkpoint.path)
    return Path(checkpoint.to_directory(str(folder)))


def check_fits(
    config: Config, seen_classes: Sequence[str], workers: int, *, validate: bool
) -> None:
    """Checks what no single setting shows.

    Args:
        config: the training.
        seen_classes: of the data set.
        workers: that share each batch.
        validate: whether the validation classes are held out.

    Raises:
        UserError: If a batch does not divide among the workers, too few classes would be left, or
            the semantic mask cannot be read.
    """
    if config.data.semantics:
        read_mask(Path(config.data.semantics))
    for key in ("sketches_per_batch", "photos_per_batch"):
        size = getattr(config.data, key)
        if size % workers:
            raise UserError(
                f"data.{key}={size} cannot be shared equally among {workers} workers; "
                f"choose a multiple of {workers}, or a number of --workers that divides it."
            )
    if not validate:
        if len(seen_classes) < 2:
            raise UserError(f"{len(seen_classes)} seen classes are too few; 2 are needed.")
        return
    left = len(seen_classes) - config.data.validation_classes
    if left < 2:
        raise UserError(
            f"data.validation_classes={config.data.validation_classes} leaves {max(left, 0)} of "
            f"{len(seen_classes)} seen classes to train on; at most {len(seen_classes) - 2} can "
            "be held out."
        )


@dataclass(frozen=True)
class Training:
    """A training as it was asked for.

    Attributes:
        config: the training.
        data: name and place of the data set.
    """

    config: Config
    data: tuple[str, str | None]

    def tree(self) -> dict[str, Any]:
        """What `config.yaml` holds."""
        return {"data": dict([self.data]), "config": self.config.model_dump(mode="json")}

    @classmethod
    def parse(cls, tree: Any) -> "Training":
        """From what `tree` gave."""
        (data,) = tree["data"].items()
        return cls(Config.model_validate(tree["config"]), data)


def run_training(
    config: Config,
    data: tuple[str, str | Path | None] = DATA,
    *,
    name: str | None = None,
    storage: str | None = None,
    resume: bool = False,
    allow_changed: bool = False,
    **shape: Any,
) -> Path:
    """Trains once, on all seen classes of a data set, as `python -m dsn_ray.train` does.

    Args:
        config: the training.
        data: name and folder of the data set.
        name: of the run; None for the data set and the time.
        storage: folder or URL that holds runs; None for `runs` in the working folder.
        resume: go on with the run of that name, given what it was given.
        allow_changed: with `resume`, go on although something else is given.
        shape: fields of `dsn_ray.room.Shape`.

    Returns:
        The folder of the checkpoint that counts.

    Raises:
        UserError: If something given cannot be used.

    Example:
        >>> from dsn_ray import run_training
        >>> from dsn_ray.config import Config
        >>> config = Config().with_settings({"loss.lambda1": 0.2})
        >>> run_training(config, ("sketchy", "Sketchy"), workers=1)  # doctest: +SKIP
    """
    from dsn_ray.room import Shape

    (place,) = cli.as_data([data])
    training = Training(config, place)
    if not resume:
        return start(training, name, storage, Shape(**shape))
    run, training = resumed(name, storage, allow_changed, Training.parse, lambda _: training)
    return go_on(training, run, Shape(**shape))


def start(training: Training, name: str | None, storage: str | None, shape: "Shape") -> Path:
    """Trains in a folder of its own; returns the checkpoint that counts."""
    with run_folder(name, training.data[0].replace(":", "-"), storage) as run:
        save_settings(training, run)
        return go_on(training, run, shape)


def go_on(training: Training, run: Run, shape: "Shape") -> Path:
    """Runs or resumes a training in its folder."""
    with resumable("dsn_ray.train", run, shape), alone(run):
        return _train(training, run, shape)


def _train(training: Training, run: Run, shape: "Shape") -> Path:
    from dsn_ray.data.shards import locate
    from dsn_ray.gauges import RunGauges
    from dsn_ray.progress import training_progress
    from dsn_ray.record import Name
    from dsn_ray.room import allot, check_storage_reaches_all
    from dsn_ray.runtime import ray_cluster
    from dsn_ray.shelf import Shelf

    config, (name, root) = training.config, training.data
    found = locate(name, root)
    check_fits(config, found.seen_classes, shape.workers or 1, validate=False)
    with cli.quiet_log("ray", run.folder) as console:
        with ray_cluster() as dashboard:
            console.print(f"Ray dashboard: {dashboard}", soft_wrap=True)
            check_storage_reaches_all(run.storage)
            shelf = Shelf({name: found}, {name: root}, console)
            shelf.check_weights(config)
            check = partial(check_fits, config, found.seen_classes, validate=False)
            resources = allot(shape, console, check)
            check_storage_reaches_all(run.storage)  # those that have come
            save_settings(training, run)
            console.print(f"Running {resources}.")
            data = shelf.data(name, config)
            gauges, title = RunGauges(run.folder.name), Name("training", data.name)
            gauges.state(title, "running")
            told = partial(gauges.epoch, title)
            with training_progress(console, data.name, config.train.epochs, told) as callback:
                result = fit(
                    config,
                    data,
                    resources,
                    run.storage,
                    "training",
                    validate=False,
                    callbacks=[callback],
                )
            folder = on_this_machine(
                kept_checkpoint(result, config), run.storage, run.folder / "checkpoint"
            )
        if config.network.weights == "none":
            console.print(cli.RANDOM_WEIGHTS)
        console.print(str(folder), soft_wrap=True)
    return folder
