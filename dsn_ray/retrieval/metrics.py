"""How good a search is: mAP@all and Prec@K under two protocols."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dsn_ray.errors import DataWarning
from dsn_ray.retrieval.itq import Features, Variant, feature_matrix, fit_itq
from dsn_ray.retrieval.ranking import precision_means, rate_codes, rate_cosines

ItqFit = Literal["queries", "gallery"]


class _Coding(NamedTuple):
    """How a protocol makes binary codes."""

    variant: Variant
    fit: ItqFit
    own_means: bool  # each side is centred by its own mean, else both by that of the fit


class Ranks(NamedTuple):
    """Processes on machines alike that each rate a part of the queries.

    Attributes:
        rank: of this one.
        world: how many there are.
        gather: takes this one's part and gives those of all, in their order.
    """

    rank: int
    world: int
    gather: Callable[[Any], list[Any]]


ALONE = Ranks(0, 1, lambda part: [part])

_CODING = {
    "published": _Coding("release", "queries", own_means=True),
    "standard": _Coding("textbook", "gallery", own_means=False),
}


def average_precision(relevant_in_rank_order: ArrayLike, interpolated: bool = False) -> float:
    """Average precision of one ranking: the mean over the hits of the precision at the hit.

    Args:
        relevant_in_rank_order: one flag (bool, 0 or 1) per ranked item, best first.
        interpolated: replace each precision by the largest at its own or a later rank, as the
            PASCAL VOC challenge does since 2010.

    Raises:
        ValueError: if there is no relevant item or the argument is not a row of flags.

    Examples:
        >>> average_precision([0, 1, 1])
        0.5833333333333333
        >>> average_precision([0, 1, 1], interpolated=True)
        0.6666666666666666
    """
    flags = np.asarray(relevant_in_rank_order)
    if flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
        raise ValueError("relevant_in_rank_order must be one row of flags, each 0 or 1")
    if not flags.any():
        raise ValueError("relevant_in_rank_order must hold at least one relevant item")
    return float(precision_means(np.flatnonzero(flags) + 1, interpolated))


def evaluate_features(
    query_features: Features,
    query_labels: ArrayLike | torch.Tensor,
    gallery_features: Features,
    gallery_labels: ArrayLike | torch.Tensor,
    *,
    precision_at: int = 100,
    seed: int = 0,
    binary: bool = True,
    itq_variant: Variant | None = None,
    itq_fit: ItqFit | Features | None = None,
    ranks: Ranks = ALONE,
) -> list[dict[str, Any]]:
    """Search the gallery with every query and rate the rankings.

    Real-valued codes are compared by cosine, binary ones by Hamming distance: ITQ of the features
    at length 1, as many bits as dimensions. A gallery item is a hit where its label equals the
    query's.

    - Protocol `published`: VOC-interpolated AP, averaged over the queries of a class and then over
      classes, Prec@K likewise; ITQ variant `release`, fitted on the queries, each side centred by
      its own mean.
    - Protocol `standard`: plain AP, averaged over all queries; textbook ITQ, fitted on the gallery,
      whose mean centres both sides.

    Ties are `expected` (exact mean over random tie order) or, for the interpolated AP, `shuffled`:
    broken by `numpy.random.default_rng(seed).permutation(G)`, the smaller number first. Queries
    without any hit in the gallery are left out, the fit included, with a warning.

    Args:
        query_features: `[Q, D]`, array or tensor of any float type.
        query_labels: `[Q]`, integers.
        gallery_features: `[G, D]`.
        gallery_labels: `[G]`, integers.
        precision_at: K of Prec@K, which always divides by K.
        seed: draws ITQ's first rotation and the tie order of the interpolated AP.
        binary: rate binary codes too; fitting ITQ costs a singular value decomposition `[D, D]` per
            iteration, too much for features of a thousand dimensions.
        itq_variant: instead of the protocols' own, `textbook` or `release`.
        itq_fit: what ITQ is fitted on instead, `queries`, `gallery` or features `[N, D]` such as
            those of the training pictures.
        ranks: all of which call this with the same arguments and get the same rows.

    Returns:
        Eight rows, codes x protocol x metric, or four without the binary ones; each a dict with the
        keys `codes`, `protocol`, `metric`, `value`, `queries`, `gallery`, `dim` and `ties`.

    Raises:
        ValueError: if shapes or lengths do not fit, a side is empty, features are not finite,
            labels are not integers, K is below 1, or no query has a hit in the gallery.
    """
    queries = feature_matrix(query_features, "query_features")
    gallery = feature_matrix(gallery_features, "gallery_features")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            "query_features and gallery_features must have the same number of columns, "
            f"got {queries.shape[1]} and {gallery.shape[1]}"
        )
    query_classes = _label_vector(query_labels, "query_labels", len(queries))
    gallery_classes = _label_vector(gallery_labels, "gallery_labels", len(gallery))
    if not precision_at >= 1:
        raise ValueError(f"precision_at must be at least 1, got {precision_at}")
    _check_fit(itq_fit, queries.shape[1])

    has_hits = np.isin(query_classes, gallery_classes)
    if not has_hits.any():
        raise ValueError("query_labels and gallery_labels must share a label, they have none")
    if not has_hits.all():
        missing = ", ".join(map(str, np.unique(query_classes[~has_hits])))
        warnings.warn(
            f"{(~has_hits).sum()} queries left out: the gallery has no item of their labels "
            f"{missing}",
            DataWarning,
            stacklevel=2,
        )
        queries, query_classes = queries[has_hits], query_classes[has_hits]

    bits = queries.shape[1]

    queries, gallery = unit_rows(queries), unit_rows(gallery)

    def rate(by: Callable[..., NDArray[np.float64]], asked: Any, there: Any) -> NDArray[np.float64]:
        mine = slice(ranks.rank, None, ranks.world)
        part = by(asked[mine], query_classes[mine], there, gallery_classes, precision_at, seed)
        rated = np.empty((3, len(asked)))
        for rank, values in enumerate(ranks.gather(part)):
            rated[:, rank :: ranks.world] = values
        return rated

    real = rate(rate_cosines, queries, gallery)
    ratings = {("real", "published"): real, ("real", "standard"): real}
    if binary:
        for protocol, coding in _CODING.items():
            coding = coding._replace(variant=itq_variant or coding.variant)
            fit = coding.fit if itq_fit is None else itq_fit
            sides = _binary_codes(queries, gallery, coding, fit, seed)
            by = partial(rate_codes, interpolated=protocol == "published")
            ratings["binary", protocol] = rate(by, *sides)

    rows = []
    for (codes, protocol), (plain, interpolated, precision) in ratings.items():
        published = protocol == "published"
        average = interpolated if published else plain
        for metric, values, ties in (
            ("mAP@all", average, "shuffled" if published else "expected"),
            (f"Prec@{precision_at}", precision, "expected"),
        ):
            value = _mean_of_class_means(values, query_classes) if published else values.mean()
            row = {"codes": codes, "protocol": protocol, "metric": metric, "value": float(value)}
            sizes = {"queries": len(queries), "gallery": len(gallery), "dim": bits}
            rows.append({**row, **sizes, "ties": ties})
    return rows


def _check_fit(itq_fit: ItqFit | Features | None, dim: int) -> None:
    if isinstance(itq_fit, str):
        if itq_fit not in get_args(ItqFit):
            raise ValueError(f"itq_fit must be queries, gallery or features, got {itq_fit!r}")
    elif itq_fit is not None:
        columns = feature_matrix(itq_fit, "itq_fit").shape[1]
        if columns != dim:
            raise ValueError(
                f"itq_fit must have {dim} columns, as query_features have, got {columns}"
            )


def _binary_codes(
    queries: NDArray[np.float64],
    gallery: NDArray[np.float64],
    coding: _Coding,
    fit: ItqFit | Features,
    seed: int,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Unit rows of both sides to bits."""
    if isinstance(fit, str):
        basis = {"queries": queries, "gallery": gallery}[fit]
    else:
        basis = unit_rows(feature_matrix(fit, "itq_fit"))
    fitted = fit_itq(basis, queries.shape[1], seed=seed, variant=coding.variant)
    encoders = [fitted, fitted]
    if coding.own_means:
        encoders = [replace(fitted, mean=side.mean(axis=0)) for side in (queries, gallery)]
    return encoders[0].encode(queries), encoders[1].encode(gallery)


def _mean_of_class_means(
    values: NDArray[np.float64], labels: NDArray[np.integer[Any]]
) -> np.floating[Any]:
    return np.mean([values[labels == label].mean() for label in np.unique(labels)])


def unit_rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to length 1; a row of zeros stays, at cosine 0 to everything."""
    tiny = np.finfo(np.float64).tiny
    safe = vectors / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), tiny)
    return safe / np.maximum(np.linalg.norm(safe, axis=1, keepdims=True), tiny)


def _label_vector(
    labels: ArrayLike | torch.Tensor, name: str, length: int
) -> NDArray[np.integer[Any]]:
    vector = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    vector = np.asarray(vector)
    if vector.shape != (length,) or not np.issubdtype(vector.dtype, np.integer):
        raise ValueError(
            f"{name} must be {length} integers, one per row of its features, "
            f"got shape {vector.shape} of {vector.dtype}"
        )
    return vector
