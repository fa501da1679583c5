"""The training step, on a network small enough for float64 and two processes."""

import copy
import itertools
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dsn_ray.config import RECIPES, RECIPES_ON, AugmentConfig, Config
from dsn_ray.data.batch import Batch, Draws
from dsn_ray.data.device_views import views_on_device
from dsn_ray.data.views import draw_views
from dsn_ray.learner import Learner, losses_by_name
from dsn_ray.model import Teacher
from dsn_ray.model.network import DsnNetwork
from dsn_ray.model.norm import synchronise_batch_norm
from dsn_ray.objective import cross_modal_contrastive_loss

CLASSES, PX, DIM = 3, 8, 6
ORACLE = Path(__file__).parents[2] / "shared" / "facts" / "retrieval_oracle.json"


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


def make_learner(settings=None, parallel=False, steps=10):
    torch.manual_seed(0)
    config = Config().with_settings({"network.dim": DIM, **(settings or {})})
    network = DsnNetwork(TinyBackbone(), DIM, config.network.projection_dim and 8, CLASSES).double()
    teacher = None
    if config.data.teacher_sees == "first_view":
        teacher = Teacher(TinyBackbone(), nn.Linear(12, 1000), "tiny").double()
    wrapped = None
    if parallel:
        synchronise_batch_norm(network, "cpu")
        wrapped = DistributedDataParallel(network)
    learner = Learner(network, config, torch.rand(CLASSES, 1000), steps, wrapped, teacher)
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


def step(learner, batch):
    return losses_by_name(learner.step(batch))


def test_a_step_lowers_the_loss_of_its_batch():
    learner = make_learner({"optimizer.lr": 1e-2, "optimizer.lr_end": 1e-2})
    batch = make_batch()
    values = [step(learner, batch)["total"] for _ in range(8)]
    assert values[-1] < values[0]


@pytest.mark.parametrize(
    ("setting", "value", "digits"),
    [("speed.precision", "bf16", 0.02), ("speed.fused_adam", True, 1e-9)],
)
def test_a_faster_step_changes_the_numbers_by_rounding(setting, value, digits):
    usual, faster = make_learner(), make_learner({setting: value})
    for learner in (usual, faster):
        learner.network.float()
        learner.bank.float()
    taken = [[step(learner, make_batch(seed)) for seed in (1, 2)] for learner in (usual, faster)]
    for plain, fast in zip(*taken, strict=True):
        assert fast == pytest.approx(plain, rel=digits, abs=digits)
    assert all(parameter.dtype == torch.float32 for parameter in faster.network.parameters())
    assert taken[0] != taken[1] or setting == "speed.fused_adam"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_step_changes_the_numbers_by_rounding():
    usual, compiled = make_learner(), make_learner({"speed.compile": True})
    for seed in (1, 2):
        batch = make_batch(seed)
        assert step(compiled, batch) == pytest.approx(step(usual, batch), rel=1e-9)


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
        ("loss.contrastive", "sum", "contrastive"),
        ("data.teacher_sees", "first_view", "distillation"),
    ],
)
def test_what_a_trial_varies_reaches_the_loss(setting, value, term):
    usual = step(make_learner(), make_batch())
    varied = step(make_learner({setting: value}), make_batch())
    others = {"contrastive", "memory", "classification", "distillation"} - {term}
    assert varied[term] != pytest.approx(usual[term], abs=1e-9)
    assert varied["total"] != pytest.approx(usual["total"], abs=1e-9)
    for name in others:
        assert varied[name] == pytest.approx(usual[name], abs=1e-12)


def test_without_a_projection_head_the_contrast_sits_on_the_embedding():
    learner = make_learner({"network.projection_dim": None})
    batch = make_batch()
    value = float(learner.losses(batch).contrastive.detach())
    labels = torch.cat([batch.sketch_labels, batch.photo_labels]).repeat(2)
    flags = torch.tensor([0] * len(batch.sketch_labels) + [1] * len(batch.photo_labels))
    views = torch.cat([batch.sketch_views, batch.photo_views]).transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        embeddings = learner.network.train().embed(views, flags.repeat(3))[len(flags) :]
    assert value == pytest.approx(float(cross_modal_contrastive_loss(embeddings, labels, 0.07)))


def test_the_gradient_of_every_loss_reaches_the_backbone():
    for name in ("contrastive", "memory", "classification", "distillation"):
        learner = make_learner()
        getattr(learner.losses(make_batch()), name).backward()
        assert learner.network.backbone.conv.weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("name", "reached", "pictures"),
    [
        ("contrastive", {"embedding", "projection"}, "augmented"),
        ("memory", set(), "first photos"),
        ("classification", {"embedding", "classifier"}, "first"),
        ("distillation", {"embedding", "teacher_head"}, "first photos"),
    ],
)
def test_each_loss_reaches_its_own_pictures_and_parts_alone(name, reached, pictures):
    learner = make_learner()
    trunks = []

    def kept(module, inputs, output):
        output.retain_grad()
        trunks.append(output)

    learner.network.backbone.register_forward_hook(kept)
    batch = make_batch()
    getattr(learner.losses(batch), name).backward()
    for part in ("embedding", "projection", "classifier", "teacher_head"):
        gradients = [p.grad for p in getattr(learner.network, part).parameters()]
        assert any(g is not None and g.any() for g in gradients) == (part in reached), part
    first, sketches = len(batch.sketch_labels) + len(batch.photo_labels), len(batch.sketch_labels)
    rows = torch.zeros(3 * first, dtype=torch.bool)
    spans = {"augmented": slice(first, None), "first photos": slice(sketches, first)}
    rows[spans.get(pictures, slice(first))] = True
    touched = trunks[0].grad.any(dim=1)
    assert torch.equal(touched, rows)


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


def test_the_rate_may_fall_by_epochs():
    settings = {"optimizer.lr": 1e-3, "optimizer.lr_end": 1e-6, "optimizer.decay": "epoch"}
    learner = make_learner({**settings, "train.epochs": 5})
    rates = []
    for _ in range(10):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.step(make_batch())
    assert rates == pytest.approx([1e-3 * 0.001 ** (step // 2 / 5) for step in range(10)])


@pytest.mark.skipif(not ORACLE.is_file(), reason="../shared/facts is not on this machine")
@pytest.mark.parametrize("data", ["sketchy", "tuberlin"])
def test_the_releases_last_rate_is_that_of_its_logs(data):
    settings = {**RECIPES["release"], **RECIPES_ON.get(("release", data), {})}
    epochs = settings["train.epochs"]
    learner = make_learner(settings, steps=epochs)
    for _ in range(epochs - 1):
        learner.step(make_batch())
    expected = json.loads(ORACLE.read_text())["dsn_last_lr"][f"epochs{epochs}"]
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def gradients(settings):
    learner = make_learner(settings)
    learner.step(make_batch())
    return [parameter.grad for parameter in learner.network.parameters()]


def test_without_its_gradient_the_memory_loss_trains_nothing():
    constant = gradients({"loss.memory_gradient": False})
    absent = gradients({"loss.lambda2": 0.0})
    full = gradients({})
    for one, other in zip(constant, absent, strict=True):
        torch.testing.assert_close(one, other)
    assert any(not torch.allclose(one, other) for one, other in zip(constant, full, strict=True))


def test_the_bank_is_kept_for_training_or_for_an_epoch():
    for lifetime, filled in (("training", True), ("epoch", False)):
        learner = make_learner({"memory.lifetime": lifetime})
        learner.step(make_batch())
        learner.begin_epoch()
        assert bool(learner.bank.filled_places.any()) is filled


def test_sketches_learn_from_the_teacher_where_all_pictures_do():
    batch = make_batch()
    sketch_logits = torch.randn(len(batch.sketch_labels), 1000)
    everything = batch._replace(teacher_logits=torch.cat([sketch_logits, batch.teacher_logits]))
    learner = make_learner({"loss.distilled": "all"})
    value = float(learner.losses(everything).distillation.detach())
    network = learner.network
    first = torch.cat([batch.sketch_views[:, 0], batch.photo_views[:, 0]])
    flags = torch.tensor([0] * len(batch.sketch_labels) + [1] * len(batch.photo_labels))
    with torch.no_grad():
        views = torch.cat([batch.sketch_views, batch.photo_views]).transpose(0, 1).flatten(0, 1)
        log_probabilities = network(views, flags.repeat(3), len(first)).teacher_logits.log_softmax(
            1
        )
    labels = torch.cat([batch.sketch_labels, batch.photo_labels])
    soft = (everything.teacher_logits.double() + 0.3 * learner._mask[labels]).softmax(1)
    assert value == pytest.approx(float(-(soft * log_probabilities).sum(1).mean()), abs=1e-6)


def test_the_teacher_may_see_the_first_view_of_the_photos():
    asking = make_learner({"data.teacher_sees": "first_view"})
    torch.nn.init.normal_(asking._teacher.classifier.weight)
    batch = make_batch()
    first_views = batch.photo_views[:, 0]
    logits = asking._teacher.logits(first_views)
    assert logits.std(dim=0).min() > 0
    told = make_learner()
    told.network.load_state_dict(asking.network.state_dict())
    told._mask.copy_(asking._mask)
    expected = told.losses(batch._replace(teacher_logits=logits)).distillation
    found = asking.losses(batch._replace(teacher_logits=None)).distillation
    torch.testing.assert_close(found, expected)
    backwards = batch._replace(teacher_logits=logits.flip(0))
    other = told.losses(backwards).distillation.item()
    assert other != pytest.approx(expected.item(), abs=1e-6)


def test_without_augmented_views_nothing_is_contrasted_and_training_goes_on():
    batch = make_batch()
    first = batch._replace(
        sketch_views=batch.sketch_views[:, :1], photo_views=batch.photo_views[:, :1]
    )
    learner = make_learner({"loss.lambda1": 0.0, "optimizer.lr": 1e-2, "optimizer.lr_end": 1e-2})
    values = [step(learner, first) for _ in range(4)]
    assert all(value["contrastive"] == 0 for value in values)
    assert values[-1]["total"] < values[0]["total"]


def test_a_batch_without_a_teacher_is_named():
    with pytest.raises(ValueError, match="no teacher logits"):
        make_learner().losses(make_batch()._replace(teacher_logits=None))


def test_views_made_on_the_device_train_as_those_made_before():
    batch = make_batch()
    config = AugmentConfig()
    made, draws = [], []
    for is_sketch, views in ((True, batch.sketch_views), (False, batch.photo_views)):
        drawn = [draw_views(np.random.default_rng(seed), config) for seed in range(len(views))]
        draws.append(Draws(*(torch.from_numpy(np.stack(x)) for x in zip(*drawn, strict=True))))
        made.append(views_on_device(views[:, 0], is_sketch, draws[-1], config))
    before = batch._replace(sketch_views=made[0], photo_views=made[1])
    there = batch._replace(
        sketch_views=batch.sketch_views[:, :1],
        photo_views=batch.photo_views[:, :1],
        sketch_draws=draws[0],
        photo_draws=draws[1],
    )
    assert step(make_learner(), there) == step(make_learner(), before)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("sketches", "photos", "label"), [(8, 12, None), (0, 12, None), (8, 0, None), (1, 1, 0)]
)
def test_no_legal_batch_gives_a_loss_that_is_not_finite(autocast, sketches, photos, label):
    batch = make_batch(sketches=sketches, photos=photos)
    if label is not None:
        batch.sketch_labels.fill_(label)
        batch.photo_labels.fill_(label)
    learner = make_learner()
    learner.network.float()
    learner.bank.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for _ in range(2):
            terms = learner.losses(batch)
            assert all(torch.isfinite(term) for term in terms), terms
    sum(terms).backward()
    for parameter in learner.network.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_a_saved_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    straight = make_learner()
    for seed in (1, 2, 3):
        expected = step(straight, make_batch(seed))
    first = make_learner()
    for seed in (1, 2):
        first.step(make_batch(seed))
    first.epoch = 5
    first.save(tmp_path / "state.pt")
    second = make_learner()
    second.load(tmp_path / "state.pt")
    assert second.epoch == 5
    assert step(second, make_batch(3)) == expected
    assert torch.equal(second.bank.features, straight.bank.features)


def part_of(batch, rank, world):
    def slices(values):
        each = len(values) // world
        return values[rank * each : (rank + 1) * each]

    return Batch(*(slices(values) for values in batch[:5]))


def run_rank(rank, world, address, results, settings):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    learner = make_learner(settings, parallel=True)
    values = [step(learner, part_of(make_batch(seed), rank, world)) for seed in (1, 2)]
    gradients = [p.grad for p in learner.network.parameters()]
    torch.save((values, gradients, learner.bank.state_dict()), f"{results}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # what was measured is on disk; gloo's threads may abort when they are taken down


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_two_ranks_with_half_the_batch_each_equal_one(tmp_path, recipe):
    settings = {**RECIPES[recipe], "memory.k": 2}
    alone = make_learner(settings)
    expected = [step(alone, make_batch(seed)) for seed in (1, 2)]
    arguments = (2, f"file://{tmp_path}/rendezvous", str(tmp_path), settings)
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=2, start_method="spawn")
    for rank in range(2):
        values, gradients, bank = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for mine, one in zip(values, expected, strict=True):
            assert mine == pytest.approx(one, abs=1e-8)
        for mine, parameter in zip(gradients, alone.network.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(bank, copy.deepcopy(dict(alone.bank.state_dict())))
