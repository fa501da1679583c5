"""The training step on one GPU: what each switch gains, what waits for data, how near the peak.

    python -m benchmarks.gpu SHARDS [--weights FILE] [--steps N] [--backbone NAME] [--px N]

SHARDS is a folder that `python -m dsn_ray.prepare` made. Ray is not needed: torch, pyarrow, Pillow,
pydantic, PyYAML and threadpoolctl are. The plain steps are the same network, losses and optimiser
on one batch that lies on the device. The teacher's logits are zeros, which cost a step the same.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from dsn_ray.config import Config
from dsn_ray.data.batch import AUGMENTED_VIEWS, Batch, Draws
from dsn_ray.data.views import decode, draw_views, random_views
from dsn_ray.learner import Learner
from dsn_ray.model import build_network
from dsn_ray.objective import (
    LossTerms,
    MemoryBank,
    classification_loss,
    cross_modal_contrastive_loss,
    dsn_loss,
    semantic_distillation_loss,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SWITCHES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"speed.precision": "bf16"},
    "bf16, fused Adam": {"speed.precision": "bf16", "speed.fused_adam": True},
    "bf16, fused Adam, views on the device": {
        "speed.precision": "bf16",
        "speed.fused_adam": True,
        "speed.augment_on_device": True,
    },
    "bf16, fused Adam, compiled": {
        "speed.precision": "bf16",
        "speed.fused_adam": True,
        "speed.compile": True,
    },
}
DOMAINS = ("sketch", "photo")


class Pictures(Dataset[tuple[Any, ...]]):
    """The pictures of a split and domain, each to its label, views, and what is drawn for more."""

    def __init__(self, shards: Path, split: str, domain: str, config: Config, views: int) -> None:
        folder = shards / f"split={split}" / f"domain={domain}"
        table = pq.read_table(folder, columns=["label", "encoded"], partitioning=None)
        self.labels = table["label"].to_numpy()
        self._encoded = table["encoded"]
        self._is_sketch, self._config, self._views = domain == "sketch", config, views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        pixels = decode(self._encoded[index].as_py(), self._config.data.px)
        label, augment = int(self.labels[index]), self._config.augment
        if not self._views:
            return label, torch.from_numpy(pixels)
        chance = np.random.default_rng(int(torch.randint(2**62, ())))
        if self._config.speed.augment_on_device:
            return label, torch.from_numpy(pixels[None]), *draw_views(chance, augment, self._views)
        views = random_views(pixels, self._is_sketch, chance, augment, self._views)
        return label, torch.from_numpy(views)


def seen_pictures(shards: Path, config: Config) -> dict[str, Pictures]:
    """What a training sees, by domain."""
    return {one: Pictures(shards, "seen", one, config, AUGMENTED_VIEWS) for one in DOMAINS}


def batches(seen: Mapping[str, Pictures], config: Config, steps: int) -> Iterator[Batch]:
    """So many shuffled batches; the teacher's logits are zeros, which cost the step the same."""
    sizes = (config.data.sketches_per_batch, config.data.photos_per_batch)
    sides = [
        DataLoader(
            pictures,
            size,
            sampler=RandomSampler(pictures, num_samples=steps * size),
            num_workers=max(1, (os.cpu_count() or 2) // 2),
            pin_memory=DEVICE.type == "cuda",
        )
        for pictures, size in zip(seen.values(), sizes, strict=True)
    ]
    judged = torch.zeros(sizes[1], 1000, pin_memory=DEVICE.type == "cuda")
    for (theirs, sketches, *drawn), (its, photos, *of_photos) in zip(*sides, strict=True):
        draws = [Draws(*one) if one else None for one in (drawn, of_photos)]
        yield Batch(sketches, theirs, photos, its, judged, *draws)


def learner(config: Config, classes: int) -> Learner:
    """A new one on the device."""
    torch.manual_seed(config.train.seed)
    network = build_network(config.network, classes).to(DEVICE)
    return Learner(network, config, torch.zeros(classes, 1000), total_steps=10_000)


def plain_step(config: Config, classes: int, batch: Batch, precision: str) -> Callable[[], None]:
    """The step without our loop: everything lies on the device, nothing is asked for."""
    network = build_network(config.network, classes).to(DEVICE).train()
    bank = MemoryBank(classes, config.memory.k, network.backbone.dim).to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=5e-4)
    sketches, theirs, photos, its = (part.to(DEVICE) for part in batch[:4])
    logits = torch.zeros(len(its), 1000, device=DEVICE)
    views = torch.cat([sketches, photos]).transpose(0, 1).flatten(0, 1)
    labels = torch.cat([theirs, its])
    is_photo = torch.cat([torch.zeros_like(theirs), torch.ones_like(its)]).repeat(3)
    count, first = len(theirs), len(labels)
    mask = torch.zeros(len(its), 1000, device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            output = network(views, is_photo, first)
        trunk, _, projection, class_logits, teacher_logits = (part.float() for part in output)
        bank.update(trunk[:count].detach(), theirs, trunk[count:first], its)
        terms = LossTerms(
            contrastive=cross_modal_contrastive_loss(projection[first:], labels.repeat(2), 0.07),
            memory=bank.loss(trunk[count:first], its),
            classification=classification_loss(class_logits, labels),
            distillation=semantic_distillation_loss(teacher_logits[count:], logits, mask, 0.3),
        )
        optimizer.zero_grad(set_to_none=True)
        dsn_loss(terms, 0.1, 1.0, 1.0).backward()
        optimizer.step()

    return step


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Mean seconds, after three to warm up."""
    for _ in range(3):
        work()
    started = _now()
    for _ in range(repeats):
        work()
    return (_now() - started) / repeats


def _now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def fed(learning: Learner, stream: Iterator[Batch], steps: int) -> tuple[float, float]:
    """Seconds of a step that is fed from the shards, and the part of them spent waiting."""
    for batch in itertools.islice(stream, 3):
        learning.step(batch)
    waited, started = 0.0, _now()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        learning.step(batch)
    took = _now() - started
    return took / steps, waited / took


def peak() -> float:
    """Operations per second of a large bf16 matrix product, the nearest one gets to the peak."""
    side = 8192 if DEVICE.type == "cuda" else 1024
    a = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    return 2 * side**3 / seconds_of(lambda: a @ a, 20)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--weights", default="none", help="SE-ResNet-50's; none for random ones")
    parser.add_argument("--backbone", default="cse_resnet50")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--steps", type=int, default=40)
    parsed = parser.parse_args()
    config = Config().with_settings(
        {
            "network.backbone": parsed.backbone,
            "network.weights": parsed.weights,
            "data.px": parsed.px,
        }
    )
    pictures = config.data.sketches_per_batch + config.data.photos_per_batch
    seen = seen_pictures(parsed.shards, config)
    classes = 1 + max(int(side.labels.max()) for side in seen.values())
    one = next(batches(seen, config, 1))

    plain = plain_step(config, classes, one, "fp32")
    with FlopCounterMode(display=False) as counter:
        plain()
    work, most = counter.get_total_flops(), peak()
    print(f"{parsed.backbone}, {parsed.px} px, {pictures} x 3 views, torch {torch.__version__}")
    print(f"{work / 1e12:.2f} TFLOP a step; a matrix product reaches {most / 1e12:.0f} TFLOP/s")
    print("| | pictures/s | waiting for data | of the matrix product's speed |")
    print("|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        if precision == "bf16":
            plain = plain_step(config, classes, one, precision)
        _row(f"plain, {precision}", pictures, seconds_of(plain, parsed.steps), "", work / most)
    del plain
    for name, settings in SWITCHES.items():
        switched = config.with_settings(settings)
        learning = learner(switched, classes)
        stream = batches(seen_pictures(parsed.shards, switched), switched, parsed.steps + 3)
        took, waiting = fed(learning, stream, parsed.steps)
        _row(name, pictures, took, f"{waiting:.3f}", work / most)


def _row(name: str, pictures: int, took: float, waiting: str, best: float) -> None:
    print(f"| {name} | {pictures / took:.0f} | {waiting} | {best / took:.3f} |", flush=True)


if __name__ == "__main__":
    main()
