"""What lies behind a checkpoint's numbers: per class, per recall, and the photos that were found.

They are of real-valued codes, plain AP, and a gallery with each photo once.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from dsn_ray.data.storage import Folder
from dsn_ray.figures import Tile, grid
from dsn_ray.rating import Embedded
from dsn_ray.retrieval.curves import RECALLS, class_similarity, precision_recall
from dsn_ray.retrieval.metrics import unit_rows
from dsn_ray.retrieval.ranking import rate_cosines

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABOUT, PER_CLASS, RECALL, SIMILARITY = (
    "about.json",
    "per_class.csv",
    "precision_recall.csv",
    "similarity.csv",
)
CHOSEN, WORST = "retrievals", "worst"
"""Pictures, `.png`, and what they show, `.csv`."""
_SHOWN, _NEAREST = 10, 10  # rows and photos of a picture, as in the paper's Figure 5
_FOUND = "sketch", "class", "AP", "rank", "photo", "its class", "cosine", "right"


def chosen_queries(queries: Embedded) -> "NDArray[np.intp]":
    """The first query of some classes."""
    _, firsts = np.unique(queries.labels, return_index=True)
    count = min(_SHOWN, len(firsts))
    return np.asarray(firsts[np.arange(count) * len(firsts) // count])


class Found(NamedTuple):
    """What a query found; rows are places in the queries and in the gallery."""

    query: int
    photos: "NDArray[np.intp]"
    cosines: "NDArray[np.float64]"


def nearest(queries: Embedded, gallery: Embedded, shown: Iterable[int]) -> list[Found]:
    """The ten photos nearest to each of some queries."""
    asked, there = (unit_rows(side.values.astype(np.float64)) for side in (queries, gallery))
    found = []
    for query in shown:
        cosines = there @ asked[query]
        photos = np.argsort(-cosines, kind="stable")[:_NEAREST]
        found.append(Found(query, photos, cosines[photos]))
    return found


def draw(
    queries: Embedded, gallery: Embedded, found: Iterable[Found], classes: Sequence[str]
) -> Image.Image:
    """Queries and the photos they found, with their classes, wrong ones framed red (Figure 5)."""
    tables = {id(side): side.pictures.table() for side in (queries, gallery)}

    def tile(side: Embedded, row: int, frame: str | None = None) -> Tile:
        table = tables[id(side)]
        place = int(np.flatnonzero(table.ids == side.ids[row])[0])
        pixels = np.ascontiguousarray(table.pixels(place).transpose(1, 2, 0))
        return Tile(Image.fromarray(pixels), classes[side.labels[row]], frame)

    return grid(
        [
            [
                tile(queries, query),
                *(
                    tile(
                        gallery,
                        row,
                        None if gallery.labels[row] == queries.labels[query] else "red",
                    )
                    for row in photos
                ),
            ]
            for query, photos, _ in found
        ]
    )


def write_details(
    folder: Folder,
    about: dict[str, Any],
    classes: Sequence[str],
    queries: Embedded,
    gallery: Embedded,
) -> None:
    """Writes all files of a folder, `about.json` last.

    Args:
        folder: where they go.
        about: what they are of.
        classes: name of each label.
        queries: the sketches.
        gallery: the photos.
    """
    asked = queries.where(np.isin(queries.labels, gallery.labels))
    units = [unit_rows(side.values.astype(np.float64)) for side in (asked, gallery)]
    average, *_ = rate_cosines(units[0], asked.labels, units[1], gallery.labels, k=100, seed=0)
    sides = asked.values, asked.labels, gallery.values, gallery.labels

    per_class = [
        (
            classes[label],
            int(mine.sum()),
            int((gallery.labels == label).sum()),
            average[mine].mean(),
        )
        for label in np.unique(asked.labels)
        for mine in [asked.labels == label]
    ]
    folder.write(PER_CLASS, _table(["class", "sketches", "photos", "AP"], per_class))
    curve = zip(RECALLS.round(2), precision_recall(*sides), strict=True)
    folder.write(RECALL, _table(["recall", "precision"], curve))
    similar = class_similarity(*sides, len(classes))
    named = ([name, *row] for name, row in zip(classes, similar, strict=True))
    folder.write(SIMILARITY, _table(["sketches of", *classes], named))
    shown = {CHOSEN: chosen_queries(asked), WORST: _worst(average, asked.labels)}
    for name, chosen in shown.items():
        found = nearest(asked, gallery, chosen)
        folder.write(f"{name}.png", _png(draw(asked, gallery, found, classes)))
        folder.write(f"{name}.csv", _table(_FOUND, _found(asked, gallery, found, average, classes)))
    folder.write(ABOUT, json.dumps(about).encode())


def _found(
    queries: Embedded,
    gallery: Embedded,
    found: Iterable[Found],
    average: "NDArray[np.float64]",
    classes: Sequence[str],
) -> Iterator[tuple[Any, ...]]:
    """A line for each photo of a picture, as `_FOUND` names its columns."""
    for query, photos, cosines in found:
        asked = queries.ids[query], classes[queries.labels[query]], average[query]
        for rank, (photo, cosine) in enumerate(zip(photos, cosines, strict=True), start=1):
            right = gallery.labels[photo] == queries.labels[query]
            name = classes[gallery.labels[photo]]
            yield *asked, rank, gallery.ids[photo], name, cosine, "yes" if right else "no"


def _worst(average: "NDArray[np.float64]", labels: "NDArray[np.int64]") -> "NDArray[np.intp]":
    """The worst query of each of the classes whose worst is worst."""
    order = np.argsort(average, kind="stable")
    _, firsts = np.unique(labels[order], return_index=True)
    return np.asarray(order[np.sort(firsts)[:_SHOWN]])


def _table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{x:.4f}" if isinstance(x, float) else x for x in row])
    return text.getvalue().encode()


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
