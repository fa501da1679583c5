"""What it costs before work begins: a trial, `--help`, and the memory of a sweep.

    python -m benchmarks.start --work FOLDER

A trial's start is measured within a sweep of the demonstration, from the end of the trial before to
the first step: two workers, the network, its weights, the first batch; the trials' own process is
there. Counted with it are all waits for data of its first epoch, and that epoch's validation and
checkpoint, since an epoch is told of when it is over. Beside it torchrun starts two ranks that do
the same without Ray, data and validation. Memory is watched in a second sweep, as looking at it
takes time.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.memory import memory_watched
from benchmarks.sweep import start_sweep

REPEATS = 5
CLASSES = 30
SPACE = """
parameters:
  loss.lambda1: {distribution: loguniform, low: 0.01, high: 1.0}
sampler: {name: random}
scheduler: {name: none}
budget: {trials: 6}
set: {train.epochs: 2}
"""
BEGINS = "the first step begins"


def in_a_sweep(work: Path, trials: int) -> float:
    """Seconds before a trial's first step, the median of all trials but the first."""
    from dsn_ray.record import read_lines  # which imports Ray, and the bare ranks are without

    sweep, run = start_sweep(work, "start", SPACE, "--trials", str(trials))
    ended: list[float] = []
    first_steps: list[float] = []
    while sweep.poll() is None:
        now = time.perf_counter()
        ended += [now] * (len(read_lines(run / "trials.jsonl")) - len(ended))
        firsts = [
            one
            for one in read_lines(run / "epochs.jsonl")
            if one["epoch"] == 1 and one["training"].startswith("trial")
        ]
        for one in firsts[len(first_steps) :]:
            first_steps.append(now - one["seconds"] * (1 - one["waiting_for_data"]))
        time.sleep(0.1)
    if sweep.returncode or len(first_steps) < trials:
        raise SystemExit(f"The sweep ended after {len(first_steps)} trials; its log is in {work}.")
    waits = [begun - end for end, begun in zip(ended, first_steps[1:trials], strict=False)]
    return statistics.median(waits)


def by_torchrun() -> float:
    """Seconds before the first step of two bare ranks, the median."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    waits = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ranks = subprocess.Popen(
            [*command, "--module", "benchmarks.start", "--rank"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if ranks.stdout is None or BEGINS not in (line.strip() for line in ranks.stdout):
            raise SystemExit("torchrun never came to its first step.")
        waits.append(time.perf_counter() - started)
        ranks.stdout.close()
        ranks.wait()
    return statistics.median(waits)


def rank() -> None:
    """What one of the bare ranks does; the first says when its first step begins."""
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from dsn_ray.config import DEMONSTRATION, Config
    from dsn_ray.learner import Learner
    from dsn_ray.model import build_network, imagenet_weights

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    config = Config().with_settings(DEMONSTRATION)
    weights = imagenet_weights(config.network.backbone, config.network.weights)
    network = build_network(config.network, CLASSES, weights)
    parallel = DistributedDataParallel(network)
    Learner(network, config, torch.zeros(CLASSES, 1000), 100, parallel)
    distributed.barrier()
    if distributed.get_rank() == 0:
        print(BEGINS, flush=True)
    distributed.destroy_process_group()


def median_seconds(*command: str) -> float:
    """Of a Python process."""
    took = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".bench"))
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.rank:
        rank()
        return
    print("| | ours | beside | ratio | aim |", "|---|---|---|---|---|", sep="\n", flush=True)
    bare, trial = by_torchrun(), in_a_sweep(parsed.work, 6)
    print(
        f"| before a trial's first step | {trial:.1f} s | two bare ranks, {bare:.1f} s | "
        f"{trial / bare:.2f} | 2 |",
        flush=True,
    )
    told = median_seconds("-m", "dsn_ray.tune", "--help")
    least = median_seconds("-c", "import rich, yaml, pydantic")
    print(
        f"| `--help` | {told:.2f} s | importing rich, yaml and pydantic, {least:.2f} s | "
        f"{told / least:.2f} | 1.5 |",
        flush=True,
    )
    with memory_watched("Pss") as risen:
        in_a_sweep(parsed.work, 2)
    print(f"| memory of a sweep with two workers | {risen[0]:.2f} GiB | | | 4 GiB |")


if __name__ == "__main__":
    main()
