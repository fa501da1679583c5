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
_Found = Iterator[tuple[NDArray[np.intp], NDArray[Any]]]

_BLOCK_ELEMENTS = 1 << 22  # cosines held at once
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
        """
        top = min(top, len(self))
        look = self._by_bits if codes == "binary" else self._by_cosine
        rows, values = [], []
        for near, distance in look(at_length_one(queries), top):
            nearest = np.argsort(distance, kind="stable")[:top]
            rows.append(near[nearest])
            values.append(distance[nearest])
        scores = np.array(values, np.float64)
        return np.array(rows), scores if codes == "binary" else -scores

    def _by_cosine(self, queries: NDArray[np.float32], top: int) -> _Found:
        """In float32, which rounds by the place of a row; what may be nearest, again in float64."""
        rounding = self.features.shape[1] * np.finfo(np.float32).eps
        features = torch.from_numpy(self.features)
        block = max(1, _BLOCK_ELEMENTS // len(self))
        for start in range(0, len(queries), block):
            some = queries[start : start + block]
            cosines = torch.from_numpy(some) @ features.T
            least = cosines.topk(top, dim=1).values[:, -1:] - rounding
            for query, may_be in zip(some, (cosines >= least).numpy(), strict=True):
                near = np.flatnonzero(may_be)
                yield near, -(self.features[near].astype(np.float64) * query).sum(axis=1)

    def _by_bits(self, queries: NDArray[np.float32], top: int) -> _Found:
        for code in self.binary.encode(queries):
            distance = np.zeros(len(self), np.uint16)
            for theirs, mine in zip(self.binary.packed.T, code, strict=True):
                distance += np.bitwise_count(theirs ^ mine)
            near = np.flatnonzero(distance <= np.partition(distance, top - 1)[top - 1])
            yield near, distance[near]


def at_length_one(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales each row to length 1."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)
