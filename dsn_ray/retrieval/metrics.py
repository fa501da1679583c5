"""How good a ranking is: mAP@all and Prec@K under two protocols, with ties treated fairly.

Items at the same distance have no order of their own, and binary codes tie often. Plain AP and
Prec@K are therefore given as their exact expectation over a random order of every tie; the
VOC-interpolated AP has no closed form and takes one seeded shuffle of the gallery.

For a hit whose tie group holds `n` items, `h` of them hits, behind `N` nearer items, `H` of them
hits: it stands at each of the ranks `N + 1 ... N + n` with probability `1 / n`, and standing at
`N + j` it has on average `H + 1 + (j - 1) s` hits up to its own rank, with `s = (h - 1) / (n - 1)`.
The expected precision at this hit is the mean of their quotients over j. With `S` the sum of
`1 / (N + j)` it is

    (s n + (H + 1 - s (N + 1)) S) / n

and the expected AP is its mean over the hits. The hit is among the first K with probability
`(K - N) / n`, held to 0 ... 1; the sum over the hits, divided by K, is the expected Prec@K.
"""

import warnings
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dsn_ray.errors import DataWarning
from dsn_ray.retrieval.itq import Features, Variant, feature_matrix, fit_itq

ItqFit = Literal["queries", "gallery"]


class _Coding(NamedTuple):
    """How a protocol makes binary codes."""

    variant: Variant
    fit: ItqFit
    own_means: bool  # each side is centred by its own mean, else both by that of the fit


_CODING = {
    "published": _Coding("release", "queries", own_means=True),
    "standard": _Coding("textbook", "gallery", own_means=False),
}

# Cosines nearer than one step are ties. A step is far above float64's rounding, which would split
# true ties, and far below what float32 features can tell apart.
_COSINE_STEP = 2.0**-30
_BLOCK_ELEMENTS = 1 << 22  # distances held at once; their keys take 32 MiB


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
    return float(_average_precision(np.flatnonzero(flags) + 1, interpolated))


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

    def rate(query_side: NDArray[Any], gallery_side: NDArray[Any]) -> NDArray[np.float64]:
        return rate_queries(
            query_side, query_classes, gallery_side, gallery_classes, precision_at, seed
        )

    queries, gallery = unit_rows(queries), unit_rows(gallery)
    real = rate(queries, gallery)
    ratings = {("real", "published"): real, ("real", "standard"): real}
    if binary:
        for protocol, coding in _CODING.items():
            coding = coding._replace(variant=itq_variant or coding.variant)
            fit = coding.fit if itq_fit is None else itq_fit
            corners = _binary_codes(queries, gallery, coding, fit, seed)
            ratings["binary", protocol] = rate(*map(unit_rows, corners))

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
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit rows of both sides to corners of the cube."""
    if isinstance(fit, str):
        basis = {"queries": queries, "gallery": gallery}[fit]
    else:
        basis = unit_rows(feature_matrix(fit, "itq_fit"))
    fitted = fit_itq(basis, queries.shape[1], seed=seed, variant=coding.variant)
    encoders = [fitted, fitted]
    if coding.own_means:
        encoders = [replace(fitted, mean=side.mean(axis=0)) for side in (queries, gallery)]
    return _signs(encoders[0].encode(queries)), _signs(encoders[1].encode(gallery))


def rate_rankings(
    distances: NDArray[np.int64], hits: NDArray[np.intp], tie_order: NDArray[np.intp], k: int
) -> NDArray[np.float64]:
    """Rate the rankings of queries that share their class.

    Args:
        distances: `[B, G]`, integers from 0 to 2^31; overwritten.
        hits: `[R]`, the gallery columns of the queries' class, R >= 1.
        tie_order: `[G]`, a permutation; at equal distance the smaller number ranks first.
        k: K of Prec@K.

    Returns:
        `[3, B]`: expected AP, VOC-interpolated AP in the given tie order, expected Prec@K. The
        module's docstring has the formulas.
    """
    size = distances.shape[1]
    keys = distances  # a key is distance * G + tie order: sorted values, without their indices
    keys *= size
    keys += tie_order
    hit_keys = np.sort(np.take(keys, hits, axis=1), axis=1)
    keys.sort(axis=1)

    first_key = hit_keys - hit_keys % size
    above = _count_below(keys, first_key)
    tied = _count_below(keys, first_key + size) - above
    hits_above = _count_below(hit_keys, first_key)
    hits_tied = _count_below(hit_keys, first_key + size) - hits_above
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, size + 1))])

    # Alone in its group a hit may take any share; 1 keeps the rounding out of a perfect ranking.
    share = np.divide(hits_tied - 1, tied - 1, out=np.ones(tied.shape), where=tied > 1)
    reciprocals = harmonic[above + tied] - harmonic[above]
    precision = (share * tied + (hits_above + 1 - share * (above + 1)) * reciprocals) / tied
    positions = _count_below(keys, hit_keys) + 1
    return np.stack(
        [
            precision.mean(axis=1),
            _average_precision(positions, interpolated=True),
            np.clip((k - above) / tied, 0, 1).sum(axis=1) / k,
        ]
    )


def rate_queries(
    queries: NDArray[np.float64],
    query_labels: NDArray[np.integer[Any]],
    gallery: NDArray[np.float64],
    gallery_labels: NDArray[np.integer[Any]],
    k: int,
    seed: int,
) -> NDArray[np.float64]:
    """Rate every query by what `rate_rankings` gives, in blocks.

    Args:
        queries: `[Q, D]`, unit rows.
        query_labels: `[Q]`, each of which the gallery has.
        gallery: `[G, D]`, unit rows.
        gallery_labels: `[G]`.
        k: K of Prec@K.
        seed: draws the tie order of the interpolated AP.

    Returns:
        `[3, Q]`: expected AP, VOC-interpolated AP, expected Prec@K.
    """
    tie_order = np.random.default_rng(seed).permutation(len(gallery))
    block_rows = max(1, _BLOCK_ELEMENTS // len(gallery))
    columns = torch.from_numpy(gallery).T
    ratings = np.empty((3, len(queries)))
    for label in np.unique(query_labels):
        members = np.flatnonzero(query_labels == label)
        hits = np.flatnonzero(gallery_labels == label)
        for start in range(0, len(members), block_rows):
            block = members[start : start + block_rows]
            cosines = torch.from_numpy(queries[block]) @ columns
            steps = cosines.sub_(1).div_(-_COSINE_STEP).round_().long().numpy()
            ratings[:, block] = rate_rankings(steps, hits, tie_order, k)
    return ratings


def _average_precision(positions: NDArray[np.integer[Any]], interpolated: bool) -> Any:
    """AP from the ascending ranks (from 1) of the hits, along the last axis."""
    precision = np.arange(1, positions.shape[-1] + 1) / positions
    if interpolated:
        precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)
    return precision.mean(axis=-1)


def _count_below(sorted_rows: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each value, how many entries of its own row are smaller."""
    return torch.searchsorted(torch.from_numpy(sorted_rows), torch.from_numpy(values)).numpy()


def _mean_of_class_means(
    values: NDArray[np.float64], labels: NDArray[np.integer[Any]]
) -> np.floating[Any]:
    return np.mean([values[labels == label].mean() for label in np.unique(labels)])


def unit_rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to length 1; a row of zeros stays, at cosine 0 to everything."""
    tiny = np.finfo(np.float64).tiny
    safe = vectors / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), tiny)
    return safe / np.maximum(np.linalg.norm(safe, axis=1, keepdims=True), tiny)


def _signs(codes: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Codes as corners of the cube: their cosine orders them, ties included, as Hamming does."""
    return np.where(codes, 1.0, -1.0)


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
