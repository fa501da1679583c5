"""What the tests of a search share: spaces, searchers, and trials that end as they are told to."""

import itertools

from ray.tune.search import Searcher

from dsn_ray.search import StudySearcher
from dsn_ray.space import Space
from dsn_ray.study import open_study

LAMBDA1 = {"loss.lambda1": {"distribution": "uniform", "low": 0, "high": 1}}


def space(**changes):
    tree = {"parameters": LAMBDA1, "first": [{"loss.lambda1": 0.1}], "budget": {"trials": 4}}
    return Space.model_validate({**tree, **changes})


def room():
    return 1


def searcher(folder, of, last_epoch=3, room=room):
    study = open_study(folder / "study.journal", of.sampler)
    return StudySearcher(study, of, of.trials, "mAP", last_epoch, room)


IDS = itertools.count()


def run(search, values):
    """Runs what is proposed, one at a time; `values` are (last epoch, mAP) or None for an error."""
    proposals = []
    for ending in values:
        trial_id = str(next(IDS))
        proposal = search.suggest(trial_id)
        if proposal == Searcher.FINISHED:
            break
        proposals.append(proposal)
        result = None
        for epoch in range(1, (ending or (0, 0))[0] + 1):
            result = {"epoch": epoch, "mAP": ending[1] * epoch / ending[0]}
            search.on_trial_result(trial_id, result)
        search.on_trial_complete(trial_id, result, error=ending is None)
    return proposals
