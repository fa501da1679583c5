"""The study of a sweep's search: Optuna's, in a journal in the run's folder."""

from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dsn_ray.data.storage import Folder
from dsn_ray.record import EPOCHS
from dsn_ray.space import Sampler

STUDY = "study.journal"
TWIN_OF = "twin of"
"""Attribute of a trial whose setting an earlier one has, with that one's number."""
_ASKED = "asked"


def open_journal(journal: Path) -> JournalStorage:
    """Optuna's storage in a file."""
    return JournalStorage(JournalFileBackend(str(journal)))


def open_study(journal: Path, sampler: Sampler) -> optuna.Study:
    """The study of a search, new or as it was left.

    Args:
        journal: a file of Optuna's journal storage, which Optuna's own tools open.
        sampler: who proposes.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=open_journal(journal),
        direction="maximize",
        load_if_exists=True,
    )
    study.sampler = _sampler(sampler, len(study.get_trials(deepcopy=False)))
    return study


def take_up_study(
    folder: Path, sampler: Sampler, asked: dict[str, Any], checkpoints: str
) -> tuple[optuna.Study, Path | None]:
    """The study of a run's search, new or as it was left, if its trials were asked for as now.

    Else it is set aside with the records of its trials, and their checkpoints are deleted: nothing
    of them may count as a value or be gone on with.

    Args:
        folder: the run's.
        sampler: who proposes.
        asked: all that decides a trial's value but its setting, as JSON has it.
        checkpoints: folder or URL of those of the trials.

    Returns:
        The study, and the folder of the one that was set aside, if one was.
    """
    study = open_study(folder / STUDY, sampler)
    if study.user_attrs.get(_ASKED, asked) == asked:
        study.set_user_attr(_ASKED, asked)
        return study, None
    earlier = (folder / f"search-{number}" for number in count(1))
    aside = next(path for path in earlier if not (path / STUDY).exists())
    aside.mkdir(exist_ok=True)
    Folder.at(checkpoints).remove()
    for name in ("trials.jsonl", EPOCHS, STUDY):  # the study last: till then this can be repeated
        if (folder / name).exists():
            (folder / name).replace(aside / name)
    return take_up_study(folder, sampler, asked, checkpoints)[0], aside


def best_setting(study: optuna.Study) -> dict[str, Any] | None:
    """The setting of the best trial that came to its end; None where none did."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    return dict(study.best_trial.params)


def settings_tried(study: optuna.Study) -> list[dict[str, Any]]:
    """Every setting of the search but those that failed, in order."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [
        dict(trial.params)
        for trial in study.get_trials(deepcopy=False, states=states)
        if TWIN_OF not in trial.user_attrs
    ]


def _sampler(sampler: Sampler, before: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler, which does not begin its random numbers anew after `before` trials."""
    seed, startup = sampler.seed + before, sampler.startup_trials
    match sampler.name:
        case "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=False
            )
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
        case "qmc":
            # The study knows how far the sequence of this seed has got.
            return optuna.samplers.QMCSampler(seed=sampler.seed, scramble=True)
        case _:
            return optuna.samplers.RandomSampler(seed=seed)
