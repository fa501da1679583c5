"""A folder of photos as features and binary codes; only new photos are embedded."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from dsn_ray.checkpoint import Checkpoint
from dsn_ray.data.catalog import Domain
from dsn_ray.data.parts import checked
from dsn_ray.data.roots import LARGEST_FILE
from dsn_ray.data.views import decode
from dsn_ray.errors import DataWarning, UserError
from dsn_ray.model import DsnNetwork
from dsn_ray.retrieval.index import BinaryCodes, Index, at_length_one, fit_codes

Progress = Callable[[int, int], None]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_BATCH = 64
_KEPT_EVERY = 60.0  # seconds of work that may be lost


@dataclass(frozen=True)
class Gallery:
    """Photos to search.

    Attributes:
        root: their folder.
        paths: of each photo below the root, '/'-separated.
        index: their features, in the order of the paths.
        rejected: files that are no picture or cannot be read, and why.
        embedded: how many photos were new.
    """

    root: Path
    paths: tuple[str, ...]
    index: Index
    rejected: tuple[tuple[str, str], ...] = ()
    embedded: int = 0

    def class_of(self, row: int) -> str:
        """The folder that a photo lies in, which most galleries name after its class."""
        return self.paths[row].rpartition("/")[0].rpartition("/")[2]


def open_gallery(
    checkpoint: Checkpoint,
    network: DsnNetwork,
    root: Path,
    cache: Path,
    progress: Progress | None = None,
) -> Gallery:
    """Embeds the photos of a folder and of all folders below, those that are new.

    Features are kept in the cache by the checkpoint and the photo's bytes, wherever it lay.

    Args:
        checkpoint: what the network is of.
        network: embeds.
        root: the folder; what links lead to outside it is not read.
        cache: folder that keeps features.
        progress: is told the number of new files looked at and of all new ones.

    Raises:
        UserError: If there is no such folder, or no photo in it, or the network has diverged.
    """
    dim, of_network = checkpoint.config.network.dim, checkpoint.digest()[:16]
    paths, rejected = _files_below(root)
    stamps = {path: _stamp(root / path) for path in paths}
    of_root = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    kept = cache / f"features-{of_network}-{of_root}.parquet"
    old = _read(kept, dim)
    before = zip(old["path"].to_pylist(), old["stamp"].to_pylist(), strict=True)
    same = pa.array([stamps.get(path) == stamp for path, stamp in before], pa.bool_())
    tables = [old.filter(same)]
    changed = sorted(stamps.keys() - set(tables[0]["path"].to_pylist()))
    files = cache.glob(f"features-{of_network}-*.parquet") if changed else []
    known = pa.concat_tables([old.slice(0, 0), *(_read(file, dim) for file in files)])
    looker = _Looker(network, checkpoint.config.data.px, root, known)
    saved = time.monotonic()
    try:
        for start in range(0, len(changed), _BATCH):
            some = {path: stamps[path] for path in changed[start : start + _BATCH]}
            tables.append(looker.look_at(some))
            if progress:
                progress(start + len(some), len(changed))
            if time.monotonic() - saved > _KEPT_EVERY:
                _write(kept, pa.concat_tables(tables))
                saved = time.monotonic()
    finally:
        table = pa.concat_tables(tables).sort_by("path")
        if not table.equals(old):
            _write(kept, table)
    good, bad = _good_and_bad(table)
    rejected += [*zip(bad["path"].to_pylist(), bad["reason"].to_pylist(), strict=True)]
    rejected += looker.unread
    if not len(good):
        raise UserError(f"--gallery {root}: none of its {len(rejected)} files is a picture.")
    features = _features(good)
    if not np.isfinite(features).all():
        raise UserError(f"--checkpoint {checkpoint.directory}: its features are no numbers.")
    rows = hashlib.sha256("".join(good["sha256"].to_pylist()).encode()).digest()
    codes = partial(_kept_codes, cache / f"codes-{of_network}-{of_root}.parquet", rows)
    return Gallery(
        root=root,
        paths=tuple(good["path"].to_pylist()),
        index=Index(features, codes),
        rejected=tuple(sorted(rejected)),
        embedded=looker.embedded,
    )


def as_trained(encoded: bytes, domain: Domain, px: int) -> NDArray[np.uint8]:
    """A picture's file as training sees it after `prepare` (without `--keep`): uint8 `[3, px, px]`.

    Raises:
        ValueError: If it is no picture that can be used.
    """
    return decode(checked(encoded, domain), px)


def embed(
    network: DsnNetwork, pictures: Sequence[NDArray[np.uint8]], *, photos: bool
) -> NDArray[np.float32]:
    """Features of pictures, float32 `[n, d]`, each of length 1.

    Args:
        network: a trained one.
        pictures: uint8 `[3, px, px]` each, as many as the network can take at a time.
        photos: whether they are photos; else sketches.
    """
    device = next(network.parameters()).device
    is_photo = torch.full((len(pictures),), int(photos), device=device)
    with torch.inference_mode():
        features = network.embed(torch.from_numpy(np.stack(pictures)).to(device), is_photo)
    return at_length_one(features.float().cpu().numpy())


def _files_below(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The paths of all pictures below a folder but hidden ones; and those with no name as text."""
    if not root.is_dir():
        raise UserError(f"--gallery {root}: there is no such folder.")
    found, rejected = [], []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(folder) / name
            if file.suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            path = file.relative_to(root).as_posix()
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            if shown == path:
                found.append(path)
            else:
                rejected.append((shown, "its name is no text"))
    if not found and not rejected:
        raise UserError(f"--gallery {root}: there is no picture in this folder.")
    return found, rejected


def _stamp(path: Path) -> str:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError as error:
        return str(error.strerror)
    return f"{status.st_size} {status.st_mtime_ns}"


class _Looker:
    """Looks at new files: embeds photos whose bytes are not known yet.

    Attributes:
        embedded: photos embedded so far.
        unread: files of whose contents nothing is known, and why; next time they may be read.
    """

    def __init__(self, network: DsnNetwork, px: int, root: Path, known: pa.Table) -> None:
        self._network, self._px, self._root = network, px, root
        self._schema = known.schema
        good, bad = _good_and_bad(known)
        # Of each photo's bytes the feature, or what is wrong with them.
        self._known: dict[str, NDArray[np.float32] | str] = {
            **dict(zip(good["sha256"].to_pylist(), _features(good), strict=True)),
            **dict(zip(bad["sha256"].to_pylist(), bad["reason"].to_pylist(), strict=True)),
        }
        self.embedded = 0
        self.unread: list[tuple[str, str]] = []

    def look_at(self, stamps: dict[str, str]) -> pa.Table:
        """The rows of some files, by path and stamp; of those that can be read."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            looked = dict(zip(stamps, pool.map(self._look, stamps), strict=True))
        self.unread += [(path, str(why)) for path, (digest, why) in looked.items() if not digest]
        read = {path: digest for path, (digest, _) in looked.items() if digest}
        new = {digest: seen for digest, seen in looked.values() if digest and seen is not None}
        self._known |= {digest: seen for digest, seen in new.items() if isinstance(seen, str)}
        pictures = {digest: seen for digest, seen in new.items() if not isinstance(seen, str)}
        if pictures:
            features = embed(self._network, list(pictures.values()), photos=True)
            self._known |= dict(zip(pictures, features, strict=True))
            self.embedded += len(pictures)
        found = [self._known[digest] for digest in read.values()]
        is_bad = np.array([isinstance(one, str) for one in found], bool)
        rows = np.zeros((len(found), self._schema.field("features").type.list_size), np.float32)
        for row, one in zip(rows, found, strict=True):
            row[:] = 0 if isinstance(one, str) else one
        columns = {
            "path": list(read),
            "stamp": [stamps[path] for path in read],
            "sha256": list(read.values()),
            "reason": [one if isinstance(one, str) else "" for one in found],
            "features": pa.FixedSizeListArray.from_arrays(
                pa.array(rows.ravel()), rows.shape[1], mask=pa.array(is_bad)
            ),
        }
        return pa.table(columns, schema=self._schema)

    def _look(self, path: str) -> tuple[str, NDArray[np.uint8] | str | None]:
        """A file's hash and, where that is new, its picture or what is wrong with its contents.

        Without a hash, why it could not be looked at.
        """
        file = self._root / path
        try:
            if not file.resolve().is_relative_to(self._root.resolve()):
                return "", "it lies outside the gallery"
            if file.stat().st_size > LARGEST_FILE:
                return "", f"it is larger than {LARGEST_FILE // 2**20} MiB"
            encoded = file.read_bytes()
        except (OSError, RuntimeError) as error:
            return "", str(error)
        digest = hashlib.sha256(encoded).hexdigest()
        if digest in self._known:
            return digest, None
        try:
            return digest, as_trained(encoded, "photo", self._px)
        except (ValueError, OSError, MemoryError) as error:
            if isinstance(error.__cause__ or error, MemoryError):
                return "", "there was no memory for it"
            return digest, str(error)


def _read(file: Path, dim: int) -> pa.Table:
    """What is kept in a file; no row where there is none, or a broken one."""
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("stamp", pa.string()),
            ("sha256", pa.string()),
            ("reason", pa.string()),
            ("features", pa.list_(pa.float32(), dim)),
        ]
    )
    try:
        table = pq.read_table(file, partitioning=None)
    except (OSError, pa.ArrowInvalid):
        return schema.empty_table()
    return table if table.schema.equals(schema) else schema.empty_table()


def _good_and_bad(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of photos, and those of files that are none."""
    is_good = pc.is_valid(table["features"])
    return table.filter(is_good), table.filter(pc.invert(is_good))


def _features(good: pa.Table) -> NDArray[np.float32]:
    column = good["features"].combine_chunks()
    flat: NDArray[np.float32] = column.flatten().to_numpy()
    # A copy: torch warns of what Arrow lends, which nobody may write to.
    return flat.reshape(len(good), column.type.list_size).copy()


def _kept_codes(file: Path, rows: bytes, features: NDArray[np.float32]) -> BinaryCodes:
    """The codes of features: those in a file, where they are of the same rows, else fitted.

    Args:
        file: keeps them.
        rows: a hash of which photos they are of.
        features: of these photos.
    """
    dim = features.shape[1]
    try:
        table = pq.read_table(file, partitioning=None)
        about = table.schema.metadata or {}
        if about.get(b"rows") == rows:
            mean, projection = (np.frombuffer(about[name]) for name in (b"mean", b"projection"))
            packed = np.frombuffer(table["code"].combine_chunks().buffers()[1], np.uint64)
            return BinaryCodes(mean, projection.reshape(dim, dim), packed.reshape(len(table), -1))
    except (OSError, ValueError, KeyError):  # there is none, or a broken one
        pass
    made = fit_codes(features)
    bits = pa.binary(made.packed.shape[1] * made.packed.itemsize)
    packed = np.ascontiguousarray(made.packed)
    codes = pa.FixedSizeBinaryArray.from_buffers(bits, len(packed), [None, pa.py_buffer(packed)])
    about = {"rows": rows, "mean": made.mean.tobytes(), "projection": made.projection.tobytes()}
    _write(file, pa.table({"code": codes}).replace_schema_metadata(about))
    return made


def _write(file: Path, table: pa.Table) -> None:
    """Writes a file of the cache, whole or not at all; it is no error where that cannot be."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, unfinished)
        unfinished.replace(file)
    except OSError as error:
        reason = error.strerror or str(error)
        warnings.warn(
            f"{file} cannot be written ({reason}): what was computed is not kept",
            DataWarning,
            stacklevel=2,
        )
