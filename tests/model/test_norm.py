import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from dsn_ray.model.backbone import build_backbone
from dsn_ray.model.norm import (
    SyncBatchNorm2d,
    average_running_statistics,
    synchronise_batch_norm,
)

WORLD = 2
SPLITS = (slice(0, 3), slice(3, 8))
SECONDS = 60


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    ).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(8, 3, 9, 7, dtype=torch.float64, generator=generator) * 3 + 20
    return pictures, torch.randn(8, 5, 5, 3, dtype=torch.float64, generator=generator)


def two_steps(network: Callable, rows: slice, world: int) -> dict[str, torch.Tensor]:
    pictures, direction = (part[rows] for part in batch())
    pictures.requires_grad_()
    for _ in range(2):
        output = network(pictures)
        (world * output * direction).sum().backward()
    assert pictures.grad is not None
    return {"output": output.detach(), "pictures": pictures.grad / world}


def rank_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    network = synchronise_batch_norm(small_network(), "cpu")
    result = two_steps(nn.parallel.DistributedDataParallel(network), SPLITS[rank], WORLD)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    averaged = small_network()
    averaged(batch()[0][SPLITS[rank]])
    average_running_statistics(averaged)
    states = {"state": network.state_dict(), "averaged": averaged.state_dict()}
    torch.save(result | states | {"gradients": gradients}, folder / f"{rank}")
    distributed.barrier()
    os._exit(0)  # what was measured is on disk; gloo's threads may abort when they are taken down


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    context = spawn(rank_of_two, (folder,), nprocs=WORLD, join=False)
    deadline = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"the two ranks took more than {SECONDS} s"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict:
    network = small_network()
    result = two_steps(network, slice(None), 1)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return result | {"state": network.state_dict(), "gradients": gradients}


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


def test_two_ranks_give_the_output_of_one_process(ranks, alone):
    assert_same(torch.cat([rank["output"] for rank in ranks]), alone["output"])


def test_two_ranks_give_the_gradients_of_one_process(ranks, alone):
    assert_same(torch.cat([rank["pictures"] for rank in ranks]), alone["pictures"])
    for rank in ranks:
        for name, gradient in alone["gradients"].items():
            assert_same(rank["gradients"][name], gradient)


def test_two_ranks_keep_the_running_statistics_of_one_process(ranks, alone):
    for rank in ranks:
        for name, value in alone["state"].items():
            assert_same(rank["state"][name], value)


def test_running_statistics_become_the_mean_over_ranks(ranks):
    states = []
    for rows in SPLITS:
        network = small_network()
        network(batch()[0][rows])
        states.append(network.state_dict())
    for rank in ranks:
        for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
            assert not torch.allclose(states[0][name], states[1][name])
            assert_same(rank["averaged"][name], (states[0][name] + states[1][name]) / 2)


def test_alone_nothing_changes():
    network = build_backbone("efficientnet_lite0").train()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(pictures, torch.ones(2))
    network.load_state_dict(state)
    assert synchronise_batch_norm(network, "cpu") is network
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 49
    assert all(isinstance(norm, SyncBatchNorm2d) for norm in norms)
    assert torch.equal(network(pictures, torch.ones(2)), expected)


def test_cuda_gets_the_implementation_of_pytorch():
    network = synchronise_batch_norm(small_network(), "cuda:0")
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in network.modules()) == 2
