"""How fast a training step is, beside a bare PyTorch loop, and what its parts cost.

    python -m benchmarks.step SKETCHY_ROOT --work FOLDER

The bare loop has the same network, losses and augmentation, feeds itself from decoded pictures in
memory by torch's DataLoader (with no or two worker processes, whichever was faster in the epoch
before), and knows nothing of Ray; it has a process of its own, as people start it, and another with
the settings of the C library's allocator that our workers have. The three take turns on the same
cores, with EfficientNet-Lite0 at 112 px. Steps with and without a teacher take turns in one
process.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from dsn_ray import run_training
from dsn_ray.config import Config
from dsn_ray.data.batch import AUGMENTED_VIEWS, Batch
from dsn_ray.data.catalog import open_source
from dsn_ray.data.views import decode, random_views
from dsn_ray.learner import Learner
from dsn_ray.model import Teacher, build_network, imagenet_weights
from dsn_ray.objective import MemoryBank
from dsn_ray.training import KEEP_MEMORY

SKETCHES, PHOTOS, PX, CLASSES = 16, 32, 112, 100
STEPS = 25
TURNS = 2
SETTINGS = {
    "network.backbone": "efficientnet_lite0",
    "network.bn_statistics": "worker",
    "data.px": PX,
    "data.sketches_per_batch": SKETCHES,
    "data.photos_per_batch": PHOTOS,
    "data.per_class": 8,
    "train.epochs": 3,
}


def ours(root: Path, work: Path) -> float:
    """Pictures per second in the last epoch of a training on one worker."""
    config = Config().with_settings(SETTINGS)
    runs = work / "step"
    shutil.rmtree(runs, ignore_errors=True)
    checkpoint = run_training(
        config, ("sketchy", str(root)), name="step", storage=str(runs), workers=1
    )
    metrics = json.loads((checkpoint / "about.json").read_text())["metrics"]
    return float(metrics["pictures_per_second"])


class InMemory(Dataset[tuple[Tensor, int]]):
    """Decoded pictures of a domain to their three views."""

    def __init__(self, pixels: list[NDArray[np.uint8]], is_sketch: bool) -> None:
        self._pixels, self._is_sketch = pixels, is_sketch

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        random = np.random.default_rng(index)
        views = random_views(
            self._pixels[index], self._is_sketch, random, Config().augment, AUGMENTED_VIEWS
        )
        return torch.from_numpy(views), index % CLASSES


def learner(teacher: Teacher | None = None) -> Learner:
    """A new one with ImageNet's weights."""
    config = Config().with_settings(SETTINGS)
    network = build_network(config.network, CLASSES, imagenet_weights("efficientnet_lite0"))
    return Learner(network, config, torch.zeros(CLASSES, 1000), 1000, teacher=teacher)


def a_batch(views: int) -> Batch:
    """Noise."""
    torch.manual_seed(0)
    sizes = (SKETCHES, PHOTOS)
    pictures = [torch.randint(0, 256, (n, views, 3, PX, PX), dtype=torch.uint8) for n in sizes]
    labels = [torch.randint(0, CLASSES, (n,)) for n in sizes]
    return Batch(pictures[0], labels[0], pictures[1], labels[1], torch.zeros(PHOTOS, 1000))


def bare(root: Path) -> float:
    """Pictures per second of the bare loop."""
    source = open_source("sketchy", root)
    loaders_of = []
    for domain, size in (("sketch", SKETCHES), ("photo", PHOTOS)):
        paths = [r.path for r in source.records if r.domain == domain and r.split == "seen"]
        pixels = [decode((root / path).read_bytes(), PX) for path in paths[: STEPS * size]]
        loaders_of.append((InMemory(pixels, domain == "sketch"), size))
    learning, logits = learner(), torch.zeros(PHOTOS, 1000)

    def epoch(workers: int) -> float:
        sides = [DataLoader(d, size, num_workers=workers) for d, size in loaders_of]
        started, steps = time.perf_counter(), 0
        for (sketches, its), (photos, theirs) in zip(*sides, strict=True):
            learning.step(Batch(sketches, its, photos, theirs, logits))
            steps += 1
        return steps * (SKETCHES + PHOTOS) / (time.perf_counter() - started)

    epoch(0)
    return epoch(max((0, 2), key=epoch))


def median_of(work: Callable[[], object], repeats: int = 15) -> float:
    """Median seconds, after one to warm up."""
    work()
    took = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def share_of_losses() -> float:
    """The losses, the bank and their gradients up to the network's outputs, of a whole step."""
    batch, learning = a_batch(1 + AUGMENTED_VIEWS), learner()
    whole = median_of(lambda: learning.step(batch), 7)
    kept: list[Any] = []
    forward = learning._forward

    def remember(*arguments: Any) -> Any:
        kept.append(forward(*arguments))
        return kept[-1]

    learning._forward = remember
    learning.losses(batch)
    leaves = type(kept[0])(*(part.detach().requires_grad_() for part in kept[0]))
    learning._forward = lambda *_: leaves
    return median_of(lambda: torch.stack(learning.losses(batch)).sum().backward()) / whole


def teacher_ratio(views: int) -> float:
    """A step that asks the teacher, beside one that knows what it said; medians, taking turns."""
    batch, knowing = a_batch(views), learner()
    asking = learner(Teacher.from_config(Config().with_settings(SETTINGS).network))
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(9):
        for asks, learning in ((False, knowing), (True, asking)):
            started = time.perf_counter()
            learning.step(batch)
            took[asks].append(time.perf_counter() - started)
    return statistics.median(took[True][1:]) / statistics.median(took[False][1:])


def update_plainly(
    bank: dict[int, list[Tensor]],
    k: int,
    sketches: Tensor,
    labels: Tensor,
    photos: Tensor,
    photo_labels: Tensor,
) -> None:
    """Equations 3 and 4 sample by sample."""
    for sketch, label in zip(sketches, labels.tolist(), strict=True):
        mine = photos[photo_labels == label]
        entries = [*bank.get(label, []), sketch]
        if len(mine):
            middle = mine.mean(dim=0)
            entries.sort(key=lambda one: -functional.cosine_similarity(one, middle, dim=0).item())
        bank[label] = entries[:k]


def bank_ratio(sketches: int, photos: int) -> float:
    """The bank's update with the paper's features, beside a loop over the samples."""
    torch.manual_seed(0)
    batches = [
        (
            torch.randn(sketches, 2048),
            torch.randint(0, 100, (sketches,)),
            torch.randn(photos, 2048),
            torch.randint(0, 100, (photos,)),
        )
        for _ in range(40)
    ]
    bank, plain = MemoryBank(100, 10, 2048), dict[int, list[Tensor]]()
    for batch in batches:
        bank.update(*batch)
        update_plainly(plain, 10, *batch)
    batch = batches[0]
    return median_of(lambda: update_plainly(plain, 10, *batch)) / median_of(
        lambda: bank.update(*batch)
    )


def bare_alone(root: Path, environment: dict[str, str]) -> float:
    """`bare` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", str(root), "--bare"]
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | environment
    ).stdout
    return float(said.split()[-1])


def _speed(each: list[float]) -> str:
    return f"{statistics.mean(each):.1f} pictures/s ({', '.join(f'{one:.1f}' for one in each)})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".bench"))
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    torch.set_num_threads(2)
    if parsed.bare:
        print(bare(parsed.root))
        return
    share, banks = share_of_losses(), [bank_ratio(*sizes) for sizes in ((32, 64), (96, 96))]
    asked = [teacher_ratio(views) for views in (1 + AUGMENTED_VIEWS, 1)]
    plain, training, kept = [], [], []
    for _ in range(TURNS):
        plain.append(bare_alone(parsed.root, {}))
        training.append(ours(parsed.root, parsed.work))
        kept.append(bare_alone(parsed.root, KEEP_MEMORY))
    for line in (
        "| | beside | ratio | aim |",
        "|---|---|---|---|",
        f"| a training, {_speed(training)} | the bare loop, {_speed(plain)} | "
        f"{sum(training) / sum(plain):.2f} | 0.95 |",
        f"| the same | the bare loop with our allocator's settings, {_speed(kept)} | "
        f"{sum(training) / sum(kept):.2f} | 0.95 |",
        f"| a step with kept logits | asking the teacher in the loop | {asked[0]:.2f} | 1.2 |",
        f"| the same without augmented views | asking the teacher in the loop | {asked[1]:.2f} | |",
        f"| losses and bank | a whole step | {share:.4f} | 0.05 |",
        f"| the bank's update, the paper's batch | a loop over the samples | {banks[0]:.1f} | 20 |",
        f"| the same, 96 sketches, 96 photos | a loop over the samples | {banks[1]:.1f} | 20 |",
    ):
        print(line)


if __name__ == "__main__":
    main()
