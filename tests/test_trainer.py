"""Ray Train within Ray Tune's trials."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import ray.train
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.util import placement_group, placement_group_table
from ray.util.state import list_actors

from dsn_ray.runtime import ray_cluster
from dsn_ray.search import ListSearcher
from dsn_ray.trainer import ReleaseWorkers, TellTune, TrialTrainer
from dsn_ray.trials import run_trials
from tests.test_runtime import left_behind

EPOCHS = 3


@pytest.fixture(scope="module")
def cluster():
    # Not the tests' shared cluster: a process that once had a cluster of its own, as this one may,
    # wants Ray's token of everybody, and that cluster has none.
    with pytest.MonkeyPatch.context() as patch:
        left_behind(None, patch)
        with ray_cluster():
            yield


def train(job):
    for epoch in range(1, job["epochs"] + 1):
        if epoch == job["breaks"]:
            raise ValueError("this worker is broken")
        if epoch == job["kills"]:
            os.kill(job["process"], signal.SIGKILL)
        ray.train.report({"epoch": epoch})
        time.sleep(job["pause"])


class Heard(Callback):
    def __init__(self):
        self.epochs = []

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.epochs.append((trial.config["number"], result["epoch"]))


def job(epochs=EPOCHS, pause=0.0, breaks=None, kills=None):
    """What a worker does; in epoch `kills` it kills the process of its trial."""
    return {"epochs": epochs, "pause": pause, "breaks": breaks, "kills": kills}


def run(folder, jobs, scheduler=None, room=lambda: 1):
    """Runs trials that want both CPUs, one after another; their errors, and what Tune heard."""

    def trial(proposal):
        TrialTrainer(
            train,
            train_loop_config=jobs[proposal["number"]] | {"process": os.getpid()},
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(
                name=str(proposal["number"]), storage_path=str(folder), callbacks=[TellTune()]
            ),
        ).fit()

    heard = Heard()
    proposals = ListSearcher([{"number": number} for number in range(len(jobs))], room)
    ended = run_trials(
        trial, proposals, scheduler or FIFOScheduler(), [heard], str(folder), "tune", reuse=True
    )
    return ended.errors, heard.epochs


def test_every_epoch_is_told_and_trials_share_a_process(cluster, tmp_path):
    before = {actor.actor_id for actor in list_actors(limit=1000)}
    errors, epochs = run(tmp_path, [job(), job()])
    assert not errors
    assert epochs == [(number, epoch) for number in (0, 1) for epoch in range(1, EPOCHS + 1)]
    actors = [one for one in list_actors(limit=1000) if one.actor_id not in before]
    kinds = [one.class_name.rpartition(".")[2] for one in actors]
    assert kinds.count("RayTrainWorker") == 4
    assert kinds.count("ImplicitFunc") == 1
    others = {"TrainController", "_QueueActor", "DatasetManager", "PlacementGroupCleaner"}
    assert not others & set(kinds)


class StopAtTwo(FIFOScheduler):
    def on_trial_result(self, tune_controller, trial, result):
        return TrialScheduler.STOP if result["epoch"] == 2 else TrialScheduler.CONTINUE


def test_a_trial_that_is_stopped_leaves_its_cpus_to_the_next(cluster, tmp_path):
    errors, epochs = run(tmp_path, [job(1000, 0.1), job(1000, 0.1)], StopAtTwo())
    assert not errors
    assert epochs == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_trial_that_is_stopped_ends_before_another_wants_its_cpus(cluster, tmp_path):
    deadline = time.monotonic() + 60

    def room():
        assert time.monotonic() < deadline, "the stopped trial goes on"
        alive = [one.class_name for one in list_actors(limit=1000) if one.state == "ALIVE"]
        return 0 if "RayTrainWorker" in alive else 1

    errors, epochs = run(tmp_path, [job(1000, 0.1), job(1000, 0.1)], StopAtTwo(), room)
    assert not errors
    assert epochs == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_process_that_is_killed_in_its_second_trial_leaves_its_cpus(cluster, tmp_path):
    errors, epochs = run(tmp_path, [job(), job(1000, 0.1, kills=2), job()])
    assert len(errors) == 1
    assert [epoch for epoch in epochs if epoch[0] != 1] == [
        (number, epoch) for number in (0, 2) for epoch in range(1, EPOCHS + 1)
    ]


def test_what_dead_processes_left_of_ended_trials_is_removed(cluster):
    names = ["failed:1", "ended:2", "running:3"]
    groups = {name: placement_group([{"CPU": 0.1}], name=name) for name in names}
    failed, ended, running = (
        SimpleNamespace(trial_id=name[:-2], is_finished=lambda name=name: name == "ended:2")
        for name in names
    )
    ReleaseWorkers().on_trial_error(1, [failed, ended, running], failed)
    states = {name: placement_group_table(group)["state"] for name, group in groups.items()}
    assert [states[name] == "REMOVED" for name in names] == [True, True, False]
    ReleaseWorkers().on_experiment_end([failed, ended, running])
    assert placement_group_table(groups["running:3"])["state"] == "REMOVED"


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_worker_that_raises_fails_its_trial(cluster, tmp_path, breaks):
    (error,), epochs = run(tmp_path, [job(breaks=breaks)])
    assert "this worker is broken" in str(error)
    assert epochs == [(0, epoch) for epoch in range(1, breaks)]
