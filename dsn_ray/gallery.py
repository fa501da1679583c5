"""A folder of photos as features and binary codes; only new photos are embedded again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from dsn_ray.checkpoint import Checkpoint
from dsn_ray.data.decoding import UndecodablePicture
from dsn_ray.data.roots import LARGEST_FILE
from dsn_ray.data.views import decode
from dsn_ray.errors import UserError
from dsn_ray.model import DsnNetwork
from dsn_ray.retrieval import fit_itq

Codes = Literal["real", "binary"]
Progress = Callable[[int, int], None]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_BATCH = 64
_QUERIES = 64  # compared with the gallery at a time


@dataclass(frozen=True)
class Gallery:
    """Photos to search.

    Attributes:
        root: their folder.
        paths: of each photo below the root, '/'-separated.
        features: float32 `[n, d]`, each of length 1.
        mean: `[d]`, subtracted before a binary code is made.
        projection: `[d, d]`, of ITQ (Gong & Lazebnik 2011), fitted on the features.
        codes: uint8 `[n, d / 8]`, the packed bits.
        rejected: files that are no picture, and why.
        embedded: how many photos were new.
    """

    root: Path
    paths: tuple[str, ...]
    features: NDArray[np.float32]
    mean: NDArray[np.float64]
    projection: NDArray[np.float64]
    codes: NDArray[np.uint8]
    rejected: tuple[tuple[str, str], ...]
    embedded: int

    def class_of(self, row: int) -> str:
        """The folder that a photo lies in, which most galleries name after its class."""
        return self.paths[row].rpartition("/")[0].rpartition("/")[2]

    def search(
        self, queries: NDArray[np.float32], top: int, codes: Codes = "real"
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Finds the nearest photos, every photo compared.

        Args:
            queries: `[q, d]` features of sketches.
            top: how many photos of each; fewer where the gallery has fewer.
            codes: compare by cosine or by Hamming distance.

        Returns:
            `[q, top]` rows, nearest first, equally near ones in the order of the gallery; and
            `[q, top]` cosines, or bits that differ.
        """
        top = min(top, len(self.paths))
        distances = self._hamming if codes == "binary" else self._cosine
        rows, values = [], []
        for start in range(0, len(queries), _QUERIES):
            found = distances(_at_length_one(queries[start : start + _QUERIES]))
            nearest = np.argpartition(found, top - 1, axis=1)[:, :top]
            # Whatever is as near as the last one chosen may have a smaller row than it.
            for distance, chosen in zip(found, nearest, strict=True):
                near = np.flatnonzero(distance <= distance[chosen].max())
                near = near[np.argsort(distance[near], kind="stable")][:top]
                rows.append(near)
                values.append(distance[near])
        scores = np.array(values, np.float64)
        return np.array(rows), scores if codes == "binary" else -scores

    def _cosine(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        similar = torch.from_numpy(queries) @ torch.from_numpy(self.features).T
        return -similar.numpy()

    def _hamming(self, queries: NDArray[np.float32]) -> NDArray[np.int32]:
        wanted = np.packbits((queries - self.mean) @ self.projection > 0, axis=1)
        return np.stack([np.bitwise_count(self.codes ^ one).sum(1, np.int32) for one in wanted])


def open_gallery(
    checkpoint: Checkpoint, root: Path, cache: Path, progress: Progress | None = None
) -> Gallery:
    """Embeds the photos of a folder and of all folders below, those that are new.

    What a photo's features are is kept in the cache by the checkpoint and the photo's bytes.

    Args:
        checkpoint: the network.
        root: the folder; what links lead to outside it is not read.
        cache: folder that keeps features.
        progress: is told the number of new files looked at and of all new ones.

    Raises:
        UserError: If there is no such folder, or no photo in it, or the network has diverged.
    """
    stamps = {path: _stamp(root / path) for path in _files_below(root)}
    dim = checkpoint.config.network.dim
    kept = cache / f"gallery-{checkpoint.digest()[:16]}-{_digest(str(root.resolve()))[:16]}.parquet"
    old = _read(kept, dim)
    before = zip(old["path"].to_pylist(), old["stamp"].to_pylist(), strict=True)
    same = pa.array([stamps.get(path) == stamp for path, stamp in before], pa.bool_())
    unchanged = old.filter(same)
    changed = sorted(stamps.keys() - set(unchanged["path"].to_pylist()))
    tables = [unchanged]
    looker = _Looker(checkpoint, root, old)
    for start in range(0, len(changed), _BATCH):
        tables.append(looker.look_at({p: stamps[p] for p in changed[start : start + _BATCH]}))
        if progress:
            progress(min(start + _BATCH, len(changed)), len(changed))
    table = pa.concat_tables(tables).sort_by("path")
    if changed or len(table) != len(old):
        _write(kept, table)
    bad = table.filter(pc.is_null(table["features"]))
    good = table.filter(pc.is_valid(table["features"]))
    if not len(good):
        raise UserError(f"--gallery {root}: none of its {len(bad)} files is a picture.")
    # A copy: torch warns of what Arrow lends, which nobody may write to.
    features = good["features"].combine_chunks().flatten().to_numpy().reshape(-1, dim).copy()
    if not np.isfinite(features).all():
        raise UserError(f"--checkpoint {checkpoint.directory}: its features are no numbers.")
    itq = fit_itq(features, dim)
    return Gallery(
        root=root,
        paths=tuple(good["path"].to_pylist()),
        features=features,
        mean=itq.mean,
        projection=itq.projection,
        codes=np.packbits(itq.encode(features), axis=1),
        rejected=tuple(zip(bad["path"].to_pylist(), bad["reason"].to_pylist(), strict=True)),
        embedded=looker.embedded,
    )


def embed(
    network: DsnNetwork, pictures: Sequence[NDArray[np.uint8]], *, photos: bool
) -> NDArray[np.float32]:
    """Features of pictures, float32 `[n, d]`, each of length 1.

    Args:
        network: a trained one.
        pictures: uint8 `[3, px, px]` each.
        photos: whether they are photos; else sketches.
    """
    device = next(network.parameters()).device
    is_photo = torch.full((len(pictures),), int(photos), device=device)
    with torch.inference_mode():
        features = network.embed(torch.from_numpy(np.stack(pictures)).to(device), is_photo)
    return _at_length_one(features.float().cpu().numpy())


def _at_length_one(features: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)


def _files_below(root: Path) -> list[str]:
    """The paths of all pictures below a folder, hidden ones left out."""
    if not root.is_dir():
        raise UserError(f"--gallery {root}: there is no such folder.")
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder) / name
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append(path.relative_to(root).as_posix())
    if not found:
        raise UserError(f"--gallery {root}: there is no picture in this folder.")
    return found


def _stamp(path: Path) -> str:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError as error:
        return str(error.strerror)
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


class _Looker:
    """Looks at new files: embeds photos whose bytes are not known yet.

    Attributes:
        embedded: photos embedded so far.
    """

    def __init__(self, checkpoint: Checkpoint, root: Path, old: pa.Table) -> None:
        self._network, self._px = checkpoint.network(), checkpoint.config.data.px
        self._root, self._schema = root, old.schema
        self._known = old
        self._row_of_bytes = dict(zip(old["sha256"].to_pylist(), range(len(old)), strict=True))
        self.embedded = 0

    def look_at(self, stamps: dict[str, str]) -> pa.Table:
        """The rows of some files, by path and stamp."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            looked = list(pool.map(self._look, stamps))
        new = [i for i, (*_, picture) in enumerate(looked) if picture is not None]
        features: list[list[float] | None] = [None] * len(looked)
        if new:
            pictures = [picture for *_, picture in looked if picture is not None]
            for i, row in zip(new, embed(self._network, pictures, photos=True), strict=True):
                features[i] = row.tolist()
            self.embedded += len(new)
        reasons = []
        for i, (digest, reason, _) in enumerate(looked):
            if features[i] is None and digest in self._row_of_bytes:
                before = self._known.slice(self._row_of_bytes[digest], 1).to_pylist()[0]
                features[i], reason = before["features"], before["reason"]
            reasons.append(reason)
        columns = {
            "path": list(stamps),
            "stamp": list(stamps.values()),
            "sha256": [digest for digest, *_ in looked],
            "reason": reasons,
            "features": features,
        }
        return pa.table(columns, schema=self._schema)

    def _look(self, path: str) -> tuple[str, str, NDArray[np.uint8] | None]:
        """A file's hash, what is wrong with it, and the picture where its bytes are new."""
        file = self._root / path
        try:
            if not file.resolve().is_relative_to(self._root.resolve()):
                return "", "it lies outside the gallery", None
            if file.stat().st_size > LARGEST_FILE:
                return "", f"it is larger than {LARGEST_FILE // 2**20} MiB", None
            raw = file.read_bytes()
        except (OSError, RuntimeError) as error:
            return "", str(error), None
        digest = hashlib.sha256(raw).hexdigest()
        if digest in self._row_of_bytes:
            return digest, "", None
        try:
            return digest, "", decode(raw, self._px)
        except UndecodablePicture as error:
            return digest, str(error), None


def _read(file: Path, dim: int) -> pa.Table:
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
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid):
        return schema.empty_table()
    return table if table.schema.equals(schema) else schema.empty_table()


def _write(file: Path, table: pa.Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    pq.write_table(table, unfinished)
    unfinished.replace(file)
