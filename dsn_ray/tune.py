r"""A sweep, and then the final job on every data set.

Examples:
    python -m dsn_ray.tune --space search_spaces/lambdas.yaml
    python -m dsn_ray.tune --space search_spaces/lambdas.yaml \
        --data sketchy=DIR --data tuberlin=DIR --name first
    python -m dsn_ray.tune --name first --resume
    python -m dsn_ray.tune --space search_spaces/ablation.yaml --data sketchy=DIR --dry-run
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray import cli
from dsn_ray.config import DEMONSTRATION, Config, Place, parse_settings, recipe_settings
from dsn_ray.errors import UserError
from dsn_ray.space import Space, describe, load_space

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from dsn_ray.data.catalog import Source
    from dsn_ray.data.shards import Shards
    from dsn_ray.runtime import Resources, Shape
    from dsn_ray.train import TrainingData

Data = tuple[str, str | None]
EMBEDDED: tuple[Data, ...] = (("openmoji-nature", None), ("openmoji-things", None))
EMBEDDED_TRIALS = 8
SEEDS = 3
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
        variants: of each variant and data set, the settings that differ from `config`.
        data: data sets; the first is tuned on, all are in the final job.
        trials: settings that the search tries.
        seeds: trainings of a setting on each data set in the final job.
    """

    space: Space
    config: Config
    others: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, dict[str, Any]]]
    data: tuple[Data, ...]
    trials: int
    seeds: int

    def config_on(self, data: str, variant: str | None = None) -> Config:
        """The configuration on a data set."""
        differs = self.variants[variant] if variant else self.others
        return self.config.with_settings(differs.get(data, {}))

    def finalists(
        self, tried: Iterable[dict[str, Any]]
    ) -> list[tuple[str, dict[str, Any], dict[str, Config]]]:
        """What the final job trains: of each its name, its settings, its configurations.

        Args:
            tried: the best setting of the search, or all of them; none where variants are compared.
        """
        names = [name for name, _ in self.data]
        if self.space.variants:
            return [
                (label, settings, {name: self.config_on(name, label) for name in names})
                for label, settings in self.space.variants.items()
            ]
        several = self.space.final.settings == "all"
        return [
            (
                describe(settings) if several else "",
                settings,
                {name: self.config_on(name).with_settings(settings) for name in names},
            )
            for settings in tried
        ]

    def configs(self) -> Iterator[tuple[str, Config]]:
        """The data set and the configuration of all kinds of trainings, the search's first."""
        for name, _ in self.data:
            if not self.space.variants:
                yield name, self.config_on(name)
            for label in self.space.variants:
                yield name, self.config_on(name, label)

    def tree(self) -> dict[str, Any]:
        """What `config.yaml` holds."""
        return {
            "data": dict(self.data),
            "trials": self.trials,
            "seeds": self.seeds,
            "config": self.config.model_dump(mode="json"),
            "others": self.others,
            "variants": self.variants,
            "space": self.space.model_dump(mode="json"),
        }

    @classmethod
    def parse(cls, tree: Any) -> "Sweep":
        """From what `tree` gave."""
        return cls(
            space=Space.model_validate(tree["space"]),
            config=Config.model_validate(tree["config"]),
            others=tree["others"],
            variants=tree["variants"],
            data=tuple(tree["data"].items()),
            trials=tree["trials"],
            seeds=tree["seeds"],
        )


def make_sweep(
    space: Space,
    data: Sequence[Data],
    config_on: Callable[[str, str | None, Mapping[str, Any]], Config],
    trials: int | None,
    seeds: int | None,
) -> Sweep:
    """Fills in what a sweep's options leave open.

    Args:
        space: what varies.
        data: name and folder of each data set.
        config_on: the configuration on a data set, from a recipe (None for the usual one) and with
            some settings.
        trials: settings to try; None for the space's budget, at most 8 on the embedded data.
        seeds: in the final job; None for what the space says, else 3, on the embedded data 1.
    """
    names = [name for name, _ in data]
    embedded = _is_embedded(data)
    config = config_on(names[0], None, {})
    others = {name: config_on(name, None, {}).unlike(config) for name in names[1:]}
    variants = {}
    for label, settings in space.variants.items():
        own = {name: value for name, value in settings.items() if name != "recipe"}
        on = {name: config_on(name, settings.get("recipe"), own).unlike(config) for name in names}
        variants[label] = on
    if space.parameters and not trials:
        trials = min(space.trials, EMBEDDED_TRIALS if embedded else sys.maxsize)
    return Sweep(
        space=space,
        config=config,
        others={name: differs for name, differs in others.items() if differs},
        variants=variants,
        data=tuple(data),
        trials=min(trials or 0, space.trials) if space.sampler.name == "grid" else trials or 0,
        seeds=seeds or space.final.seeds or (1 if embedded else SEEDS),
    )


def run_sweep(
    space: Space,
    data: Sequence[Data] = EMBEDDED,
    *,
    name: str | None = None,
    config: Config | None = None,
    trials: int | None = None,
    seeds: int | None = None,
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
        seeds: trainings of a setting on each data set in the final job; by default what the space
            says, else 3, or 1 on the embedded data.
        storage: folder or URL that holds runs; None for `runs` in the working folder.
        shape: fields of `dsn_ray.runtime.Shape`.

    Returns:
        The run's folder, with `config.yaml`, `trials.jsonl` and `final.json`.

    Raises:
        UserError: If something given cannot be used.

    Example:
        >>> from pathlib import Path
        >>> from dsn_ray import run_sweep
        >>> from dsn_ray.space import load_space
        >>> space = load_space(Path("search_spaces/lambdas.yaml"))
        >>> run_sweep(space, [("sketchy", "Sketchy")], trials=4, workers=1)  # doctest: +SKIP
    """
    from dsn_ray.runtime import Shape

    space.check(Config(), Place("space"))
    usual = DEMONSTRATION if _is_embedded(data) else {}

    def config_on(name: str, recipe: str | None, own: Mapping[str, Any]) -> Config:
        start = config or Config().with_settings({**usual, **space.set})
        of_recipe = recipe_settings(recipe, name) if recipe else {}
        return start.with_settings({**of_recipe, **own})

    sweep = make_sweep(space, data, config_on, trials, seeds)
    return _start(sweep, name, "sweep", storage, Shape(**shape))


def _start(sweep: Sweep, name: str | None, stem: str, storage: str | None, shape: "Shape") -> Path:
    with cli.run_folder(name, stem, storage) as run:
        cli.save_settings(sweep, run)
        _run(sweep, run, shape)
    return run.folder


def _is_embedded(data: Sequence[Data]) -> bool:
    return all(root is None for _, root in data)


def _run(sweep: Sweep, run: cli.Run, shape: "Shape", final_only: bool = False) -> None:
    """Runs or resumes a sweep in its folder."""
    with cli.resumable("dsn_ray.tune", run, shape, ["--final-only"] * final_only):
        _sweep(sweep, run, shape, final_only)


def _check(sweep: Sweep, found: "Mapping[str, Source | Shards]", workers: int) -> None:
    """Checks every kind of training that the sweep has.

    Raises:
        UserError: If one of them cannot be.
    """
    from dsn_ray.train import check_fits

    for number, (name, config) in enumerate(sweep.configs()):
        searched = number == 0 and bool(sweep.trials)
        check_fits(config, found[name].seen_classes, workers, validate=searched)


def _sweep(sweep: Sweep, run: cli.Run, shape: "Shape", final_only: bool) -> None:
    from dsn_ray.data.shards import locate
    from dsn_ray.final import FinalResults, candidates_of, final_job
    from dsn_ray.record import session
    from dsn_ray.report import MissingExtraError, write_report
    from dsn_ray.runtime import (
        allot,
        check_storage_reaches_all,
        cluster_size,
        ray_cluster,
        room_for,
    )
    from dsn_ray.search import STUDY, best_setting, open_study, settings_tried
    from dsn_ray.tables import final_table
    from dsn_ray.train import Shelf, check_weights

    found = {name: locate(name, root) for name, root in sweep.data}
    _check(sweep, found, shape.workers or 1)
    for _, config in sweep.configs():
        check_weights(config)
    journal = run.folder / STUDY
    if final_only and not sweep.space.variants and not journal.exists():
        raise UserError("--final-only: no trial of this run has come to its end.")
    random_weights = sweep.config.network.weights == "none"
    with cli.quiet_log("ray", run.folder) as console:
        with ray_cluster() as dashboard, session(run.folder, cluster_size()):
            console.print(f"Ray dashboard: {dashboard}", soft_wrap=True)
            resources = allot(shape, console)
            room = (
                partial(int, shape.concurrent) if shape.concurrent else partial(room_for, resources)
            )
            _check(sweep, found, resources.workers)
            check_storage_reaches_all(run.storage)
            console.print(
                f"Running {resources}; this cluster has {cluster_size()}.", soft_wrap=True
            )
            if _is_embedded(sweep.data):
                tries = f" and {sweep.trials} trials" if sweep.trials else ""
                console.print(
                    "This is the embedded OpenMoji demonstration data, with small pictures, "
                    f"{sweep.config.network.backbone}{tries}.",
                    soft_wrap=True,
                )
            if random_weights:
                console.print(cli.RANDOM_WEIGHTS)
            shelf = Shelf(found, dict(sweep.data), console)
            for name, config in sweep.configs():
                shelf.data(name, config)
            results = FinalResults(run.folder / "final.json")
            tried: list[dict[str, Any]] = []
            if not sweep.space.variants:
                study = open_study(journal, sweep.space.sampler)
                if not final_only:
                    data = shelf.data(*next(sweep.configs()))
                    _search(sweep, run, study, data, resources, room, console)
                results.setting = best_setting(study)
                if results.setting is None:
                    raise UserError("--final-only: no trial of this run has come to its end.")
                console.print(f"Best setting: {describe(results.setting)}")
                every = sweep.space.final.settings == "all"
                tried = settings_tried(study) if every else [results.setting]
            candidates = candidates_of(sweep.finalists(tried), sweep.seeds)
            try:
                final_job(candidates, shelf, resources, room, run.storage, results, console)
                results.finish()
            finally:
                missing = sum(not results.has(one) for one in candidates)
                if results.rows:
                    console.print(
                        final_table(
                            results.rows,
                            results.untrained,
                            results.official,
                            random_weights,
                            missing,
                        )
                    )
        with suppress(MissingExtraError):
            write_report(run.folder)
        console.print(str(run.folder), soft_wrap=True)


def _search(
    sweep: Sweep,
    run: cli.Run,
    study: "optuna.Study",
    data: "TrainingData",
    resources: "Resources",
    room: Callable[[], int],
    console: "Console",
) -> None:
    """Runs the trials that the study does not have yet.

    Raises:
        UserError: If every trial diverged.
        RuntimeError: If none came to its end.
    """
    from ray import tune

    from dsn_ray.gauges import Gauges
    from dsn_ray.progress import SearchProgress
    from dsn_ray.record import EPOCHS, EpochLog, name_of_trial
    from dsn_ray.search import StudySearcher, best_setting, make_scheduler, remind
    from dsn_ray.trials import Retention, folder_of, run_trials
    from dsn_ray.worker import OBJECTIVE

    epochs, seed = sweep.config.train.epochs, sweep.config.train.seed
    searcher = StudySearcher(study, sweep.space, sweep.trials, OBJECTIVE, epochs, room, seed)
    scheduler = make_scheduler(sweep.space, OBJECTIVE, epochs)
    remind(scheduler, study, OBJECTIVE)
    best = None
    if best_setting(study) is not None:
        trial = study.best_trial
        best = trial.values[0], folder_of({"number": trial.number + 1, "seed": seed})
    planned = sweep.trials * sweep.space.budget.seeds
    progress = SearchProgress(console, run.folder / "trials.jsonl", planned, epochs)
    storage = f"{run.storage}/trials"
    name_of = partial(name_of_trial, data.name)
    with progress:
        ended = run_trials(
            tune.with_parameters(
                _trial, config=sweep.config, data=data, resources=resources, storage=storage
            ),
            searcher,
            scheduler,
            [
                progress,
                EpochLog(run.folder / EPOCHS, name_of),
                Gauges(run.folder.name, name_of),
                Retention(storage, epochs, best),
            ],
            run.storage,
            "tune-search",
        )
    if progress.stopped_early:
        console.print(
            f"{progress.stopped_early} trials were stopped early: {progress.epochs_run} epochs "
            f"were run instead of {planned * epochs}."
        )
    if best_setting(study) is not None:
        return
    if ended.errors:
        raise RuntimeError("no trial came to its end") from ended.errors[0]
    raise UserError(
        "Every trial diverged: their losses are no numbers any more. A lower optimizer.lr "
        f"({sweep.config.optimizer.lr:g}) may help."
    )


def _trial(
    proposal: dict[str, Any],
    *,
    config: Config,
    data: "TrainingData",
    resources: "Resources",
    storage: str,
) -> None:
    """One trial: a training with some settings, validated after each epoch."""
    from ray.tune.integration.ray_train import TuneReportCallback

    from dsn_ray.train import fit
    from dsn_ray.trials import folder_of

    fit(
        config.with_settings({**proposal["settings"], "train.seed": proposal["seed"]}),
        data,
        resources,
        storage,
        folder_of(proposal),
        validate=True,
        callbacks=[TuneReportCallback()],
    )


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.tune")
    parser.add_argument("--space", type=Path, metavar="FILE", help="what to vary")
    cli.add_data_argument(parser)
    cli.add_config_arguments(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="instead of the space's budget")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="of the final job (3, on the embedded data 1)"
    )
    cli.add_run_arguments(parser)
    parser.add_argument(
        "--final-only", action="store_true", help="with --resume: the final job, no more trials"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run, start nothing")
    parser.add_argument("--smoke-test", action="store_true", help="seconds per trial")
    cli.add_shape_arguments(parser)
    return parser


def _asked(parsed: argparse.Namespace) -> Sweep:
    if parsed.space is None:
        raise UserError("--space is needed, as in --space search_spaces/lambdas.yaml.")
    space = load_space(parsed.space)
    for name in parse_settings(parsed.settings):
        if name in space.varied:
            raise UserError(f"--set {name}: {parsed.space} varies it; take it out of there first.")
    data = tuple(cli.parse_data(parsed.data)) or EMBEDDED
    smoke = SMOKE_TEST if parsed.smoke_test else {}

    def config_on(name: str, recipe: str | None, own: Mapping[str, Any]) -> Config:
        layers = {**space.set, **own, **smoke}
        return cli.config_of(parsed, name, _is_embedded(data), layers, recipe)

    trials, seeds = parsed.trials, parsed.seeds
    if parsed.smoke_test:
        trials, seeds = trials or SMOKE_TRIALS, seeds or 1
    return make_sweep(space, data, config_on, trials, seeds)


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    shape = cli.shape_of(parsed)
    for option in ("trials", "seeds"):
        value = getattr(parsed, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: at least 1 is needed.")
    for option in ("final_only", "allow_changed"):
        if getattr(parsed, option) and not parsed.resume:
            raise UserError(f"--{option.replace('_', '-')} goes with --resume --name N.")
    if parsed.resume:
        run, sweep = cli.resumed(parsed, Sweep.parse, lambda: _asked(parsed))
    else:
        sweep = _asked(parsed)
    if parsed.dry_run:
        from dsn_ray.plan import print_plan

        print_plan(sweep, shape)
    elif parsed.resume:
        _run(sweep, run, shape, parsed.final_only)
    else:
        _start(sweep, parsed.name, parsed.space.stem, parsed.storage, shape)


if __name__ == "__main__":
    sys.exit(main())
