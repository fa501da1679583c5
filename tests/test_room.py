"""What runs take of clusters, and how they wait for more."""

import copy
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler import sdk
from rich.console import Console

from dsn_ray import fleet, room
from dsn_ray.checks.kuberay import kuberay_fleet
from dsn_ray.checks.launcher import launcher_fleet
from dsn_ray.errors import UserError
from dsn_ray.fleet import Fleet
from dsn_ray.room import Resources, Shape, allot, check_storage_reaches_all
from dsn_ray.runtime import ray_cluster
from tests.conftest import processes_with
from tests.test_survival import options


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


@pytest.fixture
def cluster(monkeypatch):
    """A cluster that has some machines, the head first, and may get those of a fleet."""

    def has(nodes, growth=None):
        nodes[:1] = [{**node, "node:__internal_head__": 1} for node in nodes[:1]]
        monkeypatch.setattr(
            ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes]
        )
        monkeypatch.setattr(
            ray, "cluster_resources", lambda: {n: sum(x.get(n, 0) for x in nodes) for n in _NAMES}
        )
        monkeypatch.setattr(fleet, "growth_of_cluster", lambda: growth)
        monkeypatch.setattr(sdk, "request_resources", lambda bundles: None)

    return has


_NAMES = ("CPU", "GPU")


@pytest.mark.parametrize(
    ("nodes", "shape", "expected"),
    [
        ([{"CPU": 16, "GPU": 1}], Shape(), Resources(1, 16.0, 1.0, 1)),
        ([{"CPU": 16, "GPU": 4}], Shape(), Resources(2, 4.0, 1.0, 2)),
        ([{"CPU": 16, "GPU": 1}], Shape(gpus_per_worker=0), Resources(2, 8.0, 0.0, 1)),
        ([{"CPU": 16, "GPU": 1}], Shape(gpus_per_worker=0.5), Resources(1, 8.0, 0.5, 2)),
        ([{"CPU": 16, "GPU": 2}], Shape(gpus_per_worker=0.5), Resources(1, 4.0, 0.5, 4)),
        ([{"CPU": 16, "GPU": 4}] * 2, Shape(gpus_per_worker=3), Resources(2, 16.0, 3.0, 1)),
        ([{"CPU": 2}] * 3, Shape(), Resources(2, 2.0, 0.0, 1)),
        ([{"CPU": 2}] * 2, Shape(workers=1), Resources(1, 2.0, 0.0, 2)),
        ([{"CPU": 4}, {"CPU": 2}, {"CPU": 2}], Shape(), Resources(2, 2.0, 0.0, 2)),
    ],
)
def test_the_share_of_a_worker_fits_a_node(cluster, nodes, shape, expected):
    cluster(nodes)
    assert allot(shape, said()) == expected


def test_parts_of_several_gpus_are_no_share():
    with pytest.raises(UserError, match=r"--gpus-per-worker 1\.5: above 1 it must be a whole"):
        Shape(gpus_per_worker=1.5)


def test_a_cluster_that_grows_has_room_for_more(cluster):
    nodes = [{"CPU": 4, "GPU": 2}]
    cluster(nodes)
    one = Resources(2, 1.0, 1.0, 1)
    assert room.room_for(one) == 1
    nodes.append({"CPU": 4, "GPU": 4})
    assert room.room_for(one) == 3
    assert room.room_for(Resources(1, 0.5, 0.25, 1)) == 16
    nodes.clear()
    assert room.room_for(one) == 1
    cluster([{"CPU": 8}], GPUS)
    assert room.room_for(one) == 4


GPUS = launcher_fleet(yaml.safe_load(Path("cluster/gpu.yaml").read_text()))
PODS = kuberay_fleet(list(yaml.safe_load_all(Path("cluster/kuberay.yaml").read_text())))


@pytest.mark.parametrize(
    ("head", "growth", "shape", "needs"),
    [
        (8, GPUS, Shape(workers=2), "2 x {'CPU': 1.0, 'GPU': 1.0}"),
        (8, GPUS, Shape(workers=2, concurrent=4), "2 x {'CPU': 1.0, 'GPU': 1.0}"),
        (8, GPUS, Shape(gpus_per_worker=0.5), "1 x {'CPU': 1.0, 'GPU': 0.5}"),
        (4, PODS, Shape(workers=2, cpus_per_worker=7), "2 x {'CPU': 7, 'GPU': 1.0}"),
        (4, PODS, Shape(), "2 x {'CPU': 1.0, 'GPU': 1.0}"),
    ],
)
def test_a_head_without_a_gpu_waits_for_the_machines_of_its_file(
    cluster, head, growth, shape, needs
):
    cluster([{"CPU": head}], growth)
    console = said()
    with pytest.raises(UserError, match="--wait 0: the cluster did not grow"):
        allot(replace(shape, wait=0), console)
    assert console.file.getvalue() == f"Waiting up to 0 s for nodes with {needs}.\n"


@pytest.mark.parametrize(
    ("growth", "shape", "words"),
    [
        (GPUS, Shape(workers=1, gpus_per_worker=8), "room for 0 such workers at its largest"),
        (GPUS, Shape(cpus_per_worker=52), r"which is 1 x 8 CPUs \(head\), 2 x 48 CPUs and 4 GPUs"),
        (GPUS, Shape(concurrent=5), "--workers 2 .* --concurrent 5: .* room for 8 such workers"),
        (PODS, Shape(cpus_per_worker=9), "workers 2 --cpus-per-worker 9 --gpus-per-worker 1: "),
        (
            None,
            Shape(cpus_per_worker=5),
            "room for 1 such workers at its largest, which is 1 x 8 CPU",
        ),
    ],
)
def test_what_no_machine_holds_is_refused_before_the_wait(cluster, growth, shape, words):
    cluster([{"CPU": 8}], growth)
    console = said()
    with pytest.raises(UserError, match=words):
        allot(shape, console)
    assert not console.file.getvalue()


def test_a_number_of_workers_is_refused_before_the_wait(cluster):
    cluster([{"CPU": 8}], GPUS)
    console = said()

    def check(workers):
        raise UserError(f"{workers} workers share no batch.")

    with pytest.raises(UserError, match="2 workers share no batch"):
        allot(Shape(), console, check)
    assert not console.file.getvalue()


def test_machines_of_ones_own_are_awaited_before_anything_is_decided(cluster, monkeypatch):
    nodes = [{"CPU": 8}]
    cluster(nodes, Fleet((), 2))
    console = said()
    monkeypatch.setattr(room.time, "sleep", lambda _: nodes.append({"CPU": 16, "GPU": 1}))
    assert allot(Shape(), console) == Resources(2, 16.0, 1.0, 1)
    assert console.file.getvalue() == (
        "Waiting up to 900 s for this cluster's machines: 1 of 3 machines are here.\n"
    )
    del nodes[2:]
    assert allot(Shape(wait=0), console).gpus_per_worker == 1
    assert "Going on with 2 of 3 machines.\n" in console.file.getvalue()
    with pytest.raises(UserError, match="room for 1 such workers"):  # no more come
        allot(Shape(wait=0, gpus_per_worker=1, workers=2), console)


def test_what_is_missing_is_said(connected):
    with pytest.raises(
        UserError, match="room for 1 such workers at its largest, which is 1 x 2 CPU"
    ):
        allot(Shape(workers=3, cpus_per_worker=2), said())
    with pytest.raises(UserError, match=r"--gpus-per-worker 0\.5: this Ray cluster has room for 0"):
        allot(Shape(workers=2, gpus_per_worker=0.5), said())


def test_one_node_may_keep_its_checkpoints_itself(connected):
    check_storage_reaches_all("runs")
    assert connected.startswith("http://127.0.0.1:")
    assert "ray get-auth-token" in connected


def test_a_folder_of_one_node_is_refused_before_others_come(connected, monkeypatch):
    monkeypatch.setattr(fleet, "growth_of_cluster", lambda: GPUS)
    with pytest.raises(UserError, match="is a folder of one node, but this Ray cluster may grow"):
        check_storage_reaches_all("runs")
    check_storage_reaches_all("s3://bucket/runs")


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
        "worker": {
            "resources": {},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
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
def growing(request, tmp_path, monkeypatch):
    """A head of one CPU, with token authentication, to which an autoscaler can add a machine."""
    config = tmp_path / "ray_bootstrap_config.yaml"
    tree = copy.deepcopy(GROWING)
    tree["available_node_types"]["worker"]["resources"] = request.param
    config.write_text(json.dumps(tree))
    with socket.create_server(("127.0.0.1", 0)) as free:
        dashboard = free.getsockname()[1]
    token = tmp_path / "token"
    token.write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    environment = {name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"} | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` starts it
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
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            for pid in processes_with(f"RAY_AUTH_TOKEN_PATH={token}"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # the fake nodes outlive their head
            process.wait()


ASK = """
import sys
from rich.console import Console
from dsn_ray.errors import UserError
from dsn_ray.room import Shape, allot
from dsn_ray.runtime import ray_cluster

try:
    with ray_cluster():
        wait, workers = float(sys.argv[1]), int(sys.argv[2]) or None
        print(allot(Shape(workers=workers, wait=wait), Console(width=200)))
except UserError as error:
    print(error)
"""


def ask(address, wait, mode="token", workers=0):
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
@pytest.mark.parametrize("growing", [{"CPU": 2, "GPU": 1}], indirect=True)
def test_a_gpu_that_an_autoscaler_adds_is_awaited(growing):
    assert "it asks for a token; set RAY_AUTH_MODE=token" in ask(growing, 1, "disabled")
    assert "room for 1 such workers at its largest, which is 1 x 1 CPU (head), 1 x 2 CPU and" in (
        ask(growing, 60, workers=2)
    )
    said = ask(growing, 0)
    assert "Waiting up to 0 s for nodes with 1 x {'CPU': 1.0, 'GPU': 1.0}." in said
    assert "--wait 0: the cluster did not grow to 1 x {'CPU': 1.0, 'GPU': 1.0} in time" in said
    assert "1 training at a time, each on 1 worker with 2 CPUs and 1 GPU" in ask(growing, 60)


@pytest.mark.slow
@pytest.mark.parametrize("growing", [{"CPU": 2}], indirect=True)
def test_a_sweep_from_a_head_without_room_goes_on_when_a_machine_comes(
    growing, tmp_path, drawings, cache
):
    asked = options(tmp_path, drawings, trials=1)[:-2]
    sweep = subprocess.run(
        [sys.executable, "-m", "dsn_ray.tune", *asked, "--workers", "1", "--cpus-per-worker", "2"],
        cwd=tmp_path,
        env=os.environ
        | {"RAY_ADDRESS": growing, "RAY_AUTH_MODE": "token", "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    waiting, trial = sweep.stdout.index("Waiting up to"), sweep.stdout.index("trial 1/1 epoch 1/")
    assert waiting < sweep.stdout.index("this cluster has 3 CPUs on 2 nodes") < trial


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
        "3 trainings at a time, each on 1 worker with 4 CPUs and 0.5 GPU"
    )
    assert Resources(2, 1.0, 0.0, 1).per_worker == {"CPU": 1.0}
