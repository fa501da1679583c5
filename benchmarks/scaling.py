"""A cost model of sweeps on 1 to 64 GPUs, and how near it comes where it can be measured.

    python -m benchmarks.scaling [--gpu-step 0.2] [--gpus 1 2 4 8 16 32 64]

The model of a step on g workers is `fixed + per picture * pictures / g + all-reduce + gathers`. Its
constants are measured here with one and two processes over gloo, and it then foretells a step of
two data-parallel workers, which is measured too. For GPUs the seconds of a whole batch on one of
them are given, not measured, and so are the network's bandwidth and latency.
"""

import argparse
import math
import multiprocessing
import os
import socket
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step import median_of
from dsn_ray.config import Config
from dsn_ray.data.batch import Batch
from dsn_ray.learner import Learner
from dsn_ray.model import build_network

PX, CLASSES = 64, 100
SIZES = (12, 24, 48)  # pictures a step, a third of them sketches
PART = 24  # of each of two workers
SETTINGS = {
    "network.backbone": "efficientnet_lite0",
    "network.bn_statistics": "worker",
    "network.weights": "none",
    "data.px": PX,
}
WAYS = 2  # workers that can be measured here

# search_spaces/lambdas.yaml on all of Sketchy, each trial to its end, with CSE-ResNet-50.
BATCH, WEIGHTS = 96, 26.3e6
TRIALS, EPOCHS, STEPS = 24, 10, 961  # 61,561 photos of 90 classes, 64 a step
BYTES_OF_A_PICTURE = 12_400  # of a shard, 256 px
START = 7.0  # seconds of a trial before its first step, of benchmarks.start
AFTER_EPOCH = 10.0  # seconds: validation of 12,000 pictures and a checkpoint, assumed
SECONDS_OF_VIEWS = 4.2e-3  # of a CPU for a picture's decoding and three views, of benchmarks.data
MEMORY_OF_A_TRIAL = 0.25  # GiB of its processes beside the workers, on the head


@dataclass(frozen=True)
class Link:
    """What joins workers."""

    latency: float
    """seconds of a message"""
    bandwidth: float
    """bytes a second and direction"""

    def all_reduce(self, size: float, workers: int) -> float:
        """Seconds for a ring over `size` bytes."""
        rounds = 2 * (workers - 1)
        return rounds * (self.latency + size / workers / self.bandwidth)

    def all_gather(self, size: float, workers: int) -> float:
        """Seconds for a ring that joins `size` bytes, all parts together."""
        rounds = workers - 1
        return rounds * (self.latency + size / workers / self.bandwidth)


@dataclass(frozen=True)
class Step:
    """A training step of a whole batch."""

    fixed: float
    """seconds of a worker, whatever its part: the optimiser, the losses"""
    per_picture: float
    """seconds"""
    pictures: int
    parameters: float
    """number of weights"""
    gathered: float
    """bytes of views and features that the losses join, all workers' together"""

    def seconds(self, workers: int, link: Link) -> float:
        """Without any overlap of computing and joining."""
        joined = link.all_reduce(4 * self.parameters, workers)
        joined += 3 * link.all_gather(self.gathered / 3, workers)
        return self.fixed + self.per_picture * self.pictures / workers + joined * (workers > 1)


def a_learner(parallel: bool) -> Learner:
    """The small network's."""
    torch.manual_seed(0)
    config = Config().with_settings(SETTINGS)
    network = build_network(config.network, CLASSES)
    wrapped = DistributedDataParallel(network) if parallel else None
    return Learner(network, config, torch.zeros(CLASSES, 1000), 1000, wrapped)


def a_batch(pictures: int) -> Batch:
    """Noise."""
    sizes = (pictures // 3, pictures - pictures // 3)
    views = [torch.randint(0, 256, (n, 3, 3, PX, PX), dtype=torch.uint8) for n in sizes]
    labels = [torch.randint(0, CLASSES, (n,)) for n in sizes]
    return Batch(views[0], labels[0], views[1], labels[1], torch.zeros(sizes[1], 1000))


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
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=WAYS)
    found["weights"] = sum(p.numel() for p in learner.network.parameters())
    for name, count in (("one", 1), ("all", int(found["weights"]))):
        values = torch.zeros(count)
        together.wait()
        found[f"all-reduce of {name}"] = median_of(partial(distributed.all_reduce, values), 21)
    learner, batch = a_learner(parallel=True), a_batch(PART)
    together.wait()
    found["step of two workers"] = median_of(partial(learner.step, batch), 9)
    if rank == 0:
        said.put(found)
    distributed.destroy_process_group()


def check() -> None:
    """Measures the model's constants, and a step that it foretells."""
    context = multiprocessing.get_context("spawn")
    said, together = context.SimpleQueue(), context.Barrier(WAYS)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workers = [
        context.Process(target=measured, args=(rank, port, together, said)) for rank in range(WAYS)
    ]
    for worker in workers:
        worker.start()
    found = said.get()
    for worker in workers:
        worker.join()
    small, large = SIZES[0], SIZES[-1]
    per_picture = (found[f"step of {large}"] - found[f"step of {small}"]) / (large - small)
    fixed = found[f"step of {small}"] - small * per_picture
    latency = found["all-reduce of one"] / 2
    bandwidth = 4 * found["weights"] / 2 / (found["all-reduce of all"] / 2 - latency)
    link = Link(latency, bandwidth)
    step = Step(fixed, per_picture, WAYS * PART, found["weights"], _gathered(WAYS * PART, 1280))
    print(f"{fixed * 1e3:.0f} ms + {per_picture * 1e3:.1f} ms a picture of {PX} px in three views")
    print(f"gloo: {latency * 1e6:.0f} us, {bandwidth / 1e9:.2f} GB/s")
    print("| | foretold | measured |")
    print("|---|---|---|")
    middle = SIZES[1]
    foretold = fixed + middle * per_picture
    print(f"| a step of {middle} | {foretold:.3f} s | {found[f'step of {middle}']:.3f} s |")
    foretold = step.seconds(WAYS, link)
    seen = found["step of two workers"]
    print(f"| two workers with {PART} each | {foretold:.3f} s | {seen:.3f} s |")


def _gathered(pictures: int, trunk: int) -> float:
    """Bytes that the losses join: two projections of 128 and the trunk of each picture."""
    return pictures * 4 * (2 * 128 + trunk)


def sweeps(parsed: argparse.Namespace) -> None:
    """The table for GPUs."""
    link = Link(parsed.latency, parsed.bandwidth)
    step = Step(
        parsed.fixed,
        (parsed.gpu_step - parsed.fixed) / BATCH,
        BATCH,
        WEIGHTS,
        _gathered(BATCH, 2048),
    )
    print("| GPUs | each | step | pictures/s | CPUs a GPU | MB/s a GPU | head | sweep | of ideal |")
    print("|---|---|---|---|---|---|---|---|---|")
    ideal = TRIALS * EPOCHS * STEPS * step.seconds(1, link)
    for gpus in parsed.gpus:
        for each in (1, 2, 4, 8):
            if each > gpus:
                continue
            seconds = step.seconds(each, link)
            rate = BATCH / seconds / each
            trial = START + EPOCHS * (STEPS * seconds + AFTER_EPOCH)
            at_a_time = min(TRIALS, gpus // each)
            sweep = math.ceil(TRIALS / at_a_time) * trial
            head = at_a_time * MEMORY_OF_A_TRIAL
            print(
                f"| {gpus} | {each} | {seconds * 1e3:.0f} ms | {rate * each:.0f} | "
                f"{rate * SECONDS_OF_VIEWS:.1f} | {rate * BYTES_OF_A_PICTURE / 1e6:.1f} | "
                f"{head:.1f} GiB | {sweep / 3600:.1f} h | {ideal / gpus / sweep:.2f} |"
            )


def main() -> None:
    """Checks the model, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-step", type=float, default=0.2, help="of a whole batch, seconds")
    parser.add_argument("--fixed", type=float, default=0.02, help="of it, whatever the part")
    parser.add_argument("--latency", type=float, default=30e-6)
    parser.add_argument("--bandwidth", type=float, default=5e9, help="bytes a second")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parsed = parser.parse_args()
    check()
    sweeps(parsed)


if __name__ == "__main__":
    main()
