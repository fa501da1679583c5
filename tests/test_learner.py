"""The training step, on a network small enough for float64 and two processes."""

import copy
import itertools
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dsn_ray.config import Config
from dsn_ray.data.stream import Batch
from dsn_ray.learner import Learner
from dsn_ray.model.network import DsnNetwork
from dsn_ray.model.norm import synchronise_batch_norm

CLASSES, PX, DIM = 3, 8, 6


class TinyBackbone(nn.Module):
    dim = 12

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, self.dim, 3, stride=2)
        self.norm = nn.BatchNorm2d(self.dim)
        self.flag = nn.Parameter(torch.randn(self.dim))

    def forward(self, pictures, is_photo):
        x = self.norm(self.conv(pictures.to(self.conv.weight.dtype) / 255))
        x = x + is_photo.to(x.dtype)[:, None, None, None] * self.flag[:, None, None]
        return torch.relu(x).mean((2, 3))


def make_learner(settings=None, parallel=False):
    torch.manual_seed(0)
    network = DsnNetwork(TinyBackbone(), DIM, 8, CLASSES).double()
    config = Config().with_settings({"network.dim": DIM, **(settings or {})})
    wrapped = None
    if parallel:
        synchronise_batch_norm(network, "cpu")
        wrapped = DistributedDataParallel(network)
    learner = Learner(network, config, torch.rand(CLASSES, 1000), 10, wrapped)
    learner.bank.double()
    return learner


def make_batch(seed=1, sketches=8, photos=12):
    generator = torch.Generator().manual_seed(seed)

    def views(n):
        return torch.randint(256, (n, 3, 3, PX, PX), generator=generator, dtype=torch.uint8)

    return Batch(
        views(sketches),
        torch.randint(CLASSES, (sketches,), generator=generator),
        views(photos),
        torch.randint(CLASSES, (photos,), generator=generator),
        torch.randn(photos, 1000, generator=generator),
    )


def test_a_step_lowers_the_loss_of_its_batch():
    learner = make_learner({"optimizer.lr": 1e-2, "optimizer.lr_end": 1e-2})
    batch = make_batch()
    values = [learner.step(batch)["total"] for _ in range(8)]
    assert values[-1] < values[0]


@pytest.mark.parametrize(
    ("setting", "value", "term"),
    [
        ("loss.lambda1", 0.5, "total"),
        ("loss.lambda2", 0.5, "total"),
        ("loss.lambda3", 0.5, "total"),
        ("loss.tau", 0.2, "contrastive"),
        ("loss.mask_weight", 2.0, "distillation"),
        ("memory.k", 1, "memory"),
        ("memory.features", "embedding", "memory"),
    ],
)
def test_what_a_trial_varies_reaches_the_loss(setting, value, term):
    usual = make_learner().step(make_batch())
    varied = make_learner({setting: value}).step(make_batch())
    others = {"contrastive", "memory", "classification", "distillation"} - {term}
    assert varied[term] != pytest.approx(usual[term], abs=1e-9)
    assert varied["total"] != pytest.approx(usual["total"], abs=1e-9)
    for name in others:
        assert varied[name] == pytest.approx(usual[name], abs=1e-12)


def test_the_gradient_of_every_loss_reaches_the_backbone():
    for name in ("contrastive", "memory", "classification", "distillation"):
        learner = make_learner()
        getattr(learner.losses(make_batch()), name).backward()
        assert learner.network.backbone.conv.weight.grad.abs().sum() > 0, name


def test_the_rate_falls_exponentially_to_its_end():
    learner = make_learner({"optimizer.lr": 1e-3, "optimizer.lr_end": 1e-6})
    rates = []
    for _ in range(10):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.step(make_batch())
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-6)
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert ratios == pytest.approx([ratios[0]] * 9)


def test_a_saved_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    straight = make_learner()
    for seed in (1, 2, 3):
        expected = straight.step(make_batch(seed))
    first = make_learner()
    for seed in (1, 2):
        first.step(make_batch(seed))
    first.epoch = 5
    first.save(tmp_path / "state.pt")
    second = make_learner()
    second.load(tmp_path / "state.pt")
    assert second.epoch == 5
    assert second.step(make_batch(3)) == expected
    assert torch.equal(second.bank.features, straight.bank.features)


def part_of(batch, rank, world):
    def slices(values):
        each = len(values) // world
        return values[rank * each : (rank + 1) * each]

    return Batch(*(slices(values) for values in batch))


def run_rank(rank, world, address, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    learner = make_learner(parallel=True)
    values = [learner.step(part_of(make_batch(seed), rank, world)) for seed in (1, 2)]
    gradients = [p.grad for p in learner.network.parameters()]
    torch.save((values, gradients, learner.bank.state_dict()), f"{results}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # what was measured is on disk; gloo's threads may abort when they are taken down


def test_two_ranks_with_half_the_batch_each_equal_one(tmp_path):
    alone = make_learner()
    expected = [alone.step(make_batch(seed)) for seed in (1, 2)]
    arguments = (2, f"file://{tmp_path}/rendezvous", str(tmp_path))
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=2, start_method="spawn")
    for rank in range(2):
        values, gradients, bank = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for mine, one in zip(values, expected, strict=True):
            assert mine == pytest.approx(one, abs=1e-8)
        for mine, parameter in zip(gradients, alone.network.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(bank, copy.deepcopy(dict(alone.bank.state_dict())))
