"""Rate rankings, query by query: average precision and Prec@K, with ties treated fairly.

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

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Ints = NDArray[np.integer[Any]]

# Cosines nearer than one step are ties. A step is far above float64's rounding, which would split
# true ties, and far below what float32 features can tell apart.
_STEPS_PER_COSINE = 2.0**29
_BLOCK_ELEMENTS = 1 << 20  # distances of a block: some MiB, which the cache of a core can keep


class _Hits(NamedTuple):
    """Where the hits of B queries stand, `[B, R]` each.

    Attributes:
        positions: ranks from 1, ascending, ties in the tie order; None where nobody asks.
        above: items before the hit's tie group.
        tied: items in its tie group, itself included.
        hits_above: hits before the tie group.
        hits_tied: hits in it.
    """

    positions: Ints | None
    above: Ints
    tied: Ints
    hits_above: Ints
    hits_tied: Ints


def rate_cosines(
    queries: NDArray[np.float64],
    query_labels: Ints,
    gallery: NDArray[np.float64],
    gallery_labels: Ints,
    k: int,
    seed: int,
) -> NDArray[np.float64]:
    """Rate every query's ranking by cosine.

    A key is a distance with one bit more that says whether the item is a hit, so that one sort of
    32-bit numbers, without indices, shows where the hits stand. It cannot order hits and others
    at the same distance; rankings that have such a tie are rated as `rate_rankings` does.

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
    size = len(gallery)
    tie_order = np.random.default_rng(seed).permutation(size)
    columns = gallery.T * -_STEPS_PER_COSINE

    def rate(block: Ints, hits: Ints) -> NDArray[np.float64]:
        is_other = np.ones(size, np.uint32)
        is_other[hits] = 0
        steps = queries[block] @ columns
        steps += _STEPS_PER_COSINE
        np.rint(steps, out=steps)
        keys = steps.astype(np.uint32)
        keys <<= 1
        keys |= is_other
        keys.sort(axis=1)
        places = _hit_places(keys & 1 == 0)
        follows = np.minimum(places + 1, size - 1)
        next_keys = np.take_along_axis(keys, follows, axis=1)
        mixed = next_keys == np.take_along_axis(keys, places, axis=1) + 1
        rated = _rate_without_ties(places + 1, k)
        if (rows := mixed.any(axis=1)).any():
            rated[:, rows] = rate_rankings(steps[rows].astype(np.int64), hits, tie_order, k)
        return rated

    return _in_blocks(query_labels, gallery_labels, rate)


def rate_codes(
    queries: NDArray[np.bool_],
    query_labels: Ints,
    gallery: NDArray[np.bool_],
    gallery_labels: Ints,
    k: int,
    seed: int,
    interpolated: bool = True,
) -> NDArray[np.float64]:
    """Rate every query's ranking by Hamming distance; all as in `rate_cosines`.

    There are few distances, so a stable sort by counting keeps the tie order, which the gallery
    stands in, and tie groups are counted. The order is of use to the interpolated AP alone, which
    is NaN without.
    """
    standing = np.argsort(np.random.default_rng(seed).permutation(len(gallery)))
    packed = [words(side) for side in (queries, gallery[standing])]
    distances_there_are = queries.shape[1] + 1
    kind = np.uint8 if distances_there_are <= 256 else np.uint16

    def rate(block: Ints, hits: Ints) -> NDArray[np.float64]:
        distances = np.zeros((len(block), len(gallery)), kind)
        for asked, there in zip(packed[0][block].T, packed[1].T, strict=True):
            distances += np.bitwise_count(asked[:, None] ^ there)
        positions = None
        if interpolated:
            is_hit = np.zeros(len(gallery), bool)
            is_hit[hits] = True
            order = distances.argsort(axis=1, kind="stable")
            positions = _hit_places(is_hit.take(order)) + 1
        of_hits = np.sort(distances[:, hits], axis=1, kind="stable")
        groups = _counts(np.sort(distances, axis=1, kind="stable"), distances_there_are)
        hit_groups = _counts(of_hits, distances_there_are)
        at = of_hits.astype(np.intp)
        each = [
            np.take_along_axis(counts, at, axis=1)
            for sizes in (groups, hit_groups)
            for counts in (sizes.cumsum(axis=1) - sizes, sizes)
        ]
        return _rate(_Hits(positions, *each), len(gallery), k)

    return _in_blocks(query_labels, gallery_labels[standing], rate)


def rate_rankings(
    distances: NDArray[np.int64], hits: Ints, tie_order: Ints, k: int
) -> NDArray[np.float64]:
    """Rate the rankings of queries that share their class, whatever ties.

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
    above, hits_above = (_count_below(rows, first_key) for rows in (keys, hit_keys))
    tied, hits_tied = (
        _count_below(rows, first_key + size) - before
        for rows, before in ((keys, above), (hit_keys, hits_above))
    )
    positions = _count_below(keys, hit_keys) + 1
    return _rate(_Hits(positions, above, tied, hits_above, hits_tied), size, k)


def precision_means(positions: Ints, interpolated: bool) -> Any:
    """AP from the ascending ranks (from 1) of the hits, along the last axis."""
    precision = np.arange(1, positions.shape[-1] + 1) / positions
    if interpolated:
        precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)
    return precision.mean(axis=-1)


def _rate(hits: _Hits, size: int, k: int) -> NDArray[np.float64]:
    """The formulas of the module's docstring."""
    positions, above, tied, hits_above, hits_tied = hits
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, size + 1))])
    # Alone in its group a hit may take any share; 1 keeps the rounding out of a perfect ranking.
    share = np.divide(hits_tied - 1, tied - 1, out=np.ones(tied.shape), where=tied > 1)
    reciprocals = harmonic[above + tied] - harmonic[above]
    precision = (share * tied + (hits_above + 1 - share * (above + 1)) * reciprocals) / tied
    interpolated = np.full(len(tied), np.nan)
    if positions is not None:
        interpolated = precision_means(positions, interpolated=True)
    return np.stack(
        [
            precision.mean(axis=1),
            interpolated,
            np.clip((k - above) / tied, 0, 1).sum(axis=1) / k,
        ]
    )


def _rate_without_ties(positions: Ints, k: int) -> NDArray[np.float64]:
    return np.stack(
        [
            precision_means(positions, interpolated=False),
            precision_means(positions, interpolated=True),
            (positions <= k).sum(axis=1) / k,
        ]
    )


def _in_blocks(
    query_labels: Ints,
    gallery_labels: Ints,
    rate: Callable[[Ints, Ints], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Rates queries of one class at a time, in blocks, on all cores.

    Args:
        query_labels: `[Q]`.
        gallery_labels: `[G]`.
        rate: takes B queries of a class and the gallery's items of that class, gives `[3, B]`.

    Returns:
        `[3, Q]`.
    """
    block_rows = max(1, _BLOCK_ELEMENTS // len(gallery_labels))
    jobs = []
    for label in np.unique(query_labels):
        members = np.flatnonzero(query_labels == label)
        hits = np.flatnonzero(gallery_labels == label)
        starts = range(block_rows, len(members), block_rows)
        jobs += [(rows, hits) for rows in np.split(members, starts)]
    ratings = np.empty((3, len(query_labels)))
    # Each thread multiplies for itself; BLAS's own threads would wait for one another.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, threadpool_limits(1, "blas"):
        rated = pool.map(lambda job: rate(*job), jobs)
        for (rows, _), values in zip(jobs, rated, strict=True):
            ratings[:, rows] = values
    return ratings


def _hit_places(is_hit: NDArray[np.bool_]) -> NDArray[np.intp]:
    """`[B, R]`, the places of the hits in each row of `[B, G]`, which all have as many."""
    rows, size = is_hit.shape
    places = np.flatnonzero(is_hit).reshape(rows, -1)
    places -= np.arange(rows)[:, None] * size
    return places


def _counts(sorted_rows: Ints, most: int) -> NDArray[np.intp]:
    """`[B, most]`, how often each row has each of the numbers 0 to most - 1."""
    numbers = np.arange(most, dtype=sorted_rows.dtype)
    firsts = np.array([row.searchsorted(numbers) for row in sorted_rows])
    return np.diff(firsts, axis=1, append=sorted_rows.shape[1])


def words(codes: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """`[N, W]`, the bits in words of 64, the last one filled up with zeros."""
    packed = np.packbits(codes, axis=1)
    filled = np.zeros((len(codes), -(-packed.shape[1] // 8) * 8), np.uint8)
    filled[:, : packed.shape[1]] = packed
    return filled.view(np.uint64)


def _count_below(sorted_rows: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each value, how many entries of its own row are smaller."""
    return torch.searchsorted(torch.from_numpy(sorted_rows), torch.from_numpy(values)).numpy()
