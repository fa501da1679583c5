"""Validation inside a training, without Ray: what the ranks rate together."""

import math
import os
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dsn_ray.retrieval.metrics import ALONE, Ranks
from dsn_ray.worker import _map_of, _parts_of_all
from tests.test_learner import PX, make_learner

ALIVE = SimpleNamespace(alive=lambda: None)


class Drawings:
    """A table of random pictures."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(count) % 3
        self.groups = rng.integers(0, 4, count)
        self._pixels = rng.integers(0, 256, (count, 3, PX, PX), dtype=np.uint8)

    def pixels(self, row):
        return self._pixels[row]


def rated(ranks):
    sides = [(Drawings(13, 1), np.arange(13)), (Drawings(20, 2), np.arange(1, 20))]
    return [
        _map_of(sides, make_learner().network, ranks, which, ALIVE)
        for which in (("real", "standard"), ("binary", "published"))
    ]


def rate_rank(rank, world, address, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    torch.save(rated(Ranks(rank, world, _parts_of_all)), f"{results}/{rank}.pt")
    dist.barrier()
    os._exit(0)


def test_two_ranks_rate_as_one_does(tmp_path):
    arguments = (2, f"file://{tmp_path}/rendezvous", str(tmp_path))
    torch.multiprocessing.start_processes(rate_rank, arguments, nprocs=2, start_method="spawn")
    alone = rated(ALONE)
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert values == pytest.approx(alone, abs=1e-9)
    assert all(0 < value < 1 for value in alone)


def test_a_network_that_diverged_is_rated_nan():
    network = make_learner().network
    torch.nn.init.constant_(network.embedding.weight, math.nan)
    sides = [(Drawings(6, 1), np.arange(6))] * 2
    assert math.isnan(_map_of(sides, network, ALONE, ("real", "standard"), ALIVE))


HANGS = """
import ctypes, time
from dsn_ray.worker import Watch

watch = Watch(2)
for _ in range(4):
    time.sleep(1)
    watch.alive()
print("still here", flush=True)
ctypes.PyDLL(None).sleep(60)  # in C, and no other Python thread can run
"""


def test_a_process_that_hangs_is_ended_and_says_where():
    ended = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=55, check=False
    )
    assert ended.returncode == 1
    assert "still here" in ended.stdout
    assert "Timeout" in ended.stderr
