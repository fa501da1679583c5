from types import SimpleNamespace

import pytest

from dsn_ray.stopping import make_scheduler
from dsn_ray.study import open_study
from tests.searches import IDS, run, searcher, space


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asha", "AsyncHyperBandScheduler"),
        ("median", "MedianStoppingRule"),
        ("none", "FIFOScheduler"),
    ],
)
def test_schedulers_by_name(name, kind):
    scheduler = make_scheduler(space(scheduler={"name": name}), "mAP", epochs=1)
    assert type(scheduler._rule).__name__ == kind


def known(number):
    """A trial as Tune has it."""
    return SimpleNamespace(trial_id=next(IDS), config={"number": number})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_remembers_what_an_earlier_process_saw(tmp_path, name):
    of = space(scheduler={"name": name})
    run(searcher(tmp_path, of), [(3, 0.9), (3, 0.8), (3, 0.85)])
    study = open_study(tmp_path / "study.journal", of.sampler)
    scheduler = make_scheduler(of, "mAP", epochs=3)
    scheduler.remind(study, "mAP")
    new = known(4)
    scheduler.on_trial_add(None, new)
    assert scheduler.on_trial_result(None, new, {"epoch": 1, "mAP": 0.01}) == "STOP"


@pytest.mark.parametrize("name", ["asha", "median"])
def test_the_last_epoch_ends_by_itself(name):
    scheduler = make_scheduler(space(scheduler={"name": name}), "mAP", epochs=3)
    running = SimpleNamespace(get_live_trials=tuple)
    for trial, value in ((known(1), 0.9), (known(2), 0.9), (known(3), 0.9), (known(4), 0.01)):
        scheduler.on_trial_add(running, trial)
        for epoch in (1, 2, 3) if value > 0.5 else (3,):
            result = {"epoch": epoch, "mAP": value}
            assert scheduler.on_trial_result(running, trial, result) == "CONTINUE"
            if epoch == 3:
                scheduler.on_trial_complete(running, trial, result)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_resumed_trial_is_judged_as_an_undisturbed_one(tmp_path, monkeypatch, name):
    of = space(scheduler={"name": name})
    search, scheduler = searcher(tmp_path, of, 8, lambda: 4), make_scheduler(of, "mAP", epochs=8)
    running = SimpleNamespace(get_live_trials=tuple)
    trials = [known(search.suggest(str(number))["number"]) for number in range(1, 5)]
    for trial in trials:
        scheduler.on_trial_add(running, trial)
    for trial in reversed(trials):  # the last is the first to report; better ones come by
        for epoch in range(1, 5):
            value = 0.3 if trial is trials[-1] else 0.4 + 0.1 * epoch
            result = {"epoch": epoch, "mAP": value}
            assert scheduler.on_trial_result(running, trial, result) == "CONTINUE"
            search.on_trial_result(str(trial.config["number"]), result)
    later, again = make_scheduler(of, "mAP", epochs=8), known(4)
    later.remind(search._study, "mAP")
    later.on_trial_add(running, again)
    with monkeypatch.context() as patched:
        patched.setattr(later._rule, "on_trial_result", None)  # it has heard of the last epoch
        assert later.on_trial_result(running, again, {"epoch": 4, "mAP": 0.3}) == "CONTINUE"
    result = {"epoch": 5, "mAP": 0.3}
    assert later.on_trial_result(running, again, result) == "CONTINUE"
    assert scheduler.on_trial_result(running, trials[-1], result) == "CONTINUE"
