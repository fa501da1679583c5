"""How fast pictures are prepared and read, beside plain loops on the same cores, in one run.

    python -m benchmarks.data SKETCHY_ROOT --work FOLDER

Makes a data set as large as all of Sketchy out of a part of it (each picture cropped and encoded
anew, so that no two files are the same), prepares it, reads the beginning of two epochs in three
views of 224 px, and prints ratios. The plain loops do the same work: a process per core that reads,
decodes, resizes and encodes files, before and after, and torch's DataLoader over the same bytes in
memory. Memory is watched in runs that are not timed.
"""

import argparse
import io
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
from dsn_ray.data.parts import SHORT_SIDE
from dsn_ray.data.pictures import Pictures, load_pictures
from dsn_ray.data.preparing import prepare_shards
from dsn_ray.data.shards import Shards
from dsn_ray.data.storage import Folder
from dsn_ray.data.stream import Decoders, PairStream
from dsn_ray.data.views import decode, random_views
from dsn_ray.runtime import ray_cluster

PX = 224
SKETCHES, PHOTOS = 32, 64
SAMPLE = 12_000
PLAIN_SAMPLE = 30_000
FULL = {"sketch": 75_471, "photo": 73_002}
SHARES = {domain: count / sum(FULL.values()) for domain, count in FULL.items()}
CORES = os.cpu_count() or 1
SETTLED = 15  # seconds after which Ray's own processes have started


def enlarge(small: Source, folder: Path, pictures: int, px: int) -> None:
    """Writes a data set in the `folder:` layout with as many pictures as asked for."""
    out = folder.with_name("unfinished")
    shutil.rmtree(out, ignore_errors=True)
    records = []
    for domain, share in SHARES.items():
        some = [record for record in small.records if record.domain == domain]
        order = np.random.default_rng(0).permutation(len(some))
        records += [some[order[i % len(order)]] for i in range(round(pictures * share))]
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


def _plain(job: tuple[Path, str]) -> int:
    """Reads a picture, decodes it and, where it is large, resizes and encodes it."""
    path, domain = job
    raw = path.read_bytes()
    with Image.open(io.BytesIO(raw)) as opened:
        image = opened.convert("RGB")
    short = min(image.size)
    if short <= SHORT_SIDE:
        return len(raw)
    width, height = (round(side * SHORT_SIDE / short) for side in image.size)
    smaller = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    out = io.BytesIO()
    if domain == "photo":
        smaller.save(out, "JPEG", quality=95)
    else:
        smaller.save(out, "PNG")
    return len(out.getvalue())


def plain_prepare(source: Source) -> float:
    """Pictures per second of a process per core that does what `prepare` is for."""
    root, count = root_of(source), min(PLAIN_SAMPLE, len(source.records))
    chosen = np.random.default_rng(0).choice(len(source.records), count, replace=False)
    jobs = [(root / source.records[i].path, source.records[i].domain) for i in chosen]
    with multiprocessing.Pool(CORES) as pool:
        list(pool.imap_unordered(_plain, jobs[:100]))
        started = time.perf_counter()
        for _ in pool.imap_unordered(_plain, jobs, chunksize=64):
            pass
        return len(jobs) / (time.perf_counter() - started)


def our_prepare(source: Source, out: Path) -> tuple[Shards, float]:
    """Prepares anew, in a Ray that runs; pictures per second."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    shards = prepare_shards(source, Folder.at(out))
    return shards, len(source.records) / (time.perf_counter() - started)


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


def our_reading(
    shards: Shards, share: float, steps: int
) -> tuple[float, tuple[float, float], float]:
    """How fast two epochs are read.

    Args:
        shards: the data set.
        share: of the object store that pictures may take.
        steps: of the second epoch; the first has four.

    Returns:
        Pictures per second of the second epoch, the seconds to the first batch of each, and the
        GiB by which memory rises in a third.
    """
    usual, pictures_module._SHARE_OF_STORE = pictures_module._SHARE_OF_STORE, share
    pictures: dict[str, Pictures] = {d: load_pictures(shards, "seen", d, PX) for d in DOMAINS}
    pictures_module._SHARE_OF_STORE = usual
    asked = time.perf_counter()
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
    batches = stream.epoch(0)
    next(batches)
    first = time.perf_counter() - asked
    list(batches)
    stream.steps = steps
    asked = time.perf_counter()
    batches = stream.epoch(1)
    next(batches)
    started = time.perf_counter()
    count = sum(1 for _ in batches) * (SKETCHES + PHOTOS)
    rate = count / (time.perf_counter() - started)
    with memory_watched("Pss_Anon") as risen:
        for _ in stream.epoch(2):
            pass
    return rate, (first, started - asked), risen[0]


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
    parser.add_argument("--pictures", type=int, default=sum(FULL.values()))
    parser.add_argument("--px", type=int, default=256, help="above 256 prepare encodes anew")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--prepare-only", action="store_true", help="leave reading out")
    parsed = parser.parse_args()
    large = parsed.work / f"large-{parsed.px}-{parsed.pictures}"
    if not large.exists():
        enlarge(open_source("sketchy", parsed.root), large, parsed.pictures, parsed.px)
    source, out = open_source("folder:large", large), parsed.work / "shards"
    torch.set_num_threads(1)
    lines = [
        f"{len(source.records)} pictures of {parsed.px} px, {CORES} cores",
        "| | pictures/s | plain loop | ratio | |",
        "|---|---|---|---|---|",
    ]
    before = plain_prepare(source)
    with ray_cluster():
        time.sleep(SETTLED)
        shards, ours = our_prepare(source, out)
        after = plain_prepare(source)
        with memory_watched("Pss_Anon") as risen:
            our_prepare(source, out)
        plain = (before + after) / 2
        lines.append(
            f"| prepare | {ours:.0f} | {plain:.0f} ({before:.0f} before, {after:.0f} after) | "
            f"{ours / plain:.2f} | {risen[0]:.1f} GiB more |"
        )
        if not parsed.prepare_only:
            lines += _reading(shards)
    print("\n".join(lines))


def _reading(shards: Shards) -> Iterator[str]:
    steps = SAMPLE // (SKETCHES + PHOTOS)
    store = ray.cluster_resources()["object_store_memory"]
    just_encoded = 1.01 * max(shards.sizes.values()) / store
    ways = {
        "held in memory": our_reading(shards, just_encoded, steps),
        "from the shards": our_reading(shards, 0.0, steps),
    }
    encoded = list(encoded_sample(shards))
    np.random.default_rng(0).shuffle(encoded)
    loader = plain_reading(encoded)
    for way, (rate, (first, second), risen) in ways.items():
        yield (
            f"| an epoch, {way} | {rate:.0f} | {loader:.0f} | {rate / loader:.2f} | first batches "
            f"{first:.1f} s and {second:.1f} s, {risen:.1f} GiB more |"
        )


if __name__ == "__main__":
    main()
