"""The teacher's logits of a data set's seen pictures, computed once and kept beside the shards."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from dsn_ray.config import Config
from dsn_ray.data.catalog import Domain
from dsn_ray.data.pictures import TeacherLogits
from dsn_ray.data.roots import DataError
from dsn_ray.data.shards import Shards
from dsn_ray.data.views import decode

if TYPE_CHECKING:
    from dsn_ray.model.weights import ImagenetWeights

_BATCH = 32
# Of an actor. Two for a CPU leave a little of a node that is full of them, which is what reading
# takes (`READ_CPUS`): of one's own disk only this node can, and without it they wait for ever.
_CPUS = 0.49
_WAY = "2"  # of turning a stored picture into the teacher's input; to be raised when it changes


def teacher_logits(
    shards: Shards,
    config: Config,
    domain: Domain,
    weights: "ray.ObjectRef[ImagenetWeights | None]",
    digest: str | None,
) -> TeacherLogits:
    """What the teacher says of the seen sketches or photos as they are stored.

    The result is kept in the shard folder under the weights' digest and the teacher's picture
    size, with the fingerprint of the pictures inside. One that was made of other pictures or in
    another way, or is incomplete or damaged, is made anew.

    Args:
        shards: the data set.
        config: decides the teacher's backbone and picture size.
        domain: sketches or photos.
        weights: the backbone's.
        digest: of the weights; None for random ones.

    Raises:
        UserError: If the shard folder cannot be written.
    """
    which = digest[:16] if digest else f"random-{config.network.backbone}"
    kept = f"teacher-{domain}-{which}-{config.data.teacher_px}.parquet"
    table = _kept(shards, domain, kept)
    if table is None:
        table = _compute(shards, config, weights, domain, kept)
    logits = np.frombuffer(b"".join(table["logits"].to_pylist()), np.float16)
    return TeacherLogits(table["id"].to_numpy(), logits.reshape(len(table), -1))


def _origin(shards: Shards) -> dict[str, str]:
    return {"fingerprint": shards.fingerprint, "as_raw": str(shards.kept), "way": _WAY}


def _kept(shards: Shards, domain: Domain, name: str) -> pa.Table | None:
    if not shards.folder.holds(name):
        return None
    try:
        table = pq.read_table(pa.BufferReader(shards.folder.read(name)))
    except pa.ArrowInvalid:
        return None
    origin = {key.encode(): value.encode() for key, value in _origin(shards).items()}
    fits = origin.items() <= (table.schema.metadata or {}).items()
    return table if fits and len(table) == shards.counts[f"seen/{domain}"] else None


def _compute(
    shards: Shards,
    config: Config,
    weights: "ray.ObjectRef[ImagenetWeights | None]",
    domain: Domain,
    kept: str,
) -> pa.Table:
    cluster = ray.cluster_resources()
    on_gpu = cluster.get("GPU", 0) >= 1
    rows = shards.rows("seen", domain).select_columns(["id", "encoded"])
    judged = rows.map_batches(
        _Judge,
        fn_constructor_kwargs={
            "config": config,
            "weights": weights,
            "device": "cuda" if on_gpu else "cpu",
        },
        batch_size=_BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=int(cluster["GPU"] if on_gpu else max(1, cluster.get("CPU", 1)))
        ),
        num_gpus=1 if on_gpu else 0,
        num_cpus=_CPUS,
    )
    table = pa.concat_tables(ray.get(judged.to_arrow_refs())).sort_by("id")
    table = table.replace_schema_metadata(_origin(shards))
    try:
        with shards.folder.writing(kept) as stream:
            pq.write_table(table, stream)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"{shards.folder}: the teacher's logits cannot be written there ({reason})."
        ) from None
    return table


class _Judge:
    """Decodes photos and asks the teacher."""

    def __init__(
        self, config: Config, weights: "ray.ObjectRef[ImagenetWeights | None]", device: str
    ) -> None:
        import torch

        from dsn_ray.model import Teacher

        self.device = device
        self.px = config.data.teacher_px
        self.teacher = Teacher.from_config(config.network, ray.get(weights)).to(self.device)
        torch.set_num_threads(1)

    def __call__(self, rows: pa.Table) -> pa.Table:
        import torch

        # Always a whole batch: rounding depends on its size, and that on how the shards are read.
        pictures = np.zeros((_BATCH, 3, self.px, self.px), np.uint8)
        for picture, cell in zip(pictures, rows["encoded"], strict=False):
            picture[:] = decode(cell.as_py(), self.px)
        logits = self.teacher.logits(torch.from_numpy(pictures).to(self.device))[: len(rows)]
        cells = [row.tobytes() for row in logits.half().cpu().numpy()]
        return pa.table({"id": rows["id"], "logits": pa.array(cells, pa.binary())})
