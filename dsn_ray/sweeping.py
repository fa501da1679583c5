"""Runs a sweep: the search with Ray Tune and Optuna, then the final job on every data set."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray import cli
from dsn_ray.config import OBJECTIVE, Config
from dsn_ray.errors import UserError
from dsn_ray.runs import Run, alone, resumable, resumed, run_folder, save_settings
from dsn_ray.space import Space, describe
from dsn_ray.sweep import EMBEDDED, Part, Sweep, is_embedded, make_sweep, part_of
from dsn_ray.yaml_files import Place

if TYPE_CHECKING:
    import optuna
    from rich.console import Console

    from dsn_ray.data.catalog import Source
    from dsn_ray.data.shards import Shards
    from dsn_ray.room import Resources, Shape
    from dsn_ray.shelf import TrainingData


def run_sweep(
    space: Space,
    data: Sequence[tuple[str, str | Path | None]] = EMBEDDED,
    *,
    name: str | None = None,
    recipe: str | None = None,
    config: Config | None = None,
    trials: int | None = None,
    seeds: int | None = None,
    storage: str | None = None,
    resume: bool = False,
    search_only: bool = False,
    final_only: bool = False,
    allow_changed: bool = False,
    **shape: Any,
) -> Path:
    """Runs a sweep and its final job, as `python -m dsn_ray.tune` does.

    Args:
        space: what varies; `dsn_ray.space.load_space` reads one from a file.
        data: name and folder of each data set; the first is tuned on.
        name: of the run; None for "sweep" and the time.
        recipe: settings to start from; None for the paper's.
        config: what it has otherwise than `Config()` goes over the recipe's settings and the
            demonstration's, like a file that `--config` names; what the space sets goes over it.
        trials: settings to try; by default a whole grid or the space's budget, of which the
            embedded data takes 8 at most.
        seeds: trainings of a setting on each data set in the final job; by default what the space
            says, else 3, or 1 on the embedded data.
        storage: folder or URL that holds runs; None for `runs` in the working folder.
        resume: go on with the run of that name, given what it was given.
        search_only: no final job; `resume` with `final_only` is that, a driver of its own.
        final_only: with `resume`, no more trials.
        allow_changed: with `resume`, go on although something else is given.
        shape: fields of `dsn_ray.room.Shape`.

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
    from dsn_ray.room import Shape

    part = part_of(search_only, final_only)
    space.check(Config(), Place("space"))
    own = config.unlike(Config()) if config else {}
    places = cli.as_data(data)
    sweep = make_sweep(space, places, recipe=recipe, config=own, trials=trials, seeds=seeds)
    if not resume:
        if final_only or allow_changed:
            raise UserError("final_only and allow_changed go with resume=True.")
        return start(sweep, name, "sweep", storage, Shape(**shape), part)
    run, sweep = resumed(name, storage, allow_changed, Sweep.parse, lambda _: sweep)
    go_on(sweep, run, Shape(**shape), part)
    return run.folder


def start(
    sweep: Sweep,
    name: str | None,
    stem: str,
    storage: str | None,
    shape: "Shape",
    part: Part = "all",
) -> Path:
    """Runs a sweep in a folder of its own, and returns that."""
    with run_folder(name, stem, storage) as run:
        save_settings(sweep, run)
        go_on(sweep, run, shape, part)
    return run.folder


def go_on(sweep: Sweep, run: Run, shape: "Shape", part: Part = "all") -> None:
    """Runs or resumes a sweep in its folder."""
    options = [] if part == "all" else [f"--{part}-only"]
    with resumable("dsn_ray.tune", run, shape, options), alone(run):
        _sweep(sweep, run, shape, part)


def check(
    sweep: Sweep,
    found: "Mapping[str, Source | Shards]",
    workers: int,
    part: Part = "all",
) -> None:
    """Checks every kind of training that the sweep, or that part of it, has.

    Raises:
        UserError: If one of them cannot be.
    """
    from dsn_ray.training import check_fits

    if part == "search" and sweep.space.variants:
        raise UserError("--search-only: this space compares variants and has no search.")
    searched = sweep.data[0][0] if sweep.space.parameters and part != "final" else None
    for name, config in sweep.configs():
        check_fits(config, found[name].seen_classes, workers, validate=name == searched)


def _sweep(sweep: Sweep, run: Run, shape: "Shape", part: Part) -> None:
    from dsn_ray.data.shards import locate
    from dsn_ray.final import final_job
    from dsn_ray.record import session
    from dsn_ray.report import MissingExtraError, write_report
    from dsn_ray.results import FinalResults, candidates_of
    from dsn_ray.room import allot, check_storage_reaches_all, cluster_size, room_for
    from dsn_ray.runtime import ray_cluster
    from dsn_ray.shelf import Shelf
    from dsn_ray.study import STUDY, best_setting, open_study, settings_tried
    from dsn_ray.tables import final_table, title_of

    found = {name: locate(name, root) for name, root in sweep.data}
    check(sweep, found, shape.workers or 1, part)
    journal = run.folder / STUDY
    if part == "final" and not sweep.space.variants and not journal.exists():
        raise UserError("--final-only: no trial of this run has come to its end.")
    random_weights = sweep.config.network.weights == "none"
    with cli.quiet_log("ray", run.folder) as console:
        with ray_cluster() as dashboard, session(run.folder, cluster_size()):
            console.print(f"Ray dashboard: {dashboard}", soft_wrap=True)
            check_storage_reaches_all(run.storage)
            shelf = Shelf(found, dict(sweep.data), console)
            for _, config in sweep.configs():
                shelf.check_weights(config)
            fits = partial(check, sweep, found, part=part)
            resources = allot(shape, console, fits)
            room = (
                partial(int, shape.concurrent) if shape.concurrent else partial(room_for, resources)
            )
            check_storage_reaches_all(run.storage)  # those that have come
            save_settings(sweep, run)
            console.print(
                f"Running {resources}; this cluster has {cluster_size()}.", soft_wrap=True
            )
            if is_embedded(sweep.data):
                console.print(
                    "This is the embedded OpenMoji demonstration data, with small pictures and "
                    f"{sweep.config.network.backbone}.",
                    soft_wrap=True,
                )
            if sweep.space.parameters and part != "final":
                console.print(f"The search tries {sweep.tries}.")
            if random_weights:
                console.print(cli.RANDOM_WEIGHTS)
            for name, config in islice(sweep.configs(), 1 if part == "search" else None):
                shelf.data(name, config)
            results = FinalResults(run.folder / "final.json")
            if part != "search":
                results.reopen()
            tried: list[dict[str, Any]] = []
            if not sweep.space.variants:
                if part == "final":
                    study = open_study(journal, sweep.space.sampler)
                else:
                    data = shelf.data(*next(sweep.configs()))
                    study = _search(sweep, run, data, resources, room, console)
                results.setting = best_setting(study)
                if results.setting is None:
                    raise UserError("--final-only: no trial of this run has come to its end.")
                console.print(f"Best setting: {describe(results.setting)}")
                if part == "search":
                    command = ["python", "-m", "dsn_ray.tune", "--resume", *run.options]
                    console.print(
                        f"The final job: {shlex.join([*command, '--final-only'])}", soft_wrap=True
                    )
                every = sweep.space.final.settings == "all"
                tried = settings_tried(study) if every else [results.setting]
            candidates = candidates_of(sweep.finalists(tried), dict(sweep.data), sweep.seeds)
            failure = None
            try:
                if part != "search":
                    final_job(candidates, shelf, resources, room, run.storage, results, console)
                    results.finish()
            except Exception as error:  # what is there is shown all the same
                failure = error
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
                            results.diverged,
                        )
                    )
        with suppress(MissingExtraError):
            write_report(run.folder)
        console.print(str(run.folder), soft_wrap=True)
        if failure is not None:
            raise failure
        if results.diverged and part != "search":
            first = results.diverged[0]
            raise UserError(
                f"{len(results.diverged)} of {len(candidates)} final trainings diverged; the "
                f"others are there. {title_of(first)}: {first['reason']}"
            )


def _search(
    sweep: Sweep,
    run: Run,
    data: "TrainingData",
    resources: "Resources",
    room: Callable[[], int],
    console: "Console",
) -> "optuna.Study":
    """Runs the trials that the study does not have yet, and returns it.

    Raises:
        UserError: If every trial diverged.
        RuntimeError: If none came to its end.
    """
    from ray import tune

    from dsn_ray.gauges import Gauges
    from dsn_ray.progress import SearchProgress
    from dsn_ray.record import EPOCHS, EpochLog, name_of_trial
    from dsn_ray.search import StudySearcher
    from dsn_ray.stopping import make_scheduler
    from dsn_ray.study import best_setting, take_up_study
    from dsn_ray.trials import Retention, run_trials

    epochs, seed = sweep.config.train.epochs, sweep.config.train.seed
    storage = f"{run.storage}/trials"
    asked = {
        "data": list(sweep.data[0]),
        "config": sweep.config.model_dump(mode="json"),
        "parameters": sweep.space.model_dump(mode="json")["parameters"],
        "seeds": sweep.space.budget.seeds,
    }
    study, aside = take_up_study(run.folder, sweep.space.sampler, asked, storage)
    if aside:
        console.print(
            "What decides the trials' values has changed, so the search begins anew; the earlier "
            f"one is kept in {aside}, without checkpoints.",
            soft_wrap=True,
        )
    searcher = StudySearcher(study, sweep.space, sweep.trials, OBJECTIVE, epochs, room, seed)
    scheduler = make_scheduler(sweep.space, OBJECTIVE, epochs)
    scheduler.remind(study, OBJECTIVE)
    best = None if best_setting(study) is None else study.best_value
    planned = sweep.trials * sweep.space.budget.seeds
    progress = SearchProgress(console, run.folder / "trials.jsonl", planned, epochs)
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
                Gauges(run.folder.name, name_of, progress.how_it_ended, best),
                Retention(storage, searcher.wanted),
            ],
            run.storage,
            "tune-search",
            reuse=True,
        )
    if progress.stopped_early:
        console.print(
            f"Trials stopped early: {progress.stopped_early}; {progress.epochs_run} epochs "
            f"were run instead of {planned * epochs}."
        )
    if best_setting(study) is not None:
        return study
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
    from dsn_ray.training import fit
    from dsn_ray.trials import folder_of

    fit(
        config.with_settings({**proposal["settings"], "train.seed": proposal["seed"]}),
        data,
        resources,
        storage,
        folder_of(proposal),
        validate=True,
        in_trial=True,
    )
