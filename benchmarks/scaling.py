"""A cost model of sweeps on 1 to 64 GPUs, and how near it comes where it can be measured.

    python -m benchmarks.scaling [--gpu-step 0.2] [--gpus 1 2 4 8 16 32 64] [--table-only]

The model of a step on g workers is `fixed + per picture * pictures / g`, and what the workers send
each other: gradients, what the losses gather, and the statistics of batch norm where these are
joint. Its constants are measured here with one and two processes over gloo, and it then foretells a
step of two data-parallel workers, which is measured too: of two plain processes, and of two tasks
on two Ray nodes of this machine. For GPUs the seconds of a whole batch on one of them are given,
not measured, and so are the network's bandwidth and latency.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Literal

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step import median_of
from dsn_ray.config import Config
from dsn_ray.data.batch import AUGMENTED_VIEWS, Batch
from dsn_ray.learner import Learner
from dsn_ray.model import build_network
from dsn_ray.model.norm import synchronise_batch_norm

PX, CLASSES = 64, 100
SIZES = (12, 24, 48)  # pictures a step, a third of them sketches
PART = 24  # of each of two workers
SETTINGS = {
    "network.backbone": "efficientnet_lite0",
    "network.weights": "none",
    "data.px": PX,
}
Joint = Literal["no", "gloo", "cuda"]  # whether statistics are, and by whose implementation
STATISTICS: dict[str, Joint] = {"worker": "no", "joint": "gloo"}  # of network.bn_statistics
WAYS = 2  # workers that can be measured here
PATIENCE = 120.0  # seconds that the two wait for each other, and Ray nodes for both

# Of a step, by dsn_ray.learner: what the losses gather, and what flows back.
PHOTOS = 2 / 3  # of a batch
VIEWS = 1 + AUGMENTED_VIEWS  # of a picture; the contrastive loss sees the augmented ones
PROJECTION = 128  # numbers
GATHERS = 6  # trunk features and labels of sketches and of photos, projections and their labels
RETURNS = 2  # all-reduces of gradients: of photos' trunk features and of projections

# search_spaces/lambdas.yaml on all of Sketchy, each trial to its end, with CSE-ResNet-50.
BATCH = 96
TRIALS, EPOCHS, STEPS = 24, 10, 961  # 61,561 photos of 90 classes, 64 a step
EACH = (1, 2, 4)  # GPUs of a trial
BYTES_OF_A_PICTURE = 12_400  # of a shard, 256 px
SHARDS = 148_473 * BYTES_OF_A_PICTURE  # bytes of all pictures, as benchmarks.data makes them
START = 7.0  # seconds of a trial before its first step, of benchmarks.start
AFTER_EPOCH = 10.0  # seconds: validation of 12,000 pictures and a checkpoint, assumed
SECONDS_OF_VIEWS = 3.3e-3  # of a CPU for a picture's decoding and three views, of benchmarks.data
MEMORY_OF_A_TRIAL = 0.25  # GiB of its two processes beside the workers, on the head, assumed


@dataclass(frozen=True)
class Link:
    """What joins workers."""

    latency: float
    """seconds of a message"""
    bandwidth: float
    """bytes a second and direction"""

    def all_reduce(self, size: float, workers: int, calls: int = 1) -> float:
        """Seconds for a ring over `size` bytes of all calls."""
        return 2 * self.all_gather(size, workers, calls)

    def all_gather(self, size: float, workers: int, calls: int = 1) -> float:
        """Seconds for a ring that joins `size` bytes, all parts of all calls together."""
        rounds = workers - 1
        return rounds * (calls * self.latency + size / workers / self.bandwidth)


@dataclass(frozen=True)
class Network:
    """What of a network decides how much is sent."""

    weights: int
    trunk: int
    """length of its features"""
    norms: int
    """number of batch norms"""
    channels: int
    """of all batch norms"""


CSE_RESNET50 = Network(26_269_244, 2048, 53, 26_560)  # counted in build_network, 100 classes
EFFICIENTNET_LITE0 = Network(3_619_056, 1280, 49, 21_008)  # likewise


@dataclass(frozen=True)
class Step:
    """A training step of a whole batch."""

    fixed: float
    """seconds of a worker, whatever its part: the optimiser, the losses"""
    per_picture: float
    """seconds"""
    pictures: int
    network: Network
    joint: Joint
    """of batch norm"""

    def alone(self, workers: int) -> float:
        """Seconds of a worker without the others."""
        return self.fixed + self.per_picture * self.pictures / workers

    def sent(self, workers: int, link: Link) -> dict[str, float]:
        """Seconds for what workers send each other, by what it is; none for one worker."""
        network, pictures = self.network, self.pictures
        labels = 8 * pictures * VIEWS  # once for the trunk's, and for each augmented view
        projections = 4 * PROJECTION * pictures * AUGMENTED_VIEWS
        features = 4 * network.trunk * pictures
        gathers = link.all_gather(labels + projections + features, workers, GATHERS)
        gathers += link.all_reduce(projections + PHOTOS * features, workers, RETURNS)
        norms, channels = network.norms, network.channels
        forward = {
            "no": 0.0,
            # dsn_ray.model.norm: sums, squares and count in double precision
            "gloo": link.all_reduce(8 * (2 * channels + norms), workers, norms),
            # torch.nn.SyncBatchNorm: each worker's means, deviations and count
            "cuda": link.all_gather(4 * (2 * channels + norms) * workers, workers, norms),
        }
        backward = link.all_reduce(4 * 2 * channels, workers, norms) * (self.joint != "no")
        return {
            "gradients": link.all_reduce(4 * network.weights, workers),
            "gathers": gathers,
            "batch norm": forward[self.joint] + backward,
        }

    def seconds(self, workers: int, link: Link) -> float:
        """Without any overlap of computing and sending."""
        return self.alone(workers) + sum(self.sent(workers, link).values())


def a_learner(parallel: bool, statistics: str = "worker") -> Learner:
    """The small network's, as `dsn_ray.worker` has it."""
    torch.manual_seed(0)
    config = Config().with_settings({**SETTINGS, "network.bn_statistics": statistics})
    network = build_network(config.network, CLASSES)
    if statistics == "joint":
        synchronise_batch_norm(network, "cpu")
    wrapped = DistributedDataParallel(network, forward_sync_buffers=False) if parallel else None
    return Learner(network, config, torch.zeros(CLASSES, 1000), 1000, wrapped)


def a_batch(pictures: int) -> Batch:
    """Noise."""
    sizes = (pictures // 3, pictures - pictures // 3)
    views = [torch.randint(0, 256, (n, VIEWS, 3, PX, PX), dtype=torch.uint8) for n in sizes]
    labels = [torch.randint(0, CLASSES, (n,)) for n in sizes]
    return Batch(views[0], labels[0], views[1], labels[1], torch.zeros(sizes[1], 1000))


def a_free_port() -> int:
    """On this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def join(rank: int, port: int) -> None:
    """Makes this process one of two workers, of one thread each."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WAYS,
        timeout=timedelta(seconds=PATIENCE),
    )


def steps_together() -> dict[str, float]:
    """Seconds of a step of both workers, by what batch norm's statistics are of."""
    found = {}
    for statistics in STATISTICS:
        learner, batch = a_learner(parallel=True, statistics=statistics), a_batch(PART)
        distributed.barrier()
        found[statistics] = median_of(partial(learner.step, batch), 9)
    return found


def measured(
    rank: int, port: int, together: Barrier, said: "SimpleQueue[dict[str, float]]"
) -> None:
    """What one of two processes does; the first one says what it has seen."""
    torch.set_num_threads(1)
    found = {}
    for pictures in SIZES:  # at the same time, so that they share what two workers share
        learner, batch = a_learner(parallel=False), a_batch(pictures)
        together.wait()
        found[f"step of {pictures}"] = median_of(partial(learner.step, batch), 9)
    join(rank, port)
    for name, count in (("one", 1), ("all", EFFICIENTNET_LITE0.weights)):
        values = torch.zeros(count)
        together.wait()
        found[f"all-reduce of {name}"] = median_of(partial(distributed.all_reduce, values), 21)
    found |= steps_together()
    if rank == 0:
        said.put(found)
    distributed.destroy_process_group()


def on_a_node(rank: int, port: int) -> tuple[str, dict[str, float]]:
    """What a Ray task of one worker does; says on which node, and what it has seen."""
    import ray

    join(rank, port)
    found = steps_together()
    distributed.destroy_process_group()
    return ray.get_runtime_context().get_node_id(), found


def on_two_nodes() -> dict[str, float]:
    """The steps of two workers, each in a Ray task on a local node of its own, of one CPU."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    size = 100 * 2**20
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": size}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=size)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
        work, port = ray.remote(num_cpus=1, max_retries=0)(on_a_node), a_free_port()
        seen = ray.get([work.remote(rank, port) for rank in range(WAYS)], timeout=PATIENCE)
    finally:
        ray.shutdown()
        cluster.shutdown()
    if len({name for name, _ in seen}) < WAYS:
        raise SystemExit("Both workers were on the same Ray node.")
    found: dict[str, float] = seen[0][1]
    return found


def check() -> None:
    """Measures the model's constants, and steps that it foretells."""
    context = multiprocessing.get_context("spawn")
    said, together = context.SimpleQueue(), context.Barrier(WAYS, timeout=PATIENCE)
    port = a_free_port()
    workers = [
        context.Process(target=measured, args=(rank, port, together, said)) for rank in range(WAYS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if said.empty():
        raise SystemExit("The two processes did not come to their end.")
    found = said.get()
    small, middle, large = SIZES
    per_picture = (found[f"step of {large}"] - found[f"step of {small}"]) / (large - small)
    fixed = found[f"step of {small}"] - small * per_picture
    latency = found["all-reduce of one"] / 2
    size = 4 * EFFICIENTNET_LITE0.weights
    link = Link(latency, size / 2 / (found["all-reduce of all"] / 2 - latency))
    print(f"{fixed * 1e3:.0f} ms + {per_picture * 1e3:.1f} ms a picture of {PX} px in three views")
    print(f"gloo: {latency * 1e6:.0f} us, {link.bandwidth / 1e9:.2f} GB/s")
    print("| | foretold | measured |")
    print("|---|---|---|")
    foretold = fixed + middle * per_picture
    print(f"| a step of {middle} | {foretold:.3f} s | {found[f'step of {middle}']:.3f} s |")
    for where in ("two processes", "two Ray nodes"):
        seen = found if where == "two processes" else on_two_nodes()
        for statistics, joint in STATISTICS.items():
            step = Step(fixed, per_picture, WAYS * PART, EFFICIENTNET_LITE0, joint)
            print(
                f"| {where} with {PART} each, {statistics} statistics | "
                f"{step.seconds(WAYS, link):.3f} s | {seen[statistics]:.3f} s |",
                flush=True,
            )


@dataclass(frozen=True)
class Sweep:
    """All trials on some GPUs, some of them for each trial."""

    gpus: int
    each: int
    cpus: float
    """of a GPU: one is the worker's, the others decode and make views"""
    reading: float
    """bytes a second of a node, from where the shards lie"""
    step: Step
    link: Link

    @property
    def at_a_time(self) -> int:
        """Trials."""
        return min(TRIALS, self.gpus // self.each)

    @property
    def views(self) -> float:
        """Seconds that a step waits for its views, which are made during the one before."""
        made = BATCH / self.each * SECONDS_OF_VIEWS / (self.cpus - 1)
        return max(0.0, made - self.step.seconds(self.each, self.link))

    @property
    def seconds_of_a_step(self) -> float:
        """With what it waits for."""
        return self.step.seconds(self.each, self.link) + self.views

    @property
    def seconds_of_a_trial(self) -> float:
        """From its start to its end."""
        return START + EPOCHS * (STEPS * self.seconds_of_a_step + AFTER_EPOCH)

    @property
    def seconds(self) -> float:
        """Of the whole."""
        waves = math.ceil(TRIALS / self.at_a_time)
        return SHARDS / self.reading + waves * self.seconds_of_a_trial

    @property
    def shares(self) -> dict[str, float]:
        """What the GPUs' time goes into; arithmetic is what one GPU alone would have to do."""
        steps = TRIALS * EPOCHS * STEPS
        sent = self.step.sent(self.each, self.link)
        parts = {
            "arithmetic": steps * self.step.alone(1),
            "fixed part": steps * (self.each - 1) * self.step.fixed,
            **{name: steps * self.each * seconds for name, seconds in sent.items()},
            "views": steps * self.each * self.views,
            "trial starts": TRIALS * self.each * START,
            "ends of epochs": TRIALS * self.each * EPOCHS * AFTER_EPOCH,
            "shard reads": self.gpus * SHARDS / self.reading,
        }
        whole = self.gpus * self.seconds
        parts["idle GPUs"] = whole - sum(parts.values())
        return {name: seconds / whole for name, seconds in parts.items()}


def sweeps(parsed: argparse.Namespace) -> None:
    """The table for GPUs."""
    per_picture = (parsed.gpu_step - parsed.fixed) / BATCH
    step = Step(parsed.fixed, per_picture, BATCH, CSE_RESNET50, parsed.joint)
    sweep_of = partial(
        Sweep,
        cpus=parsed.cpus,
        reading=parsed.reading,
        step=step,
        link=Link(parsed.latency, parsed.bandwidth),
    )
    print(
        "| GPUs | each | step | pictures/s | CPUs a GPU | MB/s a GPU | head | sweep | of ideal | "
        "bottleneck |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for gpus in parsed.gpus:
        for sweep in (sweep_of(gpus, each) for each in EACH if each <= gpus):
            seconds, shares = sweep.seconds_of_a_step, sweep.shares
            rate = BATCH / seconds
            ideal = shares.pop("arithmetic")
            largest = max(shares, key=lambda name: shares[name])
            print(
                f"| {gpus} | {sweep.each} | {seconds * 1e3:.0f} ms | {rate:.0f} | "
                f"{rate / sweep.each * SECONDS_OF_VIEWS:.1f} | "
                f"{rate / sweep.each * BYTES_OF_A_PICTURE / 1e6:.1f} | "
                f"{sweep.at_a_time * MEMORY_OF_A_TRIAL:.1f} GiB | {sweep.seconds / 3600:.1f} h | "
                f"{ideal:.2f} | {largest}, {shares[largest]:.2f} |"
            )

    def best(gpus: int) -> int:
        return min(
            (each for each in EACH if each <= gpus), key=lambda each: sweep_of(gpus, each).seconds
        )

    for each, run in itertools.groupby(range(1, max(parsed.gpus) + 1), best):
        counts = list(run)
        print(f"From {counts[0]} to {counts[-1]} GPUs the sweep is shortest with {each} a trial.")


def main() -> None:
    """Checks the model, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-step", type=float, default=0.2, help="of a whole batch, seconds")
    parser.add_argument("--fixed", type=float, default=0.02, help="of it, whatever the part")
    parser.add_argument("--latency", type=float, default=30e-6)
    parser.add_argument("--bandwidth", type=float, default=5e9, help="bytes a second")
    parser.add_argument("--cpus", type=float, default=8, help="of each GPU, above 1")
    parser.add_argument("--reading", type=float, default=200e6, help="of shards, bytes a second")
    parser.add_argument("--joint", choices=("no", "cuda"), default="cuda", help="batch norm")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    parsed = parser.parse_args()
    if not parsed.table_only:
        check()
    sweeps(parsed)


if __name__ == "__main__":
    main()
