"""How long rating takes at the size of Sketchy's unseen classes, beside the plain procedure.

    python -m benchmarks.evaluation [--size sketchy|quickdraw] [--sample N]

Both protocols, real and binary codes. The plain procedure is the one of public code, from the
definitions: scipy's `cdist`, then for each query an `argsort` and, for the interpolated AP of the
protocol `published`, a loop over the ranks. It rates a sample of the queries, whose time is
multiplied up; fitting ITQ is not counted against it, but against us. Ours runs in a process of its
own, whose peak memory is told. Where ties of binary codes have no order, our numbers are
expectations, which the plain procedure does not know; tests hold these against slow loops.
"""

import argparse
import multiprocessing
import resource
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial.distance import cdist

from dsn_ray.retrieval import evaluate_features
from dsn_ray.retrieval.itq import fit_itq
from dsn_ray.retrieval.metrics import unit_rows

DIM, TOP = 64, 100
SIZES = {"sketchy": (15_229, 17_101, 25), "quickdraw": (92_291, 54_151, 30)}
Sides = tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64]]


def features_of(size: str) -> Sides:
    """Queries and gallery around the middles of their classes, with labels."""
    queries, photos, classes = SIZES[size]
    random = np.random.default_rng(0)
    middles = random.standard_normal((classes, DIM), np.float32)

    def side(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        labels = random.integers(0, classes, count)
        return middles[labels] + 2.5 * random.standard_normal((count, DIM), np.float32), labels

    return *side(queries), *side(photos)


def interpolated_ap(hits: NDArray[np.bool_]) -> float:
    """As PASCAL VOC has it since 2010: precision made to fall, times the steps of recall."""
    found = np.cumsum(hits)
    recall = np.concatenate([[0.0], found / found[-1], [1.0]])
    precision = np.concatenate([[0.0], found / np.arange(1, len(hits) + 1), [0.0]])
    for rank in range(len(precision) - 1, 0, -1):
        precision[rank - 1] = max(precision[rank - 1], precision[rank])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1]))


def rate_plainly(sides: Sides, codes: str) -> NDArray[np.float64]:
    """Plain AP, Prec@100 and, but for textbook codes, interpolated AP of each query."""
    queries, labels, gallery, classes = sides
    distance = "cosine" if codes == "real" else "hamming"
    kind: Any = "stable" if codes == "binary" else None  # our ties have the gallery's order
    rated = []
    for row, label in zip(cdist(queries, gallery, distance), labels, strict=True):
        hits = classes[np.argsort(row, kind=kind)] == label
        ranks = np.flatnonzero(hits) + 1
        plain = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        interpolated = [] if codes == "textbook" else [interpolated_ap(hits)]
        rated.append((plain, hits[:TOP].mean(), *interpolated))
    return np.array(rated)


def plain_procedure(sides: Sides) -> tuple[float, dict[tuple[str, str, str], float]]:
    """Seconds, and those of its numbers in which ties have an order."""
    queries, labels, gallery, classes = sides
    ties = np.argsort(np.random.default_rng(0).permutation(len(gallery)))
    gallery, classes = gallery[ties], classes[ties]
    unit = [unit_rows(side.astype(np.float64)) for side in (queries, gallery)]
    took = 0.0
    rated = {}
    for codes, basis in (("real", None), ("binary", unit[0]), ("textbook", unit[1])):
        coded = unit
        if basis is not None:
            itq = fit_itq(basis, DIM, variant="release" if codes == "binary" else "textbook")
            means = [(side if codes == "binary" else basis).mean(axis=0) for side in unit]
            coded = [
                (side - mean) @ itq.projection > 0 for side, mean in zip(unit, means, strict=True)
            ]
        started = time.perf_counter()
        rated[codes] = rate_plainly((coded[0], labels, coded[1], classes), codes)
        took += time.perf_counter() - started

    def by_class(values: NDArray[np.float64]) -> float:
        return float(np.mean([values[labels == label].mean() for label in np.unique(labels)]))

    return took, {
        ("real", "published", "mAP@all"): by_class(rated["real"][:, 2]),
        ("real", "published", f"Prec@{TOP}"): by_class(rated["real"][:, 1]),
        ("real", "standard", "mAP@all"): float(rated["real"][:, 0].mean()),
        ("real", "standard", f"Prec@{TOP}"): float(rated["real"][:, 1].mean()),
        ("binary", "published", "mAP@all"): by_class(rated["binary"][:, 2]),
    }


def ours(sides: Sides) -> tuple[float, float, dict[tuple[str, str, str], float]]:
    """Seconds, GiB at the peak and all numbers."""
    started = time.perf_counter()
    rows = evaluate_features(*sides, precision_at=TOP)
    took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return took, peak, {(r["codes"], r["protocol"], r["metric"]): r["value"] for r in rows}


def ours_alone(size: str) -> tuple[float, float]:
    """Seconds and GiB for all queries of a size."""
    took, peak, _ = ours(features_of(size))
    return took, peak


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="sketchy")
    parser.add_argument("--sample", type=int, default=300, metavar="N")
    parsed = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        took, peak = alone.apply(ours_alone, (parsed.size,))
    queries, labels, gallery, classes = features_of(parsed.size)
    chosen = np.random.default_rng(1).permutation(len(queries))[: parsed.sample]
    sample = queries[chosen], labels[chosen], gallery, classes
    plain, expected = plain_procedure(sample)
    plain *= len(queries) / parsed.sample
    numbers = ours(sample)[2]
    apart = max(abs(numbers[which] - value) for which, value in expected.items())
    table = Table("queries x photos", "plain", "ours", "ratio", "peak memory", "numbers differ by")
    table.add_row(
        f"{len(queries):,} x {len(gallery):,}",
        f"{plain:.0f} s",
        f"{took:.1f} s",
        f"{plain / took:.0f}",
        f"{peak:.2f} GiB",
        f"{apart:.0e}",
    )
    Console().print(table)


if __name__ == "__main__":
    main()
