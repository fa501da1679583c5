"""Exact search among features: by cosine, or by the Hamming distance of binary codes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dsn_ray.retrieval.itq import fit_itq
from dsn_ray.retrieval.ranking import words

Codes = Literal["real", "binary"]
_Found = Iterator[tuple[int, NDArray[np.intp], NDArray[Any]]]
_Look = Callable[[NDArray[Any], slice, NDArray[np.float64]], _Found]

_BLOCK_ELEMENTS = 1 << 20  # cosines, or numbers of features, held at once
_BLOCK_CODES = 1 << 16  # codes compared at once, which the cache of a core can keep
_MOST_QUERIES = 64  # for which features are read together
_SAMPLE = 2_048  # rows of the first block; only what is as near as their nearest is looked at
_MOST_FITTED = 20_000  # features that ITQ is fitted on


@dataclass(frozen=True)
class BinaryCodes:
    """Codes of features, by ITQ (Gong & Lazebnik 2011).

    Attributes:
        mean: `[d]`, subtracted before projecting.
        projection: `[d, d]`; a bit is the sign of a projected number.
        packed: uint64 `[n, d / 64]`, the codes.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]
    packed: NDArray[np.uint64]

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.uint64]:
        """Codes of further features."""
        return words((features - self.mean) @ self.projection > 0)


def fit_codes(features: NDArray[np.float32]) -> BinaryCodes:
    """Fits ITQ on the features, or on 20,000 of them drawn by chance, and encodes all."""
    fitted = features
    if len(features) > _MOST_FITTED:
        drawn = np.random.default_rng(0).choice(len(features), _MOST_FITTED, replace=False)
        fitted = features[np.sort(drawn)]
    with threadpool_limits(1, "blas"):  # on a busy machine its threads wait for one another
        itq = fit_itq(fitted, features.shape[1])
        starts = range(0, len(features), _MOST_FITTED)
        blocks = [words(itq.encode(features[start : start + _MOST_FITTED])) for start in starts]
    return BinaryCodes(itq.mean, itq.projection, np.concatenate(blocks))


class Index:
    """Features to search.

    Attributes:
        features: float32 `[n, d]`, each of length 1.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        codes: Callable[[NDArray[np.float32]], BinaryCodes] = fit_codes,
    ) -> None:
        """Fits nothing yet.

        Args:
            features: as they come from `at_length_one`.
            codes: makes binary codes of them, when these are first asked for.
        """
        self.features, self._codes = features, codes

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def binary(self) -> BinaryCodes:
        """The binary codes of all features."""
        return self._codes(self.features)

    def search(
        self, queries: NDArray[np.float32], top: int, codes: Codes = "real"
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Finds the nearest features, every one compared.

        Args:
            queries: `[q, d]`.
            top: how many for each; fewer where there are fewer.
            codes: compare by cosine or by Hamming distance.

        Returns:
            `[q, top]` rows, nearest first, equally near ones in their order; and `[q, top]`
            cosines, or bits that differ. What is found for a query does not depend on the others.

        Raises:
            ValueError: If a query is not finite.
        """
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite")
        top = min(top, len(self))
        wanted: NDArray[Any] = at_length_one(queries)
        look: _Look = self._by_cosine
        if codes == "binary":
            wanted, look = self.binary.encode(wanted), self._by_bits
        rows = np.zeros((len(queries), top), np.intp)
        distances = np.zeros((len(queries), top))
        for first in range(0, len(queries), _MOST_QUERIES):
            some = wanted[first : first + _MOST_QUERIES]
            size = _BLOCK_CODES if codes == "binary" else _BLOCK_ELEMENTS // len(some)
            size = max(size, top)  # so that after the first block each query has `top` rows
            for start in range(0, len(self), size):
                block = slice(start, start + size)
                so_far = distances[first : first + len(some)]
                for query, near, distance in look(some, block, so_far):
                    row = first + query
                    if start:
                        near = np.concatenate([rows[row], near + start])
                        distance = np.concatenate([distances[row], distance])
                    nearest = distance.argsort(kind="stable")[:top]
                    rows[row], distances[row] = near[nearest], distance[nearest]
        return rows, distances if codes == "binary" else -distances

    def _by_cosine(
        self, queries: NDArray[np.float32], block: slice, so_far: NDArray[np.float64]
    ) -> _Found:
        """In float32, which rounds by the place of a row; what may be nearest, again in float64.

        Args:
            queries: `[q, d]`.
            block: the rows to compare.
            so_far: `[q, top]`, the least distances in the blocks before, ascending.

        Yields:
            For each query that the block may have one of the nearest for: its number, rows counted
            from the block's start, ascending, and their negative cosines.
        """
        features, top = self.features[block], so_far.shape[1]
        rounding = features.shape[1] * np.finfo(np.float32).eps
        cosines = torch.from_numpy(queries) @ torch.from_numpy(features).T
        if block.start:
            least = (-so_far[:, -1] - rounding).astype(np.float32)
        else:
            sample = cosines[:, : max(_SAMPLE, top)]
            least = sample.topk(top, dim=1).values[:, -1].numpy() - rounding
        of_query = cosines.numpy()
        for query in (cosines.amax(dim=1).numpy() >= least).nonzero()[0].tolist():
            near = (of_query[query] >= least[query]).nonzero()[0]
            if len(near) > top:
                of_near = of_query[query, near]
                near = near[of_near >= np.partition(of_near, -top)[-top] - rounding]
            yield query, near, -_cosines(features, near, queries[query])

    def _by_bits(
        self, queries: NDArray[np.uint64], block: slice, so_far: NDArray[np.float64]
    ) -> _Found:
        """As `_by_cosine`, of codes `[q, d / 64]`; what is as near as one before is not nearer."""
        packed, top = self.binary.packed[block].T, so_far.shape[1]
        for query, code in enumerate(queries):
            distance = np.zeros(packed.shape[1], np.uint16)
            for theirs, mine in zip(packed, code, strict=True):
                distance += np.bitwise_count(theirs ^ mine)
            if block.start:
                near = (distance < int(so_far[query, -1])).nonzero()[0]
            else:
                sample = distance[: max(_SAMPLE, top)]
                near = (distance <= np.partition(sample, top - 1)[top - 1]).nonzero()[0]
            if len(near):
                yield query, near, distance[near]


def _cosines(
    features: NDArray[np.float32], rows: NDArray[np.intp], query: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Cosines `[len(rows)]` of features `[n, d]` with a query `[d]`, in float64."""
    cosines = np.empty(len(rows))
    size = max(1, _BLOCK_ELEMENTS // len(query))
    for start in range(0, len(rows), size):
        block = slice(start, start + size)
        cosines[block] = (features[rows[block]].astype(np.float64) * query).sum(axis=1)
    return cosines


def at_length_one(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales each row to length 1."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)
