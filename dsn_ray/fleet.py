"""The machines of a Ray cluster: those that are there, and those that may still come.

What may come is known on the head node: of the file that the autoscaler of `ray up` was started
with, or on Kubernetes of the RayCluster that the pod belongs to.
"""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dsn_ray.cli import counted

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class Machines:
    """Machines of one kind that a cluster may have.

    Attributes:
        name: where a file describes them, or an address.
        cpus: of each.
        gpus: of each.
        most: how many there may be.
    """

    name: str
    cpus: float
    gpus: float
    most: int

    def places(self, cpus: float, gpus: float) -> int:
        """How many workers one of them holds."""
        counts = [
            int(has / needs + 1e-9)
            for has, needs in ((self.cpus, cpus), (self.gpus, gpus))
            if needs
        ]
        return min(counts, default=0)

    def __str__(self) -> str:
        """For people."""
        gpus = f" and {counted(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{self.most} x {counted(self.cpus, 'CPU')}{gpus} ({self.name})"


@dataclass(frozen=True)
class Fleet:
    """Machines that a cluster may have.

    Attributes:
        kinds: of machines.
        most: how many there may be of all kinds together.
        head: a machine beside them that is always there.
    """

    kinds: tuple[Machines, ...]
    most: int
    head: Machines | None = None

    def sum(self, of: Callable[[Machines], float]) -> float:
        """The largest sum of what each machine has of something."""
        left, total = self.most, of(self.head) if self.head else 0
        for kind in sorted(self.kinds, key=of, reverse=True):
            taken = min(left, kind.most)
            left, total = left - taken, total + taken * of(kind)
        return total

    def places(self, cpus: float, gpus: float) -> int:
        """How many workers it holds at its largest."""
        return int(self.sum(lambda kind: kind.places(cpus, gpus)))

    def __str__(self) -> str:
        """For people."""
        kinds = [str(kind) for kind in ((self.head,) if self.head else ()) + self.kinds]
        if self.most < sum(kind.most for kind in self.kinds):
            kinds.append(f"of these at most {self.most} beside the head")
        return ", ".join(kinds)


def present() -> Fleet:
    """The machines that are there."""
    counts = Counter((has.get("CPU", 0), has.get("GPU", 0)) for has in _alive())
    kinds = tuple(Machines("here", *each, count) for each, count in counts.items())
    return Fleet(kinds, counts.total())


def largest() -> Fleet:
    """The machines that there are when all have come; those that are there where no more come."""
    growth = growth_of_cluster()
    if growth is None or not growth.kinds:
        return present()
    heads = [Machines("head", h.get("CPU", 0), h.get("GPU", 0), 1) for h in _alive() if _HEAD in h]
    return replace(growth, head=next(iter(heads), None))


def growth_of_cluster() -> Fleet | None:
    """The workers that may come; without kinds where machines join that tell their size then.

    None where no more come, or it is not known.
    """
    import ray

    return _growth(ray.get_runtime_context().gcs_address)


def _alive() -> list[dict[str, float]]:
    """What each machine has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@cache
def _growth(gcs: str) -> Fleet | None:
    from dsn_ray.checks.kuberay import kuberay_fleet
    from dsn_ray.checks.launcher import launcher_fleet

    if path := _autoscaler_file(gcs):
        with suppress(OSError, ValueError, yaml.YAMLError):
            return launcher_fleet(yaml.safe_load(path.read_text(encoding="utf-8")))
    name = os.environ.get("RAY_CLUSTER_NAME")  # which KubeRay gives to its pods
    if name and _NAMESPACE.exists():
        cluster = _kuberay_cluster(name, _NAMESPACE.read_text(encoding="utf-8").strip())
        if cluster and cluster["spec"].get("enableInTreeAutoscaling"):
            return kuberay_fleet([cluster])
    return None


def _autoscaler_file(gcs: str) -> Path | None:
    """The file that the cluster's autoscaler was started with, where that runs on this machine.

    Args:
        gcs: the cluster's address.
    """
    option = "--autoscaling-config="
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = process.read_text(errors="replace").split("\0")
            if f"--gcs-address={gcs}" in words:
                for word in words:
                    if word.startswith(option):
                        return Path(word.removeprefix(option)).expanduser()
    return None


def _kuberay_cluster(name: str, namespace: str) -> dict[str, Any] | None:
    """A RayCluster, as the pod's service account sees it; None where that may not."""
    import requests
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        return dict(KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}"))
    except (OSError, requests.RequestException):
        return None
