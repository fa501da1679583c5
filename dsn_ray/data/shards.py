"""Raw pictures to checked Parquet shards, once per data set.

A shard folder holds `manifest.json`, `rejected.jsonl` and Parquet files under
`split=<seen|heldout|unseen>/domain=<sketch|photo>/`, with one row per picture: `id` (place in the
catalogue), `label` (place in its split's class list), `class_name`, `path`, and `encoded`.
"""

import io
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray.data.catalog import DataError, Domain, Source, Split, open_source

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

SHORT_SIDE = 256
_FORMAT = 1
_READ_CPUS = 0.25


@dataclass(frozen=True)
class Shards:
    """A finished shard folder.

    Attributes:
        directory: where it is.
        name: the data set, as in `--data`.
        seen_classes: class of each seen label.
        unseen_classes: class of each unseen label.
        official: whether this is the complete official set.
        semantics: which semantic mask belongs to it.
        fingerprint: of the raw pictures it was made from.
        counts: pictures by `<split>/<domain>`.
        rejected: pictures that did not decode, listed in `rejected.jsonl`.
    """

    directory: Path
    name: str
    seen_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    official: bool
    semantics: str
    fingerprint: str
    counts: dict[str, int]
    rejected: int

    def __str__(self) -> str:
        """What it holds, on one line for people."""
        from dsn_ray.data.catalog import EMBEDDED

        counts = ", ".join(f"{count} {key}" for key, count in self.counts.items() if count)
        embedded = " (embedded demonstration data)" if self.name in EMBEDDED else ""
        lost = ""
        if self.rejected:
            listed = self.directory / "rejected.jsonl"
            lost = f"; {self.rejected} pictures did not decode, see {listed}"
        return f"{self.name}{embedded}: {counts}{lost}"

    def rows(self, split: Split, domain: Domain) -> "ray.data.Dataset":
        """The pictures of one split and domain, as Ray Data reads them from this machine."""
        import ray.data

        folder = self.directory / f"split={split}" / f"domain={domain}"
        return ray.data.read_parquet(
            str(folder),
            partitioning=None,
            override_num_blocks=_blocks(self.counts[f"{split}/{domain}"]),
            num_cpus=_READ_CPUS,
            **_on_this_node(),
        )


def read_manifest(directory: Path) -> Shards:
    """Opens a shard folder.

    Raises:
        DataError: If it is none, or one that another version of the format wrote.
    """
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        if manifest.pop("format") != _FORMAT:
            raise DataError(f"{directory} was prepared in another format; prepare it again.")
        manifest["seen_classes"] = tuple(manifest["seen_classes"])
        manifest["unseen_classes"] = tuple(manifest["unseen_classes"])
        return Shards(directory=directory, **manifest)
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        raise DataError(
            f"{directory} is not a prepared shard folder: its manifest.json is missing or broken."
        ) from None


def prepare_shards(source: Source, out: Path) -> Shards:
    """Reads, checks and stores every picture of a data set with Ray Data.

    Pictures larger than 256 px on their short side are re-encoded at that size. The folder
    appears whole or not at all; where it is already there for the same pictures, nothing is done.

    Args:
        source: the raw data set.
        out: the shard folder to make.

    Raises:
        DataError: If `out` holds shards of other pictures, or no picture decodes.
    """
    import ray.data
    from ray.data.expressions import col

    if (out / "manifest.json").exists():
        found = read_manifest(out)
        if found.fingerprint != source.fingerprint():
            raise DataError(f"{out} already holds shards of other pictures; choose another folder.")
        return found

    labels = {
        "seen": {name: i for i, name in enumerate(source.seen_classes)},
        "unseen": {name: i for i, name in enumerate(source.unseen_classes)},
    }
    labels["heldout"] = labels["seen"]
    rows = [
        {"id": i, "label": labels[record.split][record.class_name], **asdict(record)}
        for i, record in enumerate(source.records)
    ]
    pictures = (
        ray.data.from_items(rows, override_num_blocks=_blocks(len(rows)))
        .map_batches(_Reader(source), batch_size=64, batch_format="pyarrow", **_on_this_node())
        .materialize()
    )
    rejected = pictures.filter(expr=col("reason") != "").drop_columns(["encoded"]).take_all()
    good = pictures.filter(expr=col("reason") == "").drop_columns(["reason"])

    unfinished = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        good.write_parquet(
            str(unfinished),
            partition_cols=["split", "domain"],
            ray_remote_args=_on_this_node(),
        )
        lost = Counter(f"{row['split']}/{row['domain']}" for row in rejected)
        total = Counter(f"{record.split}/{record.domain}" for record in source.records)
        shards = Shards(
            directory=out,
            name=source.name,
            seen_classes=source.seen_classes,
            unseen_classes=source.unseen_classes,
            official=source.official,
            semantics=source.semantics,
            fingerprint=source.fingerprint(),
            counts={key: total[key] - lost[key] for key in sorted(total)},
            rejected=len(rejected),
        )
        for domain in ("sketch", "photo"):
            for split in ("seen", "unseen"):
                if not shards.counts.get(f"{split}/{domain}"):
                    raise DataError(f"{source.name} has no {split} {domain} that decodes.")
        with (unfinished / "rejected.jsonl").open("w", encoding="utf-8") as file:
            for row in sorted(rejected, key=lambda row: int(row["id"])):
                file.write(json.dumps({"path": row["path"], "reason": row["reason"]}) + "\n")
        manifest: dict[str, Any] = {"format": _FORMAT, **asdict(shards)}
        del manifest["directory"]
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (unfinished / "manifest.json").write_text(text, encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        if (out / "manifest.json").exists():
            return read_manifest(out)
        raise DataError(f"{out} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return shards


def _blocks(rows: int) -> int:
    """Enough blocks to keep every CPU busy, none of them tiny."""
    import ray

    return max(1, min(rows // 64, 4 * int(ray.cluster_resources().get("CPU", 1))))


def _on_this_node() -> dict[str, Any]:
    """Remote arguments that keep a task on this node, where the local files are."""
    import ray

    return {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}


class _Reader:
    """Adds the encoded bytes, or the reason why there are none."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        encoded, reasons = [], []
        for number in rows["id"].to_pylist():
            try:
                record = self.source.records[number]
                encoded.append(_at_most(self.source.read(record), record.domain))
                reasons.append("")
            except (ValueError, OSError) as error:
                encoded.append(b"")
                reasons.append(str(error) or type(error).__name__)
        return rows.append_column("encoded", pa.array(encoded, pa.binary())).append_column(
            "reason", pa.array(reasons, pa.string())
        )


def _at_most(encoded: bytes, domain: Domain) -> bytes:
    """Checks that a picture decodes, and re-encodes it where it is larger than need be."""
    from PIL import Image

    from dsn_ray.data.views import open_rgb

    image = open_rgb(encoded)
    short = min(image.size)
    if short <= SHORT_SIDE:
        return encoded
    width, height = (round(side * SHORT_SIDE / short) for side in image.size)
    out = io.BytesIO()
    smaller = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    if domain == "photo":
        smaller.save(out, "JPEG", quality=95)
    else:
        smaller.save(out, "PNG")
    return out.getvalue()


def locate(name: str, root: Path | None) -> Source | Shards:
    """Finds and checks a data set: a prepared shard folder, a raw data root or an embedded one.

    Args:
        name: as in `--data NAME=DIR`.
        root: its folder; None for the embedded data sets.

    Raises:
        DataError: If it is none of these, or a shard folder of another data set.
    """
    if root is None or not (root / "manifest.json").exists():
        return open_source(name, root)
    shards = read_manifest(root)
    if shards.name != name:
        raise DataError(f"--data {name}={root}: these shards hold {shards.name}.")
    return shards


def open_shards(found: Source | Shards) -> Shards:
    """The shards of a data set; raw pictures are prepared into the user's cache, once."""
    if isinstance(found, Shards):
        return found
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsn_ray"
    folder = f"{found.name.replace(':', '-')}-{found.fingerprint()[:16]}"
    return prepare_shards(found, cache / folder)
