"""Ray Train within a Ray Tune trial."""

import time

import pytest
import ray.train
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.util.state import list_actors

from dsn_ray.in_trial import TellTune, TrialTrainer
from dsn_ray.search import ListSearcher
from dsn_ray.trials import run_trials

EPOCHS = 3


def train(job):
    for epoch in range(1, job["epochs"] + 1):
        if epoch == job["breaks"]:
            raise ValueError("this worker is broken")
        ray.train.report({"epoch": epoch})
        time.sleep(job["pause"])


class Heard(Callback):
    def __init__(self):
        self.epochs = []

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.epochs.append((trial.config["number"], result["epoch"]))


def run(folder, jobs, scheduler=None):
    """Runs trials that want both CPUs, one after another; their errors, and what Tune heard."""

    def trial(proposal):
        TrialTrainer(
            train,
            train_loop_config=jobs[proposal["number"]],
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(
                name=str(proposal["number"]), storage_path=str(folder), callbacks=[TellTune()]
            ),
        ).fit()

    heard = Heard()
    proposals = ListSearcher([{"number": number} for number in range(len(jobs))], lambda: 1)
    ended = run_trials(trial, proposals, scheduler or FIFOScheduler(), [heard], str(folder), "tune")
    return ended.errors, heard.epochs


def test_every_epoch_is_told_and_trials_start_no_controllers(connected, ray_address, tmp_path):
    before = {actor.actor_id for actor in list_actors(ray_address, limit=1000)}
    job = {"epochs": EPOCHS, "pause": 0, "breaks": None}
    errors, epochs = run(tmp_path, [job, job])
    assert not errors
    assert epochs == [(number, epoch) for number in (0, 1) for epoch in range(1, EPOCHS + 1)]
    actors = [one for one in list_actors(ray_address, limit=1000) if one.actor_id not in before]
    kinds = [one.class_name for one in actors]
    assert kinds.count("RayTrainWorker") == 4
    assert not {"TrainController", "_QueueActor"} & set(kinds)


class StopAtTwo(FIFOScheduler):
    def on_trial_result(self, tune_controller, trial, result):
        return TrialScheduler.STOP if result["epoch"] == 2 else TrialScheduler.CONTINUE


def test_a_trial_that_is_stopped_leaves_its_cpus_to_the_next(connected, tmp_path):
    job = {"epochs": 1000, "pause": 0.1, "breaks": None}
    errors, epochs = run(tmp_path, [job, job], StopAtTwo())
    assert not errors
    assert epochs == [(0, 1), (0, 2), (1, 1), (1, 2)]


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_worker_that_raises_fails_its_trial(connected, tmp_path, breaks):
    job = {"epochs": EPOCHS, "pause": 0, "breaks": breaks}
    (error,), epochs = run(tmp_path, [job])
    assert "this worker is broken" in str(error)
    assert epochs == [(0, epoch) for epoch in range(1, breaks)]
