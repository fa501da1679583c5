"""What one number hides: precision at every recall, and how alike classes look across domains."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsn_ray.retrieval.metrics import unit_rows

RECALLS = np.linspace(0, 1, 101)
"""Where `precision_recall` gives the precision."""

_BLOCK_ELEMENTS = 1 << 22  # cosines held at once


def precision_recall(
    queries: NDArray[np.floating[Any]],
    query_labels: NDArray[np.integer[Any]],
    gallery: NDArray[np.floating[Any]],
    gallery_labels: NDArray[np.integer[Any]],
) -> NDArray[np.float64]:
    """The mean over the queries of the interpolated precision at each of `RECALLS`.

    A query's precision at recall r is the largest that its ranking by cosine has where at least
    that part of its hits is found, as the PASCAL VOC challenge draws it. Equally near photos count
    as if the wrong ones came first. Queries without a hit in the gallery are left out.

    Args:
        queries: `[Q, D]`.
        query_labels: `[Q]`.
        gallery: `[G, D]`.
        gallery_labels: `[G]`.

    Returns:
        `[101]`, never rising.
    """
    sides = [torch.from_numpy(unit_rows(np.asarray(x, np.float64))) for x in (queries, gallery)]
    total, count = np.zeros(len(RECALLS)), 0
    block = max(1, _BLOCK_ELEMENTS // max(1, len(gallery)))
    for label in np.intersect1d(query_labels, gallery_labels):
        members = np.flatnonzero(query_labels == label)
        hits = torch.from_numpy(np.flatnonzero(gallery_labels == label))
        found = torch.arange(1, len(hits) + 1)
        needed = np.clip(np.ceil(RECALLS * len(hits) - 1e-9).astype(int) - 1, 0, None)
        for start in range(0, len(members), block):
            rows = members[start : start + block]
            cosines = sides[0][rows] @ sides[1].T
            of_hits = cosines[:, hits].sort(dim=1, descending=True).values
            nearer_or_equal = len(gallery) - torch.searchsorted(
                cosines.sort(dim=1).values, of_hits.contiguous()
            )
            precision = (found.double() / nearer_or_equal).numpy()
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            total += best[:, needed].sum(axis=0)
            count += len(rows)
    return total / max(1, count)


def class_similarity(
    sketches: NDArray[np.floating[Any]],
    sketch_labels: NDArray[np.integer[Any]],
    photos: NDArray[np.floating[Any]],
    photo_labels: NDArray[np.integer[Any]],
    classes: int,
) -> NDArray[np.float64]:
    """Cosines of each class's mean sketch and mean photo feature (Wang et al., Figure 4).

    Args:
        sketches: `[S, D]`.
        sketch_labels: `[S]`, from 0 to classes - 1.
        photos: `[P, D]`.
        photo_labels: `[P]`, likewise.
        classes: C.

    Returns:
        `[C, C]`: a row for each class of sketches, a column for each class of photos; NaN where a
        class has none.
    """
    means = []
    for features, labels in ((sketches, sketch_labels), (photos, photo_labels)):
        sums = np.zeros((classes, features.shape[1]))
        np.add.at(sums, labels, features)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(sums / np.linalg.norm(sums, axis=1, keepdims=True))
    return np.asarray(means[0] @ means[1].T)
