"""The final job: settings trained on all seen classes of each data set, rated on the unseen."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import FileSystem
from ray import tune
from ray.train import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from rich.console import Console

from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.cli import counted
from dsn_ray.config import Config
from dsn_ray.data.storage import Folder
from dsn_ray.errors import DataWarning, UserError, warnings_shown_by
from dsn_ray.gauges import Gauges
from dsn_ray.progress import FinalProgress
from dsn_ray.rating import (
    Row,
    UnseenPictures,
    evaluate_checkpoint,
    evaluate_untrained,
    load_unseen,
)
from dsn_ray.record import EPOCHS, EpochLog, Name, name_of_final
from dsn_ray.results import Candidate, FinalResults
from dsn_ray.room import Resources
from dsn_ray.runtime import apart, fetched, quiet_data
from dsn_ray.search import ListSearcher
from dsn_ray.shelf import Contents, Shelf, TrainingData
from dsn_ray.training import fit, kept_checkpoint, on_this_machine
from dsn_ray.trials import run_trials

DETAILS = "details"
"""Folder beside a training's checkpoints: what `dsn_ray.details` writes."""


def final_job(
    candidates: Sequence[Candidate],
    shelf: Shelf,
    resources: Resources,
    room: Callable[[], int],
    storage: str,
    results: FinalResults,
    console: Console,
) -> None:
    """Trains and rates every candidate; what `results` holds is not done again.

    One that diverges is taken down as such, and the others go on.

    Args:
        candidates: the trainings, in their order.
        shelf: has the pictures of their data sets.
        resources: of each training.
        room: the number of trainings at a time.
        storage: where the run keeps checkpoints.
        results: gains rows after each training.
        console: says what runs.

    Raises:
        RuntimeError: If one failed.
    """
    results.keep_only(candidates)
    results.official = {name: shards.official for name, shards in shelf.shards.items()}
    unseen: dict[tuple[str, int], UnseenPictures] = {}
    for one in candidates:
        at = one.dataset, one.config.data.px
        if at not in unseen:
            unseen[at] = load_unseen(shelf.shards[one.dataset], one.config.data.px)
        if not any(row["dataset"] == one.dataset for row in results.untrained):
            console.print(f"{one.dataset}: rating the untrained trunk", soft_wrap=True)
            contents = shelf.data(one.dataset, one.config).contents
            asked = apart(_rate_untrained).remote(one.config, unseen[at], contents, resources)
            rows, told = fetched(asked)
            for text in told:
                warnings.warn(text, DataWarning, stacklevel=2)
            about = {"dataset": one.dataset, "trunk": one.trunk}
            results.untrained += [{**row, **about} for row in rows]
            results.save()
    equal: dict[str, list[Candidate]] = {}
    for one in candidates:
        if not results.has(one):
            equal.setdefault(one.folder, []).append(one)
    if not equal:
        return
    left = [first for first, *_ in equal.values()]
    epochs = [one.config.train.epochs for one in left]
    console.print(
        f"{counted(len(left), 'final training')} on all seen classes, {sum(epochs)} epochs",
        soft_wrap=True,
    )
    held = {at: ray.put(pictures) for at, pictures in unseen.items()}
    jobs = [
        _Job(
            one.config,
            shelf.data(one.dataset, one.config),
            held[one.dataset, one.config.data.px],
            one.folder,
            {"dataset": one.dataset, "variant": one.variant, "seed": one.config.train.seed},
        )
        for one in left
    ]
    collector = _Collector(list(equal.values()), results, f"{storage}/final")
    progress = FinalProgress(console, [one.title for one in left], epochs)
    run = results.folder.parent
    name_of = partial(name_of_final, [Name(one.title, one.dataset) for one in left])
    tellers = [EpochLog(run / EPOCHS, name_of), Gauges(run.name, name_of)]
    with progress:
        ended = run_trials(
            tune.with_parameters(
                _final_trial, jobs=jobs, resources=resources, storage=f"{storage}/final"
            ),
            ListSearcher([{"number": number} for number in range(len(left))], room),
            FIFOScheduler(),
            [progress, *tellers, collector],
            storage,
            "tune-final",
            reuse=False,  # rating loads torch, which would stay beside the next training
        )
    if missing := [one for one in left if not results.has(one)]:
        raise RuntimeError(
            f"{len(missing)} of {len(left)} final trainings failed: "
            f"{'; '.join(one.title for one in missing[:3])}"
        ) from next(iter(ended.errors), None)


def _rate_untrained(
    config: Config, unseen: UnseenPictures, contents: Contents, resources: Resources
) -> tuple[list[Row], list[str]]:
    """Runs in a process of its own, with this machine's CPUs; gives rows and warnings."""
    import torch

    quiet_data()
    torch.set_num_threads(os.cpu_count() or 1)
    told: list[str] = []
    with warnings_shown_by(told.append):
        return evaluate_untrained(config, unseen, contents.weights, resources), told


@dataclass(frozen=True)
class _Job:
    config: Config
    data: TrainingData
    unseen: "ray.ObjectRef[UnseenPictures]"
    folder: str
    about: dict[str, Any]


def _final_trial(
    proposal: dict[str, Any], *, jobs: Sequence[_Job], resources: Resources, storage: str
) -> None:
    """One training and its rating."""
    job = jobs[proposal["number"]]
    epochs = {"epoch": job.config.train.epochs}
    result = fit(
        job.config,
        job.data,
        resources,
        storage,
        job.folder,
        validate=False,
        in_trial=True,
    )
    try:
        kept = kept_checkpoint(result, job.config)
    except UserError as error:
        tune.report({**epochs, "diverged": str(error)})
        return
    from dsn_ray.details import write_details  # only now: it needs torch, as the pictures do

    quiet_data()
    unseen = ray.get(job.unseen)
    with kept.as_directory() as folder:
        details = Folder.at(f"{storage}/{job.folder}") / DETAILS
        look = partial(write_details, details, job.about, unseen.classes)
        rows = evaluate_checkpoint(open_checkpoint(Path(folder)), unseen, resources, look=look)
    tune.report({**epochs, "rows": rows, "kept": kept.path})


class _Collector(tune.Callback):
    """Takes what came of each training into the results as soon as it is there.

    Equal trainings are run once, and what came of it is that of all of them.
    """

    def __init__(
        self, twins: Sequence[Sequence[Candidate]], results: FinalResults, storage: str
    ) -> None:
        self._twins, self._results, self._storage = twins, results, storage

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        twins = self._twins[trial.config["number"]]
        # A trial that Tune runs again, because it failed after its report, reports again.
        new = [one for one in twins if not self._results.has(one)]
        for one in new if "diverged" in result else []:
            self._results.add_diverged(one, result["diverged"])
        if "rows" not in result or not new:
            return
        one = twins[0]
        filesystem = FileSystem.from_uri(self._storage)[0] if "://" in self._storage else None
        kept = Checkpoint(result["kept"], filesystem)
        here = self._results.folder / one.folder
        checkpoint = on_this_machine(kept, self._storage, here)
        if "://" in self._storage:
            there = Folder.at(f"{self._storage}/{one.folder}") / DETAILS
            for name in there.names():
                (Folder.at(here) / DETAILS).write(name, there.read(name))
        for one in new:
            self._results.add(one, result["rows"], checkpoint)
