"""The variants and seeds of `search_spaces/ablation_gpu.yaml` on one GPU, without Ray.

    python -m benchmarks.gpu_ablation SHARDS [--seeds N ...] [--json OUT] [--set NAME=VALUE ...]
    python -m benchmarks.gpu_ablation --table OUT ...

SHARDS is a folder that `python -m dsn_ray.prepare` made. The trainings are the library's: its
network, losses, views on the device and rating. Only what Ray does is left out: all pictures lie on
the device, decoded once, the teacher has judged them once, and one training follows the other. The
table is that of a final job, printed after each seed. `--table` makes one of what several of these
commands have kept.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu import DEVICE, DOMAINS, Pictures
from dsn_ray.config import Config
from dsn_ray.data.batch import AUGMENTED_VIEWS, Batch, Draws
from dsn_ray.data.semantics import mask_rows
from dsn_ray.data.views import draw_views
from dsn_ray.learner import Learner
from dsn_ray.model import DsnNetwork, Teacher, build_network
from dsn_ray.rating import Row
from dsn_ray.retrieval import evaluate_features
from dsn_ray.space import load_space
from dsn_ray.sweep import SEEDS
from dsn_ray.tables import final_table

SPACE = Path(__file__).parents[1] / "search_spaces" / "ablation_gpu.yaml"
_CHUNK = 250  # pictures that are embedded or judged at a time
_LOADERS = 4  # processes that draw the steps ahead


class Held(NamedTuple):
    """A split's pictures of one domain, on the device."""

    pictures: torch.Tensor
    """uint8 `[n, 3, px, px]`"""
    labels: torch.Tensor
    """`[n]`"""


def held(shards: Path, split: str, domain: str, config: Config) -> Held:
    """Decodes them, on all cores."""
    source = Pictures(shards, split, domain, config, views=0)
    chunks = DataLoader(source, _CHUNK, num_workers=os.cpu_count() or 1)
    labels, pictures = zip(*chunks, strict=True)
    return Held(torch.cat(pictures).to(DEVICE), torch.cat(labels).to(DEVICE))


class Steps(Dataset[tuple[Any, ...]]):
    """A training's steps: rows of sketches, rows of photos, and what chance has drawn of each."""

    def __init__(self, counts: tuple[int, int], config: Config) -> None:
        self._config, self._counts = config, counts
        self._sizes = (config.data.sketches_per_batch, config.data.photos_per_batch)
        self._each = min(n // size for n, size in zip(counts, self._sizes, strict=True))
        self._augmented = AUGMENTED_VIEWS if config.loss.lambda1 else 0

    def __len__(self) -> int:
        return self._each * self._config.train.epochs

    def __getitem__(self, step: int) -> tuple[Any, ...]:
        epoch, place = divmod(step, self._each)
        rows = [
            np.random.default_rng((self._config.train.seed, epoch, domain)).permutation(count)
            for domain, count in enumerate(self._counts)
        ]
        parts = [
            order[place * size : (place + 1) * size]
            for order, size in zip(rows, self._sizes, strict=True)
        ]
        return *parts, *(self._draws(domain, part, epoch) for domain, part in enumerate(parts))

    def _draws(self, domain: int, rows: NDArray[np.int64], epoch: int) -> Draws:
        seed = self._config.train.seed
        chances = (np.random.default_rng((seed, epoch, domain, int(row))) for row in rows)
        drawn = [draw_views(one, self._config.augment, self._augmented) for one in chances]
        return Draws(*(torch.from_numpy(np.stack(field)) for field in zip(*drawn, strict=True)))


class Ablation:
    """What all trainings share."""

    def __init__(self, shards: Path, config: Config) -> None:
        about = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))
        self.data = str(about["name"])
        self._mask = torch.from_numpy(mask_rows(about["semantics"], about["seen_classes"]))
        self._seen = [held(shards, "seen", domain, config) for domain in DOMAINS]
        self._unseen = [held(shards, "unseen", domain, config) for domain in DOMAINS]
        side = config.data.teacher_px
        judged = self._seen[1]
        if side != config.data.px:
            judged = held(shards, "seen", "photo", config.with_settings({"data.px": side}))
        teacher = Teacher.from_config(config.network).to(DEVICE)
        chunks = judged.pictures.split(_CHUNK)
        self._logits = torch.cat([teacher.logits(chunk) for chunk in chunks]).half().float()

    def train(self, config: Config) -> DsnNetwork:
        """A whole training."""
        torch.manual_seed(config.train.seed)
        network = build_network(config.network, len(self._mask)).to(DEVICE)
        sketches, photos = self._seen
        steps = Steps((len(sketches.labels), len(photos.labels)), config)
        learner = Learner(network, config, self._mask, len(steps))
        for these, those, *draws in DataLoader(
            steps, batch_size=None, num_workers=_LOADERS, pin_memory=DEVICE.type == "cuda"
        ):
            theirs, its = (rows.to(DEVICE, non_blocking=True) for rows in (these, those))
            batch = Batch(
                *(sketches.pictures[theirs][:, None], sketches.labels[theirs]),
                *(photos.pictures[its][:, None], photos.labels[its], self._logits[its]),
                *draws,
            )
            learner.step(batch)
        return network

    def rate(self, network: DsnNetwork, trained: bool = True) -> list[Row]:
        """What it, or its trunk before training, comes to on the unseen classes."""
        network.eval()
        look = network.embed if trained else network.trunk
        arguments: list[Any] = []
        for flag, (pictures, labels) in enumerate(self._unseen):
            with torch.inference_mode():
                features = [
                    look(chunk, torch.full((len(chunk),), flag, device=DEVICE))
                    for chunk in pictures.split(_CHUNK)
                ]
            arguments += [torch.cat(features).float().cpu().numpy(), labels.cpu().numpy()]
        return evaluate_features(*arguments, binary=trained)


def main() -> None:
    """Prints the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the space's own")
    parser.add_argument("--json", type=Path, help="keep the rows there")
    parser.add_argument("--table", type=Path, nargs="+", metavar="OUT")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    parsed = parser.parse_args()
    space = load_space(SPACE)
    if parsed.table:
        _print_kept(parsed.table, list(space.variants))
        return
    given = dict(one.split("=", 1) for one in parsed.set)
    config = Config().with_settings({**space.set, **given})
    if parsed.shards is None:
        parser.error("SHARDS or --table is needed.")

    started = time.perf_counter()
    ablation = Ablation(parsed.shards, config)
    about = {"dataset": ablation.data}
    before = ablation.rate(build_network(config.network).to(DEVICE), trained=False)
    untrained = [{**row, **about} for row in before]
    print(f"ready after {time.perf_counter() - started:.0f} s", flush=True)
    rows: list[Row] = []
    for seed in parsed.seeds or range(space.final.seeds or SEEDS):
        for variant, settings in space.variants.items():
            entered = time.perf_counter()
            network = ablation.train(config.with_settings({**settings, "train.seed": seed}))
            trained = time.perf_counter()
            rated = ablation.rate(network)
            rows += [{**row, **about, "variant": variant, "seed": seed} for row in rated]
            print(
                f"{variant}, seed {seed}: trained in {trained - entered:.1f} s, rated in "
                f"{time.perf_counter() - trained:.1f} s",
                flush=True,
            )
            if parsed.json:
                parsed.json.write_text(json.dumps({"rows": rows, "untrained": untrained}))
        _print(rows, untrained)


def _print(rows: list[Row], untrained: list[Row]) -> None:
    official = {row["dataset"]: False for row in untrained}
    Console(width=140).print(final_table(rows, untrained, official, random_weights=False))


def _print_kept(files: list[Path], variants: list[str]) -> None:
    kept = [json.loads(file.read_text()) for file in files]
    rows = [row for one in kept for row in one["rows"]]
    rows.sort(key=lambda row: (variants.index(row["variant"]), row["seed"]))
    _print(rows, kept[0]["untrained"])


if __name__ == "__main__":
    main()
