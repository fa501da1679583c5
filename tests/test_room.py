"""What runs take of clusters, and how they wait for more."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from rich.console import Console

from dsn_ray import room
from dsn_ray.errors import UserError
from dsn_ray.room import Resources, Shape, allot, check_storage_reaches_all
from dsn_ray.runtime import ray_cluster
from tests.conftest import processes_with


def said():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def connected(attached):
    with ray_cluster() as dashboard:
        yield dashboard


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(), Resources(2, 1.0, 0.0, 1)),
        (Shape(workers=1), Resources(1, 2.0, 0.0, 1)),
        (Shape(workers=4), Resources(4, 0.5, 0.0, 1)),
        (Shape(concurrent=2), Resources(2, 0.5, 0.0, 2)),
        (Shape(cpus_per_worker=0.25), Resources(2, 0.25, 0.0, 4)),
        (Shape(cpus_per_worker=0.25, concurrent=2), Resources(2, 0.25, 0.0, 2)),
    ],
)
def test_the_machines_cpus_are_shared_out(connected, shape, expected):
    assert allot(shape, said()) == expected


@pytest.mark.parametrize(
    ("nodes", "shape", "expected"),
    [
        ([{"CPU": 16, "GPU": 1}], Shape(), Resources(1, 16.0, 1.0, 1)),
        ([{"CPU": 16, "GPU": 4}], Shape(), Resources(2, 4.0, 1.0, 2)),
        ([{"CPU": 16, "GPU": 1}], Shape(gpus_per_worker=0), Resources(2, 8.0, 0.0, 1)),
        ([{"CPU": 2}] * 3, Shape(), Resources(2, 2.0, 0.0, 1)),
        ([{"CPU": 2}] * 2, Shape(workers=1), Resources(1, 2.0, 0.0, 2)),
        ([{"CPU": 4}, {"CPU": 2}, {"CPU": 2}], Shape(), Resources(2, 2.0, 0.0, 2)),
    ],
)
def test_the_share_of_a_worker_fits_a_node(monkeypatch, nodes, shape, expected):
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in nodes])
    monkeypatch.setattr(room, "_autoscaler_limits", lambda: None)
    assert allot(shape, said()) == expected


def test_a_cluster_that_grows_has_room_for_more(monkeypatch):
    nodes = [{"CPU": 4, "GPU": 2}]
    monkeypatch.setattr(room, "_autoscaler_limits", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4, "GPU": 2})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in nodes])
    one = Resources(2, 1.0, 1.0, 1)
    assert room.room_for(one) == 1
    nodes.append({"CPU": 4, "GPU": 4})
    assert room.room_for(one) == 3
    assert room.room_for(Resources(1, 0.5, 0.25, 1)) == 16
    nodes.clear()
    assert room.room_for(one) == 1


def test_what_is_missing_is_said(connected):
    with pytest.raises(UserError, match="needs 6 CPUs, but this Ray cluster has 2"):
        allot(Shape(workers=3, cpus_per_worker=2), said())
    with pytest.raises(UserError, match="needs 1 GPUs, but this Ray cluster has 0"):
        allot(Shape(workers=2, gpus_per_worker=0.5), said())


def test_one_node_may_keep_its_checkpoints_itself(connected):
    check_storage_reaches_all("runs")
    assert connected.startswith("http://127.0.0.1:")
    assert "ray get-auth-token" in connected


def test_many_nodes_want_storage_that_all_of_them_reach(connected, monkeypatch, tmp_path):
    (node,) = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [node, node])
    with pytest.raises(UserError, match="is a folder of one node, but this Ray cluster has 2"):
        check_storage_reaches_all(str(tmp_path))
    check_storage_reaches_all(f"file://{tmp_path}/new")
    gone = {**node, "NodeID": "a" * 56}
    monkeypatch.setattr(ray, "nodes", lambda: [node, gone])  # it has just died
    check_storage_reaches_all(f"file://{tmp_path}/new")
    monkeypatch.setattr(ray, "nodes", lambda: [node, node])
    monkeypatch.setattr(room, "_sees", lambda path: False)
    with pytest.raises(UserError, match="does not see this folder"):
        check_storage_reaches_all(f"file://{tmp_path}")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("nodes", "most", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 48, "GPU": 4}], 13, 12),  # one of two machines has come
        ([{"CPU": 8}, {"CPU": 48, "GPU": 4}], 10, 10),
        ([{"CPU": 4, "GPU": 4}], 13, 1),
        ([{"CPU": 2, "GPU": 4}], 13, 1),
    ],
)
def test_cpus_of_the_nodes_that_have_come_are_shared_out(monkeypatch, nodes, most, expected):
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    one = Resources(2, 1.0, 1.0, 4)
    assert room._with_whole_cpus(one, most).cpus_per_worker == expected


FAKE_HEAD = "f" * 51 + "00000"


GROWING = {
    "cluster_name": "growing",
    "max_workers": 1,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{
        key: []
        for key in (
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
        )
    },
}


@pytest.fixture
def growing(tmp_path, monkeypatch):
    """A cluster of one CPU, with token authentication, to which an autoscaler can add two."""
    config = tmp_path / "ray_bootstrap_config.yaml"  # where `ray up` leaves it
    monkeypatch.setenv("HOME", str(tmp_path))
    config.write_text(json.dumps(GROWING))
    with socket.create_server(("127.0.0.1", 0)) as free:
        dashboard = free.getsockname()[1]
    token = tmp_path / "token"
    token.write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    environment = {name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"} | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
    }
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
        *("--port=6379", f"--dashboard-port={dashboard}"),  # the fake nodes know only this port
        *("--num-cpus=1", "--object-store-memory=150000000", f"--autoscaling-config={config}"),
    ]
    with (tmp_path / "ray.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while b"Ray runtime started" not in (tmp_path / "ray.log").read_bytes():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
            yield f"{ray.util.get_node_ip_address()}:6379"
        finally:
            process.terminate()
            process.wait(30)
            for pid in processes_with(f"RAY_AUTH_TOKEN_PATH={token}"):
                os.kill(pid, signal.SIGKILL)  # the fake nodes outlive their head


ASK = """
import sys
from rich.console import Console
from dsn_ray.errors import UserError
from dsn_ray.room import Shape, allot
from dsn_ray.runtime import ray_cluster

try:
    with ray_cluster():
        console = Console(width=200)
        wait, workers = float(sys.argv[1]), int(sys.argv[2])
        print(allot(Shape(workers=workers, cpus_per_worker=1, wait=wait), console))
except UserError as error:
    print(error)
"""


def ask(address, wait, mode, workers=3):
    environment = os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": mode}
    return subprocess.run(
        [sys.executable, "-c", ASK, str(wait), str(workers)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


@pytest.mark.slow
def test_nodes_that_an_autoscaler_adds_are_awaited(growing):
    assert "it asks for a token; set RAY_AUTH_MODE=token" in ask(growing, 1, "disabled")
    assert "has 1 and can grow to 3" in ask(growing, 60, "token", workers=4)
    said = ask(growing, 0, "token")
    assert "Waiting up to 0 s for nodes with 3 x {'CPU': 1}." in said
    assert "--wait 0: the cluster did not grow to 3 x {'CPU': 1} in time; it has 1 CPUs" in said
    assert "each on 3 workers with 1 CPU" in ask(growing, 60, "token")


def test_a_worker_needs_something(ray_address):
    ray.init(address=ray_address, log_to_driver=False)
    try:
        with pytest.raises(UserError, match="--cpus-per-worker 0: without a GPU"):
            allot(Shape(cpus_per_worker=0), Console())
    finally:
        ray.shutdown()


def test_resources_on_one_line():
    assert str(Resources(2, 1.0, 0.0, 1)) == ("1 training at a time, each on 2 workers with 1 CPU")
    assert str(Resources(1, 4.0, 0.5, 3)) == (
        "3 trainings at a time, each on 1 worker with 4 CPU and 0.5 GPU"
    )
    assert Resources(2, 1.0, 0.0, 1).per_worker == {"CPU": 1.0}
