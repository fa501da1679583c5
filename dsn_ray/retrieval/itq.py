"""Iterative quantisation (ITQ): real-valued features to binary codes.

Gong & Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR
2011. The features are centred, projected on their principal directions and rotated so that they lie
as near as possible to the corners of the hypercube; a bit is the sign of one rotated coordinate.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Features = ArrayLike | torch.Tensor
Variant = Literal["textbook", "release"]


def feature_matrix(features: Features, name: str) -> NDArray[np.float64]:
    """Check a feature matrix and bring it to numpy float64.

    Args:
        features: `[N, D]`, array or tensor of any float type on any device.
        name: what an error message calls it.

    Raises:
        ValueError: if it is not two-dimensional, is empty or holds NaN or infinity.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float64).numpy()
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions [N, D], got shape {matrix.shape}")
    if matrix.size == 0:
        raise ValueError(f"{name} must hold at least one row and column, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return matrix


@dataclass(frozen=True)
class Itq:
    """A fitted ITQ encoder.

    Attributes:
        mean: `[D]`, subtracted before projecting.
        projection: `[D, bits]`, the principal directions times the rotation; orthonormal columns.
        objective: the quantisation error `||B - V R||^2` after each iteration.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]
    objective: tuple[float, ...]

    def encode(self, features: Features) -> NDArray[np.bool_]:
        """Turn features `[N, D]` into codes `[N, bits]`: True where the projection is positive.

        Raises:
            ValueError: if `features` is not a finite matrix with `D` columns.
        """
        matrix = feature_matrix(features, "features")
        if matrix.shape[1] != len(self.mean):
            raise ValueError(
                f"features must have {len(self.mean)} columns, as the features fitted on, "
                f"got {matrix.shape[1]}"
            )
        return (matrix - self.mean) @ self.projection > 0


def fit_itq(
    features: Features,
    bits: int,
    iterations: int = 50,
    seed: int = 0,
    variant: Variant = "textbook",
) -> Itq:
    """Fit ITQ (Gong & Lazebnik 2011, section 2.2) in float64.

    With V the projected features, each iteration sets the codes `B = sign(V R)` and then the
    rotation R. The textbook R maximises `trace(B^T V R)` (orthogonal Procrustes): `Vh^T U^T` with
    `U, S, Vh` the singular value decomposition of `B^T V`, and the error never rises. A numpy port
    in wide use takes `Vh U^T` because numpy returns that factor already transposed: still a
    rotation, but not the optimum. Published numbers were made with it; it is variant `release`.

    Args:
        features: `[N, D]`; fewer samples than bits are allowed.
        bits: length of the codes, 1 to D.
        iterations: how often codes and rotation are updated.
        seed: draws the first rotation; the same seed gives the same codes.
        variant: `textbook` or `release`.

    Raises:
        ValueError: if an argument is out of its range or `features` is not a finite matrix.
    """
    matrix = feature_matrix(features, "features")
    if not 1 <= bits <= matrix.shape[1]:
        raise ValueError(
            f"bits must be from 1 to {matrix.shape[1]}, the feature dimension, got {bits}"
        )
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")

    mean = matrix.mean(axis=0)
    centred = matrix - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :bits]
    projected = centred @ directions

    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.standard_normal((bits, bits)))
    squared_norms = projected.size + np.square(projected).sum()
    objective = []
    codes = np.empty_like(projected)
    for _ in range(iterations):
        np.matmul(projected, rotation, out=codes)
        np.multiply(codes > 0, 2.0, out=codes)
        codes -= 1.0
        correlation = codes.T @ projected
        u, _, vh = np.linalg.svd(correlation)
        rotation = vh.T @ u.T if variant == "textbook" else vh @ u.T
        objective.append(float(squared_norms - 2 * np.sum(correlation * rotation.T)))
    return Itq(mean, directions @ rotation, tuple(objective))
