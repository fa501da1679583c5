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

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from dsn_ray import tune
from tests.conftest import processes_with, rows_by_key

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
    """A Ray cluster of a head, where the pictures lie, and a node, with one CPU each."""

    def __init__(self):
        self.mark = f"DSN_RAY_TEST={id(self)}"
        os.environ.update([self.mark.split("=")])  # all that runs on the nodes has it
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
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
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

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
    """A command in a process of its own."""

    def __init__(self, folder, verb, options):
        self.started = time.monotonic()
        self.said = folder / f"said-{time.monotonic_ns()}"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"dsn_ray.{verb}", *options],
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
def running(folder, verb, *options):
    command = Command(folder, verb, options)
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


def test_a_sweep_from_start_to_table_while_its_machines_die(
    tmp_path, nodes, drawings, cache, monkeypatch, capfd
):
    address = nodes.cluster.address
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    asked = options(tmp_path, drawings, trials=2)
    run = tmp_path / "runs" / "s"
    with running(tmp_path, "tune", *asked) as sweep:
        sweep.wait_for("trial 2/2 epoch 1/")
        os.kill(nodes.workers[0], signal.SIGKILL)
        sweep.wait_for("trial 2/2 epoch 2/")
        nodes.lose_one()
        sweep.wait_for("trial 2/2 epoch 3/")
        sweep.process.kill()
        _, said = sweep.end()
    assert "1 pictures did not decode" in said
    assert "Ray dashboard: http://127.0.0.1:" in said
    assert f"Ray's messages go to {run / 'ray.log'}" in said
    before = trials_of(tmp_path)
    assert [trial["state"] for trial in before] == ["finished"]
    assert not (run / "final.json").exists()

    with running(tmp_path, "tune", "--resume", *asked[-6:]) as resumed:
        status, said = resumed.end()
    assert status == 0, said
    assert said.splitlines()[-1] == str(run)
    assert "epoch 1/4 mAP" not in said  # it goes on from its last checkpoint
    after = trials_of(tmp_path)
    assert after[0] == before[0]
    assert [trial["number"] for trial in after] == [1, 2]
    assert [trial["epochs"] for trial in after] == [EPOCHS] * 2
    assert after[1]["value"] == after[0]["value"]
    assert after[1]["parameters"] == {"memory.k": 11}
    left = sorted(path.name for path in (tmp_path / "shared" / "s" / "trials").iterdir())
    assert left == ["trial1-seed0"]  # the best; what came to the same is deleted

    final = json.loads((run / "final.json").read_text())
    assert len(final["rows"]) == 8
    for row in final["rows"]:
        assert row["dataset"] == "folder:toy"
        assert row["parameters"] == {"memory.k": 10}
        assert (row["queries"], row["gallery"], row["dim"], row["seed"]) == (18, 18, 64, 0)
        assert 0 < row["value"] <= 1
    assert {row["codes"] for row in final["untrained"]} == {"real"}
    checkpoint = Path(final["rows"][0]["checkpoint"])
    about = json.loads((checkpoint / "about.json").read_text())
    assert set(about["classes"]) == {"circle", "square", "triangle", "cross", "ladder"}

    again = ["--resume", *asked[-6:-2], "--set", "loss.tau=0.2", *asked[:4], "--smoke-test"]
    assert tune.main(again) == 2
    assert "disagree on" in capfd.readouterr().err
    assert tune.main(asked) == 2
    assert "exists already" in capfd.readouterr().err

    wanted = ["--json", "again.json", "--figure", "found.png", "--workers", "1"]
    with running(tmp_path, "evaluate", "--checkpoint", str(checkpoint), *wanted) as evaluated:
        status, said = evaluated.end()
    assert status == 0, said
    figure = np.asarray(Image.open("found.png").convert("RGB")).astype(int)
    red = (figure[..., 0] > 250) & (figure[..., 1:] < 5).all(axis=2)
    # Three unseen classes with six photos each: four at least of ten photos are wrong.
    assert red.sum() > 3 * 4 * 4 * 112
    rated = json.loads((tmp_path / "again.json").read_text())["rows"]
    assert rows_by_key(rated) == pytest.approx(rows_by_key(final["rows"]), abs=1e-6)
