"""How fast pictures are prepared and read, beside plain loops on the same cores, in one run.

    python -m benchmarks.data SKETCHY_ROOT --work FOLDER

Makes a data set as large as all of Sketchy out of a part of it (each picture cropped and encoded
anew, so that no two files are the same), prepares it, reads the beginning of an epoch in three
views of 224 px, and prints ratios. The plain loops do the same work: a process per core that reads,
checks and encodes files, and torch's DataLoader over the same bytes in memory.
"""

import argparse
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.memory import memory_watched
from dsn_ray.config import AugmentConfig
from dsn_ray.data import pictures as pictures_module
from dsn_ray.data.batch import AUGMENTED_VIEWS
from dsn_ray.data.catalog import DOMAINS, Source, open_source
from dsn_ray.data.pictures import Pictures, load_pictures
from dsn_ray.data.preparing import checked, prepare_shards
from dsn_ray.data.shards import Shards
from dsn_ray.data.storage import Folder
from dsn_ray.data.stream import Decoders, PairStream
from dsn_ray.data.views import decode, random_views
from dsn_ray.runtime import ray_cluster

PX = 224
SKETCHES, PHOTOS = 32, 64
SAMPLE = 12_000
CORES = os.cpu_count() or 1


def enlarge(small: Source, folder: Path, pictures: int, px: int) -> None:
    """Writes a data set in the `folder:` layout with as many pictures as asked for."""
    out = folder.with_name("unfinished")
    shutil.rmtree(out, ignore_errors=True)
    order = np.random.default_rng(0).permutation(len(small.records))
    records = [small.records[order[i % len(order)]] for i in range(pictures)]
    root = root_of(small)
    jobs = [(root, r.path, out / r.domain / r.class_name, i, px) for i, r in enumerate(records)]
    with multiprocessing.Pool(CORES) as pool:
        for _ in pool.imap_unordered(_crop, jobs, chunksize=256):
            pass
    (out / "unseen.txt").write_text("\n".join(small.unseen_classes))
    out.rename(folder)


def root_of(source: Source) -> Path:
    """Where pictures that are not embedded lie."""
    if source.root is None:
        raise ValueError("embedded pictures lie nowhere")
    return Path(str(source.root))


def _crop(job: tuple[Path, str, Path, int, int]) -> None:
    root, path, folder, number, px = job
    random = np.random.default_rng(number)
    with Image.open(root / path) as opened:
        left, top = random.integers(0, 8, 2)
        image = opened.convert("RGB").crop((left, top, opened.width - 8, opened.height - 8))
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".png" if path.endswith("png") else ".jpg"
    image.resize((px, px)).save(folder / f"{number}{suffix}")


def _check_file(job: tuple[Path, str]) -> int:
    path, domain = job
    return len(checked(path.read_bytes(), "sketch" if domain == "sketch" else "photo"))


def plain_prepare(source: Source) -> float:
    """Pictures per second of a process per core that reads, checks and encodes."""
    root = root_of(source)
    chosen = np.random.default_rng(0).choice(len(source.records), SAMPLE, replace=False)
    jobs = [(root / source.records[i].path, source.records[i].domain) for i in chosen]
    with multiprocessing.Pool(CORES) as pool:
        list(pool.imap_unordered(_check_file, jobs[:100]))
        started = time.perf_counter()
        for _ in pool.imap_unordered(_check_file, jobs, chunksize=64):
            pass
        return len(jobs) / (time.perf_counter() - started)


class InMemory(Dataset[torch.Tensor]):
    """Encoded pictures in memory to three views each."""

    def __init__(self, encoded: list[bytes]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> torch.Tensor:
        random = np.random.default_rng(index)
        picture = decode(self._encoded[index], PX)
        return torch.from_numpy(random_views(picture, False, random, AugmentConfig()))


def plain_reading(encoded: list[bytes]) -> float:
    """Pictures per second of torch's DataLoader, the better of none and two worker processes."""
    rates = []
    for workers in (0, 2):
        loader = DataLoader(InMemory(encoded), SKETCHES + PHOTOS, num_workers=workers)
        batches = iter(loader)
        next(batches)
        started = time.perf_counter()
        count = sum(len(batch) for batch in batches)
        rates.append(count / (time.perf_counter() - started))
    return max(rates)


def our_reading(shards: Shards, share: float, steps: int) -> tuple[float, float]:
    """Pictures per second of an epoch, and the seconds to its first batch.

    Args:
        shards: the data set.
        share: of the object store that pictures may take.
        steps: of the epoch.
    """
    pictures_module._SHARE_OF_STORE = share
    pictures: dict[str, Pictures] = {d: load_pictures(shards, "seen", d, PX) for d in DOMAINS}
    tables = {domain: one.table() for domain, one in pictures.items()}
    stream = PairStream(
        tables["sketch"],
        tables["photo"],
        np.arange(len(shards.seen_classes)),
        sketches_per_batch=SKETCHES,
        photos_per_batch=PHOTOS,
        epoch_ends="longer",
        per_class=None,
        augment=AugmentConfig(),
        augmented=AUGMENTED_VIEWS,
        seed=0,
        decoders=Decoders(CORES, pictures, tables, AugmentConfig(), AUGMENTED_VIEWS, 0),
    )
    stream.steps = 4
    for _ in stream.epoch(0):  # the decoders start; in training they do beside the network
        pass
    stream.steps = steps
    asked = time.perf_counter()
    batches = stream.epoch(1)
    next(batches)
    started = time.perf_counter()
    count = sum(1 for _ in batches) * (SKETCHES + PHOTOS)
    return count / (time.perf_counter() - started), started - asked


def encoded_sample(shards: Shards) -> Iterator[bytes]:
    """Encoded pictures in the proportion of a batch."""
    for domain, many in (("sketch", SKETCHES), ("photo", PHOTOS)):
        rows = shards.rows("seen", "sketch" if domain == "sketch" else "photo")
        for row in rows.limit(SAMPLE * many // (SKETCHES + PHOTOS)).iter_rows():
            yield row["encoded"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--pictures", type=int, default=75_471 + 73_002)
    parser.add_argument("--px", type=int, default=256, help="above 256 prepare encodes anew")
    parser.add_argument("--work", type=Path, required=True)
    parsed = parser.parse_args()
    large, out = parsed.work / f"large-{parsed.px}", parsed.work / "shards"
    if not large.exists():
        enlarge(open_source("sketchy", parsed.root), large, parsed.pictures, parsed.px)
    source = open_source("folder:large", large)
    shutil.rmtree(out, ignore_errors=True)
    torch.set_num_threads(1)

    plain = plain_prepare(source)
    with ray_cluster():
        ray.get(ray.remote(lambda: None).remote())
        started = time.perf_counter()
        with memory_watched("Pss_Anon") as preparing:
            shards = prepare_shards(source, Folder.at(out))
        ours = len(source.records) / (time.perf_counter() - started)
        steps = SAMPLE // (SKETCHES + PHOTOS)
        store = ray.cluster_resources()["object_store_memory"]
        just_encoded = 1.01 * max(shards.sizes.values()) / store
        held, first_held = our_reading(shards, just_encoded, steps)
        with memory_watched("Pss_Anon") as reading:
            stored, first_stored = our_reading(shards, 0.0, steps)
        encoded = list(encoded_sample(shards))
    np.random.default_rng(0).shuffle(encoded)
    loader = plain_reading(encoded)
    for line in (
        f"{len(source.records)} pictures of {parsed.px} px, {CORES} cores",
        "| | pictures/s | plain loop | ratio | |",
        "|---|---|---|---|---|",
        f"| prepare | {ours:.0f} | {plain:.0f} | {ours / plain:.2f} | "
        f"{preparing[0]:.1f} GiB more |",
        f"| an epoch, held in memory | {held:.0f} | {loader:.0f} | {held / loader:.2f} | "
        f"first batch {first_held:.1f} s |",
        f"| an epoch, from the shards | {stored:.0f} | {loader:.0f} | {stored / loader:.2f} | "
        f"first batch {first_stored:.1f} s, {reading[0]:.1f} GiB more |",
    ):
        print(line)


if __name__ == "__main__":
    main()
