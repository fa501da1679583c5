"""What a run takes of a cluster: its shape, whether that fits, and waiting until it does."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import ray

_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")


@dataclass(frozen=True)
class Shape:
    """What a run asks of the cluster; what is None is derived from the cluster.

    Attributes:
        workers: data-parallel workers of one training; two, or one where there is one GPU.
        cpus_per_worker: CPUs of each; may be a fraction.
        gpus_per_worker: GPUs of each; may be a fraction.
        concurrent: trainings at a time.
        wait: seconds to wait for nodes that an autoscaler can add.
        patience: seconds without a step after which a worker is taken for hung.
    """

    workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    concurrent: int | None = None
    wait: float = 900.0
    patience: float = 600.0


@dataclass(frozen=True)
class Resources:
    """What a run takes: `concurrent` trainings of `workers` workers each, at its start."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    concurrent: int
    patience: float = Shape.patience

    @property
    def per_worker(self) -> dict[str, float]:
        """One worker's bundle, by Ray's resource names."""
        bundle = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in bundle.items() if amount > 0}

    @property
    def device(self) -> str:
        """What a worker computes on, as torch calls it."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def threads(self) -> int:
        """Torch threads of a worker."""
        return max(1, int(self.cpus_per_worker))

    @property
    def decoders(self) -> int:
        """Processes that decode and augment for a worker: on a GPU, which waits for pictures."""
        return self.threads - 1 if self.gpus_per_worker else 0

    def __str__(self) -> str:
        """One line for people."""
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        return (
            f"{self.concurrent} training{'s' * (self.concurrent > 1)} at a time, each on "
            f"{self.workers} worker{'s' * (self.workers > 1)} with "
            f"{self.cpus_per_worker:g} CPU{gpus}"
        )


def allot(shape: Shape, console: Console) -> Resources:
    """Decides what each training takes, and waits for an autoscaler where that is needed.

    The machine's CPUs are shared out among the workers; with GPUs each worker gets one of these.

    Args:
        shape: what was asked for.
        console: says what is awaited.

    Raises:
        UserError: If the cluster neither has enough nor can grow to it, or did not in time.
    """
    import ray

    now = ray.cluster_resources()
    most = _ceiling(now)
    workers = shape.workers
    if workers is None:
        workers = 1 if most.get("GPU", 0) == 1 and shape.gpus_per_worker is None else 2
    if workers < 1:
        raise UserError(f"--workers {workers}: at least 1 worker is needed.")
    gpus_each = shape.gpus_per_worker
    if gpus_each is None:
        gpus_each = 1.0 if most.get("GPU", 0) else 0.0
    concurrent = shape.concurrent
    if concurrent is None:
        concurrent = int(most.get("GPU", 0) // (workers * gpus_each)) if gpus_each else 1
        concurrent = max(1, concurrent)
    share = most.get("CPU", 1) / (workers * concurrent)
    cpus_each = min(1.0, share) if shape.cpus_per_worker is None else shape.cpus_per_worker
    if not cpus_each and not gpus_each:
        raise UserError("--cpus-per-worker 0: without a GPU a worker needs some of a CPU.")
    chosen = Resources(workers, cpus_each, gpus_each, concurrent, shape.patience)

    for name, each, option in (
        ("CPU", cpus_each, "--cpus-per-worker"),
        ("GPU", gpus_each, "--gpus-per-worker"),
    ):
        need = each * workers
        if need > most.get(name, 0) + 1e-9:
            raise UserError(
                f"--workers {workers} with {option} {each:g} needs {need:g} {name}s, but "
                f"this Ray cluster has {now.get(name, 0):g} and can grow to "
                f"{most.get(name, 0):g}; ask for fewer or add nodes."
            )
    if not _fits(chosen):
        _await(chosen, shape.wait, console)
    if shape.cpus_per_worker is None:
        chosen = _with_whole_cpus(chosen, int(share))
    return replace(chosen, concurrent=shape.concurrent or room_for(chosen))


def _with_whole_cpus(one: Resources, most: int) -> Resources:
    """The same with as many whole CPUs per worker, up to `most`, as leave room for all workers."""
    places = min(_places(one), one.workers * one.concurrent)
    richer = (replace(one, cpus_per_worker=float(count)) for count in range(most, 1, -1))
    return next((each for each in richer if _places(each) >= places), one)


def room_for(one: Resources) -> int:
    """How many such trainings the cluster holds at a time, at least one.

    It counts the nodes there are now, so that one which has grown is used, and those that an
    autoscaler can add.
    """
    import ray

    most = _ceiling(ray.cluster_resources()) if _autoscaler_limits() else {}
    growing = [most.get(name, 0) / need for name, need in one.per_worker.items()]
    places = max(_places(one), int(min(growing) + 1e-9))
    return max(1, places // one.workers)


def cluster_size() -> str:
    """What the cluster has, for people."""
    import ray

    now = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = f" and {now['GPU']:g} GPU{'s' * (now['GPU'] > 1)}" if now.get("GPU") else ""
    where = f" on {nodes} nodes" if nodes > 1 else ""
    return f"{now.get('CPU', 0):g} CPU{'s' * (now.get('CPU', 0) != 1)}{gpus}{where}"


def check_storage_reaches_all(storage: str) -> None:
    """Checkpoints on one node's own disk are lost to the others.

    A folder that every node has mounted is given as a `file://` address; each node is asked.

    Raises:
        UserError: If the storage is a local path and the cluster has several nodes, or one of them
            does not see it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2:
        return
    if "://" not in storage:
        raise UserError(
            f"--storage {storage} is a folder of one node, but this Ray cluster has {len(alive)} "
            "nodes; give an address that all of them reach, such as s3://bucket/path, or "
            "file:///path where every node has mounted it."
        )
    if not storage.startswith("file://"):
        return
    folder = Path(storage.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        seen = ray.remote(num_cpus=0)(_sees)
        asked = [
            seen.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(probe.name)
            for node in alive
        ]
        blind = [node for node, answer in zip(alive, asked, strict=True) if _denies(answer)]
    if blind:
        names = ", ".join(node["NodeManagerAddress"] for node in blind)
        raise UserError(f"--storage {storage}: node {names} does not see this folder.")


def _denies(answer: "ray.ObjectRef[bool]") -> bool:
    """Whether a node says no; one that dies before it answers needs no folder any more."""
    import ray

    try:
        return not ray.get(answer)
    except ray.exceptions.RayError:
        return False


def _sees(path: str) -> bool:
    """Whether this node has a file."""
    return Path(path).exists()


def _autoscaler_limits() -> dict[str, float] | None:
    """What the cluster can grow to, by resource; None where no autoscaler is known.

    Some autoscalers tell Ray their limits. That of `ray up` does not: they are read from the file
    which it leaves on the head node.
    """
    from ray._private.state import state

    told = state.get_max_resources_from_cluster_config()
    if told is not None:
        return {name: float(amount) for name, amount in told.items()}
    try:
        config = yaml.safe_load(_BOOTSTRAP.expanduser().read_text(encoding="utf-8"))
        types = dict(config["available_node_types"])
        head = types.pop(config["head_node_type"])["resources"]
        nodes = [(t["resources"], t.get("max_workers", 0)) for t in types.values()]
        limits = {}
        for name in {*head, *(name for resources, _ in nodes for name in resources)}:
            left, limits[name] = config.get("max_workers", 2), float(head.get(name, 0))
            for each, most in sorted(((r.get(name, 0), m) for r, m in nodes), reverse=True):
                limits[name] += each * min(left, most)
                left -= min(left, most)
        return limits
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _ceiling(now: Mapping[str, float]) -> dict[str, float]:
    """What the cluster can have at most: its nodes, or what its autoscaler may add."""
    can_grow_to = _autoscaler_limits() or {}
    return {name: max(now.get(name, 0), can_grow_to.get(name, 0)) for name in {*now, *can_grow_to}}


def _fits(one: Resources) -> bool:
    """Whether the alive nodes hold the workers of one training, each bundle on one node."""
    return _places(one) >= one.workers


def _places(one: Resources) -> int:
    """How many such workers the alive nodes hold."""
    import ray

    places = 0
    for node in ray.nodes():
        if node["Alive"]:
            counts = [node["Resources"].get(n, 0) / need for n, need in one.per_worker.items()]
            places += int(min(counts) + 1e-9)
    return places


def _await(chosen: Resources, wait: float, console: Console) -> None:
    import ray
    from ray.autoscaler.sdk import request_resources

    wanted = f"{chosen.workers} x {chosen.per_worker}"
    if _autoscaler_limits() is None:
        raise UserError(f"No node of this Ray cluster has room for a worker; needed: {wanted}.")
    console.print(f"Waiting up to {wait:g} s for nodes with {wanted}.")
    request_resources(bundles=[chosen.per_worker] * chosen.workers)
    deadline = time.monotonic() + wait
    try:
        while not _fits(chosen):
            if time.monotonic() > deadline:
                raise UserError(
                    f"--wait {wait:g}: the cluster did not grow to {wanted} in time; it has "
                    f"{ray.cluster_resources().get('CPU', 0):g} CPUs and "
                    f"{ray.cluster_resources().get('GPU', 0):g} GPUs."
                )
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])
