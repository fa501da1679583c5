"""A picture of what a network sees: sketches and photos of some classes, in three views each."""

from operator import itemgetter

import numpy as np
from PIL import Image, ImageDraw
from ray.data.expressions import col

from dsn_ray.config import AugmentConfig
from dsn_ray.data.catalog import DOMAINS
from dsn_ray.data.shards import Shards
from dsn_ray.data.views import decode, random_views

_TILE, _GAP, _LABEL = 96, 4, 16
_PER_ROW = 3


def contact_sheet(shards: Shards, classes: int, augment: AugmentConfig, seed: int) -> Image.Image:
    """Draws two rows per class, sketches and photos: three of each, in three views.

    Args:
        shards: the data set.
        classes: number of seen classes, spread over all of them.
        augment: the random views.
        seed: the same seed draws the same views.
    """
    count = min(classes, len(shards.seen_classes))
    chosen = [len(shards.seen_classes) * i // count for i in range(count)]
    pictures = {
        domain: _first_of_classes(shards, domain == "sketch", set(chosen)) for domain in DOMAINS
    }
    width = _PER_ROW * (3 * _TILE + _GAP * 3)
    height = _LABEL + 2 * (_TILE + _GAP)
    sheet = Image.new("RGB", (width, count * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, label in enumerate(chosen):
        draw.text((2, place * height + 2), shards.seen_classes[label], fill="black")
        for row, domain in enumerate(DOMAINS):
            top = place * height + _LABEL + row * (_TILE + _GAP)
            for column, (number, encoded) in enumerate(pictures[domain].get(label, [])):
                random = np.random.default_rng((seed, number))
                views = random_views(decode(encoded, _TILE), domain == "sketch", random, augment)
                left = column * (3 * _TILE + 3 * _GAP)
                for view, pixels in enumerate(views):
                    tile = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
                    sheet.paste(tile, (left + view * (_TILE + 1), top))
    return sheet


def _first_of_classes(
    shards: Shards, of_sketches: bool, labels: set[int]
) -> dict[int, list[tuple[int, bytes]]]:
    """Id and picture of those with the smallest ids of each class."""
    rows = shards.rows("seen", "sketch" if of_sketches else "photo")
    ids: dict[int, list[int]] = {label: [] for label in labels}
    for row in sorted(rows.select_columns(["id", "label"]).take_all(), key=itemgetter("id")):
        some = ids.get(row["label"], [])
        if len(some) < _PER_ROW:
            some.append(row["id"])
    wanted = [number for some in ids.values() for number in some]
    chosen = rows.filter(expr=col("id").is_in(wanted)).select_columns(["id", "encoded"])
    encoded = {row["id"]: row["encoded"] for row in chosen.take_all()}
    return {label: [(number, encoded[number]) for number in some] for label, some in ids.items()}
