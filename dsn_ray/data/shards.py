"""Prepared data sets: checked pictures in Parquet files, and a manifest.

A shard folder, on this machine or behind a URL, holds `manifest.json`, `rejected.jsonl` and Parquet
files under `split=<seen|heldout|unseen>/domain=<sketch|photo>/` with one row per picture:

    id          place in the data set's lists
    label       place in the class list of its split
    class_name
    path        below the raw data root
    sha256      of the raw file, in hexadecimal
    group       number of the row group, another for each of this split and domain
    encoded     the picture as JPEG or PNG, or as it was
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray.data.catalog import EMBEDDED, Domain, Source, Split, open_source
from dsn_ray.data.roots import DataError, Root
from dsn_ray.data.storage import Folder, cache_folder

if TYPE_CHECKING:
    import numpy as np
    import ray.data
    from numpy.typing import NDArray

FORMAT = 3
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
READ_CPUS = 0.02  # little: see `dsn_ray.data.teaching`


@dataclass(frozen=True)
class Shards:
    """A finished shard folder.

    Attributes:
        folder: where it is.
        name: the data set, as in `--data`.
        seen_classes: class of each seen label.
        unseen_classes: class of each unseen label.
        official: whether this is the complete official set.
        semantics: which semantic mask belongs to it.
        fingerprint: of the raw pictures it was made from.
        kept: whether the raw files were stored as they are, and not at most 256 px wide or high.
        counts: pictures by `<split>/<domain>`.
        sizes: bytes of their files, likewise.
        rejected: pictures that did not decode, listed in `rejected.jsonl`.
        note: what people should know of how it was put together.
    """

    folder: Folder
    name: str
    seen_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    official: bool
    semantics: str
    fingerprint: str
    kept: bool
    counts: Mapping[str, int]
    sizes: Mapping[str, int]
    rejected: int
    note: str

    def __str__(self) -> str:
        """What it holds, on one line for people."""
        counts = ", ".join(f"{count} {key}" for key, count in self.counts.items() if count)
        embedded = " (embedded demonstration data)" if self.name in EMBEDDED else ""
        lost = ""
        if self.rejected:
            pictures = "picture" if self.rejected == 1 else "pictures"
            lost = f"; {self.rejected} {pictures} did not decode, see {self.folder / REJECTED}"
        note = f"; {self.note}" if self.note else ""
        return f"{self.name}{embedded}: {counts}{lost}{note}"

    def rows(self, split: Split, domain: Domain) -> "ray.data.Dataset":
        """The pictures of one split and domain, as Ray Data reads them."""
        import ray
        import ray.data

        # Ray's newer reader starts actors of a whole CPU each to look at a few footers: seconds for
        # every read, and for ever where actors of ours have left no CPU whole.
        ray.data.DataContext.get_current().use_datasource_v2 = False
        count = self.counts[f"{split}/{domain}"]
        cpus = int(ray.cluster_resources().get("CPU", 1))
        return ray.data.read_parquet(
            (self.folder / f"split={split}" / f"domain={domain}").path,
            filesystem=self.folder.filesystem,
            partitioning=None,
            override_num_blocks=max(1, min(count // 64, 4 * cpus)),
            num_cpus=READ_CPUS,
            **where_it_lies(self.folder),
        )

    def repeats(self, split: Split, domain: Domain) -> "NDArray[np.int64]":
        """Which pictures are there already, once each is to count once.

        Sketchy's lists name thousands of photos twice, by one file name in each photo folder.

        Returns:
            The ids of those whose bytes, or whose class and file name, are those of a picture with
            a smaller id, ascending.
        """
        import numpy as np

        rows = self.rows(split, domain).select_columns(["id", "class_name", "path", "sha256"])
        seen: set[tuple[str, ...]] = set()
        found = []
        for row in sorted(rows.take_all(), key=lambda row: int(row["id"])):
            names = {(row["class_name"], row["path"].rpartition("/")[2]), (row["sha256"],)}
            if seen & names:
                found.append(row["id"])
            seen |= names
        return np.array(found, np.int64)


def where_it_lies(folder: Folder | Root | None) -> dict[str, Any]:
    """Remote arguments that keep a task on this node if a folder is on its disk.

    Args:
        folder: of shards or of raw pictures; None for embedded ones.

    Raises:
        DataError: If it is, and Ray may run nothing on this node.
    """
    import ray

    if folder is None or not folder.is_local:
        return {}
    this = ray.get_runtime_context().get_node_id()
    if not any(n["NodeID"] == this and n["Resources"].get("CPU") for n in ray.nodes()):
        raise DataError(
            f"{folder} is on the disk of this node, which gives Ray no CPUs; put it where all "
            "nodes reach it, or start Ray here with --num-cpus."
        )
    return {"label_selector": {"ray.io/node-id": this}}


def read_manifest(folder: Folder) -> Shards:
    """Opens a shard folder.

    Raises:
        DataError: If it is none, one that another version of the format wrote, or not whole.
    """
    try:
        manifest = json.loads(folder.read(MANIFEST))
        if isinstance(manifest["format"], int) and manifest["format"] != FORMAT:
            raise DataError(f"{folder} was prepared in another format; prepare it again.")
        _require_whole(folder, {name: about["bytes"] for name, about in manifest["files"].items()})
        return Shards(
            folder=folder,
            seen_classes=tuple(manifest["seen_classes"]),
            unseen_classes=tuple(manifest["unseen_classes"]),
            **{
                key: manifest[key]
                for key in (
                    *("name", "official", "semantics", "fingerprint", "kept"),
                    *("counts", "sizes", "rejected", "note"),
                )
            },
        )
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{folder} is not a prepared shard folder: its {MANIFEST} is missing or broken."
        ) from None


def _require_whole(folder: Folder, files: Mapping[str, int]) -> None:
    """Checks that the Parquet files are those of the manifest, by their sizes.

    Raises:
        DataError: If not.
    """
    there = {
        name: size
        for name, size in folder.sizes().items()
        if name.startswith("split=") and name.endswith(".parquet")
    }
    for name in sorted({*files, *there}):
        if name not in files:
            raise DataError(f"{folder} has a file that its {MANIFEST} does not know: {name}.")
        if there.get(name) != files[name]:
            found = f"has {there[name]} bytes" if name in there else "is missing"
            raise DataError(
                f"{folder} is not whole: {name} {found}, and should have {files[name]} bytes; copy "
                "it or prepare it again."
            )


def locate(name: str, root: str | None) -> Source | Shards:
    """Finds and checks a data set: a prepared shard folder, a raw data root or an embedded one.

    Args:
        name: as in `--data NAME=DIR`.
        root: its folder or URL; None for the embedded data sets.

    Raises:
        DataError: If it is none of these, or a shard folder of another data set.
    """
    if root is None:
        return open_source(name)
    folder = Folder.at(root)
    try:
        prepared = folder.holds(MANIFEST)
    except OSError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"--data {name}={root}: it cannot be reached ({reason}).") from None
    if not prepared:
        if not folder.is_local:
            raise DataError(
                f"--data {name}={root}: this is no prepared shard folder; raw pictures behind a "
                f"URL are prepared first, by python -m dsn_ray.prepare {name}={root} --out ..."
            )
        return open_source(name, Path(folder.path))
    shards = read_manifest(folder)
    if shards.name != name:
        raise DataError(f"--data {name}={root}: these shards hold {shards.name}.")
    return shards


def open_shards(found: Source | Shards) -> Shards:
    """The shards of a data set; raw pictures are prepared into the user's cache, once."""
    if isinstance(found, Shards):
        return found
    from dsn_ray.data.preparing import prepare_shards

    folder = f"{found.name.replace(':', '-')}-{FORMAT}-{found.fingerprint()[:16]}"
    return prepare_shards(found, Folder.at(cache_folder() / folder))
