"""Sweeps whose machines die under them, on real Ray clusters of several nodes.

The trials of these sweeps differ in a setting that decides nothing, the places in a memory bank whose
loss has no weight. So the first one, which nobody disturbs, says what the others must come to.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.conftest import processes_with

EPOCHS = 4


def space(trials):
    return f"""
parameters:
  memory.k: {{choices: {[10 + number for number in range(trials)]}}}
sampler: {{name: grid}}
scheduler: {{name: none}}
set:
  network.backbone: efficientnet_lite0
  data.validation_classes: 2
  loss.lambda2: 0.0
"""


class Nodes:
    """A Ray cluster: a head without CPUs for trainings, and nodes of one worker each."""

    def __init__(self):
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": 0,
                "object_store_memory": 200 * 2**20,
            },
        )
        self.nodes = [self.add(), self.add()]

    def add(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def lose_one(self):
        """Kills a node with all that runs on it; another one comes in its place."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.nodes.append(self.add())


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


class Command:
    """`dsn_ray.tune` in a process of its own."""

    def __init__(self, folder, address, options):
        self.mark = f"DSN_RAY_TEST={folder}"
        self.said = folder / f"said-{time.monotonic_ns()}"
        environment = os.environ | dict([self.mark.split("=")]) | {"RAY_ADDRESS": address}
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dsn_ray.tune", *options],
                env=environment,
                cwd=folder,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, text, seconds=240):
        """Waits until the command has said something."""
        deadline = time.monotonic() + seconds
        while text not in self.said.read_text():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.1)

    def end(self, seconds=300):
        """Waits for its end; returns its status and what it said."""
        status = self.process.wait(seconds)
        return status, self.said.read_text()


@contextmanager
def running(folder, address, *options):
    command = Command(folder, address, options)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()


def options(folder, drawings, trials):
    (folder / "space.yaml").write_text(space(trials))
    return [
        *("--space", "space.yaml", "--data", f"folder:toy={drawings}", "--smoke-test"),
        *("--trials", str(trials), "--set", f"train.epochs={EPOCHS}"),
        *("--storage", f"file://{folder}/shared", "--name", "s", "--cpus-per-worker", "1"),
    ]


def trials_of(folder):
    lines = (folder / "runs" / "s" / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def a_worker(address):
    """The process of one of the training's workers on that cluster."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in title and f"RAY_ADDRESS={address}".encode() in environment:
            return int(process.name)
    raise AssertionError("no worker is running")


def test_a_sweep_survives_a_worker_a_node_and_its_driver(tmp_path, nodes, drawings):
    address = nodes.cluster.address
    asked = options(tmp_path, drawings, trials=4)
    with running(tmp_path, address, *asked) as sweep:
        sweep.wait_for("trial 2/4 epoch 2/")
        os.kill(a_worker(address), signal.SIGKILL)
        sweep.wait_for("trial 3/4 epoch 2/")
        nodes.lose_one()
        sweep.wait_for("trial 4/4 epoch 2/")
        sweep.process.kill()
        sweep.end()
    before = trials_of(tmp_path)
    assert [trial["state"] for trial in before] == ["finished"] * 3
    assert not (tmp_path / "runs" / "s" / "final.json").exists()

    with running(tmp_path, address, "--resume", *asked[-6:]) as resumed:
        status, said = resumed.end()
    assert status == 0, said
    assert "trial 4/4 epoch 1/" not in said  # it goes on from its last checkpoint
    assert "trial 1/4" not in said
    after = trials_of(tmp_path)
    assert after[:3] == before
    assert [trial["epochs"] for trial in after] == [EPOCHS] * 4
    assert {trial["value"] for trial in after} == {after[0]["value"]}
    final = json.loads((tmp_path / "runs" / "s" / "final.json").read_text())
    assert len(final["rows"]) == 8
    left = sorted(path.name for path in (tmp_path / "shared" / "s" / "trials").iterdir())
    assert left == ["trial1-seed0"]  # the best; what came to the same is deleted
