"""Sweeps whose machines die under them, on real Ray clusters of several nodes.

The trials of these sweeps differ in a setting that decides nothing, the places in a memory bank
whose loss has no weight. So the first one, which nobody disturbs, says what the others must come
to.
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
    """A Ray cluster of a head, where the pictures lie, and a node, with two CPUs each."""

    def __init__(self):
        self.mark = f"DSN_RAY_TEST={id(self)}"
        os.environ.update([self.mark.split("=")])  # all that runs on the nodes has it
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "include_dashboard": True,
                "dashboard_port": 0,
                "object_store_memory": 200 * 2**20,
            },
        )
        self.node = self.add()

    @property
    def workers(self):
        return processes_with(self.mark, "RayTrainWorker")

    def end(self):
        self.cluster.shutdown()
        del os.environ["DSN_RAY_TEST"]
        assert not self.workers

    def add(self):
        return self.cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)

    def lose_one(self):
        """Kills a node with all that runs on it; another one comes in its place."""
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.node = self.add()


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes()
    yield nodes
    nodes.end()


class Command:
    """`dsn_ray.tune` in a process of its own."""

    def __init__(self, folder, address, options):
        self.started = time.monotonic()
        self.said = folder / f"said-{time.monotonic_ns()}"
        places = {"RAY_ADDRESS": address, "XDG_CACHE_HOME": str(folder / "cache")}
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dsn_ray.tune", *options],
                env=os.environ | places,
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
        print(f"{time.monotonic() - self.started:.0f} s: {text}")

    def end(self, seconds=300):
        """Waits for its end; returns its status and what it said."""
        status = self.process.wait(seconds)
        print(f"{time.monotonic() - self.started:.0f} s: ended")
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
        *("--storage", f"file://{folder}/shared", "--name", "s", "--cpus-per-worker", "2"),
    ]


def trials_of(folder):
    lines = (folder / "runs" / "s" / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_sweep_survives_a_worker_a_node_and_its_driver(tmp_path, nodes, drawings):
    address = nodes.cluster.address
    asked = options(tmp_path, drawings, trials=3)
    with running(tmp_path, address, *asked) as sweep:
        sweep.wait_for("trial 2/3 epoch 1/")
        os.kill(nodes.workers[0], signal.SIGKILL)
        sweep.wait_for("trial 2/3 epoch 3/")
        nodes.lose_one()
        sweep.wait_for("trial 3/3 epoch 2/")
        sweep.process.kill()
        sweep.end()
    before = trials_of(tmp_path)
    assert [trial["state"] for trial in before] == ["finished"] * 2
    assert not (tmp_path / "runs" / "s" / "final.json").exists()

    with running(tmp_path, address, "--resume", *asked[-6:]) as resumed:
        status, said = resumed.end()
    assert status == 0, said
    assert "trial 3/3 epoch 1/" not in said  # it goes on from its last checkpoint
    assert "trial 1/3" not in said
    after = trials_of(tmp_path)
    assert after[:2] == before
    assert [trial["epochs"] for trial in after] == [EPOCHS] * 3
    assert {trial["value"] for trial in after} == {after[0]["value"]}
    final = json.loads((tmp_path / "runs" / "s" / "final.json").read_text())
    assert len(final["rows"]) == 8
    left = sorted(path.name for path in (tmp_path / "shared" / "s" / "trials").iterdir())
    assert left == ["trial1-seed0"]  # the best; what came to the same is deleted
