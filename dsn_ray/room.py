"""What a run takes of a cluster: its shape, whether that fits, and waiting until it does."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dsn_ray import fleet
from dsn_ray.cli import counted
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True)
class Shape:
    """What a run asks of the cluster; what is None is derived from the cluster.

    Attributes:
        workers: data-parallel workers of one training; two, or one where there is one GPU or
            each takes a part of one.
        cpus_per_worker: CPUs of each; may be a fraction.
        gpus_per_worker: GPUs of each; may be a fraction.
        concurrent: trainings at a time.
        wait: seconds to wait for machines that may still come.
        patience: seconds without a step after which a worker is taken for hung.
    """

    workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    concurrent: int | None = None
    wait: float = 900.0
    patience: float = 600.0

    def __post_init__(self) -> None:
        """Refuses what Ray would refuse only when a worker starts."""
        gpus = self.gpus_per_worker or 0
        if gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus-per-worker {gpus:g}: above 1 it must be a whole number.")


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
        gpus = f" and {counted(self.gpus_per_worker, 'GPU')}" if self.gpus_per_worker else ""
        return (
            f"{counted(self.concurrent, 'training')} at a time, each on "
            f"{counted(self.workers, 'worker')} with {counted(self.cpus_per_worker, 'CPU')}{gpus}"
        )


def allot(
    shape: Shape, console: Console, check: Callable[[int], None] = lambda workers: None
) -> Resources:
    """Decides what each training takes, and waits for machines where that is needed.

    The machines' CPUs are shared out among the workers; with GPUs each worker gets one of these.

    Args:
        shape: what was asked for.
        console: says what is awaited.
        check: is given the number of workers before anything is awaited, and may refuse it.

    Raises:
        UserError: If the cluster neither has enough nor can grow to it, or did not in time.
    """
    _await_machines(shape.wait, console)
    most = fleet.largest()
    gpus_each = shape.gpus_per_worker
    gpus = most.sum(lambda kind: kind.gpus)
    if gpus_each is None:
        gpus_each = 1.0 if gpus else 0.0
    workers = shape.workers
    if workers is None:
        alone = gpus == 1 and shape.gpus_per_worker is None
        workers = 1 if alone or 0 < gpus_each < 1 else 2
    if workers < 1:
        raise UserError(f"--workers {workers}: at least 1 worker is needed.")
    check(workers)
    concurrent = shape.concurrent
    if concurrent is None:
        concurrent = max(1, most.places(0, gpus_each) // workers) if gpus_each else 1
    share = (most.sum(lambda kind: kind.cpus) or 1) / (workers * concurrent)
    cpus_each = min(1.0, share) if shape.cpus_per_worker is None else shape.cpus_per_worker
    if not cpus_each and not gpus_each:
        raise UserError("--cpus-per-worker 0: without a GPU a worker needs some of a CPU.")
    chosen = Resources(workers, cpus_each, gpus_each, concurrent, shape.patience)

    places = max(_places(chosen), most.places(cpus_each, gpus_each))
    if places < workers * (shape.concurrent or 1):
        at_a_time = f" --concurrent {shape.concurrent}" if shape.concurrent else ""
        raise UserError(
            f"--workers {workers} --cpus-per-worker {cpus_each:g} --gpus-per-worker {gpus_each:g}"
            f"{at_a_time}: this Ray cluster has room for {places} such workers at its largest, "
            f"which is {most}; ask for fewer or smaller ones, or add machines."
        )
    if _places(chosen) < workers:
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
    places = max(_places(one), fleet.largest().places(one.cpus_per_worker, one.gpus_per_worker))
    return max(1, places // one.workers)


def cluster_size() -> str:
    """What the cluster has, for people."""
    import ray

    now = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = f" and {counted(now['GPU'], 'GPU')}" if now.get("GPU") else ""
    where = f" on {nodes} nodes" if nodes > 1 else ""
    return f"{counted(now.get('CPU', 0), 'CPU')}{gpus}{where}"


def check_storage_reaches_all(storage: str) -> None:
    """Checkpoints on one node's own disk are lost to the others.

    A folder that every node has mounted is given as a `file://` address; each node is asked.

    Raises:
        UserError: If the storage is a local path and the cluster has several nodes or may get
            them, or one of them does not see it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    growth = fleet.growth_of_cluster()
    most = max(len(alive), 1 + growth.most if growth else 1)
    if most < 2:
        return
    if "://" not in storage:
        has = "has" if most == len(alive) else "may grow to"
        raise UserError(
            f"--storage {storage} is a folder of one node, but this Ray cluster {has} {most} "
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


def _places(one: Resources) -> int:
    """How many such workers the machines hold that are there, each on one of them."""
    return fleet.present().places(one.cpus_per_worker, one.gpus_per_worker)


def _await_machines(wait: float, console: Console) -> None:
    """Waits for machines that join by themselves and tell only then what they have.

    `ray up` is done before those of one's own have installed the project. One that does not come
    is gone without.
    """
    growth = fleet.growth_of_cluster()
    if growth is None or growth.kinds:
        return
    deadline, all_of_them = time.monotonic() + wait, 1 + growth.most

    def here() -> str:
        return f"{fleet.present().most} of {all_of_them} machines"

    if fleet.present().most < all_of_them:
        console.print(f"Waiting up to {wait:g} s for this cluster's machines: {here()} are here.")
    while fleet.present().most < all_of_them:
        if time.monotonic() > deadline:
            console.print(f"Going on with {here()}.")
            return
        time.sleep(1.0)


def _await(chosen: Resources, wait: float, console: Console) -> None:
    import ray
    from ray.autoscaler.sdk import request_resources

    wanted = f"{chosen.workers} x {chosen.per_worker}"
    console.print(f"Waiting up to {wait:g} s for nodes with {wanted}.")
    request_resources(bundles=[chosen.per_worker] * chosen.workers)
    deadline = time.monotonic() + wait
    try:
        while _places(chosen) < chosen.workers:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--wait {wait:g}: the cluster did not grow to {wanted} in time; it has "
                    f"{counted(ray.cluster_resources().get('CPU', 0), 'CPU')} and "
                    f"{counted(ray.cluster_resources().get('GPU', 0), 'GPU')}. `ray status` on "
                    "the head says what keeps machines away, such as a quota."
                )
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])
