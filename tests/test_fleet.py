"""What a cluster may become, read where its head is."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import requests
import yaml
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from ray.autoscaler._private.util import prepare_config

from dsn_ray import fleet
from dsn_ray.fleet import Fleet, Machines

CLUSTER = Path("cluster")
GROUP = "RayCluster.spec.workerGroupSpecs[0]"


@pytest.fixture
def growth():
    """What is found, unless it was found before."""
    yield fleet._growth
    fleet._growth.cache_clear()


@pytest.fixture
def autoscaler(tmp_path, growth):
    """Starts what looks like the autoscaler of `ray up`; gives the address of its cluster."""
    running = []

    def start(file):
        path = tmp_path / "ray_bootstrap_config.yaml"
        path.write_text(yaml.safe_dump(prepare_config(yaml.safe_load(file.read_text()))))
        gcs = f"10.0.0.{len(running)}:6379"
        words = [f"--gcs-address={gcs}", f"--autoscaling-config={path}"]
        process = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        process.stdout.readline()
        return gcs

    yield start
    for process in running:
        process.communicate(b"\n")


def test_what_the_autoscaler_of_this_cluster_may_add(autoscaler, growth):
    gcs = autoscaler(CLUSTER / "gpu.yaml")
    found = growth(gcs)
    assert {(kind.cpus, kind.gpus) for kind in found.kinds} == {(48, 4)}
    assert (found.most, found.head) == (2, None)
    assert growth("10.0.0.9:6379") is None  # another cluster on the same machine


def test_machines_of_ones_own_tell_their_size_when_they_join(autoscaler, growth):
    assert growth(autoscaler(CLUSTER / "local.yaml")) == Fleet((), 1)


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """A pod that KubeRay has made; what its service account may read."""
    (tmp_path / "namespace").write_text("mine\n")
    monkeypatch.setattr(fleet, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "dsn-ray")
    _, cluster, _ = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())

    def get(self, path):
        assert (self._namespace, path) == ("mine", "rayclusters/dsn-ray")
        if not cluster:
            raise requests.HTTPError("403")
        return cluster

    monkeypatch.setattr(KubernetesHttpApiClient, "get", get)
    return cluster


def test_a_pod_asks_kubernetes(pod, growth):
    assert growth("10.0.0.9:6379") == Fleet((Machines(GROUP, 8, 1, 4),), 4)


def test_a_pod_of_a_cluster_that_does_not_grow(pod, growth):
    del pod["spec"]["enableInTreeAutoscaling"]
    assert growth("10.0.0.9:6379") is None


def test_a_pod_that_may_not_ask(pod, growth):
    pod.clear()
    assert growth("10.0.0.9:6379") is None


def test_a_cpu_that_is_only_requested_counts(pod, growth):
    resources = pod["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    del resources["limits"]["cpu"]
    assert growth("10.0.0.9:6379").kinds[0].cpus == 8


def test_the_largest_of_each_and_no_more_than_all_together():
    kinds = Machines("a", 48, 4, 2), Machines("b", 48, 4, 2), Machines("c", 96, 0, 1)
    both = Fleet(kinds, 2, Machines("head", 8, 0, 1))
    assert both.sum(lambda kind: kind.gpus) == 8
    assert both.sum(lambda kind: kind.cpus) == 8 + 96 + 48
    assert both.places(1, 3) == 2
    assert str(both) == (
        "1 x 8 CPUs (head), 2 x 48 CPUs and 4 GPUs (a), 2 x 48 CPUs and 4 GPUs (b), "
        "1 x 96 CPUs (c), of these at most 2 beside the head"
    )


def test_the_machines_that_are_there(monkeypatch):
    resources = [{"CPU": 8, "node:__internal_head__": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 9}]
    nodes = [{"Alive": has != {"CPU": 9}, "Resources": has} for has in resources]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(fleet, "growth_of_cluster", lambda: None)
    here = Fleet((Machines("here", 8, 0, 1), Machines("here", 4, 1, 1)), 2)
    assert fleet.present() == fleet.largest() == here
    more = Fleet((Machines("more", 4, 1, 3),), 3)
    monkeypatch.setattr(fleet, "growth_of_cluster", lambda: more)
    assert fleet.largest() == Fleet(more.kinds, 3, Machines("head", 8, 0, 1))
