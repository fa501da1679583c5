"""Sweeps whose machines die under them, on real Ray clusters of several nodes.

The trials of these sweeps differ in a setting that decides nothing, the places in a memory bank
whose loss has no weight. So the first one, which nobody disturbs, says what the others must come
to.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import yaml
from PIL import Image
from ray.cluster_utils import Cluster

from dsn_ray import run_sweep, tune
from dsn_ray.config import Config
from dsn_ray.errors import UserError
from dsn_ray.record import read_lines
from dsn_ray.space import load_space
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


def curves_of(folder):
    """What every training of the search came to, epoch by epoch, by its name."""
    curves = {}
    for line in read_lines(folder / "runs" / "s" / "epochs.jsonl"):
        if line["training"].startswith("trial"):
            value = line["epoch"], line["loss_total"], line["mAP"]
            curves.setdefault(line["training"], set()).add(value)
    return curves


def states_of(trial):
    """By its epoch, each checkpoint of a trial that can be read; but not what has the bank's size.

    There may be two of them, and Train may be writing or deleting one.
    """
    found = {}
    for path in trial.glob("*/state.pt"):
        with suppress(OSError, RuntimeError):
            state = torch.load(path, weights_only=True)
            found[state["epoch"]] = state["network"], state["optimizer"], state["schedule"]
    return found


def test_a_sweep_from_start_to_table_while_its_machines_die(
    tmp_path, nodes, drawings, cache, monkeypatch, capfd
):
    address = nodes.cluster.address
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    asked = options(tmp_path, drawings, trials=2)
    run = tmp_path / "runs" / "s"
    trials = tmp_path / "shared" / "s" / "trials"
    undisturbed = {}
    with running(tmp_path, "tune", *asked) as sweep:
        sweep.wait_for("Ray dashboard")
        assert tune.main(["--resume", *asked[-6:]]) == 2
        assert f"process {sweep.process.pid} of" in capfd.readouterr().err
        for epoch in (2, 3):
            sweep.wait_for(f"trial 1/2 epoch {epoch}/")
            undisturbed |= states_of(trials / "trial1-seed0")
        sweep.wait_for("trial 2/2 epoch 1/")
        for waits in ("TrainStateActor", "ImplicitFunc"):
            found = processes_with(nodes.mark, waits)
            assert found, waits
            for process in found:  # none of them needs torch, which takes time and memory
                assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()
        os.kill(nodes.workers[0], signal.SIGKILL)
        sweep.wait_for("trial 2/2 epoch 2/")
        nodes.lose_one()
        sweep.wait_for("trial 2/2 epoch 3/")
        sweep.process.kill()
        _, said = sweep.end()
    while nodes.workers:
        time.sleep(0.1)
    undisturbed |= states_of(trials / "trial1-seed0")
    disturbed = states_of(trials / "trial2-seed0")
    epoch = max(disturbed)
    assert epoch >= 3
    torch.testing.assert_close(disturbed[epoch], undisturbed[epoch], rtol=0, atol=0)
    assert "1 picture did not decode" in said
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
    first, second = curves_of(tmp_path).values()
    assert first == second
    assert len(first) == EPOCHS
    left = sorted(path.name for path in trials.iterdir())
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

    smaller = Config().with_settings({**tune.SMOKE_TEST, "train.epochs": EPOCHS})
    given = {"config": smaller, "trials": 2, "storage": f"file://{tmp_path}/shared"}
    space_here, toy = load_space(tmp_path / "space.yaml"), [("folder:toy", drawings)]
    how = {"resume": True, "final_only": True, "cpus_per_worker": 1}
    with pytest.raises(UserError, match=r"disagree on seeds \(1, now 2\); leave"):
        run_sweep(space_here, toy, name="s", seeds=2, **given, **how)
    run_sweep(space_here, toy, name="s", seeds=2, **given, **how, allow_changed=True)
    later = json.loads((run / "final.json").read_text())
    assert later["rows"][:8] == final["rows"]  # what was there is not trained again
    assert [row["seed"] for row in later["rows"][8:]] == [1] * 8
    assert later["untrained"] == final["untrained"]
    assert trials_of(tmp_path) == after
    assert yaml.safe_load((run / "config.yaml").read_text())["seeds"] == 2

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


FILL = """
import sys, time
import numpy as np
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
held = [ray.put(np.random.default_rng(n).bytes(20 * 2**20)) for n in range(20)]
print("full", flush=True)
time.sleep(600)
"""


@contextmanager
def full_object_store(address):
    """Puts twice as much into the head's object store as it holds."""
    process = subprocess.Popen(
        [sys.executable, "-c", FILL, address], stdout=subprocess.PIPE, text=True
    )
    try:
        # Ray may say there that the node that was lost is lost.
        assert "full\n" in iter(process.stdout.readline, "")
        yield
    finally:
        process.kill()
        process.wait()


def give_notice(nodes):
    """Tells Ray that the node will be taken away, as clouds do with spot machines."""
    command = ["drain-node", "--address", nodes.cluster.address, "--node-id", nodes.node.node_id]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    program = str(Path(sys.executable).with_name("ray"))
    subprocess.run(
        [program, *command, *reason, "--deadline-remaining-seconds", "20"], check=True, timeout=60
    )


@pytest.mark.slow
def test_a_sweep_survives_a_hang_a_notice_and_a_full_object_store(
    tmp_path, nodes, drawings, cache, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    asked = options(tmp_path, drawings, trials=4)
    with running(tmp_path, "tune", *asked, "--patience", "30") as sweep:
        sweep.wait_for("trial 2/4 epoch 1/")
        assert "libtorch" not in Path(f"/proc/{sweep.process.pid}/maps").read_text()
        os.kill(nodes.workers[0], signal.SIGSTOP)
        sweep.wait_for("trial 3/4 epoch 1/")
        give_notice(nodes)
        time.sleep(5)
        nodes.lose_one()
        sweep.wait_for("trial 4/4 epoch 1/")
        with full_object_store(nodes.cluster.address):
            status, said = sweep.end()
    assert status == 0, said
    trials = trials_of(tmp_path)
    assert [trial["epochs"] for trial in trials] == [EPOCHS] * 4
    assert {trial["value"] for trial in trials} == {trials[0]["value"]}
    first, *others = curves_of(tmp_path).values()
    assert others == [first] * 3
    assert (tmp_path / "runs" / "s" / "final.json").exists()


@pytest.mark.slow
def test_trials_that_fail_or_diverge_do_not_end_a_sweep(
    tmp_path, nodes, drawings, cache, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    asked = options(tmp_path, drawings, trials=3)
    (tmp_path / "space.yaml").write_text(
        "parameters:\n"
        "  optimizer.lr: {choices: [1.0e-3, 1.0e+30]}\n"
        "  memory.k: {choices: [1000000000, 10], when: {optimizer.lr: 1.0e-3}}\n"  # terabytes
        "sampler: {name: grid}\n"
        "scheduler: {name: none}\n"
        "set: {network.backbone: efficientnet_lite0, data.validation_classes: 2}\n"
    )
    with running(tmp_path, "tune", *asked) as sweep:
        status, said = sweep.end(500)
    assert status == 0, said
    trials = trials_of(tmp_path)
    assert [trial["state"] for trial in trials] == ["failed", "finished", "diverged"]
    final = json.loads((tmp_path / "runs" / "s" / "final.json").read_text())
    assert final["setting"] == {"optimizer.lr": 1e-3, "memory.k": 10}


@contextmanager
def head(folder, port):
    """A head of its own, as `ray start` makes one; all of it is killed in the end."""
    mark = f"{folder}-{time.monotonic_ns()}"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    sizes = ["--num-cpus=2", "--object-store-memory=200000000", "--dashboard-port=0"]
    log = folder / "head.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, f"--port={port}", *sizes],
            env=os.environ | {"DSN_RAY_TEST": mark},
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + 90
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield f"{ray.util.get_node_ip_address()}:{port}"
    finally:
        process.kill()
        for pid in processes_with(f"DSN_RAY_TEST={mark}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_sweep_goes_on_after_its_head_was_killed(tmp_path, drawings, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (tmp_path / "token").write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    asked = options(tmp_path, drawings, trials=2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with head(tmp_path, port) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        sweep = Command(tmp_path, "tune", asked)
        sweep.wait_for("trial 2/2 epoch 2/")
    status, _ = sweep.end(180)
    assert status != 0
    with head(tmp_path, port), running(tmp_path, "tune", "--resume", *asked[-6:]) as resumed:
        status, said = resumed.end()
    assert status == 0, said
    assert "epoch 1/4 mAP" not in said
    first, second = trials_of(tmp_path)
    assert first["value"] == second["value"]
    first, second = curves_of(tmp_path).values()
    assert first == second
