r"""A sweep, and then the final job on every data set.

Examples:
    python -m dsn_ray.tune --space search_spaces/lambdas.yaml
    python -m dsn_ray.tune --space search_spaces/lambdas.yaml \
        --data sketchy=DIR --data tuberlin=DIR --name first
    python -m dsn_ray.tune --space search_spaces/lambdas.yaml --name first --resume
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray import cli
from dsn_ray.config import DEMONSTRATION, Config, parse_settings
from dsn_ray.errors import UserError
from dsn_ray.space import Space, describe, load_space

if TYPE_CHECKING:
    from rich.console import Console

    from dsn_ray.runtime import Resources, Shape
    from dsn_ray.train import TrainingData

Data = tuple[str, str | None]
EMBEDDED: tuple[Data, ...] = (("openmoji-nature", None), ("openmoji-things", None))
EMBEDDED_TRIALS = 8
SMOKE_TEST: dict[str, Any] = {
    "data.px": 32,
    "data.teacher_px": 32,
    "data.per_class": 4,
    "data.sketches_per_batch": 8,
    "data.photos_per_batch": 8,
    "train.epochs": 1,
}
SMOKE_TRIALS = 2


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was asked for.

    Attributes:
        space: what varies.
        config: what does not, on the first data set.
        others: settings by dotted name that another data set has otherwise, as recipes may say.
        data: data sets; the first is tuned on, all are in the final job.
        trials: settings tried.
        seeds: trainings per data set in the final job.
    """

    space: Space
    config: Config
    others: dict[str, dict[str, Any]]
    data: tuple[Data, ...]
    trials: int
    seeds: int

    def config_on(self, data: str) -> Config:
        """The configuration on a data set."""
        return self.config.with_settings(self.others.get(data, {}))

    def tree(self) -> dict[str, Any]:
        """What `config.yaml` holds."""
        return {
            "data": dict(self.data),
            "trials": self.trials,
            "seeds": self.seeds,
            "config": self.config.model_dump(mode="json"),
            "others": self.others,
            "space": self.space.model_dump(mode="json"),
        }

    @classmethod
    def parse(cls, tree: Any) -> "Sweep":
        """From what `tree` gave."""
        return cls(
            space=Space.model_validate(tree["space"]),
            config=Config.model_validate(tree["config"]),
            others=tree["others"],
            data=tuple(tree["data"].items()),
            trials=tree["trials"],
            seeds=tree["seeds"],
        )


def run_sweep(
    space: Space,
    data: Sequence[Data] = EMBEDDED,
    *,
    name: str | None = None,
    config: Config | None = None,
    trials: int | None = None,
    seeds: int = 1,
    storage: str | None = None,
    **shape: Any,
) -> Path:
    """Runs a sweep and its final job.

    Args:
        space: what varies; `dsn_ray.space.load_space` reads one from a file.
        data: name and folder of each data set; the first is tuned on.
        name: of the run; None for "sweep" and the time.
        config: what does not vary; by default the paper's, or the demonstration's for its data,
            with what the space sets.
        trials: settings to try; by default the space's budget, at most 8 on the embedded data.
        seeds: trainings per data set in the final job.
        storage: folder or URL that holds runs; None for `runs` in the working folder.
        shape: fields of `dsn_ray.runtime.Shape`.

    Returns:
        The run's folder, with `config.yaml`, `trials.jsonl` and `final.json`.

    Raises:
        UserError: If something given cannot be used.
    """
    from dsn_ray.runtime import Shape

    usual = DEMONSTRATION if _is_embedded(data) else {}
    base = config or Config().with_settings({**usual, **space.set})
    count = trials or _usual_trials(space, data)
    return _start(
        Sweep(space, base, {}, tuple(data), count, seeds), name, "sweep", storage, Shape(**shape)
    )


def _start(sweep: Sweep, name: str | None, stem: str, storage: str | None, shape: "Shape") -> Path:
    with cli.run_folder(name, stem, storage) as run:
        cli.save_settings(sweep, run)
        _run(sweep, run, shape)
    return run.folder


def _usual_trials(space: Space, data: Sequence[Data]) -> int:
    return min(space.budget.trials, EMBEDDED_TRIALS if _is_embedded(data) else sys.maxsize)


def _is_embedded(data: Sequence[Data]) -> bool:
    return all(root is None for _, root in data)


def _run(sweep: Sweep, run: cli.Run, shape: "Shape") -> None:
    """Runs or resumes a sweep in its folder."""
    with cli.resumable("dsn_ray.tune", run, shape):
        _sweep(sweep, run, shape)


def _sweep(sweep: Sweep, run: cli.Run, shape: "Shape") -> None:
    from dsn_ray.data.shards import locate
    from dsn_ray.final import FinalResults, final_job, final_table
    from dsn_ray.runtime import allot, ray_cluster, refuse_local_storage_on_many_nodes
    from dsn_ray.train import check_fits, check_weights, load_training_data

    found = [locate(name, root) for name, root in sweep.data]
    configs = [sweep.config_on(name) for name, _ in sweep.data]

    def check(workers: int) -> None:
        for data, config in zip(found, configs, strict=True):
            check_fits(config, data.seen_classes, workers, validate=data is found[0])

    check(shape.workers or 1)
    check_weights(sweep.config)
    random_weights = sweep.config.network.weights == "none"
    with cli.quiet_log("ray", run.folder) as console:
        with ray_cluster() as dashboard:
            console.print(f"Ray dashboard: {dashboard}", soft_wrap=True)
            resources = allot(shape, console)
            check(resources.workers)
            refuse_local_storage_on_many_nodes(run.storage)
            console.print(f"Running {resources}.")
            if _is_embedded(sweep.data):
                console.print(
                    "This is the embedded OpenMoji demonstration data, with small pictures, "
                    f"{sweep.config.network.backbone} and {sweep.trials} trials.",
                    soft_wrap=True,
                )
            if random_weights:
                console.print(cli.RANDOM_WEIGHTS)
            roots = [root for _, root in sweep.data]
            datasets = [
                load_training_data(data, root, config, console)
                for data, root, config in zip(found, roots, configs, strict=True)
            ]
            results = FinalResults(run.folder / "final.json")
            if results.setting is None:
                results.setting = _search(sweep, run, datasets[0][1], resources, console)
                results.save()
            console.print(f"Best setting: {describe(results.setting)}")
            best = [config.with_settings(results.setting) for config in configs]
            final_job(
                zip(best, datasets, strict=True),
                sweep.seeds,
                resources,
                f"{run.storage}/final",
                results,
                console,
            )
            results.finish()
        console.print(final_table(results, [shards for shards, _ in datasets], random_weights))
        console.print(str(run.folder), soft_wrap=True)


def _search(
    sweep: Sweep, run: cli.Run, data: "TrainingData", resources: "Resources", console: "Console"
) -> dict[str, Any]:
    """Runs the trials; returns the best setting."""
    from ray import tune

    from dsn_ray.progress import SweepProgress
    from dsn_ray.search import SweepSearch, make_scheduler
    from dsn_ray.worker import OBJECTIVE

    epochs = sweep.config.train.epochs
    trainable = tune.with_resources(
        tune.with_parameters(
            _trial,
            config=sweep.config,
            data=data,
            resources=resources,
            storage=f"{run.storage}/trials",
        ),
        {"node:__internal_head__": 0.001},
    )
    progress = SweepProgress(console, run.folder / "trials.jsonl", sweep.trials, epochs)
    state = f"{run.storage}/tune"
    run_config = tune.RunConfig(
        name="tune",
        storage_path=run.storage,
        callbacks=[progress],
        failure_config=tune.FailureConfig(max_failures=1),
        verbose=0,
    )
    if tune.Tuner.can_restore(state):
        tuner = tune.Tuner.restore(state, trainable=trainable, resume_errored=True)
        tuner._local_tuner._run_config.callbacks = [progress]
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=SweepSearch(sweep.space, OBJECTIVE, epochs),
                scheduler=make_scheduler(sweep.space, OBJECTIVE, epochs),
                num_samples=sweep.trials,
                max_concurrent_trials=resources.concurrent,
            ),
            run_config=run_config,
        )
    with progress:
        grid = tuner.fit()
    finished = [r for r in grid if r.metrics and r.metrics.get("epoch", 0) >= epochs]
    rated = [r for r in finished if not math.isnan(r.metrics.get(OBJECTIVE, math.nan))]
    if not rated and not grid.errors:
        raise UserError(
            "Every trial diverged: their losses are no numbers any more. A lower optimizer.lr "
            f"({sweep.config.optimizer.lr:g}) may help."
        )
    if not rated:
        raise RuntimeError("no trial came to its end") from next(iter(grid.errors), None)
    best = max(rated, key=lambda result: float(result.metrics[OBJECTIVE]))
    chosen: dict[str, Any] = dict(best.config)
    return chosen


def _trial(
    settings: dict[str, Any],
    *,
    config: Config,
    data: "TrainingData",
    resources: "Resources",
    storage: str,
) -> None:
    """One trial: a training with some settings, validated after each epoch."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from dsn_ray.train import fit

    fit(
        config.with_settings(settings),
        data,
        resources,
        storage,
        tune.get_context().get_trial_id(),
        validate=True,
        callbacks=[TuneReportCallback()],
    )


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.tune")
    parser.add_argument("--space", type=Path, metavar="FILE", help="what to vary")
    cli.add_data_argument(parser)
    cli.add_config_arguments(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="instead of the space's budget")
    parser.add_argument("--seeds", type=int, metavar="N", help="of the final job (1)")
    cli.add_run_arguments(parser)
    parser.add_argument("--smoke-test", action="store_true", help="seconds per trial")
    cli.add_shape_arguments(parser)
    return parser


def _asked(parsed: argparse.Namespace) -> Sweep:
    if parsed.space is None:
        raise UserError("--space is needed, as in --space search_spaces/lambdas.yaml.")
    space = load_space(parsed.space)
    for name in parse_settings(parsed.settings):
        if name in space.parameters:
            raise UserError(f"--set {name}: {parsed.space} varies it; take it out of there first.")
    data = tuple(cli.parse_data(parsed.data)) or EMBEDDED
    embedded = _is_embedded(data)
    layers = {**space.set, **(SMOKE_TEST if parsed.smoke_test else {})}
    config, *others = (cli.config_of(parsed, name, embedded, layers) for name, _ in data)
    unlike = {
        name: found
        for (name, _), other in zip(data[1:], others, strict=True)
        if (found := other.unlike(config))
    }
    usual = SMOKE_TRIALS if parsed.smoke_test else _usual_trials(space, data)
    trials = parsed.trials or usual
    return Sweep(space, config, unlike, data, trials, parsed.seeds or 1)


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    shape = cli.shape_of(parsed)
    for option in ("trials", "seeds"):
        value = getattr(parsed, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: at least 1 is needed.")
    if parsed.resume:
        run, sweep = cli.resumed(parsed, Sweep.parse, lambda: _asked(parsed))
        _run(sweep, run, shape)
        return
    _start(_asked(parsed), parsed.name, parsed.space.stem, parsed.storage, shape)


if __name__ == "__main__":
    sys.exit(main())
